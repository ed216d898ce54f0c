/* What one pass over a tensor finds out; private to the codec (codec.h has the interface). */
#ifndef HYPERFS_CODEC_SCAN_H
#define HYPERFS_CODEC_SCAN_H

#include "codec/codec.h"

/* Histogram of the squared length of pairs, eight bins an octave. Sums of mantissas are
 * integers, so that the result does not depend on the order of blocks. */
enum {
    HC_SCAN_BINS = 2048 * 8,
    HC_SCAN_FINITE = 2047 * 8, /* bins from here on: infinities and NaNs; bin 0: zero */
    HC_SCAN_DISTINCT = 256
};

struct hc_scan_bin {
    uint64_t count;
    uint64_t mantissa; /* sum of the leading 20 bits behind the binary point */
};

struct hc_scan {
    enum hc_dtype dtype;
    uint64_t elements;
    uint64_t zero_elements;
    unsigned distinct;      /* patterns in `seen`, HC_SCAN_DISTINCT + 1: more */
    uint64_t pattern[1024]; /* open addressing */
    uint8_t used[1024];
    unsigned first, end; /* bins of finite pairs that are not zero: none outside [first, end) */
    struct hc_scan_bin bin[HC_SCAN_BINS];
    uint64_t run[2][HC_SCAN_BINS]; /* counts and sums not yet in bin */
};

/* Pairs that are not finite. */
uint64_t hc_scan_outside(const struct hc_scan *s);

/* Sum of squares of the pairs in a bin, and the squared length at its lower end. */
double hc_scan_energy(const struct hc_scan *s, unsigned bin);
double hc_scan_edge(unsigned bin);

#endif
