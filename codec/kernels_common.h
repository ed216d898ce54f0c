/* Plain C bodies of the kernels, included by kernels_portable.c and kernels_avx2.c, so that the
 * compiler vectorises them for either instruction set. Written without branches in the
 * loops, and with single-precision operations in a fixed order. */
#ifndef HYPERFS_CODEC_KERNELS_COMMON_H
#define HYPERFS_CODEC_KERNELS_COMMON_H

#include <string.h>

#include "codec/bytes.h"
#include "codec/kernels.h"
#include "codec/trellis.h"

static inline uint16_t rotate_left1(uint16_t v)
{
    return (uint16_t)(v << 1 | v >> 15);
}

static inline uint16_t rotate_right1(uint16_t v)
{
    return (uint16_t)(v >> 1 | v << 15);
}

static void split_planes(uint8_t *restrict planes, const uint8_t *restrict src, size_t n,
                         unsigned width, bool rotate)
{
    if (width == 2) {
        for (size_t i = 0; i < n; i++) {
            uint16_t v = load16(src + 2 * i);
            v = rotate ? rotate_left1(v) : v;
            planes[i] = (uint8_t)v;
            planes[n + i] = (uint8_t)(v >> 8);
        }
        return;
    }
    for (unsigned p = 0; p < width; p++)
        for (size_t i = 0; i < n; i++)
            planes[p * n + i] = src[width * i + p];
    if (!rotate)
        return;
    uint8_t *restrict low = planes + (width - 2) * n, *restrict high = planes + (width - 1) * n;
    for (size_t i = 0; i < n; i++) {
        uint8_t l = low[i], h = high[i];
        low[i] = (uint8_t)(l << 1 | h >> 7);
        high[i] = (uint8_t)(h << 1 | l >> 7);
    }
}

static void merge_planes(uint8_t *restrict dst, const uint8_t *restrict planes, size_t n,
                         unsigned width, bool rotate)
{
    const uint8_t *restrict p0 = planes, *restrict p1 = planes + n, *restrict p2 = planes + 2 * n,
                            *restrict p3 = planes + 3 * n;
    if (width == 2) {
        for (size_t i = 0; i < n; i++) {
            uint16_t v = (uint16_t)(p0[i] | p1[i] << 8);
            store16(dst + 2 * i, rotate ? rotate_right1(v) : v);
        }
    } else if (width == 4) {
        for (size_t i = 0; i < n; i++) {
            uint16_t top = (uint16_t)(p2[i] | p3[i] << 8);
            top = rotate ? rotate_right1(top) : top;
            store32(dst + 4 * i, (uint32_t)p0[i] | (uint32_t)p1[i] << 8 | (uint32_t)top << 16);
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            uint64_t v = 0;
            for (unsigned p = 0; p < 6; p++)
                v |= (uint64_t)planes[p * n + i] << 8 * p;
            uint16_t top = (uint16_t)(planes[6 * n + i] | planes[7 * n + i] << 8);
            top = rotate ? rotate_right1(top) : top;
            store64(dst + 8 * i, v | (uint64_t)top << 48);
        }
    }
}

/* Fraction of a coarse lattice coordinate that is half of a fine one: in [0, 1). */
static inline float coarse_fraction(float x)
{
    float s = x * 0.5f;
    float u = s - (float)(int32_t)s;
    return u + (u < 0.0f ? 1.0f : 0.0f);
}

/* The same for the phase that is shifted by half a coarse step. */
static inline float shifted(float u)
{
    return u + (u < 0.5f ? 0.5f : -0.5f);
}

/* Squared distance to the nearest point of a phase from the place (u, v) in a cell of its coarse
 * lattice.
 *
 * The cell's short diagonal cuts it into two triangles; reflected into the lower one, the nearest
 * point is one of its corners (0,0), (1,0), (0,1), because the triangle is not obtuse (it is a
 * Delaunay triangle of a reduced basis). */
static inline float cell_distance(float u, float v, const struct hc_quadratic *q)
{
    int upper = u + v > 1.0f;
    float uu = upper ? 1.0f - u : u, vv = upper ? 1.0f - v : v;
    float au = q->a * uu + q->b * vv, cv = q->b * uu + q->c * vv;
    float d0 = au * uu + cv * vv;
    float d1 = q->a - (au + au), d2 = q->c - (cv + cv);
    float m = d1 < d2 ? d1 : d2;
    m = m < 0.0f ? m : 0.0f;
    return d0 + m;
}

