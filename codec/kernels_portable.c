#include "codec/kernels_common.h"

static void viterbi(unsigned nu, unsigned g0, unsigned g1, const uint32_t *metric, size_t n,
                    uint32_t *decisions, uint8_t *path, uint8_t *phase)
{
    const unsigned states = 1u << nu, top = states / 2;
    const size_t words = hc_trellis_words(nu);
    uint16_t buffers[2][1 << HC_MAX_NU];
    uint16_t *now = buffers[0], *next = buffers[1];
    uint8_t phases[1 << HC_MAX_NU]; /* of b = 0 */

    for (unsigned h = 0; h < states; h++) {
        phases[h] = (uint8_t)hc_phase(h, 0, g0, g1);
        now[h] = h ? HC_UNREACHED : 0;
    }
    for (size_t t = 0; t < n; t++) {
        const uint16_t m[4] = {(uint16_t)metric[2 * t], (uint16_t)(metric[2 * t] >> 16),
                               (uint16_t)metric[2 * t + 1], (uint16_t)(metric[2 * t + 1] >> 16)};
        uint32_t *word = decisions + t * words;
        memset(word, 0, words * sizeof *word);
        for (unsigned j = 0; j < top; j++) {
            for (unsigned b = 0; b < 2; b++) {
                unsigned low = (unsigned)now[j] + m[phases[j] ^ b << 1];
                unsigned high = (unsigned)now[j + top] + m[phases[j + top] ^ b << 1];
                next[2 * j + b] = (uint16_t)(high < low ? high : low);
                word[j >> 4] |= (uint32_t)(high < low) << hc_decision_bit(j, b);
            }
        }
        uint16_t *swap = now;
        now = next;
        next = swap;
        if (t % HC_NORMALISE_EVERY == HC_NORMALISE_EVERY - 1) {
            uint16_t least = now[0];
            for (unsigned h = 1; h < states; h++)
                least = now[h] < least ? now[h] : least;
            for (unsigned h = 0; h < states; h++)
                now[h] = (uint16_t)(now[h] - least);
        }
    }
    unsigned best = 0;
    for (unsigned h = 1; h < states; h++)
        best = now[h] < now[best] ? h : best;
    hc_trellis_trace(nu, g0, g1, best, decisions, n, path, phase);
}

static void decode_pairs4(const struct hc_decode_job *job)
{
    decode_scalar(job, 4);
}

static void decode_pairs8(const struct hc_decode_job *job)
{
    decode_scalar(job, 8);
}

static void decode_pairs16(const struct hc_decode_job *job)
{
    decode_scalar(job, 16);
}

const struct hc_kernels hc_kernels_portable = {
    split_planes, merge_planes,  branch_metrics, nearest_places, viterbi,
    phase_planes, decode_pairs4, decode_pairs8,  decode_pairs16,
};
