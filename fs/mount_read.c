/* Contract: fs/mount_read.h. */
#include "fs/mount_read.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { PROCESS = 8 << 20 };

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
    size_t capacity; /* of the cache */
    atomic_uint_fast64_t decoded, delivered;
    /* A bit for each block of the image: its last byte was handed out. Only a hint, so that
     * threads that race for a word do no harm. */
    atomic_uint_fast64_t *given;
    size_t given_words;
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
    if (error == 0)
        atomic_fetch_add_explicit(&r->decoded, len, memory_order_relaxed);
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
    /* What the allocator and the program itself take, so that the whole process stays within. */
    size_t base = memory / 16 < PROCESS ? memory / 16 : PROCESS;
    r->capacity = all < memory / 2 ? memory - all - base : memory / 2 - base;
    r->given_words = (size_t)(info.block_count / 64 + 1);
    r->given = calloc(r->given_words, sizeof *r->given);
    int error = r->given ? hfs_cache_new(r->capacity, decode, r, &r->cache) : -ENOMEM;
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
    free(r->given);
    pthread_cond_destroy(&r->returned);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

size_t hfs_reader_capacity(const struct hfs_reader *r)
{
    return r->capacity;
}

void hfs_reader_stats(struct hfs_reader *r, struct hfs_reader_stats *out)
{
    out->decoded = atomic_load_explicit(&r->decoded, memory_order_relaxed);
    out->delivered = atomic_load_explicit(&r->delivered, memory_order_relaxed);
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

static bool is_given(const struct hfs_reader *r, uint64_t block)
{
    return atomic_load_explicit(&r->given[block / 64], memory_order_relaxed) >> block % 64 & 1;
}

/* The piece is about to be handed out. The kernel asks for the same byte twice when it had to
 * drop it: then nothing is known any more of what it has. */
static void give(struct hfs_reader *r, const struct walk *w)
{
    uint64_t block = w->seg.first_block + w->key.index;
    if (w->skip + w->len < w->block)
        return;
    if (is_given(r, block))
        for (size_t i = 0; i < r->given_words; i++)
            atomic_store_explicit(&r->given[i], 0, memory_order_relaxed);
    atomic_fetch_or_explicit(&r->given[block / 64], UINT64_C(1) << block % 64,
                             memory_order_relaxed);
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
            give(r, &w);
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
    else
        atomic_fetch_add_explicit(&r->delivered, size < left ? size : left, memory_order_relaxed);
    return error;
}

void hfs_reader_done(struct hfs_reader *r, struct hfs_read *read)
{
    hfs_cache_leave(r->cache, &read->ticket);
    free(read->gathered);
    read->gathered = NULL;
}

uint64_t hfs_reader_block(struct hfs_reader *r, const struct hfs_inode *ino, uint64_t offset,
                          struct hfs_cache_key *key, size_t *len)
{
    struct walk w;
    walk_start(&w, r->img, ino, offset, ino->size);
    walk_next(&w);
    *key = w.key;
    *len = w.zero || is_given(r, w.seg.first_block + w.key.index) ? 0 : w.block;
    return w.at;
}

int hfs_reader_ahead(struct hfs_reader *r, const struct hfs_cache_key *key, size_t len)
{
    return hfs_cache_ahead(r->cache, key, len);
}

void hfs_reader_fetch(struct hfs_reader *r, const struct hfs_inode *ino, uint64_t from, uint64_t to)
{
    uint64_t start = 0, end = 0; /* of stored bytes that follow each other */
    struct hfs_block b;
    struct walk w;
    walk_start(&w, r->img, ino, from, to);
    while (walk_next(&w)) {
        uint64_t block = w.seg.first_block + w.key.index;
        if (w.zero || is_given(r, block) || hfs_image_block(r->img, block, &b) < 0)
            continue;
        if (b.offset != end) {
            if (end > start)
                posix_fadvise(hfs_image_fd(r->img), (off_t)start, (off_t)(end - start),
                              POSIX_FADV_WILLNEED);
            start = b.offset;
        }
        end = b.offset + b.size;
    }
    if (end > start)
        posix_fadvise(hfs_image_fd(r->img), (off_t)start, (off_t)(end - start),
                      POSIX_FADV_WILLNEED);
}
