/* The trellis: which phase of the trajectory a pair may use.
 *
 * One path bit b_t a pair. With the history h_t = (b_{t-1}, ..., b_{t-nu}), all zero at the
 * start of a block, bit k of h being b_{t-1-k}:
 *     c0 = parity(h & g0)              which two of the four phases may be used
 *     c1 = b_t xor parity(h & g1)      which of the two
 *     phase = c0 + 2 c1
 * (trellis-coded quantisation, Marcellin and Fischer 1990, with Ungerboeck's partition of the
 * lattice into four cosets.) The code is feed-forward: the planes of c0 and c1 are xors of
 * shifted path bits.
 */
#ifndef HYPERFS_CODEC_TRELLIS_H
#define HYPERFS_CODEC_TRELLIS_H

#include <stddef.h>
#include <stdint.h>

struct hc_taps {
    uint16_t g0, g1;
    double mse; /* mean squared error per weight in units of d^2, Gaussian source */
};

/* Good taps for a memory of nu bits, 0 .. HC_MAX_NU. */
struct hc_taps hc_trellis_taps(unsigned nu);

static inline unsigned hc_parity(unsigned x)
{
    return (unsigned)__builtin_parity(x);
}

static inline unsigned hc_phase(unsigned history, unsigned b, unsigned g0, unsigned g1)
{
    return hc_parity(history & g0) | (b ^ hc_parity(history & g1)) << 1;
}

/* 32-bit words of survivor decisions a pair: one bit a state. */
static inline size_t hc_trellis_words(unsigned nu)
{
    return nu <= 5 ? 1 : (size_t)1 << (nu - 5);
}

/* Place of the decision of new state 2j + b: word j / 16, and this bit in it. */
static inline unsigned hc_decision_bit(unsigned j, unsigned b)
{
    return ((j >> 3) & 1) * 16 + b * 8 + (j & 7);
}

/* Follows the survivors back from `state` after n pairs; fills path and phase. */
void hc_trellis_trace(unsigned nu, unsigned g0, unsigned g1, unsigned state,
                      const uint32_t *decisions, size_t n, uint8_t *path, uint8_t *phase);

/* Path metrics at a block's start: state 0 is certain; the others lie above anything that a
 * true path can reach within nu pairs. */
enum { HC_UNREACHED = 12000, HC_NORMALISE_EVERY = 8 };

#endif
