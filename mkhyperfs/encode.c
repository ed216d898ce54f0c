#include "mkhyperfs/encode.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fs/ui.h"
#include "mkhyperfs/pipeline.h"
#include "mkhyperfs/target.h"

/* How far the SQNR of a tensor, in dB, may lie from what was asked for. A tensor outside of
 * [-NEAR_BELOW, +NEAR_ABOVE] is coded again, TRIES times in all; one that is then below
 * -NEVER_BELOW is stored exactly. */
static const double NEAR_BELOW = 0.05;
static const double NEAR_ABOVE = 0.15;
static const double NEVER_BELOW = 0.1;
enum { TRIES = 4 };

/* Blocks in flight for each thread: enough to keep it busy while the oldest is waited for. */
enum { SLOTS_PER_JOB = 3 };

/* An item as it is coded. */
struct task {
    struct mk_item *item;
    struct hc_encoder *encoder; /* made by the first worker that wants it */
    enum { NO_ENCODER, BEING_MADE, MADE } state;
    int status; /* of making it */
    unsigned tries;
    uint64_t blocks;  /* in all */
    uint64_t written; /* of them */
    uint64_t bytes;   /* raw, of the blocks written */
};

struct slot {
    struct task *task;
    size_t raw_len, coded_len;
    uint8_t *raw, *coded;
    size_t raw_room, coded_room;
    uint64_t content;
    struct hc_block_stats stats;
    int status;
};

struct encode {
    const struct mk_options *opt;
    struct hfs_writer *writer;
    struct hfs_error *err;
    struct mk_pipeline *pipeline;
    struct mk_target *target; /* or NULL */
    struct task *tasks;
    size_t first; /* number of the first task in the target's list */
    size_t ntasks;
    size_t finished; /* tasks before it stay as they are */
    size_t steered;  /* the last stop of the target that was passed */

    /* The producer's place. */
    size_t task;
    uint64_t block;
    const struct mk_file *open_file;
    int fd;

    uint64_t done, total; /* raw bytes written; of all items */
    pthread_mutex_t lock; /* state of tasks */
    pthread_cond_t made;
};

static const char *tensor_name(char buf[200], const struct mk_item *it)
{
    const char *name = it->tensor ? it->tensor->name : "plain bytes";
    return hfs_printable(buf, 200, name, (unsigned)strlen(name));
}

/* ---- workers ---- */

/* The encoder of a task. Its tables take milliseconds, which the producer must not wait for. */
static int get_encoder(struct encode *e, struct task *t, struct hc_encoder **out)
{
    pthread_mutex_lock(&e->lock);
    if (t->state == NO_ENCODER) {
        struct hc_encoder *encoder = NULL;
        t->state = BEING_MADE;
        pthread_mutex_unlock(&e->lock);
        int r = hc_encoder_new(&t->item->code, &encoder);
        pthread_mutex_lock(&e->lock);
        t->status = r;
        t->encoder = r == 0 ? encoder : NULL;
        t->state = MADE;
        pthread_cond_broadcast(&e->made);
    }
    while (t->state != MADE)
        pthread_cond_wait(&e->made, &e->lock);
    *out = t->encoder;
    int status = t->status;
    pthread_mutex_unlock(&e->lock);
    return status;
}

static void encode_block(void *ctx, void *arg, struct mk_worker *worker)
{
    struct encode *e = ctx;
    struct slot *s = arg;
    struct hc_encoder *encoder;
    bool lossy = mk_item_is_lossy(s->task->item);
    if (lossy && !worker->buf)
        worker->buf = malloc(HC_MAX_BLOCK_BYTES);
    s->status = lossy && !worker->buf ? -ENOMEM : get_encoder(e, s->task, &encoder);
    if (s->status == 0)
        s->status = hc_encode(encoder, worker->work, s->raw, s->raw_len, s->coded, &s->coded_len,
                              lossy ? worker->buf : NULL, &s->stats);
    if (s->status == 0)
        s->content = XXH3_64bits(lossy ? worker->buf : s->raw, s->raw_len);
}

/* ---- reading ---- */

static int make_room(uint8_t **buf, size_t *room, size_t want)
{
    if (want <= *room)
        return 0;
    free(*buf);
    *buf = malloc(want);
    *room = *buf ? want : 0;
    return *buf ? 0 : -ENOMEM;
}

static void close_file(struct encode *e)
{
    if (e->open_file)
        close(e->fd);
    e->open_file = NULL;
}

static int fill_slot(struct encode *e, struct slot *s, struct task *t, uint64_t block)
{
    const struct mk_item *it = t->item;
    size_t block_bytes = hc_code_block_bytes(&it->code);
    uint64_t at = block * block_bytes;
    s->task = t;
    s->raw_len = it->length - at < block_bytes ? (size_t)(it->length - at) : block_bytes;
    if (make_room(&s->raw, &s->raw_room, s->raw_len) < 0 ||
        make_room(&s->coded, &s->coded_room, hc_code_bound(&it->code, s->raw_len)) < 0)
        return hfs_fail(e->err, ENOMEM, "out of memory");
    if (e->open_file != it->file) {
        close_file(e);
        int r = mk_file_open(it->file, &e->fd, e->err);
        if (r < 0)
            return r;
        e->open_file = it->file;
    }
    return mk_file_read(it->file, e->fd, s->raw, s->raw_len, it->offset + at, e->err);
}

