/* From the stored bytes of a block to its content, with decoders that are kept for the next one. */
#include <errno.h>
#include <stdlib.h>

/* An entry that cannot be hashed for want of memory is an error, not an exit. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>
#include <utlist.h>

#include "fs/checksum.h"
#include "fs/image_private.h"

struct hfs_decoder_entry {
    uint32_t code;
    unsigned users;
    bool building;
    int error; /* of building it */
    struct hc_decoder *decoder;
    size_t bytes;
    struct hfs_decoder_entry *prev, *next; /* lru */
    UT_hash_handle hh;
};

static void decoder_remove(struct hfs_decoder_cache *c, struct hfs_decoder_entry *e)
{
    HASH_DEL(c->by_code, e);
    DL_DELETE(c->lru, e);
    c->bytes -= e->bytes;
}

static void decoder_free(struct hfs_decoder_entry *e)
{
    hc_decoder_free(e->decoder);
    free(e);
}

void hfs_decoders_init(struct hfs_decoder_cache *c)
{
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->built, NULL);
}

void hfs_decoders_free(struct hfs_decoder_cache *c)
{
    struct hfs_decoder_entry *e, *next;
    DL_FOREACH_SAFE(c->lru, e, next)
    {
        decoder_remove(c, e);
        decoder_free(e);
    }
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->built);
}

/* Drops decoders that nobody uses, the least recently used first. Called with the lock held. */
static void decoders_trim(struct hfs_decoder_cache *c)
{
    struct hfs_decoder_entry *e, *next;
    DL_FOREACH_SAFE(c->lru, e, next)
    {
        if (c->bytes <= HFS_DECODER_CACHE)
            return;
        if (e->users == 0) {
            decoder_remove(c, e);
            decoder_free(e);
        }
    }
}

/* A new entry in the cache, being built by the caller; NULL when out of memory. */
static struct hfs_decoder_entry *decoder_add(struct hfs_decoder_cache *c, uint32_t code)
{
    struct hfs_decoder_entry *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->code = code;
    e->users = 1;
    e->building = true;
    HASH_ADD(hh, c->by_code, code, sizeof e->code, e);
    if (!e->hh.tbl) { /* what uthash leaves when it had no memory */
        free(e);
        return NULL;
    }
    DL_APPEND(c->lru, e);
    return e;
}

/* Builds outside of the lock; whoever wants the same one meanwhile waits in decoder_get. */
static void decoder_build(struct hfs_image *img, struct hfs_decoder_entry *e)
{
    struct hfs_decoder_cache *c = &img->decoders;
    struct hc_decoder *decoder = NULL;
    pthread_mutex_unlock(&c->lock);
    int r = hc_decoder_new(&img->codes[e->code], &decoder);
    r = r == -EINVAL || r == -ERANGE ? -EBADMSG : r; /* a record that no encoder writes */
    pthread_mutex_lock(&c->lock);
    e->building = false;
    e->error = r;
    if (r < 0) {
        decoder_remove(c, e); /* freed by its last user */
    } else {
        e->decoder = decoder;
        e->bytes = sizeof *e + hc_decoder_memory(decoder);
        c->bytes += e->bytes;
    }
    pthread_cond_broadcast(&c->built);
}

/* Called with the lock held. */
static void decoder_put(struct hfs_decoder_cache *c, struct hfs_decoder_entry *e)
{
    if (--e->users == 0 && e->error < 0)
        decoder_free(e);
    decoders_trim(c);
}

static int decoder_get(struct hfs_image *img, uint32_t code, struct hfs_decoder_entry **out)
{
    struct hfs_decoder_cache *c = &img->decoders;
    struct hfs_decoder_entry *e;
    int r = 0;
    pthread_mutex_lock(&c->lock);
    HASH_FIND(hh, c->by_code, &code, sizeof code, e);
    if (e) {
        e->users++;
        DL_DELETE(c->lru, e);
        DL_APPEND(c->lru, e);
        while (e->building)
            pthread_cond_wait(&c->built, &c->lock);
    } else if ((e = decoder_add(c, code))) {
        decoder_build(img, e);
    } else {
        r = -ENOMEM;
    }
    if (e && (r = e->error) < 0)
        decoder_put(c, e);
    pthread_mutex_unlock(&c->lock);
    *out = e;
    return r;
}

int hfs_image_read_block(struct hfs_image *img, struct hc_work *w, const struct hfs_segment *seg,
                         uint64_t index, uint8_t *coded, uint8_t *dst, size_t *raw_len,
                         bool check_content)
{
    struct hfs_block b;
    struct hfs_decoder_entry *e;
    if (seg->kind != HFS_SEG_CODED || index >= hfs_image_segment_blocks(img, seg))
        return -EINVAL;
    uint64_t full = hc_code_block_bytes(&img->codes[seg->code]);
    uint64_t rest = seg->length - index * full;
    size_t raw = (size_t)(rest < full ? rest : full);
    int r = hfs_image_block(img, seg->first_block + index, &b);
    if (r < 0 || (r = hfs_read_at(img->fd, coded, b.size, b.offset)) < 0)
        return r;
    if (hfs_checksum(coded, b.size) != b.checksum)
        return -EBADMSG;
    struct hfs_hash hash;
    if (img->trust) {
        hfs_hash_of(coded, b.size, &hash);
        if (!hfs_hash_equal(&hash, &b.hash))
            return -EBADMSG;
    }
    if ((r = decoder_get(img, seg->code, &e)) < 0)
        return r;
    r = hc_decode(e->decoder, w, coded, b.size, dst, raw);
    pthread_mutex_lock(&img->decoders.lock);
    decoder_put(&img->decoders, e);
    pthread_mutex_unlock(&img->decoders.lock);
    if (r == 0 && check_content && hfs_checksum(dst, raw) != b.content)
        r = -EBADMSG;
    *raw_len = raw;
    return r;
}
