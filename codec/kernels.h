/* The inner loops of the codec, once for each instruction set.
 *
 * kernels_portable.c and kernels_avx2.c hold the same functions with the same results, bit for
 * bit: integer arithmetic, or IEEE single precision without fused operations in the same order.
 * Buffers may be read and written up to HC_SLACK bytes beyond their end where a
 * comment says so.
 */
#ifndef HYPERFS_CODEC_KERNELS_H
#define HYPERFS_CODEC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "codec/codec.h"

/* Words of a bit plane of a full block, with room for a zero word before it. */
enum { HC_PLANE_FRONT = 8, HC_PLANE_WORDS = HC_TRAJECTORY_PAIRS / 64 + HC_PLANE_FRONT };

/* Branch metrics are squared distances in units of d^2 / HC_METRIC_UNIT, less the smallest of the
 * four, at most HC_METRIC_MAX: path metrics then stay below 2^15 between normalisations. */
enum { HC_METRIC_UNIT = 512, HC_METRIC_MAX = 1023 };

/* Squared length of x b1' + y b2' for the coarse basis b' = 2 b:
 * a x^2 + 2 b x y + c y^2, in units of d^2 / HC_METRIC_UNIT. */
struct hc_quadratic {
    float a, b, c;
};

/* What a decoder's inner loop reads. */
struct hc_decode_job {
    const uint8_t *hi;       /* high bytes of the ranks, n, readable with slack */
    const uint8_t *low;      /* low_bits a pair, packed from bit 0 on; readable with slack */
    unsigned low_bits;       /* 0 .. 8 */
    const uint64_t *c0, *c1; /* bit planes, 64 pairs a word */
    const uint8_t *table;    /* pairs: [c0][2 * i + c1] */
    uint32_t half;           /* entries of one c0: 2 * npoints */
    size_t n;                /* pairs */
    uint8_t *dst;            /* pairs out, no slack */
};

struct hc_kernels {
    /* Byte planes of n elements of width 2, 4 or 8; plane p of all elements at planes + p * n.
     * rotate: the element's top 16 bits are first rotated left by one (the sign goes to the
     * bottom of that half). */
    void (*split_planes)(uint8_t *planes, const uint8_t *src, size_t n, unsigned width,
                         bool rotate);
    void (*merge_planes)(uint8_t *dst, const uint8_t *planes, size_t n, unsigned width,
                         bool rotate);
    /* Branch metrics of n pairs with fine lattice coordinates x, y: metric[2t] holds phases 0
     * (low half) and 1, metric[2t + 1] phases 2 and 3. */
    void (*branch_metrics)(uint32_t *metric, const float *x, const float *y, size_t n,
                           const struct hc_quadratic *q);
    /* The nearest point of phase[t] to each pair, as its place in a map of the window:
     * place[t] = origin + stride * m + n for the point m b1 + n b2. */
    void (*nearest_places)(int32_t *place, const float *x, const float *y, const uint8_t *phase,
                           size_t n, const struct hc_quadratic *q, int32_t stride, int32_t origin);
    /* Viterbi search from the all-zero history over n pairs: path[t] = b_t, phase[t]. nu >= 1. */
    void (*viterbi)(unsigned nu, unsigned g0, unsigned g1, const uint32_t *metric, size_t n,
                    uint32_t *decisions, uint8_t *path, uint8_t *phase);
    /* The planes of c0 and c1 from the plane of path bits, `words` of 64 pairs. path[-1] is
     * zero. */
    void (*phase_planes)(uint64_t *c0, uint64_t *c1, const uint64_t *path, size_t words,
                         unsigned nu, unsigned g0, unsigned g1);
    /* Pairs of 4, 8 or 16 bytes from ranks and planes. */
    void (*decode_pairs4)(const struct hc_decode_job *job);
    void (*decode_pairs8)(const struct hc_decode_job *job);
    void (*decode_pairs16)(const struct hc_decode_job *job);
};

/* The kernels of an instruction set; with AVX2, those with or without gathers, whichever
 * decodes faster here (tried in some 30 microseconds). All give the same results. */
const struct hc_kernels *hc_kernels_of(enum hc_isa isa);
extern const struct hc_kernels hc_kernels_portable;
#if defined(__x86_64__)
extern const struct hc_kernels hc_kernels_avx2, hc_kernels_avx2_by_loads;
const struct hc_kernels *hc_kernels_avx2_fastest(void);
#endif

#endif
