/* A map of zeros: pruned tensors keep their zeros exactly and pay for the others only.
 *
 * A trellis cannot reach the origin from every state, so that exact zeros would come back as
 * small numbers. A block with a zero map stores one bit an element (1: not zero) in front, as zstd
 * literals, and codes the remaining elements as if they stood side by side. Zeros of either sign
 * come back as +0.
 */
#ifndef HYPERFS_CODEC_ZEROMAP_H
#define HYPERFS_CODEC_ZEROMAP_H

#include <stddef.h>
#include <stdint.h>

#include "codec/dtype.h"

static inline size_t hc_zeromap_bytes(size_t elements)
{
    return (elements + 7) / 8;
}

/* Fills the map of n elements of a weight type and moves those that are not zero together in
 * dense. Returns their number. */
size_t hc_zeromap_compact(uint8_t *map, uint8_t *dense, const uint8_t *src, size_t n,
                          enum hc_dtype dtype);

/* Elements that are not zero by a map of n elements. */
size_t hc_zeromap_count(const uint8_t *map, size_t n);

/* Spreads dense, which is readable one element beyond its end, over n elements. */
void hc_zeromap_expand(uint8_t *dst, const uint8_t *map, const uint8_t *dense, size_t n,
                       enum hc_dtype dtype);

#endif
