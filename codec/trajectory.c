#include "codec/trajectory.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/trellis.h"
#include "codec/weight.h"
#include "codec/work.h"

enum { HEADER = 8, PLACE_BYTES = 2, CHUNK = 1024 };

/* Sizes within a block. */
struct layout {
    size_t elem, pairs, odd; /* bytes of an element; pairs; bytes of an odd last element */
    unsigned low_bits;
    size_t low_bytes, path_bytes;
};

static struct layout layout_of(const struct hc_code *code, size_t raw_len)
{
    struct layout l;
    l.elem = hc_dtype_bits(code->dtype) / 8;
    l.pairs = raw_len / (2 * l.elem);
    l.odd = raw_len % (2 * l.elem);
    l.low_bits = code->t.split - 1u;
    l.low_bytes = (l.pairs * l.low_bits + 7) / 8;
    l.path_bytes = code->t.nu ? (l.pairs + 7) / 8 : 0;
    return l;
}

int hc_table_new(const struct hc_code *code, const struct hc_lattice *l, struct hc_table *out)
{
    const size_t elem = hc_dtype_bits(code->dtype) / 8;
    const unsigned phases = code->t.nu ? 4 : 1;
    const double step = hc_step_value(code->t.step);

    out->half = 2 * l->npoints;
    /* With one phase the entries of c0 = 1 and c1 = 1 are never used, but must be there. */
    out->size = (size_t)2 * out->half * 2 * elem;
    out->bytes = calloc(1, out->size + HC_SLACK);
    if (!out->bytes)
        return -ENOMEM;
    for (unsigned k = 0; k < phases; k++)
        for (uint32_t i = 0; i < l->npoints; i++) {
            struct hc_point p = l->point[k][i];
            size_t entry = (k & 1 ? out->half : 0) + 2 * (size_t)i + (k >> 1);
            uint8_t *at = out->bytes + entry * 2 * elem;
            if (!hc_weight_store(at, hc_point_x(l, p) * step, code->dtype) ||
                !hc_weight_store(at + elem, hc_point_y(l, p) * step, code->dtype)) {
                free(out->bytes);
                out->bytes = NULL;
                return -ERANGE;
            }
        }
    return 0;
}

static bool spare_bits_clear(const uint8_t *bytes, size_t len, size_t bits)
{
    return bits % 8 == 0 || len == 0 || bytes[len - 1] >> bits % 8 == 0;
}

/* Ranks must lie in the table: the high byte's largest value settles it unless it is the last. */
static bool ranks_in_table(const uint8_t *hi, const uint8_t *low, const struct layout *l,
                           uint32_t npoints)
{
    uint8_t most = 0;
    for (size_t t = 0; t < l->pairs; t++)
        most = hi[t] > most ? hi[t] : most;
    if (((uint32_t)most + 1) << l->low_bits <= npoints)
        return true;
    for (size_t t = 0; t < l->pairs; t++) {
        size_t bit = t * l->low_bits;
        uint32_t bits = 0;
        for (unsigned k = 0; k < l->low_bits; k++)
            bits |= (uint32_t)(low[(bit + k) / 8] >> (bit + k) % 8 & 1) << k;
        if (((uint32_t)hi[t] << l->low_bits | bits) >= npoints)
            return false;
    }
    return true;
}

static int put_exact(uint8_t *dst, const uint8_t *places, size_t count, size_t pairs,
                     size_t pair_bytes)
{
    const uint8_t *values = places + count * PLACE_BYTES;
    size_t before = 0;
    for (size_t k = 0; k < count; k++) {
        size_t at = load16(places + k * PLACE_BYTES);
        if (at >= pairs || (k && at <= before))
            return -EBADMSG;
        before = at;
        memcpy(dst + at * pair_bytes, values + k * pair_bytes, pair_bytes);
    }
    return 0;
}

