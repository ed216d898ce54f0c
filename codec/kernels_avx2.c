#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>

#include "codec/kernels_common.h"

/* Shuffle pattern that picks 16-bit lane k of a broadcast (m0, m1, m2, m3). */
static void phase_pattern(uint8_t pattern[32], unsigned first, unsigned g0, unsigned g1)
{
    for (unsigned lane = 0; lane < 16; lane++) {
        unsigned k = hc_phase(first + lane, 0, g0, g1);
        pattern[2 * lane] = (uint8_t)(2 * k);
        pattern[2 * lane + 1] = (uint8_t)(2 * k + 1);
    }
}

/* The four metrics with lane k taking that of phase k ^ flip. */
static inline __m256i flipped(__m256i m, unsigned flip)
{
    switch (flip) {
    case 1:
        return _mm256_or_si256(_mm256_slli_epi32(m, 16), _mm256_srli_epi32(m, 16));
    case 2:
        return _mm256_shuffle_epi32(m, 0xb1);
    case 3:
        m = _mm256_shuffle_epi32(m, 0xb1);
        return _mm256_or_si256(_mm256_slli_epi32(m, 16), _mm256_srli_epi32(m, 16));
    default:
        return m;
    }
}

/* One step of add, compare, select over all states, 16 predecessors to a vector. `groups` is
 * the number of vectors in half of the states. */
static inline __attribute__((always_inline)) void
step(__m256i *restrict next, const __m256i *restrict now, const __m256i *restrict pattern,
     uint32_t *restrict word, unsigned groups, unsigned top_flip, uint64_t metrics)
{
    const __m256i m = _mm256_set1_epi64x((int64_t)metrics);
    const __m256i m1 = flipped(m, 2), mt = flipped(m, top_flip), mt1 = flipped(mt, 2);
    for (unsigned v = 0; v < groups; v++) {
        __m256i p = pattern[v], lo = now[v], hi = now[v + groups];
        __m256i a0 = _mm256_add_epi16(lo, _mm256_shuffle_epi8(m, p));
        __m256i b0 = _mm256_add_epi16(hi, _mm256_shuffle_epi8(mt, p));
        __m256i a1 = _mm256_add_epi16(lo, _mm256_shuffle_epi8(m1, p));
        __m256i b1 = _mm256_add_epi16(hi, _mm256_shuffle_epi8(mt1, p));
        __m256i n0 = _mm256_min_epi16(a0, b0), n1 = _mm256_min_epi16(a1, b1);
        __m256i d0 = _mm256_cmpgt_epi16(a0, b0), d1 = _mm256_cmpgt_epi16(a1, b1);
        word[v] = (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(d0, d1));
        __m256i l = _mm256_unpacklo_epi16(n0, n1), h = _mm256_unpackhi_epi16(n0, n1);
        next[2 * v] = _mm256_permute2x128_si256(l, h, 0x20);
        next[2 * v + 1] = _mm256_permute2x128_si256(l, h, 0x31);
    }
}

static inline __attribute__((always_inline)) unsigned
search(__m256i *now, __m256i *next, const __m256i *pattern, unsigned groups, unsigned top_flip,
       const uint32_t *metric, size_t n, uint32_t *decisions)
{
    for (size_t t = 0; t < n; t++) {
        uint64_t metrics = metric[2 * t] | (uint64_t)metric[2 * t + 1] << 32;
        step(next, now, pattern, decisions + t * groups, groups, top_flip, metrics);
        __m256i *swap = now;
        now = next;
        next = swap;
        if (t % HC_NORMALISE_EVERY == HC_NORMALISE_EVERY - 1) {
            __m256i least = now[0];
            for (unsigned v = 1; v < 2 * groups; v++)
                least = _mm256_min_epi16(least, now[v]);
            __m128i l =
                _mm_min_epi16(_mm256_castsi256_si128(least), _mm256_extracti128_si256(least, 1));
            least = _mm256_broadcastw_epi16(_mm_minpos_epu16(l));
            for (unsigned v = 0; v < 2 * groups; v++)
                now[v] = _mm256_sub_epi16(now[v], least);
        }
    }
    const int16_t *state = (const int16_t *)now;
    unsigned best = 0;
    for (unsigned h = 1; h < 32 * groups; h++)
        best = state[h] < state[best] ? h : best;
    return best;
}

