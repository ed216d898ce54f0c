/* Which code a tensor gets, and with which step. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codec/fit.h"
#include "codec/lattice.h"
#include "codec/scan.h"
#include "codec/trellis.h"
#include "codec/work.h"
#include "codec/zeromap.h"

enum {
    CALIBRATIONS = 4, /* encodings of the samples, at most, until the step fits */
    TRIAL_BLOCKS = 2, /* samples of a large tensor that window sizes are tried on, */
    TRIAL_NU = 4      /* with a small trellis: the ranks are distributed alike */
};

/* dB, by which sample blocks that are not the whole tensor may correct the step. */
static const double sample_trust = 1.0;

struct samples {
    const uint8_t *const *block;
    const size_t *len;
    unsigned count;
    unsigned trials; /* of them that windows are tried on */
    bool whole;      /* they are the whole tensor */
    unsigned nu;
};

/* The trajectory code of window `split` for weights that fit. */
static int code_of(enum hc_dtype dtype, unsigned nu, unsigned split, const struct hc_fit *f,
                   bool zero_map, struct hc_code *code)
{
    const struct hc_taps taps = hc_trellis_taps(nu);
    memset(code, 0, sizeof *code);
    code->type = HC_CODE_TRAJECTORY;
    code->dtype = dtype;
    code->t.nu = (uint8_t)nu;
    code->t.split = (uint8_t)split;
    code->t.zero_map = zero_map;
    code->t.g0 = taps.g0;
    code->t.g1 = taps.g1;
    int rc = hc_lattice_for(hc_window_points(split), &code->t);
    if (rc)
        return rc;
    double step = f->d / hc_lattice_spacing(code->t.points);
    if (!(step > 0x1p-980) || !(step < 0x1p980))
        return -ERANGE;
    code->t.step = hc_step_from(step);
    code->shrink = fmin(HC_SHRINK_MOST, nu ? HC_SHRINK_FACTOR * f->d * f->d / f->mean_square : 0);
    return 0;
}

/* Codes the first `count` samples; sums up what comes out. */
static int try_code(const struct hc_code *code, struct hc_work *w, const struct samples *s,
                    unsigned count, struct hc_block_stats *stats, uint64_t *bytes)
{
    struct hc_encoder *e;
    uint8_t *out = malloc(hc_code_bound(code, hc_code_block_bytes(code)));
    int rc = out ? hc_encoder_new(code, &e) : -ENOMEM;

    memset(stats, 0, sizeof *stats);
    *bytes = 0;
    if (rc) {
        free(out);
        return rc;
    }
    for (unsigned b = 0; b < count && rc == 0; b++) {
        /* A lossless block may be smaller than a sample: F32 and F64 take several. */
        for (size_t from = 0; from < s->len[b] && rc == 0;) {
            struct hc_block_stats one;
            size_t n = s->len[b] - from, size;
            n = n < hc_code_block_bytes(code) ? n : hc_code_block_bytes(code);
            rc = hc_encode(e, w, s->block[b] + from, n, out, &size, NULL, &one);
            if (rc == 0) {
                hc_block_stats_add(stats, &one);
                *bytes += size;
            }
            from += n;
        }
    }
    hc_encoder_free(e);
    free(out);
    return rc;
}

/* By how many dB the samples came out better than wanted; not finite where they cannot tell. */
static double miss_of(const struct hc_block_stats *stats, const struct samples *s,
                      const struct hc_fit *f, double wanted_db)
{
    if (stats->carried == 0 || !(stats->noise > 0))
        return NAN;
    double miss = s->whole ? hc_sqnr_db(stats)
                           : 10 * log10(f->mean_square * (double)stats->carried / stats->noise);
    miss -= wanted_db;
    /* A few blocks may be unlike the others (rows of an embedding that were never trained): they
     * may not lead far away from what the formula says. */
    if (!s->whole && isfinite(miss) && fabs(miss) > sample_trust)
        miss = copysign(sample_trust, miss);
    return miss;
}