/* Fills w->planes with path bits and the planes of c0 and c1. */
static void expand_path(const struct hc_code *code, struct hc_work *w, const uint8_t *path,
                        const struct layout *l, struct hc_decode_job *job)
{
    uint64_t *b = w->planes + HC_PLANE_FRONT, *c0 = b + HC_PLANE_WORDS, *c1 = c0 + HC_PLANE_WORDS;
    size_t words = (l->pairs + 63) / 64;

    if (words)
        b[words - 1] = 0;
    for (size_t i = 0; i < l->path_bytes / 8; i++)
        b[i] = load64(path + 8 * i);
    for (size_t i = l->path_bytes / 8 * 8; i < l->path_bytes; i++)
        b[i / 8] |= (uint64_t)path[i] << i % 8 * 8;
    if (code->t.nu)
        w->k->phase_planes(c0, c1, b, words, code->t.nu, code->t.g0, code->t.g1);
    else
        memset(c0, 0, 2 * HC_PLANE_WORDS * sizeof *c0 - HC_PLANE_FRONT * sizeof *c0);
    job->c0 = c0;
    job->c1 = c1;
}

int hc_trajectory_decode(const struct hc_code *code, const struct hc_table *table,
                         struct hc_work *w, const uint8_t *src, size_t src_len, uint8_t *dst,
                         size_t raw_len)
{
    const struct layout l = layout_of(code, raw_len);
    struct hc_decode_job job = {.low_bits = l.low_bits, .n = l.pairs, .dst = dst};

    if (src_len < HEADER)
        return -EBADMSG;
    size_t exact = load32(src), stored = load32(src + 4);
    src += HEADER;
    src_len -= HEADER;
    /* Every part is at most a few MiB, so that the sum cannot overflow. */
    if (exact > l.pairs || stored > l.pairs)
        return -EBADMSG;
    if (src_len != stored + l.low_bytes + l.path_bytes + exact * (PLACE_BYTES + 2 * l.elem) + l.odd)
        return -EBADMSG;
    const uint8_t *low = src + stored, *path = low + l.low_bytes, *places = path + l.path_bytes;
    if (!spare_bits_clear(low, l.low_bytes, l.pairs * l.low_bits) ||
        !spare_bits_clear(path, l.path_bytes, l.pairs))
        return -EBADMSG;

    /* Vector code reads beyond the high bytes and the low bits: both are copied to where it may. */
    uint8_t *low_copy = w->bytes + HC_TRAJECTORY_PAIRS + HC_SLACK;
    memcpy(low_copy, low, l.low_bytes);
    memset(low_copy + l.low_bytes, 0, 8);
    if (stored == l.pairs)
        memcpy(w->bytes, src, l.pairs);
    else if (l.pairs && hc_expand(w, w->bytes, l.pairs, src, stored))
        return -EBADMSG;
    if (!ranks_in_table(w->bytes, low_copy, &l, code->t.npoints))
        return -EBADMSG;
    expand_path(code, w, path, &l, &job);
    job.hi = w->bytes;
    job.low = low_copy;
    job.table = table->bytes;
    job.half = table->half;
    if (l.elem == 2)
        w->k->decode_pairs4(&job);
    else if (l.elem == 4)
        w->k->decode_pairs8(&job);
    else
        w->k->decode_pairs16(&job);
    if (put_exact(dst, places, exact, l.pairs, 2 * l.elem))
        return -EBADMSG;
    memcpy(dst + raw_len - l.odd, src + src_len - l.odd, l.odd);
    return 0;
}

/* ---- encoder ---- */