static void branch_metrics(uint32_t *restrict metric, const float *restrict x,
                           const float *restrict y, size_t n, const struct hc_quadratic *quadratic)
{
    const struct hc_quadratic q = *quadratic;
    for (size_t t = 0; t < n; t++) {
        float u = coarse_fraction(x[t]), v = coarse_fraction(y[t]);
        float us = shifted(u), vs = shifted(v);
        float d[4];
        d[0] = cell_distance(u, v, &q);
        d[1] = cell_distance(us, v, &q);
        d[2] = cell_distance(u, vs, &q);
        d[3] = cell_distance(us, vs, &q);
        float m01 = d[0] < d[1] ? d[0] : d[1], m23 = d[2] < d[3] ? d[2] : d[3];
        float m = m01 < m23 ? m01 : m23;
        uint32_t k[4];
        for (int p = 0; p < 4; p++) {
            float e = d[p] - m + 0.5f;
            e = e < (float)HC_METRIC_MAX ? e : (float)HC_METRIC_MAX;
            k[p] = (uint32_t)(int32_t)e;
        }
        metric[2 * t] = k[0] | k[1] << 16;
        metric[2 * t + 1] = k[2] | k[3] << 16;
    }
}

static void nearest_places(int32_t *restrict place, const float *restrict x,
                           const float *restrict y, const uint8_t *restrict phase, size_t n,
                           const struct hc_quadratic *quadratic, int32_t stride, int32_t origin)
{
    const struct hc_quadratic q = *quadratic;
    for (size_t k = 0; k < n; k++) {
        int32_t a = phase[k] & 1, b = phase[k] >> 1;
        float s = (x[k] - (float)a) * 0.5f, t = (y[k] - (float)b) * 0.5f;
        int32_t i = (int32_t)s, j = (int32_t)t;
        float u = s - (float)i, v = t - (float)j;
        i -= u < 0.0f;
        j -= v < 0.0f;
        u += u < 0.0f ? 1.0f : 0.0f;
        v += v < 0.0f ? 1.0f : 0.0f;
        int32_t upper = u + v > 1.0f;
        float uu = upper ? 1.0f - u : u, vv = upper ? 1.0f - v : v;
        float d1 = q.a - 2.0f * (q.a * uu + q.b * vv), d2 = q.c - 2.0f * (q.b * uu + q.c * vv);
        int32_t right = (d1 < d2) & (d1 < 0.0f), above = (d1 >= d2) & (d2 < 0.0f);
        /* The reflection that took the upper triangle to the lower one turns a corner c
         * into (1, 1) - c. */
        int32_t m = i + (upper ^ right), l = j + (upper ^ above);
        place[k] = origin + stride * (2 * m + a) + 2 * l + b;
    }
}

/* Xors the path plane, delayed by `delay` pairs (1 .. 63), into dst. */
static inline void xor_delayed(uint64_t *restrict dst, const uint64_t *restrict path, size_t words,
                               unsigned delay)
{
    for (size_t i = 0; i < words; i++)
        dst[i] ^= path[i] << delay | path[(ptrdiff_t)i - 1] >> (64 - delay);
}

static void phase_planes(uint64_t *c0, uint64_t *c1, const uint64_t *path, size_t words,
                         unsigned nu, unsigned g0, unsigned g1)
{
    memset(c0, 0, words * sizeof *c0);
    memcpy(c1, path, words * sizeof *c1);
    for (unsigned k = 0; k < nu; k++) {
        if (g0 >> k & 1)
            xor_delayed(c0, path, words, k + 1);
        if (g1 >> k & 1)
            xor_delayed(c1, path, words, k + 1);
    }
}

/* Index of pair t into the decoder's table. */
static inline uint32_t table_index(const struct hc_decode_job *job, size_t t)
{
    size_t bit = t * job->low_bits;
    uint32_t low = load16(job->low + bit / 8) >> bit % 8 & ((1u << job->low_bits) - 1);
    uint32_t i = (uint32_t)job->hi[t] << job->low_bits | low;
    uint32_t c0 = job->c0[t / 64] >> t % 64 & 1, c1 = job->c1[t / 64] >> t % 64 & 1;
    return (c0 ? job->half : 0) + 2 * i + c1;
}

/* One pair at a time, from pair `from` on. */
static inline void decode_tail(const struct hc_decode_job *job, size_t from, size_t width)
{
    for (size_t t = from; t < job->n; t++)
        memcpy(job->dst + t * width, job->table + (size_t)table_index(job, t) * width, width);
}

/* Pairs of `width` bytes, eight at a time: their low bits lie in one 64-bit word. */
static inline void decode_scalar(const struct hc_decode_job *job, size_t width)
{
    const unsigned bits = job->low_bits;
    const uint32_t mask = (1u << bits) - 1;
    const uint8_t *low = job->low;
    size_t t = 0;

    for (; t + 8 <= job->n; t += 8, low += bits) {
        uint64_t l = load64(low);
        uint64_t c0 = job->c0[t / 64] >> t % 64, c1 = job->c1[t / 64] >> t % 64;
        for (unsigned k = 0; k < 8; k++) {
            uint32_t i = (uint32_t)job->hi[t + k] << bits | ((uint32_t)l & mask);
            uint32_t at = 2 * i + (uint32_t)(c1 & 1) + (uint32_t)(c0 & 1) * job->half;
            memcpy(job->dst + (t + k) * width, job->table + (size_t)at * width, width);
            l >>= bits;
            c0 >>= 1;
            c1 >>= 1;
        }
    }
    decode_tail(job, t, width);
}

#endif
