#include "fs/fsck_scan.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Decoded bytes that make one more thread worth its start (about 20 us). */
enum { BYTES_A_THREAD = 1 << 20, ZERO_PIECE = 256 << 10 };

volatile sig_atomic_t fsck_stop;

struct worker {
    struct fsck_pool *pool;
    struct hc_work *work;
    uint8_t *coded, *raw, *spare;
    pthread_t thread;
};

struct fsck_pool {
    struct hfs_image *img;
    unsigned jobs;
    struct worker *workers;
    pthread_mutex_t lock;
    /* the run: under the lock */
    const struct fsck_range *range;
    fsck_block_fn fn;
    void *ctx;
    uint64_t done;   /* segments of the range */
    uint64_t index;  /* next block of the segment */
    uint64_t blocks; /* of the segment */
    struct hfs_segment seg;
    bool loaded; /* seg and blocks are those of the current segment */
    int result;
};

struct fsck_pool *fsck_pool_new(struct hfs_image *img, unsigned jobs)
{
    struct fsck_pool *pool = calloc(1, sizeof *pool);

    if (pool == NULL)
        return NULL;
    pool->workers = calloc(jobs, sizeof *pool->workers);
    if (pool->workers == NULL) {
        free(pool);
        return NULL;
    }
    pool->img = img;
    pool->jobs = jobs;
    pthread_mutex_init(&pool->lock, NULL);
    return pool;
}

void fsck_pool_free(struct fsck_pool *pool)
{
    if (pool == NULL)
        return;
    for (unsigned i = 0; i < pool->jobs; i++) {
        hc_work_free(pool->workers[i].work);
        free(pool->workers[i].coded);
        free(pool->workers[i].raw);
        free(pool->workers[i].spare);
    }
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

static int prepare(struct worker *w, struct fsck_pool *pool)
{
    w->pool = pool;
    if (w->work == NULL)
        w->work = hc_work_new(hc_isa_best());
    if (w->coded == NULL)
        w->coded = malloc(HFS_MAX_STORED);
    if (w->raw == NULL)
        w->raw = calloc(1, HC_MAX_BLOCK_BYTES);
    if (w->spare == NULL)
        w->spare = malloc(HFS_MAX_STORED);
    return w->work && w->coded && w->raw && w->spare ? 0 : -ENOMEM;
}

static void load_segment(struct fsck_pool *pool)
{
    hfs_image_segment(pool->img, pool->range->first + pool->done, &pool->seg);
    pool->index = 0;
    pool->loaded = true;
    if (pool->seg.kind == HFS_SEG_CODED)
        pool->blocks = hfs_image_segment_blocks(pool->img, &pool->seg);
    else
        pool->blocks = pool->range->zeros ? (pool->seg.length - 1) / ZERO_PIECE + 1 : 0;
}

/* False: another segment had this block. */
static bool claim(struct fsck_pool *pool)
{
    uint64_t block = pool->seg.first_block + pool->index;
    uint8_t bit = (uint8_t)(1u << (block % 8));

    if (pool->range->claimed == NULL || pool->seg.kind != HFS_SEG_CODED)
        return true;
    if (pool->range->claimed[block / 8] & bit)
        return false;
    pool->range->claimed[block / 8] |= bit;
    return true;
}

/* Takes the next block; false at the end. Called under the lock. */
static bool take(struct fsck_pool *pool, struct hfs_segment *seg, struct fsck_block *b)
{
    while (pool->result == 0 && pool->done < pool->range->count) {
        if (fsck_stop) {
            pool->result = -EINTR;
            return false;
        }
        if (!pool->loaded)
            load_segment(pool);
        if (pool->index == pool->blocks) {
            pool->loaded = false;
            pool->done++;
            continue;
        }
        bool mine = claim(pool);
        *seg = pool->seg;
        b->segment = pool->range->first + pool->done;
        b->index = pool->index++;
        if (mine)
            return true;
    }
    return false;
}

static void fetch(struct worker *w, struct fsck_block *b)
{
    struct fsck_pool *pool = w->pool;
    const struct hfs_segment *seg = b->seg;
    size_t full = ZERO_PIECE;

    if (seg->kind == HFS_SEG_CODED)
        full = hc_code_block_bytes(hfs_image_code(pool->img, seg->code));
    uint64_t start = b->index * full;
    b->file_offset = seg->file_offset + start;
    b->len = seg->length - start < full ? (size_t)(seg->length - start) : full;
    b->data = w->raw;
    b->status = 0;
    if (seg->kind != HFS_SEG_CODED) {
        memset(w->raw, 0, b->len);
        return;
    }
    size_t raw_len = 0;
    b->status =
        hfs_image_read_block(pool->img, w->work, seg, b->index, w->coded, w->raw, &raw_len, true);
    if (b->status >= 0 && raw_len != b->len)
        b->status = -EBADMSG;
    if (b->status < 0)
        b->data = NULL;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct fsck_pool *pool = w->pool;
    struct hfs_segment seg;
    struct fsck_block b = {.seg = &seg, .spare = w->spare};

    pthread_mutex_lock(&pool->lock);
    while (take(pool, &seg, &b)) {
        pthread_mutex_unlock(&pool->lock);
        fetch(w, &b);
        int r = b.status == -ENOMEM ? -ENOMEM : pool->fn(pool->ctx, &b);
        pthread_mutex_lock(&pool->lock);
        if (r != 0 && pool->result == 0)
            pool->result = r;
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int fsck_pool_run(struct fsck_pool *pool, const struct fsck_range *range, fsck_block_fn fn,
                  void *ctx)
{
    uint64_t wanted = range->bytes / BYTES_A_THREAD + 1;
    unsigned threads = wanted < pool->jobs ? (unsigned)wanted : pool->jobs;
    unsigned started = 0;

    pool->range = range;
    pool->fn = fn;
    pool->ctx = ctx;
    pool->done = 0;
    pool->loaded = false;
    pool->result = 0;
    if (prepare(&pool->workers[0], pool) < 0)
        return -ENOMEM;
    /* Fewer threads than wanted do the same work, slower. */
    for (unsigned i = 1; i < threads; i++) {
        struct worker *w = &pool->workers[i];

        if (prepare(w, pool) < 0 || pthread_create(&w->thread, NULL, work, w) != 0)
            break;
        started = i;
    }
    work(&pool->workers[0]);
    for (unsigned i = 1; i <= started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    return pool->result;
}
