/* What is stored of each file, and how: the first phase.
 *
 * mk_plan_make reads the headers of safetensors files, finds files of equal content, asks the
 * policy about every tensor, and reads each tensor that is to lose something once, on the
 * worker threads, to choose its code. The encoder then works through the items in order.
 */
#ifndef HYPERFS_MKHYPERFS_PLAN_H
#define HYPERFS_MKHYPERFS_PLAN_H

#include "mkhyperfs/policy.h"
#include "mkhyperfs/safetensors.h"
#include "mkhyperfs/source.h"

/* zstd's level for plain bytes, in blocks of 256 KiB: on tokenizers, prose and Python sources it is
 * within 7 % of level 19, and four times as fast as level 12; on raw weights no level pays. */
enum { MK_ZSTD_LEVEL = 9 };

/* Sizes of a tensor that may lose something. */
enum { MK_FORECAST_STEP = 2, MK_FORECASTS = (HC_MAX_DB - HC_MIN_DB) / MK_FORECAST_STEP + 1 };
struct mk_forecast {
    double bits[MK_FORECASTS]; /* a weight, at HC_MIN_DB + i * MK_FORECAST_STEP dB */
    double correction;         /* bits a weight, to be added to these */
    double unlike;     /* what it took over what its samples say, once it was coded; else 1 */
    uint64_t lossless; /* bytes, if every bit is kept */
    bool done;         /* coded, and it stays so: nothing is chosen again */
    struct hc_scan_pack *scan; /* of tensors that are larger than their samples; or NULL */
};
void mk_forecast_free(struct mk_forecast *f); /* NULL is allowed */

/* One segment of a file. */
struct mk_item {
    const struct mk_file *file;
    uint64_t offset, length;
    const struct st_tensor *tensor; /* NULL: plain bytes */
    struct mk_decision decision;    /* of a tensor; lossy also where hc_choose says no */
    struct hc_code code;
    uint64_t estimate; /* bytes in the image; with --dry-run, --explain or a target only */
    struct mk_forecast *forecast; /* with a target, if decision.lossy; owned by the plan */

    /* Set by the encoder. */
    uint64_t first_block, blocks, stored;
    uint64_t segment; /* number in the image */
    uint32_t code_number;
    struct hc_block_stats stats;
    double sqnr_db;
};

/* Of a file. */
struct mk_plan {
    bool safetensors;        /* cut at its tensors */
    struct st_header header; /* if so */
    struct mk_item *items;
    size_t nitems;
    const struct mk_file *same; /* an earlier file with the same content and decisions, whose
                                   segments this one shares; or NULL */
};

struct mk_target;
/* *target is made if the options name one, else NULL. */
int mk_plan_make(const struct mk_options *opt, struct mk_source *src, struct mk_target **target,
                 struct hfs_error *err);
void mk_plan_free(struct mk_source *src); /* all plans */

/* Sets plan->same of every file that equals an earlier one (same.c). Used by mk_plan_make. */
int mk_find_same(struct mk_source *src, struct hfs_error *err);
/* Chooses the codes of tensors that are to lose something (plan_codes.c), likewise. */
int mk_choose_codes(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err);

/* For a target (target.h): reads everything once, makes the forecasts of tensors that may lose
 * something and estimates all items as if every bit were kept; then chooses and estimates codes at
 * the present decision.db of each, any number of times, from samples alone. */
int mk_take_statistics(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err);
int mk_choose_again(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err);

/* Bytes that a tensor is the cause of besides its blocks: their entries in the index, its segment,
 * its record and its code's, before the tables are packed. */
uint64_t mk_item_overhead(const struct mk_item *it);

static inline uint64_t mk_item_blocks(const struct mk_item *it)
{
    return (it->length - 1) / hc_code_block_bytes(&it->code) + 1;
}

static inline bool mk_item_is_lossy(const struct mk_item *it)
{
    return it->code.type == HC_CODE_TRAJECTORY;
}

#endif