/* 16 states: both halves fit into one register of 128 bits each. */
static unsigned search16(unsigned g0, unsigned g1, const uint32_t *metric, size_t n,
                         uint32_t *decisions)
{
    uint8_t bytes[32];
    phase_pattern(bytes, 0, g0, g1);
    const __m128i low = _mm_loadu_si128((const __m128i *)bytes);
    const __m128i high = _mm_loadu_si128((const __m128i *)(bytes + 16));
    /* b = 1 takes the metric of phase ^ 2: four bytes on. */
    const __m128i low1 = _mm_xor_si128(low, _mm_set1_epi8(4));
    const __m128i high1 = _mm_xor_si128(high, _mm_set1_epi8(4));
    __m128i a = _mm_insert_epi16(_mm_set1_epi16(HC_UNREACHED), 0, 0);
    __m128i b = _mm_set1_epi16(HC_UNREACHED);

    for (size_t t = 0; t < n; t++) {
        __m128i m = _mm_loadl_epi64((const __m128i *)(metric + 2 * t));
        __m128i a0 = _mm_add_epi16(a, _mm_shuffle_epi8(m, low));
        __m128i b0 = _mm_add_epi16(b, _mm_shuffle_epi8(m, high));
        __m128i a1 = _mm_add_epi16(a, _mm_shuffle_epi8(m, low1));
        __m128i b1 = _mm_add_epi16(b, _mm_shuffle_epi8(m, high1));
        __m128i d0 = _mm_cmpgt_epi16(a0, b0), d1 = _mm_cmpgt_epi16(a1, b1);
        __m128i n0 = _mm_min_epi16(a0, b0), n1 = _mm_min_epi16(a1, b1);
        decisions[t] = (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(d0, d1));
        a = _mm_unpacklo_epi16(n0, n1);
        b = _mm_unpackhi_epi16(n0, n1);
        if (t % HC_NORMALISE_EVERY == HC_NORMALISE_EVERY - 1) {
            __m128i least = _mm_broadcastw_epi16(_mm_minpos_epu16(_mm_min_epi16(a, b)));
            a = _mm_sub_epi16(a, least);
            b = _mm_sub_epi16(b, least);
        }
    }
    int16_t state[16];
    unsigned best = 0;
    _mm_storeu_si128((__m128i *)state, a);
    _mm_storeu_si128((__m128i *)(state + 8), b);
    for (unsigned h = 1; h < 16; h++)
        best = state[h] < state[best] ? h : best;
    return best;
}

static void viterbi(unsigned nu, unsigned g0, unsigned g1, const uint32_t *metric, size_t n,
                    uint32_t *decisions, uint8_t *path, uint8_t *phase)
{
    if (nu == 4) {
        unsigned last = search16(g0, g1, metric, n, decisions);
        hc_trellis_trace(nu, g0, g1, last, decisions, n, path, phase);
        return;
    }
    if (nu < 4) {
        hc_kernels_portable.viterbi(nu, g0, g1, metric, n, decisions, path, phase);
        return;
    }
    __m256i buffers[2][2 << (HC_MAX_NU - 5)], pattern[1 << (HC_MAX_NU - 5)];
    const unsigned groups = 1u << (nu - 5), top = 1u << (nu - 1);
    const unsigned top_flip = hc_phase(top, 0, g0, g1);
    int16_t *start = (int16_t *)buffers[0];

    for (unsigned h = 0; h < 32 * groups; h++)
        start[h] = h ? HC_UNREACHED : 0;
    for (unsigned v = 0; v < groups; v++)
        phase_pattern((uint8_t *)&pattern[v], 16 * v, g0, g1);

    unsigned best;
    switch (nu) {
    case 5:
        best = search(buffers[0], buffers[1], pattern, 1, top_flip, metric, n, decisions);
        break;
    case 6:
        best = search(buffers[0], buffers[1], pattern, 2, top_flip, metric, n, decisions);
        break;
    case 7:
        best = search(buffers[0], buffers[1], pattern, 4, top_flip, metric, n, decisions);
        break;
    case 8:
        best = search(buffers[0], buffers[1], pattern, 8, top_flip, metric, n, decisions);
        break;
    default:
        best = search(buffers[0], buffers[1], pattern, groups, top_flip, metric, n, decisions);
        break;
    }
    hc_trellis_trace(nu, g0, g1, best, decisions, n, path, phase);
}

/* Table indices of the eight pairs from t on, t a multiple of 8. */
static inline __m256i indices8(const struct hc_decode_job *job, size_t t)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    uint64_t low = load64(job->low + t / 8 * job->low_bits);
    uint64_t mask = UINT64_C(0x0101010101010101) * ((1u << job->low_bits) - 1);
    __m256i i = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(job->hi + t)));
    i = _mm256_sll_epi32(i, _mm_cvtsi32_si128((int)job->low_bits));
    __m128i spread = _mm_cvtsi64_si128((int64_t)_pdep_u64(low, mask));
    i = _mm256_or_si256(i, _mm256_cvtepu8_epi32(spread));

    uint32_t b0 = (uint32_t)(job->c0[t / 64] >> t % 64), b1 = (uint32_t)(job->c1[t / 64] >> t % 64);
    const __m256i one = _mm256_set1_epi32(1);
    __m256i c0 = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)b0), lane), one);
    __m256i c1 = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)b1), lane), one);
    __m256i base = _mm256_and_si256(_mm256_sub_epi32(_mm256_setzero_si256(), c0),
                                    _mm256_set1_epi32((int)job->half));
    return _mm256_add_epi32(base, _mm256_or_si256(_mm256_slli_epi32(i, 1), c1));
}

