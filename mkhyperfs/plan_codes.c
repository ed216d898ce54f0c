/* Which code each tensor gets that is to lose something; and, for those who want to know, how large
 * everything would become. */
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/ui.h"
#include "mkhyperfs/pipeline.h"
#include "mkhyperfs/plan.h"

/* What is done with each item. */
enum task {
    CHOOSE,     /* scan and choose; estimate if somebody wants to know */
    STATISTICS, /* scan, forecast and estimate */
    AGAIN       /* choose by what the scan left, and estimate */
};

struct chooser {
    const struct mk_options *opt;
    enum task task;
    atomic_uint_fast64_t done; /* bytes read */
};

struct choose_slot {
    struct mk_item *item;
    int status;
    struct hfs_error err;
};

enum { MANY_BLOCKS = 256 };

struct samples {
    const uint8_t *block[HC_SAMPLE_BLOCKS];
    size_t len[HC_SAMPLE_BLOCKS];
    unsigned count;
};

/* Which block is sample number i: all of a short item, else full ones from first to last. */
static uint64_t sample_block(uint64_t length, size_t block_bytes, unsigned i)
{
    uint64_t full = length / block_bytes;
    uint64_t all = full + (length % block_bytes != 0);
    return all <= HC_SAMPLE_BLOCKS ? i : i * (full - 1) / (HC_SAMPLE_BLOCKS - 1);
}

/* Reads the item block by block, or only its samples; scan may be NULL. */
static int read_samples(struct chooser *c, const struct mk_item *it, struct mk_worker *worker,
                        size_t block_bytes, struct hc_scan *scan, struct samples *s,
                        struct hfs_error *err)
{
    uint64_t blocks = (it->length - 1) / block_bytes + 1;
    unsigned wanted = blocks < HC_SAMPLE_BLOCKS ? (unsigned)blocks : HC_SAMPLE_BLOCKS;
    int fd;
    int r = mk_file_open(it->file, &fd, err);
    if (r < 0)
        return r;
    s->count = 0;
    for (uint64_t b = 0; b < blocks && r == 0; b++) {
        bool sample = s->count < wanted && b == sample_block(it->length, block_bytes, s->count);
        if (!sample && !scan)
            continue;
        uint64_t left = it->length - b * block_bytes;
        size_t n = left < block_bytes ? (size_t)left : block_bytes;
        uint8_t *to = sample ? worker->buf + s->count * (size_t)HC_MAX_BLOCK_BYTES : worker->buf2;
        r = mk_file_read(it->file, fd, to, n, it->offset + b * block_bytes, err);
        if (r == 0 && scan)
            hc_scan_block(scan, to, n);
        if (sample) {
            s->block[s->count] = to;
            s->len[s->count++] = n;
        }
        if (scan)
            ui_progress(atomic_fetch_add(&c->done, n) + n);
    }
    close(fd);
    return r;
}

static size_t block_bytes_of(const struct mk_item *it)
{
    struct hc_code shape = {.type = HC_CODE_TRAJECTORY, .dtype = it->tensor->dtype};
    return hc_code_block_bytes(&shape);
}

/* The scan of a tensor and its samples: of the whole tensor, or what an earlier scan left of it. */
static int get_scan(struct chooser *c, const struct mk_item *it, struct mk_worker *worker,
                    struct samples *s, struct hc_scan **out, struct hfs_error *err)
{
    bool packed = c->task == AGAIN && it->forecast->scan;
    struct hc_scan *scan =
        packed ? hc_scan_unpack(it->forecast->scan) : hc_scan_new(it->tensor->dtype);
    if (!scan)
        return hfs_fail(err, ENOMEM, "out of memory");
    int r = read_samples(c, it, worker, block_bytes_of(it), packed ? NULL : scan, s, err);
    if (r < 0)
        hc_scan_free(scan);
    else
        *out = scan;
    return r;
}

