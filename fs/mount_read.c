/* Contract: fs/mount_read.h. */
#include "fs/mount_read.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* What one decoder needs besides the block it decodes into. */
struct scratch {
    struct scratch *next; /* in the list of free ones */
    struct hc_work *work;
    uint8_t *coded; /* HFS_MAX_STORED bytes */
    uint8_t *whole; /* a full block, for blocks cut short by the end of a segment */
};

struct hfs_reader {
    struct hfs_image *img;
    struct hfs_cache *cache;
    size_t largest_block; /* of the image's codes, raw bytes */
    pthread_mutex_t lock; /* of the scratch memories */
    pthread_cond_t returned;
    struct scratch *unused;
    unsigned made, decoders;
};

static void scratch_free(struct scratch *s)
{
    if (!s)
        return;
    hc_work_free(s->work);
    free(s->coded);
    free(s->whole);
    free(s);
}

static struct scratch *scratch_new(size_t block)
{
    struct scratch *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->work = hc_work_new(hc_isa_best());
    s->coded = malloc(HFS_MAX_STORED);
    s->whole = malloc(block);
    if (!s->work || !s->coded || !s->whole) {
        scratch_free(s);
        return NULL;
    }
    return s;
}

/* Waits where all are in use: their users only read and decode, so one comes back. */
static struct scratch *scratch_take(struct hfs_reader *r)
{
    struct scratch *s = NULL;
    pthread_mutex_lock(&r->lock);
    while (!r->unused && r->made == r->decoders)
        pthread_cond_wait(&r->returned, &r->lock);
    if (r->unused) {
        s = r->unused;
        r->unused = s->next;
    } else {
        s = scratch_new(r->largest_block);
        if (s)
            r->made++;
    }
    pthread_mutex_unlock(&r->lock);
    return s;
}

static void scratch_return(struct hfs_reader *r, struct scratch *s)
{
    pthread_mutex_lock(&r->lock);
    s->next = r->unused;
    r->unused = s;
    pthread_cond_signal(&r->returned);
    pthread_mutex_unlock(&r->lock);
}

/* The cache's fill function. */
static int decode(void *ctx, const struct hfs_cache_key *key, uint8_t *dst, size_t len)
{
    struct hfs_reader *r = ctx;
    struct hfs_segment seg;
    size_t raw = 0;
    struct scratch *s = scratch_take(r);
    if (!s)
        return -ENOMEM;
    hfs_image_segment(r->img, key->segment, &seg);
    bool whole = len == hc_code_block_bytes(hfs_image_code(r->img, seg.code));
    int error = hfs_image_read_block(r->img, s->work, &seg, key->index, s->coded,
                                     whole ? dst : s->whole, &raw, true);
    if (error == 0 && raw != len)
        error = -EBADMSG;
    if (error == 0 && !whole)
        memcpy(dst, s->whole, len);
    scratch_return(r, s);
    return error;
}

int hfs_reader_new(struct hfs_image *img, size_t memory, unsigned decoders, struct hfs_reader **out)
{
    struct hfs_info info;
    struct hfs_reader *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    hfs_image_info(img, &info);
    r->img = img;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->returned, NULL);
    for (uint64_t i = 0; i < info.codes; i++) {
        size_t block = hc_code_block_bytes(hfs_image_code(img, (uint32_t)i));
        if (block > r->largest_block)
            r->largest_block = block;
    }
    if (r->largest_block == 0)
        r->largest_block = HC_BYTES_BLOCK;

    /* A decoder touches the stored bytes, a block's planes, a cut block and zstd's tables. */
    size_t each = 3 * r->largest_block + (256 << 10);
    size_t affordable = memory / 4 / each;
    r->decoders = affordable < decoders ? (unsigned)affordable : decoders;
    if (r->decoders == 0)
        r->decoders = 1;
    size_t all = r->decoders * each;
    size_t capacity = all < memory / 2 ? memory - all : memory / 2;
    int error = hfs_cache_new(capacity, decode, r, &r->cache);
    if (error < 0) {
        hfs_reader_free(r);
        return error;
    }
    *out = r;
    return 0;
}

