/* Which code each tensor gets that is to lose something; and, for --dry-run, how large everything
 * would become. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/ui.h"
#include "mkhyperfs/pipeline.h"
#include "mkhyperfs/plan.h"

struct chooser {
    const struct mk_options *opt;
    atomic_uint_fast64_t done; /* bytes read */
};

struct choose_slot {
    struct mk_item *item;
    int status;
    struct hfs_error err;
};

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

static int choose(struct chooser *c, struct mk_item *it, struct mk_worker *worker,
                  struct hfs_error *err)
{
    struct samples s;
    struct hc_code code, shape = {.type = HC_CODE_TRAJECTORY, .dtype = it->tensor->dtype};
    struct hc_target target = {
        .sqnr_db = it->decision.db, .nu = c->opt->nu, .nu_small = c->opt->nu_small};
    struct hc_scan *scan = hc_scan_new(it->tensor->dtype);
    if (!scan)
        return hfs_fail(err, ENOMEM, "out of memory");
    int r = read_samples(c, it, worker, hc_code_block_bytes(&shape), scan, &s, err);
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
    if (r == 0 && code.type == HC_CODE_TRAJECTORY)
        it->code = code;
    else if (r == 0)
        it->decision.why = hc_scan_distinct(scan) <= 256
                               ? "256 distinct values or fewer"
                               : "exact storage is smaller, or the only way, at this quality";
    hc_scan_free(scan);
    return r;
}

/* What the item will take, from its samples, for --dry-run. */
static int estimate(struct chooser *c, struct mk_item *it, struct mk_worker *worker,
                    struct hfs_error *err)
{
    struct samples s;
    struct hc_encoder *encoder = NULL;
    size_t block = hc_code_block_bytes(&it->code), size;
    uint64_t raw = 0, coded = 0;
    uint8_t *out = malloc(hc_code_bound(&it->code, block));
    int r = out ? hc_encoder_new(&it->code, &encoder) : -ENOMEM;
    if (r < 0)
        hfs_fail(err, -r, "%s: %s", it->file->shown, strerror(-r));
    if (r == 0)
        r = read_samples(c, it, worker, block, NULL, &s, err);
    for (unsigned i = 0; r == 0 && i < s.count; i++) {
        r = hc_encode(encoder, worker->work, s.block[i], s.len[i], out, &size, NULL, NULL);
        if (r < 0)
            hfs_fail(err, -r, "%s: cannot be encoded: %s", it->file->shown, strerror(-r));
        raw += s.len[i];
        coded += size;
    }
    if (r == 0)
        it->estimate = (uint64_t)((double)it->length * (double)coded / (double)raw);
    hc_encoder_free(encoder);
    free(out);
    return r;
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
    if (s->item->decision.lossy)
        s->status = choose(c, s->item, worker, &s->err);
    if (s->status == 0 && c->opt->dry_run)
        s->status = estimate(c, s->item, worker, &s->err);
}

/* An item of a file that is encoded, and that a thread has to look at. */
static bool to_choose(const struct mk_options *opt, const struct mk_item *it)
{
    return !it->file->plan->same && (it->decision.lossy || opt->dry_run);
}

/* Walks through all items, file by file. */
struct cursor {
    size_t file, item;
};

static struct mk_item *next_item(const struct mk_options *opt, const struct mk_source *src,
                                 struct cursor *at)
{
    for (; at->file < src->nfiles; at->file++, at->item = 0) {
        struct mk_plan *plan = src->files[at->file]->plan;
        while (at->item < plan->nitems) {
            struct mk_item *it = &plan->items[at->item++];
            if (to_choose(opt, it))
                return it;
        }
    }
    return NULL;
}

static uint64_t bytes_to_scan(const struct mk_options *opt, const struct mk_source *src)
{
    struct cursor at = {0, 0};
    struct mk_item *it;
    uint64_t sum = 0;
    while ((it = next_item(opt, src, &at)))
        sum += it->decision.lossy ? it->length : 0;
    return sum;
}

int mk_choose_codes(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err)
{
    struct chooser c = {.opt = opt};
    struct cursor at = {0, 0};
    struct mk_pipeline *p;
    struct choose_slot *s;
    struct mk_item *it = next_item(opt, src, &at);
    int r = mk_pipeline_new(opt->jobs, 2 * opt->jobs, sizeof *s, opt->isa, choose_work, &c, &p);
    if (r < 0)
        return hfs_fail(err, -r, "cannot start %u threads: %s", opt->jobs, strerror(-r));
    ui_progress_start("planning", bytes_to_scan(opt, src));
    while (r == 0) {
        while (it && (s = mk_pipeline_free_slot(p))) {
            s->item = it;
            mk_pipeline_put(p);
            it = next_item(opt, src, &at);
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