static int map_ranks(const struct hc_lattice *l, struct hc_quantiser *q)
{
    int32_t most_m = 0, most_n = 0;
    for (unsigned k = 0; k < 4; k++)
        for (uint32_t i = 0; i < l->npoints; i++) {
            struct hc_point p = l->point[k][i];
            most_m = abs(p.m) > most_m ? abs(p.m) : most_m;
            most_n = abs(p.n) > most_n ? abs(p.n) : most_n;
        }
    q->stride = 2 * most_n + 1;
    q->origin = most_m * q->stride + most_n;
    q->rank = calloc((size_t)q->stride * (size_t)(2 * most_m + 1), sizeof *q->rank);
    if (!q->rank)
        return -ENOMEM;
    for (unsigned k = 0; k < 4; k++)
        for (uint32_t i = 0; i < l->npoints; i++) {
            struct hc_point p = l->point[k][i];
            q->rank[q->origin + q->stride * p.m + p.n] = i;
        }
    return 0;
}

int hc_quantiser_new(const struct hc_code *code, const struct hc_lattice *l, struct hc_quantiser *q)
{
    const struct hc_trajectory *t = &code->t;
    const double step = hc_step_value(t->step), spacing = hc_lattice_spacing(t->points);
    const double det = (double)t->b1[0] * t->b2[1] - (double)t->b1[1] * t->b2[0];
    const double unit = 4.0 * HC_METRIC_UNIT / (spacing * spacing);
    const double cover = hc_lattice_covering_radius(t);
    /* Nearest points are found in single precision: the window stays a hair inside of what
     * the table holds. */
    double window = (l->radius * (1 - 1e-5) - cover) * step;

    if (!(window > 0) || !isfinite(1 / step) || !(window * window > 0))
        return -ERANGE;
    const double scale = (1 - code->shrink) / det / step;
    q->shrink = code->shrink;
    q->to_m[0] = t->b2[1] * scale;
    q->to_m[1] = -t->b2[0] * scale;
    q->to_n[0] = -t->b1[1] * scale;
    q->to_n[1] = t->b1[0] * scale;
    q->window2 = window * window;
    q->cover2 = cover * cover * step * step;
    q->qa = (float)(unit * ((double)t->b1[0] * t->b1[0] + (double)t->b1[1] * t->b1[1]));
    q->qb = (float)(unit * ((double)t->b1[0] * t->b2[0] + (double)t->b1[1] * t->b2[1]));
    q->qc = (float)(unit * ((double)t->b2[0] * t->b2[0] + (double)t->b2[1] * t->b2[1]));
    return map_ranks(l, q);
}

/* Lattice coordinates of all pairs; those outside the window are marked and stand at the origin. */
static size_t normalise(const struct hc_code *code, const struct hc_quantiser *q, struct hc_work *w,
                        const uint8_t *src, const struct layout *l)
{
    double v[2 * CHUNK];
    size_t outside = 0;

    for (size_t from = 0; from < l->pairs; from += CHUNK) {
        size_t n = l->pairs - from < CHUNK ? l->pairs - from : CHUNK;
        float *x = w->e.x + from, *y = w->e.y + from;
        uint8_t *out = w->e.outside + from;
        hc_weights_load(v, src + from * 2 * l->elem, 2 * n, code->dtype);
        for (size_t t = 0; t < n; t++) {
            double a = v[2 * t], b = v[2 * t + 1];
            bool carried = a * a + b * b < q->window2; /* false for NaN */
            x[t] = carried ? (float)(a * q->to_m[0] + b * q->to_m[1]) : 0.0f;
            y[t] = carried ? (float)(a * q->to_n[0] + b * q->to_n[1]) : 0.0f;
            out[t] = !carried;
            outside += !carried;
        }
    }
    return outside;
}

