#include "codec/scan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/weight.h"

/* A double's exponent and leading three mantissa bits are the bin; the next 20 are summed. */
enum { BIN_SHIFT = 49, MANTISSA_SHIFT = 29, CHUNK = 1024 };
/* A count of at most 2^19 pairs above a sum of at most 2^19 mantissas of 20 bits. */
enum { RUN = 1 << 20, RUN_COUNT_SHIFT = 40 };

struct hc_scan *hc_scan_new(enum hc_dtype dtype)
{
    struct hc_scan *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->dtype = dtype;
    s->first = HC_SCAN_FINITE;
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

/* Zeros of either sign among at most CHUNK elements; counted in the elements' own width, which
 * the compiler turns into vectors. */
static unsigned count_zeros(const uint8_t *raw, size_t n, size_t elem)
{
    uint16_t halves = 0;
    uint32_t words = 0;
    if (elem == 2)
        for (size_t i = 0; i < n; i++)
            halves = (uint16_t)(halves + ((uint16_t)(load16(raw + 2 * i) << 1) == 0));
    else if (elem == 4)
        for (size_t i = 0; i < n; i++)
            words += load32(raw + 4 * i) << 1 == 0;
    else
        for (size_t i = 0; i < n; i++)
            words += load64(raw + 8 * i) << 1 == 0;
    return halves + words;
}

/* Adds the pairs of a run of elements to s->run. Zeros, infinities and NaNs have bins of their own,
 * so that no branch is needed; neighbouring pairs count in different halves, as an addition has to
 * wait for the one before it to the same bin. */
static void scan_run(struct hc_scan *s, const double *v, size_t n)
{
    for (size_t t = 0; t + 2 <= n; t += 2) {
        double r2 = v[t] * v[t] + v[t + 1] * v[t + 1];
        uint64_t bits;
        memcpy(&bits, &r2, sizeof bits);
        s->run[t / 2 % 2][bits << 1 >> (BIN_SHIFT + 1)] +=
            UINT64_C(1) << RUN_COUNT_SHIFT | (bits >> MANTISSA_SHIFT & 0xfffff);
    }
}

static void see_bin(struct hc_scan *s, unsigned b)
{
    s->first = b < s->first ? b : s->first;
    s->end = b >= s->end ? b + 1 : s->end;
}

/* Moves the counts of a run of at most RUN elements to the bins. */
static void flush_run(struct hc_scan *s)
{
    for (int half = 0; half < 2; half++)
        for (unsigned b = 0; b < HC_SCAN_BINS; b++) {
            uint64_t both = s->run[half][b];
            if (both == 0)
                continue;
            if (b > 0 && b < HC_SCAN_FINITE)
                see_bin(s, b);
            s->bin[b].count += both >> RUN_COUNT_SHIFT;
            s->bin[b].mantissa += both & ((UINT64_C(1) << RUN_COUNT_SHIFT) - 1);
        }
    memset(s->run, 0, sizeof s->run);
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
        s->zero_elements += count_zeros(raw + from * elem, k, elem);
        scan_run(s, v, k);
        if ((from + CHUNK) % RUN == 0 || from + k == n)
            flush_run(s);
    }
}

uint64_t hc_scan_outside(const struct hc_scan *s)
{
    uint64_t sum = 0;
    for (unsigned b = HC_SCAN_FINITE; b < HC_SCAN_BINS; b++)
        sum += s->bin[b].count;
    return sum;
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

/* ---- packed ---- */

struct packed_bin {
    uint64_t count, mantissa;
    uint32_t bin;
};

struct hc_scan_pack {
    enum hc_dtype dtype;
    unsigned distinct;
    uint64_t elements, zero_elements;
    size_t bins;
    struct packed_bin bin[];
};

struct hc_scan_pack *hc_scan_pack(const struct hc_scan *s)
{
    size_t n = 0;
    for (unsigned b = 0; b < HC_SCAN_BINS; b++)
        n += s->bin[b].count > 0;
    struct hc_scan_pack *p = malloc(sizeof *p + n * sizeof *p->bin);
    if (!p)
        return NULL;
    *p = (struct hc_scan_pack){.dtype = s->dtype,
                               .distinct = s->distinct,
                               .elements = s->elements,
                               .zero_elements = s->zero_elements};
    for (unsigned b = 0; b < HC_SCAN_BINS; b++)
        if (s->bin[b].count > 0)
            p->bin[p->bins++] = (struct packed_bin){s->bin[b].count, s->bin[b].mantissa, b};
    return p;
}

struct hc_scan *hc_scan_unpack(const struct hc_scan_pack *p)
{
    struct hc_scan *s = hc_scan_new(p->dtype);
    if (!s)
        return NULL;
    s->distinct = p->distinct;
    s->elements = p->elements;
    s->zero_elements = p->zero_elements;
    for (size_t i = 0; i < p->bins; i++) {
        unsigned b = p->bin[i].bin;
        s->bin[b] = (struct hc_scan_bin){p->bin[i].count, p->bin[i].mantissa};
        if (b > 0 && b < HC_SCAN_FINITE)
            see_bin(s, b);
    }
    return s;
}