static int choose(struct chooser *c, struct mk_item *it, struct mk_worker *worker,
                  struct hfs_error *err)
{
    struct samples s;
    struct hc_code code;
    struct hc_target target = {
        .sqnr_db = it->decision.db, .nu = c->opt->nu, .nu_small = c->opt->nu_small};
    struct hc_scan *scan = NULL;
    int r = get_scan(c, it, worker, &s, &scan, err);
    if (r == 0) {
        r = hc_choose(scan, &target, worker->work, s.block, s.len, s.count, &code);
        if (r < 0) {
            char name[200];
            hfs_fail(err, -r, "%s: no code can be chosen for tensor %s: %s", it->file->shown,
                     hfs_printable(name, sizeof name, it->tensor->name,
                                   (unsigned)strlen(it->tensor->name)),
                     strerror(-r));
        }
    }
    it->code = r == 0 && code.type == HC_CODE_TRAJECTORY
                   ? code
                   : hc_lossless(it->tensor->dtype, MK_ZSTD_LEVEL);
    if (r == 0 && !mk_item_is_lossy(it))
        it->decision.why = hc_scan_distinct(scan) <= 256
                               ? "256 distinct values or fewer"
                               : "exact storage is smaller, or the only way, at this quality";
    if (scan)
        hc_scan_free(scan);
    return r;
}

/* Sizes of a tensor by quality, and what is left of its scan. */
static int make_forecast(struct chooser *c, struct mk_item *it, struct mk_worker *worker,
                         struct hfs_error *err)
{
    struct samples s;
    struct hc_scan *scan;
    struct mk_forecast *f = calloc(1, sizeof *f);
    if (!f)
        return hfs_fail(err, ENOMEM, "out of memory");
    f->unlike = 1;
    it->forecast = f;
    int r = get_scan(c, it, worker, &s, &scan, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < MK_FORECASTS; i++) {
        struct hc_target target = {.sqnr_db = HC_MIN_DB + i * MK_FORECAST_STEP,
                                   .nu = c->opt->nu,
                                   .nu_small = c->opt->nu_small};
        f->bits[i] = hc_scan_distinct(scan) <= 256 ? INFINITY : hc_predict_bits(scan, &target);
    }
    if ((it->length - 1) / block_bytes_of(it) + 1 > HC_SAMPLE_BLOCKS) {
        f->scan = hc_scan_pack(scan);
        r = f->scan ? 0 : hfs_fail(err, ENOMEM, "out of memory");
    }
    hc_scan_free(scan);
    return r;
}

static int try_block(const struct mk_item *it, struct mk_worker *worker,
                     const struct hc_encoder *encoder, const uint8_t *block, size_t len,
                     uint8_t *out, uint64_t *coded, struct hfs_error *err)
{
    size_t size;
    int r = hc_encode(encoder, worker->work, block, len, out, &size, NULL, NULL);
    if (r < 0)
        return hfs_fail(err, -r, "%s: cannot be encoded: %s", it->file->shown, strerror(-r));
    *coded += size;
    return 0;
}

static int try_samples(struct chooser *c, struct mk_item *it, struct mk_worker *worker,
                       const struct hc_encoder *encoder, uint8_t *out, uint64_t *raw,
                       uint64_t *coded, struct hfs_error *err)
{
    struct samples s;
    int r = read_samples(c, it, worker, hc_code_block_bytes(&it->code), NULL, &s, err);
    for (unsigned i = 0; r == 0 && i < s.count; i++) {
        r = try_block(it, worker, encoder, s.block[i], s.len[i], out, coded, err);
        *raw += s.len[i];
    }
    return r;
}

/* What is kept exactly can be anything: all of it is tried up to MANY_BLOCKS, else so many blocks
 * at even distances. */
static int try_many(struct mk_item *it, struct mk_worker *worker, const struct hc_encoder *encoder,
                    uint8_t *out, uint64_t *raw, uint64_t *coded, struct hfs_error *err)
{
    size_t block = hc_code_block_bytes(&it->code);
    uint64_t blocks = mk_item_blocks(it), every = (blocks - 1) / MANY_BLOCKS + 1;
    int fd;
    int r = mk_file_open(it->file, &fd, err);
    if (r < 0)
        return r;
    for (uint64_t b = 0; b < blocks && r == 0; b += every) {
        uint64_t left = it->length - b * block;
        size_t n = left < block ? (size_t)left : block;
        r = mk_file_read(it->file, fd, worker->buf2, n, it->offset + b * block, err);
        if (r == 0)
            r = try_block(it, worker, encoder, worker->buf2, n, out, coded, err);
        *raw += n;
    }
    close(fd);
    return r;
}

