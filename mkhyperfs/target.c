#include "mkhyperfs/target.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fs/format.h"
#include "fs/ui.h"

/* Aimed at so far below the goal: where samples are whole tensors, and where they are not; and how
 * far the level may move once codes are chosen. */
static const double AIM_EXACT = 0.0015, AIM_SAMPLED = 0.003;
static const double MOVE_CHOSEN = 0.3, MOVE_STEERED = 1; /* dB */
enum { CHOICES = 4, TRIES = 5, STOPS = 7 };

struct mk_target {
    const struct mk_options *opt;
    struct mk_source *src;
    struct mk_item **item;
    size_t count, lossy; /* items; the first of them that may lose something */
    size_t done;         /* items before this number are coded */
    double limit, aim;   /* bytes */
    double tables;       /* bytes of the image besides blocks and their index entries */
    double bias;         /* what tensors larger than their samples take over their forecasts */
    double level;
    unsigned tries;
    size_t stop[STOPS];
};

void mk_forecast_free(struct mk_forecast *f)
{
    if (f)
        free(f->scan);
    free(f);
}

void mk_target_free(struct mk_target *t)
{
    if (t)
        free(t->item);
    free(t);
}

struct mk_item **mk_target_items(const struct mk_target *t, size_t *count)
{
    *count = t->count;
    return t->item;
}

/* ---- forecasts ---- */

static double curve(const struct mk_forecast *f, double db)
{
    double at = (db - HC_MIN_DB) / MK_FORECAST_STEP;
    unsigned i = at >= MK_FORECASTS - 1 ? MK_FORECASTS - 2 : (unsigned)at;
    return f->bits[i] + (at - i) * (f->bits[i + 1] - f->bits[i]);
}

/* Bytes of a tensor at db, or with every bit where that is less. */
static double forecast(const struct mk_item *it, double db)
{
    const struct mk_forecast *f = it->forecast;
    double bytes = (curve(f, db) + f->correction) * (double)it->tensor->elements / 8;
    return isfinite(bytes) && bytes < (double)f->lossless ? bytes : (double)f->lossless;
}

/* What an item of this size adds to what is limited. */
static double cost(const struct mk_target *t, const struct mk_item *it, double bytes)
{
    if (t->opt->goal == MK_GOAL_BITS)
        return it->decision.lossy ? bytes + (double)mk_item_overhead(it) : 0;
    return bytes + (double)(mk_item_blocks(it) * MK_BLOCK_OVERHEAD);
}

/* Whether the size follows the level: not that of what is kept exactly, nor of what is done. */
static bool moves(const struct mk_target *t, size_t i, bool chosen)
{
    const struct mk_item *it = t->item[i];
    return i >= t->done && it->decision.lossy && (!chosen || mk_item_is_lossy(it));
}

static double total(const struct mk_target *t, double level, bool chosen)
{
    double sum = t->tables;
    for (size_t i = 0; i < t->count; i++) {
        const struct mk_item *it = t->item[i];
        if (moves(t, i, chosen)) {
            struct mk_decision d = it->decision;
            mk_decision_level(&d, level);
            sum += cost(t, it, forecast(it, d.db) * (it->forecast->scan ? t->bias : 1));
        } else {
            sum += cost(t, it, (double)(i < t->done ? it->stored : it->estimate));
        }
    }
    return sum;
}