/* Sets the code's step so that the samples' noise is that of the wanted SQNR. */
static int calibrate(struct hc_code *code, struct hc_work *w, const struct samples *s,
                     const struct hc_fit *f, double sqnr_db, uint64_t *bytes)
{
    for (int k = 0; k < CALIBRATIONS; k++) {
        struct hc_block_stats stats;
        int rc = try_code(code, w, s, s->count, &stats, bytes);
        if (rc)
            return rc;
        double miss = miss_of(&stats, s, f, sqnr_db);
        if (!isfinite(miss))
            return -ERANGE;
        if ((miss > -0.01 && miss < 0.03) || fabs(miss) == sample_trust || k == CALIBRATIONS - 1)
            return 0;
        *code = hc_rescale(code, sqnr_db + miss, sqnr_db + 0.005);
    }
    return 0;
}

struct hc_code hc_rescale(const struct hc_code *code, double measured_db, double wanted_db)
{
    struct hc_code c = *code;
    c.t.step = hc_step_from(hc_step_value(code->t.step) * pow(10, (measured_db - wanted_db) / 20));
    return c;
}

/* The window with the smallest code for the samples. The trials also tell how far the noise is from
 * what the formula says (small or spiky tensors), and the step is corrected for that. */
static int choose_window(const struct hc_scan *scan, const struct hc_target *target, bool zero_map,
                         struct hc_work *w, const struct samples *s, struct hc_code *best,
                         struct hc_fit *best_fit)
{
    const double mse = hc_trellis_taps(s->nu).mse, trial_mse = hc_trellis_taps(TRIAL_NU).mse;
    const double trial_db = target->sqnr_db - 10 * log10(trial_mse / mse);
    const double exact_bits = 16 + 2.0 * hc_dtype_bits(scan->dtype);
    double least = INFINITY;
    unsigned trials = 0;

    for (unsigned split = 1; split <= HC_MAX_SPLIT && trials < HC_SPLIT_TRIALS; split++) {
        struct hc_fit f =
            hc_fit_window(scan, target->sqnr_db, mse, hc_window_reach(hc_window_points(split)));
        struct hc_block_stats stats;
        struct hc_code code;
        uint64_t bytes;
        if (f.outside * exact_bits > HC_OUTSIDE_COST && split < HC_MAX_SPLIT)
            continue;
        if (!(f.d > 0) || !isfinite(f.d))
            return -ERANGE;
        int rc = code_of(scan->dtype, TRIAL_NU, split, &f, zero_map, &code);
        if (rc == 0)
            rc = try_code(&code, w, s, s->trials, &stats, &bytes);
        if (rc)
            return rc;
        trials++;
        double miss = miss_of(&stats, s, &f, trial_db);
        if (!isfinite(miss))
            miss = 0;
        /* Sizes of a whole tensor are compared at one SQNR, 6.02 dB being a bit a weight; samples
         * know the noise less well than the formula does. */
        double bits = (double)bytes * 8 / (double)(stats.carried + stats.exact);
        bits -= s->whole ? miss / 6.0206 : 0;
        if (bits >= least)
            continue;
        least = bits;
        *best_fit = f;
        f.d *= pow(10, miss / 20);
        rc = code_of(scan->dtype, s->nu, split, &f, zero_map, best);
        if (rc)
            return rc;
    }
    return 0;
}

/* The calibrated code, with or without a zero map; its size on the samples. */
static int choose_trajectory(const struct hc_scan *scan, const struct hc_target *target,
                             bool zero_map, struct hc_work *w, const struct samples *s,
                             struct hc_code *code, uint64_t *bytes)
{
    struct hc_fit f = {0};
    int rc = choose_window(scan, target, zero_map, w, s, code, &f);
    return rc ? rc : calibrate(code, w, s, &f, target->sqnr_db, bytes);
}

