/* Elements of the four weight types as doubles, and back with one rounding. */
#ifndef HYPERFS_CODEC_WEIGHT_H
#define HYPERFS_CODEC_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

#include "codec/dtype.h"

/* Loads n elements. */
void hc_weights_load(double *dst, const uint8_t *src, size_t n, enum hc_dtype dtype);

/* Rounds to the nearest value of the type, ties to even, and stores it (little-endian).
 * Returns 0 if the result is an infinity, else 1. */
int hc_weight_store(uint8_t *dst, double value, enum hc_dtype dtype);

#endif