/* Whether the producer has to wait at a stop of the target until all tasks before it are finished;
 * if they are, the tasks from there on get new codes. */
static bool waits(struct encode *e)
{
    size_t next = e->first + e->task;
    if (!e->target || e->block > 0 || next <= e->steered || !mk_target_is_stop(e->target, next))
        return false;
    if (e->finished < e->task)
        return true;
    mk_target_steer(e->target, next);
    e->steered = next;
    return false;
}

/* Puts blocks into the pipeline until it is full or nothing is left. */
static int produce(struct encode *e)
{
    struct slot *s;
    while (e->task < e->ntasks && !waits(e) && (s = mk_pipeline_free_slot(e->pipeline))) {
        struct task *t = &e->tasks[e->task];
        int r = fill_slot(e, s, t, e->block);
        if (r < 0)
            return r;
        mk_pipeline_put(e->pipeline);
        if (++e->block == t->blocks) {
            e->task++;
            e->block = 0;
        }
    }
    return 0;
}

/* ---- writing ---- */

static void drop_encoder(struct task *t)
{
    hc_encoder_free(t->encoder);
    t->encoder = NULL;
    t->state = NO_ENCODER;
}

/* Starts a task again with another code: its blocks are taken back, and those of later tasks
 * that are in flight are forgotten. */
static int again(struct encode *e, struct task *t, struct hc_code code)
{
    struct mk_item *it = t->item;
    mk_pipeline_drop(e->pipeline);
    drop_encoder(t);
    e->task = (size_t)(t - e->tasks);
    e->block = 0;
    e->done -= t->bytes;
    it->code = code;
    memset(&it->stats, 0, sizeof it->stats);
    t->tries++;
    t->blocks = mk_item_blocks(it);
    t->written = t->bytes = 0;
    return hfs_writer_rewind(e->writer, it->first_block, e->err);
}

/* All blocks are written and stay. */
static int accept_item(struct encode *e, struct task *t)
{
    struct mk_item *it = t->item;
    char name[200];
    it->blocks = t->blocks;
    it->stored = hfs_writer_range_bytes(e->writer, it->first_block, it->blocks);
    it->sqnr_db = mk_item_is_lossy(it) ? hc_sqnr_db(&it->stats) : INFINITY;
    drop_encoder(t);
    if (mk_item_is_lossy(it))
        ui_verbose(
            "%s: %s: %.2f dB, %.2f bits a weight, largest error %.3g, %llu of %llu weights exact",
            it->file->shown, tensor_name(name, it), it->sqnr_db,
            8 * (double)it->stored / (double)it->tensor->elements, it->stats.max_error,
            (unsigned long long)it->stats.exact, (unsigned long long)it->tensor->elements);
    e->finished++;
    return 0;
}

static int keep_exactly(struct encode *e, struct task *t)
{
    struct mk_item *it = t->item;
    char name[200];
    it->decision.why = "the quality asked for was not reached";
    ui_verbose("%s: %s: kept exactly: %s", it->file->shown, tensor_name(name, it),
               it->decision.why);
    return again(e, t, hc_lossless(it->tensor->dtype, MK_ZSTD_LEVEL));
}

/* Whether a lossy item is as exact as it has to be; if not, starts it again. */
static int finish_item(struct encode *e, struct task *t)
{
    struct mk_item *it = t->item;
    double wanted = it->decision.db, got = hc_sqnr_db(&it->stats), miss = got - wanted;
    bool near = miss >= -NEAR_BELOW && miss <= NEAR_ABOVE;
    if (!mk_item_is_lossy(it) || near || it->stats.noise == 0)
        return accept_item(e, t);
    if (isfinite(miss) && t->tries + 1 < TRIES) {
        char name[200];
        ui_verbose("%s: %s: %.2f dB instead of %g dB; coded again", it->file->shown,
                   tensor_name(name, it), got, wanted);
        return again(e, t, hc_rescale(&it->code, got, wanted));
    }
    return miss >= -NEVER_BELOW ? accept_item(e, t) : keep_exactly(e, t);
}

static int fail_block(struct encode *e, const struct slot *s)
{
    const struct mk_item *it = s->task->item;
    char name[200];
    if (s->status == -ENOMEM)
        return hfs_fail(e->err, ENOMEM, "out of memory");
    return hfs_fail(e->err, -s->status,
                    "%s: %s at byte %llu cannot be encoded (%s): this is a fault of mkhyperfs; "
                    "--rule keeps a tensor exactly",
                    it->file->shown, tensor_name(name, it), (unsigned long long)it->offset,
                    strerror(-s->status));
}