/* Chooses path bits and ranks of all pairs. */
static void quantise(const struct hc_code *code, const struct hc_quantiser *q, struct hc_work *w,
                     size_t pairs)
{
    const struct hc_quadratic form = {q->qa, q->qb, q->qc};
    struct hc_encode_buffers *e = &w->e;

    if (code->t.nu) {
        w->k->branch_metrics(e->metric, e->x, e->y, pairs, &form);
        for (size_t t = 0; t < pairs; t++)
            if (e->outside[t])
                e->metric[2 * t] = e->metric[2 * t + 1] = 0;
        w->k->viterbi(code->t.nu, code->t.g0, code->t.g1, e->metric, pairs, e->decisions, e->path,
                      e->phase);
    } else {
        memset(e->phase, 0, pairs);
    }
    int32_t *place = (int32_t *)e->rank;
    w->k->nearest_places(place, e->x, e->y, e->phase, pairs, &form, q->stride, q->origin);
    for (size_t t = 0; t < pairs; t++)
        e->rank[t] = e->outside[t] ? 0 : q->rank[place[t]];
}

/* Packs the low bits of eight ranks at a time into one word; writes up to 8 bytes beyond the end,
 * where hc_trajectory_bound has room and what follows is written later. */
static uint8_t *pack_ranks(const struct hc_work *w, const struct layout *l, uint8_t *dst)
{
    const uint32_t mask = (1u << l->low_bits) - 1;
    uint8_t *at = dst;

    for (size_t t = 0; t < l->pairs && l->low_bits; t += 8, at += l->low_bits) {
        size_t n = l->pairs - t < 8 ? l->pairs - t : 8;
        uint64_t word = 0;
        for (size_t k = 0; k < n; k++)
            word |= (uint64_t)(w->e.rank[t + k] & mask) << k * l->low_bits;
        store64(at, word);
    }
    return dst + l->low_bytes;
}

static uint8_t *pack_path(const struct hc_work *w, const struct layout *l, uint8_t *dst)
{
    if (l->path_bytes == 0)
        return dst;
    memset(w->e.path + l->pairs, 0, 8);
    for (size_t t = 0; t < l->pairs; t += 8) /* bit 8k moves to bit 56 + k */
        dst[t / 8] = (uint8_t)(load64(w->e.path + t) * UINT64_C(0x0102040810204080) >> 56);
    return dst + l->path_bytes;
}

size_t hc_trajectory_bound(const struct hc_code *code, size_t raw_len)
{
    const struct layout l = layout_of(code, raw_len);
    return HEADER + l.pairs + l.low_bytes + l.path_bytes + l.pairs * (PLACE_BYTES + 2 * l.elem) +
           l.odd + sizeof(uint64_t);
}

size_t hc_trajectory_encode(const struct hc_code *code, const struct hc_quantiser *q,
                            struct hc_work *w, const uint8_t *src, size_t raw_len, uint8_t *dst)
{
    const struct layout l = layout_of(code, raw_len);
    const size_t pair = 2 * l.elem;
    size_t exact = normalise(code, q, w, src, &l);
    uint8_t *at = dst + HEADER;

    quantise(code, q, w, l.pairs);
    for (size_t t = 0; t < l.pairs; t++)
        w->bytes[t] = (uint8_t)(w->e.rank[t] >> l.low_bits);
    size_t stored = l.pairs ? hc_compress_literals(w, at, w->bytes, l.pairs) : 0;
    if (!stored) {
        stored = l.pairs;
        memcpy(at, w->bytes, stored);
    }
    at = pack_ranks(w, &l, at + stored);
    at = pack_path(w, &l, at);
    for (size_t t = 0; t < l.pairs && exact; t++)
        if (w->e.outside[t]) {
            store16(at, (uint16_t)t);
            at += PLACE_BYTES;
        }
    for (size_t t = 0; t < l.pairs && exact; t++)
        if (w->e.outside[t]) {
            memcpy(at, src + t * pair, pair);
            at += pair;
        }
    memcpy(at, src + raw_len - l.odd, l.odd);
    store32(dst, (uint32_t)exact);
    store32(dst + 4, (uint32_t)stored);
    return (size_t)(at - dst) + l.odd;
}

enum { LANES = 8 };

/* Sums of a run of pairs, in lanes so that the compiler makes vectors of them and the order of
 * additions is the same everywhere. */