static void decode_pairs4(const struct hc_decode_job *job)
{
    size_t t = 0;
    for (; t + 8 <= job->n; t += 8) {
        __m256i v =
            _mm256_i32gather_epi32((const int *)(const void *)job->table, indices8(job, t), 4);
        _mm256_storeu_si256((__m256i *)(job->dst + 4 * t), v);
    }
    decode_tail(job, t, 4);
}

static void decode_pairs8(const struct hc_decode_job *job)
{
    const long long *table = (const long long *)(const void *)job->table;
    size_t t = 0;
    for (; t + 8 <= job->n; t += 8) {
        __m256i i = indices8(job, t);
        __m256i a = _mm256_i32gather_epi64(table, _mm256_castsi256_si128(i), 8);
        __m256i b = _mm256_i32gather_epi64(table, _mm256_extracti128_si256(i, 1), 8);
        _mm256_storeu_si256((__m256i *)(job->dst + 8 * t), a);
        _mm256_storeu_si256((__m256i *)(job->dst + 8 * t + 32), b);
    }
    decode_tail(job, t, 8);
}

/* The same without gathers: some processors' microcode makes them slower than eight loads. */
static inline __attribute__((always_inline)) void decode_by_loads(const struct hc_decode_job *job,
                                                                  size_t width)
{
    size_t t = 0;
    for (; t + 8 <= job->n; t += 8) {
        uint32_t i[8];
        _mm256_storeu_si256((__m256i *)i, indices8(job, t));
        for (size_t k = 0; k < 8; k++)
            memcpy(job->dst + width * (t + k), job->table + (size_t)i[k] * width, width);
    }
    decode_tail(job, t, width);
}

static void decode_pairs4_by_loads(const struct hc_decode_job *job)
{
    decode_by_loads(job, 4);
}

static void decode_pairs8_by_loads(const struct hc_decode_job *job)
{
    decode_by_loads(job, 8);
}

static void decode_pairs16(const struct hc_decode_job *job)
{
    decode_by_loads(job, 16);
}

const struct hc_kernels hc_kernels_avx2 = {
    split_planes, merge_planes,  branch_metrics, nearest_places, viterbi,
    phase_planes, decode_pairs4, decode_pairs8,  decode_pairs16,
};

const struct hc_kernels hc_kernels_avx2_by_loads = {
    split_planes, merge_planes,           branch_metrics,         nearest_places, viterbi,
    phase_planes, decode_pairs4_by_loads, decode_pairs8_by_loads, decode_pairs16,
};

/* Nanoseconds that a kernel takes for a small job, the best of a few runs. */
static int64_t time_of(void (*decode)(const struct hc_decode_job *),
                       const struct hc_decode_job *job)
{
    int64_t best = INT64_MAX;
    for (int run = 0; run < 4; run++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        decode(job);
        clock_gettime(CLOCK_MONOTONIC, &b);
        int64_t ns = (b.tv_sec - a.tv_sec) * INT64_C(1000000000) + (b.tv_nsec - a.tv_nsec);
        best = ns < best ? ns : best;
    }
    return best;
}

const struct hc_kernels *hc_kernels_avx2_fastest(void)
{
    enum { N = 4096, POINTS = 256 };
    static const uint8_t table[2 * 2 * POINTS * 4];
    static const uint64_t plane[N / 64];
    static const uint8_t low[8];
    volatile size_t n = N; /* so that the loops are compiled for any job, as they are elsewhere */
    uint8_t hi[N], dst[4 * N];
    for (unsigned t = 0; t < N; t++)
        hi[t] = (uint8_t)(t * 37);
    const struct hc_decode_job job = {.hi = hi,
                                      .low = low,
                                      .c0 = plane,
                                      .c1 = plane,
                                      .table = table,
                                      .half = 2 * POINTS,
                                      .n = n,
                                      .dst = dst};
    /* Gathers are given the benefit of the doubt: the clock may be disturbed. */
    return time_of(decode_pairs4, &job) > time_of(decode_pairs4_by_loads, &job) * 5 / 4
               ? &hc_kernels_avx2_by_loads
               : &hc_kernels_avx2;
}
#endif