void hfs_reader_free(struct hfs_reader *r)
{
    if (!r)
        return;
    hfs_cache_free(r->cache);
    while (r->unused) {
        struct scratch *s = r->unused;
        r->unused = s->next;
        scratch_free(s);
    }
    pthread_cond_destroy(&r->returned);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* Walks over the blocks and zero runs that make up [at, end) of a file. */
struct walk {
    const struct hfs_image *img;
    struct hfs_cache_key key; /* of the piece */
    struct hfs_segment seg;
    uint64_t at, end;
    bool zero;
    size_t block; /* raw bytes of the piece's block */
    size_t skip;  /* bytes of the block before the piece */
    size_t len;   /* of the piece */
};

static void walk_start(struct walk *w, const struct hfs_image *img, const struct hfs_inode *ino,
                       uint64_t at, uint64_t end)
{
    *w = (struct walk){.img = img, .at = at, .end = end};
    if (at < end) {
        w->key.segment = hfs_image_find_segment(img, ino, at);
        hfs_image_segment(img, w->key.segment, &w->seg);
    }
}

/* The next piece; false at the end. */
static bool walk_next(struct walk *w)
{
    if (w->at >= w->end)
        return false;
    uint64_t in_segment = w->at - w->seg.file_offset;
    if (in_segment >= w->seg.length) {
        w->key.segment++;
        hfs_image_segment(w->img, w->key.segment, &w->seg);
        in_segment = 0;
    }
    uint64_t left = w->seg.length - in_segment;
    w->zero = w->seg.kind == HFS_SEG_ZERO;
    if (!w->zero) {
        uint64_t full = hc_code_block_bytes(hfs_image_code(w->img, w->seg.code));
        w->key.index = in_segment / full;
        w->skip = (size_t)(in_segment % full);
        uint64_t rest = left + w->skip;
        w->block = (size_t)(rest < full ? rest : full);
        left = w->block - w->skip;
    }
    uint64_t wanted = w->end - w->at;
    w->len = (size_t)(left < wanted ? left : wanted);
    w->at += w->len;
    return true;
}

static bool is_direct(const struct walk *w)
{
    return !w->zero && w->len >= HFS_READ_DIRECT;
}

/* Bytes to gather, and the room that the ticket needs: blocks replied from stay held, of the
 * others one at a time is. */
static size_t plan(struct walk w, size_t *gather)
{
    size_t held = 0, largest = 0;
    *gather = 0;
    while (walk_next(&w)) {
        size_t cost = w.zero ? 0 : hfs_cache_cost(w.block);
        if (is_direct(&w)) {
            held += cost;
            continue;
        }
        *gather += w.len;
        if (cost > largest)
            largest = cost;
    }
    return held + largest;
}

static void append(struct hfs_read *out, const uint8_t *data, size_t len)
{
    struct iovec *last = out->count ? &out->iov[out->count - 1] : NULL;
    if (last && (const uint8_t *)last->iov_base + last->iov_len == data)
        last->iov_len += len;
    else
        out->iov[out->count++] = (struct iovec){.iov_base = (void *)data, .iov_len = len};
}

static int collect(struct hfs_reader *r, struct walk w, struct hfs_read *out)
{
    uint8_t *gathered = out->gathered;
    const uint8_t *data;
    while (walk_next(&w)) {
        if (w.zero) {
            memset(gathered, 0, w.len);
        } else {
            int error = hfs_cache_get(r->cache, &out->ticket, &w.key, w.block, w.len, &data);
            if (error < 0) {
                out->failed = w.key;
                return error;
            }
            if (is_direct(&w)) {
                append(out, data + w.skip, w.len);
                continue;
            }
            memcpy(gathered, data + w.skip, w.len);
            hfs_cache_drop(r->cache, &out->ticket);
        }
        append(out, gathered, w.len);
        gathered += w.len;
    }
    return 0;
}

int hfs_reader_read(struct hfs_reader *r, const struct hfs_inode *ino, uint64_t offset, size_t size,
                    struct hfs_read *out)
{
    struct walk w;
    size_t gather;
    if (size > HFS_READ_MAX)
        return -EINVAL;
    uint64_t left = offset < ino->size ? ino->size - offset : 0;
    out->count = 0;
    out->gathered = NULL;
    out->failed = (struct hfs_cache_key){UINT64_MAX, 0};
    walk_start(&w, r->img, ino, offset, offset + (size < left ? size : left));
    size_t room = plan(w, &gather);
    hfs_cache_enter(r->cache, &out->ticket, room, gather);
    int error = 0;
    if (gather > 0 && !(out->gathered = malloc(gather)))
        error = -ENOMEM;
    if (error == 0)
        error = collect(r, w, out);
    if (error < 0)
        hfs_reader_done(r, out);
    return error;
}

void hfs_reader_done(struct hfs_reader *r, struct hfs_read *read)
{
    hfs_cache_leave(r->cache, &read->ticket);
    free(read->gathered);
    read->gathered = NULL;
}