static int consume(struct encode *e, struct slot *s)
{
    struct task *t = s->task;
    struct mk_item *it = t->item;
    if (t->written == 0)
        it->first_block = hfs_writer_blocks(e->writer);
    if (s->status == -ERANGE && mk_item_is_lossy(it)) /* a point beyond the dtype's range */
        return keep_exactly(e, t);
    if (s->status < 0)
        return fail_block(e, s);
    int r = hfs_writer_block(e->writer, s->coded, (uint32_t)s->coded_len, s->content, e->err);
    if (r < 0)
        return r;
    if (mk_item_is_lossy(it))
        hc_block_stats_add(&it->stats, &s->stats);
    e->done += s->raw_len;
    t->bytes += s->raw_len;
    mk_pipeline_done(e->pipeline);
    ui_progress(e->done);
    return ++t->written == t->blocks ? finish_item(e, t) : 0;
}

/* ---- the whole ---- */

static void add_task(struct encode *e, struct mk_item *it)
{
    memset(&it->stats, 0, sizeof it->stats);
    e->tasks[e->ntasks++] = (struct task){.item = it, .blocks = mk_item_blocks(it)};
    e->total += it->length;
}

static int make_target_tasks(struct encode *e, size_t first)
{
    size_t n;
    struct mk_item **items = mk_target_items(e->target, &n);
    e->tasks = calloc(n - first + 1, sizeof *e->tasks);
    if (!e->tasks)
        return hfs_fail(e->err, ENOMEM, "out of memory");
    e->first = e->steered = first;
    for (size_t i = first; i < n; i++)
        add_task(e, items[i]);
    return 0;
}

static int make_tasks(struct encode *e, const struct mk_source *src)
{
    size_t n = 0;
    for (size_t i = 0; i < src->nfiles; i++)
        if (!src->files[i]->plan->same)
            n += src->files[i]->plan->nitems;
    e->tasks = calloc(n + 1, sizeof *e->tasks);
    if (!e->tasks)
        return hfs_fail(e->err, ENOMEM, "out of memory");
    for (size_t i = 0; i < src->nfiles; i++) {
        struct mk_plan *plan = src->files[i]->plan;
        for (size_t k = 0; k < plan->nitems && !plan->same; k++)
            add_task(e, &plan->items[k]);
    }
    return 0;
}

static int add_segment(struct encode *e, struct mk_item *it)
{
    int r = hfs_writer_code(e->writer, &it->code, &it->code_number, e->err);
    struct hfs_segment seg = {.file_offset = it->offset,
                              .length = it->length,
                              .first_block = it->first_block,
                              .code = it->code_number,
                              .kind = HFS_SEG_CODED};
    return r < 0 ? r : hfs_writer_segment(e->writer, &seg, &it->segment, e->err);
}

/* Once all blocks are there: a segment may end only where its blocks do. In the order of the files,
 * whatever that of the blocks is. */
static int add_segments(struct encode *e, const struct mk_source *src)
{
    int r = 0;
    for (size_t i = 0; i < src->nfiles; i++) {
        struct mk_plan *plan = src->files[i]->plan;
        for (size_t k = 0; k < plan->nitems && !plan->same && r == 0; k++)
            r = add_segment(e, &plan->items[k]);
    }
    return r;
}

static void release_slot(void *arg)
{
    struct slot *s = arg;
    free(s->raw);
    free(s->coded);
}

static int run(struct encode *e)
{
    const struct mk_options *opt = e->opt;
    struct slot *s;
    int r = mk_pipeline_new(opt->jobs, SLOTS_PER_JOB * opt->jobs, sizeof *s, opt->isa, encode_block,
                            e, &e->pipeline);
    if (r < 0)
        return hfs_fail(e->err, -r, "cannot start %u threads: %s", opt->jobs, strerror(-r));
    ui_progress_start("encoding", e->total);
    do {
        r = produce(e);
        s = r == 0 ? mk_pipeline_take(e->pipeline) : NULL;
        if (s)
            r = consume(e, s);
    } while (s && r == 0);
    mk_pipeline_free(e->pipeline, release_slot);
    close_file(e);
    ui_progress_end();
    return r;
}

int mk_encode(const struct mk_options *opt, struct mk_source *src, struct mk_target *target,
              size_t first, struct hfs_writer *writer, struct hfs_error *err)
{
    struct encode e = {.opt = opt, .target = target, .writer = writer, .err = err};
    pthread_mutex_init(&e.lock, NULL);
    pthread_cond_init(&e.made, NULL);
    int r = target ? make_target_tasks(&e, first) : make_tasks(&e, src);
    if (r == 0)
        r = run(&e);
    if (r == 0)
        r = add_segments(&e, src);
    for (size_t i = 0; i < e.ntasks; i++)
        hc_encoder_free(e.tasks[i].encoder);
    free(e.tasks);
    pthread_cond_destroy(&e.made);
    pthread_mutex_destroy(&e.lock);
    return r;
}