struct sums {
    double signal[LANES], noise[LANES], max_error[LANES];
    int bad[LANES];
};

/* Adds n pairs of weights a and their decoded values b, but those that are stored exactly. */
static void add_errors(struct sums *s, const double *a, const double *b, const uint8_t *outside,
                       size_t n, double slack, double relative)
{
    for (size_t t = 0; t < n; t += LANES)
        for (size_t k = 0; k < LANES; k++) {
            size_t i = t + k;
            double ex = fabs(a[2 * i] - b[2 * i]), ey = fabs(a[2 * i + 1] - b[2 * i + 1]);
            double size = a[2 * i] * a[2 * i] + a[2 * i + 1] * a[2 * i + 1];
            double error = ex * ex + ey * ey, larger = ex > ey ? ex : ey;
            int carried = !outside[i];
            s->bad[k] |= carried & !(error <= slack + size * relative);
            s->signal[k] += carried ? size : 0.0;
            s->noise[k] += carried ? error : 0.0;
            larger = carried ? larger : 0.0;
            s->max_error[k] = larger > s->max_error[k] ? larger : s->max_error[k];
        }
}

/* Counts the pairs stored exactly; false if one did not come back as it was. */
static bool exact_pairs_equal(const uint8_t *outside, const uint8_t *src, const uint8_t *decoded,
                              size_t pairs, size_t pair_bytes, uint64_t *count)
{
    for (size_t t = 0; t < pairs; t++) {
        if (!outside[t])
            continue;
        if (memcmp(src + t * pair_bytes, decoded + t * pair_bytes, pair_bytes) != 0)
            return false;
        *count += 1;
    }
    return true;
}

bool hc_trajectory_measure(const struct hc_code *code, const struct hc_quantiser *q,
                           const struct hc_work *w, const uint8_t *src, const uint8_t *decoded,
                           size_t raw_len, struct hc_block_stats *stats)
{
    const struct layout l = layout_of(code, raw_len);
    /* To the lattice's error a, at most the covering radius, come the shrinking of the
     * weight and the rounding to the dtype: in relation to the weight, or by half the spacing
     * of the type's subnormals. (a + b + c)^2 <= 1.1 a^2 + 22 b^2 + 22 c^2. */
    const int least = code->dtype == HC_F16 ? -24 : code->dtype == HC_BF16 ? -133 : -149;
    const double slack = 1.15 * q->cover2 + ldexp(16, 2 * least);
    const double relative = 22 * q->shrink * q->shrink + 0x1p-13;
    double a[2 * CHUNK], b[2 * CHUNK];
    struct sums s = {0};
    uint64_t exact = 0;
    bool good = true;

    memset(stats, 0, sizeof *stats);
    for (size_t from = 0; from < l.pairs; from += CHUNK) {
        size_t n = l.pairs - from < CHUNK ? l.pairs - from : CHUNK;
        size_t padded = (n + LANES - 1) / LANES * LANES;
        hc_weights_load(a, src + from * 2 * l.elem, 2 * n, code->dtype);
        hc_weights_load(b, decoded + from * 2 * l.elem, 2 * n, code->dtype);
        for (size_t i = 2 * n; i < 2 * padded; i++)
            a[i] = b[i] = 0;
        add_errors(&s, a, b, w->e.outside + from, padded, slack, relative);
    }
    for (int k = 0; k < LANES; k++) {
        stats->signal += s.signal[k];
        stats->noise += s.noise[k];
        stats->max_error = fmax(stats->max_error, s.max_error[k]);
        good = good && !s.bad[k];
    }
    good = good && exact_pairs_equal(w->e.outside, src, decoded, l.pairs, 2 * l.elem, &exact);
    stats->carried = 2 * (l.pairs - exact);
    stats->exact = 2 * exact + l.odd / l.elem;
    return good &&
           (l.odd == 0 || memcmp(src + raw_len - l.odd, decoded + raw_len - l.odd, l.odd) == 0);
}
