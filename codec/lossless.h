/* The lossless code: byte planes, each compressed where that pays.
 *
 * A block is its planes one after another, each behind a 32-bit header (mode in the top byte,
 * stored size below), then the bytes that fill no whole element. BYTES is one plane of width 1. In
 * floats the top 16 bits are rotated left by one, so that the exponent fills a byte of its own and
 * the random sign moves down to the mantissa.
 */
#ifndef HYPERFS_CODEC_LOSSLESS_H
#define HYPERFS_CODEC_LOSSLESS_H

#include "codec/codec.h"

/* Bytes of an element as planes (1, 2, 4, 8), and whether the top half is rotated. */
unsigned hc_plane_width(const struct hc_code *code);
bool hc_plane_rotate(const struct hc_code *code);

size_t hc_lossless_bound(size_t raw_len);
int hc_lossless_decode(const struct hc_code *code, struct hc_work *w, const uint8_t *src,
                       size_t src_len, uint8_t *dst, size_t raw_len);
/* dst has room for hc_lossless_bound(raw_len). */
size_t hc_lossless_encode(const struct hc_code *code, struct hc_work *w, const uint8_t *src,
                          size_t raw_len, uint8_t *dst);

#endif
