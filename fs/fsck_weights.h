/* How far decoded weights are from the original ones. */
#ifndef HYPERFS_FS_FSCK_WEIGHTS_H
#define HYPERFS_FS_FSCK_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "codec/codec.h"

struct fsck_measure {
    double signal, noise; /* sums of squares: of the original weights, of the differences */
    double max_error;
    uint64_t exact; /* elements that came back bit for bit */
    uint64_t elements;
    uint64_t broken; /* NaN or infinite on either side, and not the same bits */
};

/* Compares len bytes of weights. `limit` is the largest weight that the code can carry: larger ones
 * that came back exactly were stored apart, and are left out of the signal, which they would
 * drown. */
void fsck_measure_block(struct fsck_measure *m, enum hc_dtype dtype, double limit,
                        const uint8_t *original, const uint8_t *decoded, size_t len);
void fsck_measure_add(struct fsck_measure *sum, const struct fsck_measure *m);
/* dB; +infinity without noise. */
double fsck_measure_sqnr(const struct fsck_measure *m);
/* The limit of a code, see above. */
double fsck_weight_limit(const struct hc_code *code);

#endif
