/* The trajectory code of one block (design section 3, arXiv 2409.00592 section 3).
 *
 * A coded block of n pairs (and perhaps an odd last element), elements of e bytes:
 *   u32  number of pairs stored exactly, x
 *   u32  stored size of the high bytes, h (n: stored raw)
 *   h    bytes: the high bytes i >> (s-1) of the ranks, as zstd literals
 *   low s-1 bits of the ranks, packed from bit 0 of the first byte on
 *   path bits, 1 a pair, packed likewise (nothing if nu = 0)
 *   x    u16 places of the exact pairs, ascending; then x pairs of 2e bytes
 *   e    bytes of an odd last element
 * Spare bits of a last byte are zero.
 */
#ifndef HYPERFS_CODEC_TRAJECTORY_H
#define HYPERFS_CODEC_TRAJECTORY_H

#include "codec/codec.h"
#include "codec/lattice.h"

/* The decoder's table: both dimensions of the pairs of each (c0, 2 i + c1), as bytes of the dtype.
 */
struct hc_table {
    uint8_t *bytes;
    size_t size;
    uint32_t half; /* entries of one c0 */
};

/* -ERANGE if a point rounds to an infinity of the dtype. */
int hc_table_new(const struct hc_code *code, const struct hc_lattice *l, struct hc_table *out);

int hc_trajectory_decode(const struct hc_code *code, const struct hc_table *table,
                         struct hc_work *w, const uint8_t *src, size_t src_len, uint8_t *dst,
                         size_t raw_len);

/* What the encoder knows besides the table: everything in units of 1/(2U), or of lattice bases. */
struct hc_quantiser {
    double to_m[2], to_n[2]; /* lattice coordinates (m, n) of a pair of weights: dot products */
    double window2;          /* pairs with a squared length below it are carried; weights */
    float qa, qb, qc;        /* quadratic form of the coarse basis (kernels.h) */
    uint32_t *rank;          /* map of the window: rank of point (m, n) */
    int32_t stride, origin;  /* place of (m, n) in the map: origin + stride m + n */
    double cover2;           /* squared covering radius of a phase, weights */
    double shrink;           /* hc_code's */
};

int hc_quantiser_new(const struct hc_code *code, const struct hc_lattice *l,
                     struct hc_quantiser *out);

size_t hc_trajectory_bound(const struct hc_code *code, size_t raw_len);
size_t hc_trajectory_encode(const struct hc_code *code, const struct hc_quantiser *q,
                            struct hc_work *w, const uint8_t *src, size_t raw_len, uint8_t *dst);

/* Compares a block with its decoded form; w->e.outside is that of the encoder's run. False if a
 * carried pair is farther off than the code allows, or an exact one differs. */
bool hc_trajectory_measure(const struct hc_code *code, const struct hc_quantiser *q,
                           const struct hc_work *w, const uint8_t *src, const uint8_t *decoded,
                           size_t raw_len, struct hc_block_stats *stats);

#endif