/* What the item will take, from its samples. */
static int estimate(struct chooser *c, struct mk_item *it, struct mk_worker *worker,
                    struct hfs_error *err)
{
    struct hc_encoder *encoder = NULL;
    size_t block = hc_code_block_bytes(&it->code);
    uint64_t raw = 0, coded = 0;
    uint8_t *out = malloc(hc_code_bound(&it->code, block));
    int r = out ? hc_encoder_new(&it->code, &encoder) : -ENOMEM;
    if (r < 0)
        hfs_fail(err, -r, "%s: %s", it->file->shown, strerror(-r));
    if (r == 0 && c->task == STATISTICS && !it->decision.lossy)
        r = try_many(it, worker, encoder, out, &raw, &coded, err);
    else if (r == 0)
        r = try_samples(c, it, worker, encoder, out, &raw, &coded, err);
    if (r == 0)
        it->estimate = (uint64_t)((double)it->length * (double)coded / (double)raw);
    hc_encoder_free(encoder);
    free(out);
    return r;
}

static bool wants_estimate(const struct chooser *c)
{
    return c->opt->dry_run || c->opt->explain || c->task != CHOOSE;
}

static void choose_work(void *ctx, void *slot, struct mk_worker *worker)
{
    struct chooser *c = ctx;
    struct choose_slot *s = slot;
    s->status = 0;
    s->err.text[0] = 0;
    if (!worker->buf)
        worker->buf = malloc((size_t)HC_SAMPLE_BLOCKS * HC_MAX_BLOCK_BYTES);
    if (!worker->buf2)
        worker->buf2 = malloc(HC_MAX_BLOCK_BYTES);
    if (!worker->buf || !worker->buf2) {
        s->status = hfs_fail(&s->err, ENOMEM, "out of memory");
        return;
    }
    if (s->item->decision.lossy && c->task == STATISTICS)
        s->status = make_forecast(c, s->item, worker, &s->err);
    else if (s->item->decision.lossy)
        s->status = choose(c, s->item, worker, &s->err);
    if (s->status == 0 && wants_estimate(c))
        s->status = estimate(c, s->item, worker, &s->err);
    if (s->status == 0 && s->item->forecast && c->task == STATISTICS)
        s->item->forecast->lossless = s->item->estimate;
}

/* An item of a file that is encoded, and that a thread has to look at. */
static bool to_choose(const struct chooser *c, const struct mk_item *it)
{
    if (it->file->plan->same)
        return false;
    if (c->task == AGAIN)
        return it->decision.lossy && !it->forecast->done;
    return it->decision.lossy || wants_estimate(c);
}

/* Walks through all items, file by file. */
struct cursor {
    size_t file, item;
};

static struct mk_item *next_item(const struct chooser *c, const struct mk_source *src,
                                 struct cursor *at)
{
    for (; at->file < src->nfiles; at->file++, at->item = 0) {
        struct mk_plan *plan = src->files[at->file]->plan;
        while (at->item < plan->nitems) {
            struct mk_item *it = &plan->items[at->item++];
            if (to_choose(c, it))
                return it;
        }
    }
    return NULL;
}

static uint64_t bytes_to_scan(const struct chooser *c, const struct mk_source *src)
{
    struct cursor at = {0, 0};
    struct mk_item *it;
    uint64_t sum = 0;
    while ((it = next_item(c, src, &at)))
        sum += it->decision.lossy && !(c->task == AGAIN && it->forecast->scan) ? it->length : 0;
    return sum;
}

static int for_all(const struct mk_options *opt, struct mk_source *src, enum task task,
                   struct hfs_error *err)
{
    struct chooser c = {.opt = opt, .task = task};
    struct cursor at = {0, 0};
    struct mk_pipeline *p;
    struct choose_slot *s;
    struct mk_item *it = next_item(&c, src, &at);
    int r = mk_pipeline_new(opt->jobs, 2 * opt->jobs, sizeof *s, opt->isa, choose_work, &c, &p);
    if (r < 0)
        return hfs_fail(err, -r, "cannot start %u threads: %s", opt->jobs, strerror(-r));
    ui_progress_start(task == AGAIN ? "choosing" : "planning", bytes_to_scan(&c, src));
    while (r == 0) {
        while (it && (s = mk_pipeline_free_slot(p))) {
            s->item = it;
            mk_pipeline_put(p);
            it = next_item(&c, src, &at);
        }
        s = mk_pipeline_take(p);
        if (!s)
            break;
        r = s->status;
        if (r < 0)
            hfs_fail(err, -r, "%s", s->err.text);
        mk_pipeline_done(p);
    }
    mk_pipeline_free(p, NULL);
    ui_progress_end();
    return r;
}

int mk_choose_codes(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err)
{
    return for_all(opt, src, CHOOSE, err);
}

int mk_take_statistics(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err)
{
    return for_all(opt, src, STATISTICS, err);
}

int mk_choose_again(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err)
{
    return for_all(opt, src, AGAIN, err);
}
