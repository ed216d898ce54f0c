/* What a scan says about a tensor at a wanted quality; private to the codec.
 *
 * Nothing is encoded here: hc_choose starts its trials from this, and hc_predict_bits answers with
 * it alone. docs/codec.md, sections 7 and 8.
 */
#ifndef HYPERFS_CODEC_FIT_H
#define HYPERFS_CODEC_FIT_H

#include "codec/codec.h"

/* Shrinking by this times (d / rms)^2 gives Gaussian weights the shortest code at equal SQNR: a
 * point's cost rises by log2(e) / (2 rms^2) bits with its squared length, so that the nearest
 * point to a shrunk weight is the cheapest one under squared error plus lambda times bits. */
#define HC_SHRINK_FACTOR 0.09
#define HC_SHRINK_MOST 0.05

/* A window that costs less than this for the pairs outside of it, in bits a pair, is large
 * enough to be worth a trial; the first few of them are. */
#define HC_OUTSIDE_COST 0.03
enum { HC_SPLIT_TRIALS = 3 };

/* The distribution of a tensor's pairs as a window of given size sees it. */
struct hc_fit {
    double mean_square; /* of the carried weights */
    double d;           /* spacing for the wanted SQNR; weights */
    double outside;     /* share of pairs outside */
};

/* Mean square and window depend on each other. Starting from the median finds the smallest window
 * that agrees with itself, so that a few huge weights do not set the step for all others. */
struct hc_fit hc_fit_window(const struct hc_scan *s, double sqnr_db, double mse, double reach);

/* Points a phase of the window of this split; its radius in units of d: the coarse cell has the
 * area 2 sqrt(3) d^2, and a rim of about the covering radius is lost. */
uint32_t hc_window_points(unsigned split);
double hc_window_reach(uint32_t npoints);

#endif
