#include "codec/scan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/weight.h"

/* A double's exponent and leading three mantissa bits are the bin; the next 20 are summed. */
enum { BIN_SHIFT = 49, MANTISSA_SHIFT = 29, CHUNK = 1024 };

struct hc_scan *hc_scan_new(enum hc_dtype dtype)
{
    struct hc_scan *s = calloc(1, sizeof *s);
    if (s)
        s->dtype = dtype;
    return s;
}

void hc_scan_free(struct hc_scan *s)
{
    free(s);
}

unsigned hc_scan_distinct(const struct hc_scan *s)
{
    return s->distinct;
}

uint64_t hc_scan_elements(const struct hc_scan *s)
{
    return s->elements;
}

static uint64_t pattern_at(const uint8_t *raw, size_t i, size_t elem)
{
    return elem == 2 ? load16(raw + 2 * i) : elem == 4 ? load32(raw + 4 * i) : load64(raw + 8 * i);
}

static void see_patterns(struct hc_scan *s, const uint8_t *raw, size_t n, size_t elem)
{
    for (size_t i = 0; i < n && s->distinct <= HC_SCAN_DISTINCT; i++) {
        uint64_t v = pattern_at(raw, i, elem);
        size_t at = (v * UINT64_C(0x9e3779b97f4a7c15)) >> 54;
        while (s->used[at] && s->pattern[at] != v)
            at = (at + 1) % 1024;
        if (!s->used[at]) {
            s->used[at] = 1;
            s->pattern[at] = v;
            s->distinct++;
        }
    }
}

static void add_pair(struct hc_scan *s, double a, double b)
{
    double r2 = a * a + b * b;
    uint64_t bits;

    if (r2 == 0) {
        s->zero++;
        return;
    }
    if (!isfinite(r2)) {
        s->not_finite++;
        return;
    }
    memcpy(&bits, &r2, sizeof bits);
    struct hc_scan_bin *bin = &s->bin[bits >> BIN_SHIFT];
    bin->count++;
    bin->mantissa += bits >> MANTISSA_SHIFT & 0xfffff;
}

void hc_scan_block(struct hc_scan *s, const uint8_t *raw, size_t raw_len)
{
    const size_t elem = hc_dtype_bits(s->dtype) / 8, n = raw_len / elem;
    double v[CHUNK];

    if (s->distinct <= HC_SCAN_DISTINCT)
        see_patterns(s, raw, n, elem);
    s->elements += n;
    for (size_t from = 0; from < n; from += CHUNK) {
        size_t k = n - from < CHUNK ? n - from : CHUNK;
        hc_weights_load(v, raw + from * elem, k, s->dtype);
        for (size_t t = 0; t < k; t++)
            s->zero_elements += v[t] == 0;
        for (size_t t = 0; t + 2 <= k; t += 2)
            add_pair(s, v[t], v[t + 1]);
    }
}

double hc_scan_edge(unsigned bin)
{
    uint64_t bits = (uint64_t)bin << BIN_SHIFT;
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

double hc_scan_energy(const struct hc_scan *s, unsigned bin)
{
    const struct hc_scan_bin *b = &s->bin[bin];
    if (b->count == 0)
        return 0;
    /* Within the bin a value is edge + mantissa * 2^-20 of the bin's width. */
    double edge = hc_scan_edge(bin), width = hc_scan_edge(bin + 1) - edge;
    return (double)b->count * edge +
           ((double)b->mantissa + 0.5 * (double)b->count) * width * 0x1p-20;
}