/* What a scan of the samples without their zeros finds; NULL when out of memory. */
static struct hc_scan *scan_without_zeros(enum hc_dtype dtype, const struct samples *s)
{
    struct hc_scan *dense = hc_scan_new(dtype);
    uint8_t *map = malloc(HC_MAX_BLOCK_BYTES / 2), *values = malloc(HC_MAX_BLOCK_BYTES + HC_SLACK);
    const size_t elem = hc_dtype_bits(dtype) / 8;

    if (dense && map && values) {
        for (unsigned b = 0; b < s->count; b++) {
            size_t n = hc_zeromap_compact(map, values, s->block[b], s->len[b] / elem, dtype);
            hc_scan_block(dense, values, n * elem);
        }
    } else {
        hc_scan_free(dense);
        dense = NULL;
    }
    free(map);
    free(values);
    return dense;
}

/* The smaller of the codes with and without a zero map; with it at any size from a share of zeros
 * on that only pruning makes. */
static int choose_lossy(const struct hc_scan *scan, const struct hc_target *target,
                        struct hc_work *w, const struct samples *s, struct hc_code *code,
                        uint64_t *bytes)
{
    const bool some = scan->zero_elements >= scan->elements / 256 + 1;
    const bool many = scan->zero_elements >= scan->elements / 8;
    struct hc_code mapped;
    uint64_t mapped_bytes;
    int rc = -ERANGE;

    if (!many)
        rc = choose_trajectory(scan, target, false, w, s, code, bytes);
    if (rc == -ENOMEM || !some)
        return rc;
    struct hc_scan *dense = scan_without_zeros(scan->dtype, s);
    if (!dense)
        return -ENOMEM;
    int rc_mapped = choose_trajectory(dense, target, true, w, s, &mapped, &mapped_bytes);
    hc_scan_free(dense);
    if (rc_mapped == 0 && (rc || mapped_bytes < *bytes)) {
        *code = mapped;
        *bytes = mapped_bytes;
        rc = 0;
    }
    return rc_mapped == -ENOMEM ? rc_mapped : rc;
}

int hc_choose(const struct hc_scan *scan, const struct hc_target *target, struct hc_work *w,
              const uint8_t *const sample[], const size_t sample_len[], unsigned nsamples,
              struct hc_code *out)
{
    const struct hc_code lossless = hc_lossless(scan->dtype, 0);
    struct samples s = {.block = sample, .len = sample_len, .count = nsamples};
    struct hc_block_stats stats;
    struct hc_code code;
    uint64_t bytes, lossless_bytes, sampled = 0, tried = 0;

    if (target->nu > HC_MAX_NU || target->nu_small > HC_MAX_NU || !(target->sqnr_db >= HC_MIN_DB) ||
        !(target->sqnr_db <= HC_MAX_DB) || nsamples == 0)
        return -EINVAL;
    *out = lossless;
    if (scan->distinct <= HC_SCAN_DISTINCT)
        return 0;
    for (unsigned b = 0; b < nsamples; b++)
        sampled += sample_len[b];
    s.whole = sampled == scan->elements * (hc_dtype_bits(scan->dtype) / 8);
    s.trials = s.whole || nsamples < TRIAL_BLOCKS ? nsamples : TRIAL_BLOCKS;
    s.nu = s.whole ? target->nu_small : target->nu;

    int rc = choose_lossy(scan, target, w, &s, &code, &bytes);
    if (rc == -ENOMEM)
        return rc;
    if (rc) /* cannot be coded this way: stays lossless */
        return 0;
    /* The lossless code of the trial blocks stands for all samples: it is two to five times larger
     * unless the weights are strange, and those show everywhere. */
    rc = try_code(&lossless, w, &s, s.trials, &stats, &lossless_bytes);
    for (unsigned b = 0; b < s.trials; b++)
        tried += sample_len[b];
    if (rc == 0 && (double)bytes / (double)sampled < (double)lossless_bytes / (double)tried)
        *out = code;
    return rc;
}