/* The highest level in [low, high] at which the total is at most the aim; low if there is none. */
static double solve(const struct mk_target *t, double low, double high, bool chosen)
{
    if (total(t, high, chosen) <= t->aim)
        return high;
    for (int i = 0; i < 50; i++) {
        double middle = (low + high) / 2;
        if (total(t, middle, chosen) <= t->aim)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Levels below and above which no tensor changes any more. */
static void bounds(const struct mk_target *t, double *low, double *high)
{
    double least = 0, most = 0;
    for (size_t i = t->lossy; i < t->count; i++) {
        const struct mk_decision *d = &t->item[i]->decision;
        if (d->fixed)
            continue;
        least = d->offset < least ? d->offset : least;
        most = d->offset > most ? d->offset : most;
    }
    *low = HC_MIN_DB - most;
    *high = HC_MAX_DB - least;
}

/* ---- the plan ---- */

uint64_t mk_target_tables(const struct mk_source *src)
{
    /* Of typical images, after packing: the directory and both superblocks; META; and for each
     * name, each segment and each tensor. */
    uint64_t bytes = 2 * sizeof(struct hfs_disk_super) + 9 * sizeof(struct hfs_disk_section) + 200;
    bytes += 44 * (uint64_t)src->nnodes;
    for (size_t i = 0; i < src->nfiles; i++) {
        const struct mk_plan *plan = src->files[i]->plan;
        bytes += (plan->same ? 0 : 8 * (uint64_t)plan->nitems) + 24 * (uint64_t)plan->header.count;
    }
    return bytes;
}

static int list_items(struct mk_target *t)
{
    size_t n = 0;
    for (size_t i = 0; i < t->src->nfiles; i++)
        n += t->src->files[i]->plan->nitems;
    t->item = malloc((n + 1) * sizeof(struct mk_item *));
    if (!t->item)
        return -ENOMEM;
    for (int lossy = 0; lossy <= 1; lossy++) {
        t->lossy = t->count;
        for (size_t i = 0; i < t->src->nfiles; i++) {
            struct mk_plan *plan = t->src->files[i]->plan;
            for (size_t k = 0; k < plan->nitems && !plan->same; k++)
                if (plan->items[k].decision.lossy == lossy)
                    t->item[t->count++] = &plan->items[k];
        }
    }
    return 0;
}

static void set_limit(struct mk_target *t)
{
    const struct mk_options *opt = t->opt;
    double weights = 0;
    bool sampled = false;
    for (size_t i = t->lossy; i < t->count; i++) {
        weights += (double)t->item[i]->tensor->elements;
        sampled |= t->item[i]->forecast->scan != NULL;
    }
    t->limit = opt->goal == MK_GOAL_BITS    ? opt->goal_value * weights / 8
               : opt->goal == MK_GOAL_RATIO ? (double)t->src->bytes / opt->goal_value
                                            : opt->goal_value;
    t->tables = opt->goal == MK_GOAL_BITS ? 0 : (double)mk_target_tables(t->src);
    t->aim = t->limit * (1 - (sampled ? AIM_SAMPLED : AIM_EXACT));
}

/* Gives all items that are not done the level; codes that are chosen follow it. */
static void set_level(struct mk_target *t, double level, bool chosen)
{
    t->level = level;
    for (size_t i = t->lossy; i < t->count; i++) {
        struct mk_item *it = t->item[i];
        double before = it->decision.db;
        if (i < t->done)
            continue;
        mk_decision_level(&it->decision, level);
        if (chosen && mk_item_is_lossy(it)) {
            it->code = hc_rescale(&it->code, before, it->decision.db);
            it->estimate = (uint64_t)forecast(it, it->decision.db);
        }
    }
}

/* After codes were chosen and tried on the samples: corrects the forecasts of what is to be coded.
 */
static void learn(struct mk_target *t)
{
    for (size_t i = t->lossy; i < t->count; i++) {
        struct mk_item *it = t->item[i];
        struct mk_forecast *f = it->forecast;
        double bits = 8 * (double)it->estimate * f->unlike / (double)it->tensor->elements;
        if (i < t->done)
            continue;
        if (!mk_item_is_lossy(it))
            f->lossless = it->estimate;
        else if (isfinite(curve(f, it->decision.db)))
            f->correction = bits - curve(f, it->decision.db);
    }
}

static int choose(struct mk_target *t, struct hfs_error *err)
{
    double low, high;
    bounds(t, &low, &high);
    set_level(t, solve(t, low, high, false), false);
    for (int i = 0; i < CHOICES; i++) {
        int r = mk_choose_again(t->opt, t->src, err);
        if (r < 0)
            return r;
        learn(t);
        double level = solve(t, low, high, false);
        if (fabs(level - t->level) <= MOVE_CHOSEN) {
            set_level(t, level, true);
            return 0;
        }
        set_level(t, level, false);
    }
    /* The forecasts disagree with themselves: what is chosen moves as far as it must. */
    int r = mk_choose_again(t->opt, t->src, err);
    if (r < 0)
        return r;
    learn(t);
    set_level(t, solve(t, low, high, true), true);
    return 0;
}

static double kept_exactly(const struct mk_target *t)
{
    double sum = t->tables;
    for (size_t i = 0; i < t->count; i++)
        if (!mk_item_is_lossy(t->item[i]))
            sum += cost(t, t->item[i], (double)t->item[i]->estimate);
    return sum;
}

static const char *goal_name(const struct mk_options *opt)
{
    return opt->goal == MK_GOAL_BITS    ? "--bits"
           : opt->goal == MK_GOAL_RATIO ? "--ratio"
                                        : "--target-size";
}

/* A size in the unit of the goal. */
static const char *shown(const struct mk_target *t, char buf[40], double bytes)
{
    char text[16];
    if (t->opt->goal == MK_GOAL_BITS)
        snprintf(buf, 40, "%.2f bits a weight", bytes / t->limit * t->opt->goal_value);
    else
        snprintf(buf, 40, "%s", ui_bytes(text, (uint64_t)bytes));
    return buf;
}

static int too_small(const struct mk_target *t, double least, struct hfs_error *err)
{
    char a[40], b[40], goal[40];
    double kept = kept_exactly(t);
    shown(t, goal, t->limit);
    if (t->opt->goal == MK_GOAL_BITS)
        return hfs_fail(err, ERANGE,
                        "--bits=%s cannot be met: at the lowest quality, %d dB, the "
                        "weights take %s",
                        t->opt->goal_text, HC_MIN_DB, shown(t, a, least));
    if (kept > t->limit)
        return hfs_fail(err, ERANGE,
                        "%s=%s cannot be met: what is kept exactly takes %s alone, more "
                        "than %s; --exclude leaves files out",
                        goal_name(t->opt), t->opt->goal_text, shown(t, a, kept), goal);
    return hfs_fail(err, ERANGE,
                    "%s=%s cannot be met: at the lowest quality, %d dB, the image takes "
                    "about %s (%s of it kept exactly), more than %s",
                    goal_name(t->opt), t->opt->goal_text, HC_MIN_DB, shown(t, a, least),
                    shown(t, b, kept), goal);
}

/* Every bit, if that is not too large either; else the best quality with loss. */
static void best_quality(struct mk_target *t)
{
    double lossless = t->tables;
    for (size_t i = 0; i < t->count; i++) {
        const struct mk_item *it = t->item[i];
        lossless += cost(t, it, (double)(i < t->lossy ? it->estimate : it->forecast->lossless));
    }
    bool keep = lossless <= t->limit * (1 - MK_NEAR);
    for (size_t i = t->lossy; keep && i < t->count; i++) {
        struct mk_item *it = t->item[i];
        if (it->decision.fixed || !mk_item_is_lossy(it))
            continue;
        it->code = hc_lossless(it->tensor->dtype, MK_ZSTD_LEVEL);
        it->decision.why = "the goal leaves room for every bit";
        it->estimate = it->forecast->lossless;
    }
    ui_info(
        keep ? "%s=%s leaves room for every bit: the image is lossless, and smaller"
             : "%s=%s leaves room for more than the best quality with loss: the image is smaller",
        goal_name(t->opt), t->opt->goal_text);
}

/* Positions between tensors, each after half of what is left. */
static void set_stops(struct mk_target *t)
{
    double sum = 0, so_far = 0, share = 0;
    size_t n = 0;
    for (size_t i = t->lossy; i < t->count; i++)
        sum += (double)t->item[i]->estimate;
    for (size_t i = t->lossy; i < t->count && n < STOPS; i++) {
        if (so_far >= share * sum) {
            t->stop[n++] = i;
            while (so_far >= share * sum && share < 1)
                share = (1 + share) / 2;
        }
        so_far += (double)t->item[i]->estimate;
    }
    while (n < STOPS)
        t->stop[n++] = SIZE_MAX;
}

/* The level is as low or as high as it can be: is that so because the goal cannot be met? */
static int check_bounds(struct mk_target *t, struct hfs_error *err)
{
    double low, high, sum = total(t, t->level, true);
    bounds(t, &low, &high);
    if (sum > t->limit)
        return too_small(t, sum, err);
    if (t->level >= high - 1e-6 && sum < t->limit * (1 - MK_NEAR))
        best_quality(t);
    return 0;
}

int mk_target_plan(const struct mk_options *opt, struct mk_source *src, struct mk_target **out,
                   struct hfs_error *err)
{
    struct mk_target *t = calloc(1, sizeof *t);
    int r = t ? 0 : -ENOMEM;
    if (r == 0) {
        *t = (struct mk_target){.opt = opt, .src = src, .bias = 1};
        r = list_items(t);
    }
    if (r < 0)
        hfs_fail(err, ENOMEM, "out of memory");
    if (r == 0 && t->lossy == t->count && opt->goal == MK_GOAL_BITS)
        r = hfs_fail(err, ERANGE, "--bits=%s cannot be met: no tensor of %s is stored with loss",
                     opt->goal_text, opt->source);
    if (r == 0)
        r = mk_take_statistics(opt, src, err);
    if (r == 0) {
        set_limit(t);
        r = choose(t, err);
    }
    if (r == 0)
        r = check_bounds(t, err);
    if (r < 0) {
        mk_target_free(t);
        return r;
    }
    set_stops(t);
    ui_verbose("%s=%s: the common level is %.2f dB", goal_name(opt), opt->goal_text, t->level);
    *out = t;
    return 0;
}

/* ---- while it is coded ---- */

bool mk_target_is_stop(const struct mk_target *t, size_t next)
{
    for (size_t i = 0; i < STOPS; i++)
        if (t->stop[i] == next)
            return true;
    return false;
}

static double clamp(double x, double low, double high)
{
    return x < low ? low : x > high ? high : x;
}

void mk_target_steer(struct mk_target *t, size_t next)
{
    double took = 0, expected = 0;
    for (size_t i = t->lossy; i < next; i++) {
        if (!mk_item_is_lossy(t->item[i]) || !t->item[i]->forecast->scan)
            continue;
        took += (double)t->item[i]->stored;
        expected += (double)t->item[i]->estimate;
    }
    t->done = next;
    if (expected > 0)
        t->bias = clamp(took / expected, 0.95, 1.05);
    double low = t->level - MOVE_STEERED, high = t->level + MOVE_STEERED;
    set_level(t, solve(t, low, high, true), true);
}

/* The first item to code again, so that those from there on need not move far. */
static size_t tail(struct mk_target *t, double missing)
{
    double slope = 0;
    size_t i = t->count;
    while (i > t->lossy && (slope == 0 || fabs(missing) / slope > MOVE_CHOSEN)) {
        const struct mk_item *it = t->item[--i];
        if (mk_item_is_lossy(it) && !it->decision.fixed && it->decision.db < HC_MAX_DB)
            slope += forecast(it, it->decision.db) - forecast(it, it->decision.db - 1);
    }
    return i;
}

/* The forecast of an item that was coded. */
static void correct(struct mk_item *it, bool stays)
{
    struct mk_forecast *f = it->forecast;
    double expected = forecast(it, it->decision.db);
    double bits = 8 * (double)it->stored / (double)it->tensor->elements;
    f->done = stays;
    if (!mk_item_is_lossy(it) || !(expected > 0) || !isfinite(curve(f, it->decision.db)))
        return;
    f->unlike = clamp(f->unlike * (double)it->stored / expected, 0.2, 5);
    f->correction = bits - curve(f, it->decision.db);
}

/* How far a level moves what is to be coded. */
static double farthest(const struct mk_target *t, double level)
{
    double most = 0;
    for (size_t i = t->done; i < t->count; i++) {
        struct mk_decision d = t->item[i]->decision;
        mk_decision_level(&d, level);
        if (moves(t, i, true))
            most = fmax(most, fabs(d.db - t->item[i]->decision.db));
    }
    return most;
}

int mk_target_met(struct mk_target *t, uint64_t image_bytes, size_t *from, struct hfs_error *err)
{
    t->done = t->count;
    double low, high, size = total(t, t->level, true);
    if (t->opt->goal != MK_GOAL_BITS) { /* now the tables are known */
        t->tables += (double)image_bytes - size;
        size = (double)image_bytes;
    }
    bounds(t, &low, &high);
    bool above = size > t->limit, below = size < t->limit * (1 - MK_NEAR);
    bool stuck = below && t->level >= high - 1e-6;
    if ((!above && !below) || stuck)
        return 1;
    char a[40], b[40];
    t->aim = t->limit * (1 - AIM_SAMPLED);
    *from = tail(t, t->aim - size);
    if (++t->tries >= TRIES || *from == t->count) {
        if (above)
            return hfs_fail(err, ERANGE,
                            "%s=%s is missed: the image would take %s; set it a little "
                            "lower",
                            goal_name(t->opt), t->opt->goal_text, shown(t, a, size));
        ui_warn("%s=%s: %s is as near as it came", goal_name(t->opt), t->opt->goal_text,
                shown(t, a, size));
        return 1;
    }
    ui_verbose("%s=%s: %s instead of %s; the last tensors are coded again", goal_name(t->opt),
               t->opt->goal_text, shown(t, a, size), shown(t, b, t->limit));
    t->bias = 1;
    t->done = *from;
    for (size_t i = t->lossy; i < t->count; i++)
        correct(t->item[i], i < t->done);
    double level = solve(t, low, high, true);
    if (farthest(t, level) > MOVE_STEERED)
        return choose(t, err);
    set_level(t, level, true);
    return 0;
}
