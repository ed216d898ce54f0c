/* The codec: what a user loses when one of these fails is the weights. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codec/bytes.h"
#include "codec/codec.h"
#include "codec/kdtree.h"
#include "codec/kernels.h"
#include "codec/lattice.h"
#include "codec/trajectory.h"
#include "codec/trellis.h"
#include "codec/weight.h"
#include "codec/work.h"

/* ---- random numbers with a seed that is printed ---- */

static uint64_t state;

static uint64_t random64(void)
{
    state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static double uniform(void)
{
    return ((double)(random64() >> 11) + 0.5) * 0x1p-53;
}

static double gauss(void)
{
    return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static int seed(void **unused)
{
    (void)unused;
    const char *s = getenv("HYPERFS_SEED");
    state = s ? strtoull(s, NULL, 0) : 20260101;
    print_message("HYPERFS_SEED=%llu\n", (unsigned long long)state);
    return 0;
}

static size_t elem_size(enum hc_dtype t)
{
    return hc_dtype_bits(t) / 8;
}

/* n weights of a type, standard deviation sigma. */
static uint8_t *weights(enum hc_dtype t, size_t n, double sigma)
{
    uint8_t *raw = malloc(n * elem_size(t) + 1);
    assert_non_null(raw);
    for (size_t i = 0; i < n; i++)
        hc_weight_store(raw + i * elem_size(t), sigma * gauss(), t);
    return raw;
}

static const enum hc_dtype weight_types[] = {HC_F16, HC_BF16, HC_F32, HC_F64};

/* ---- weights ---- */

static void test_every_half_survives(void **unused)
{
    (void)unused;
    for (unsigned h = 0; h < 65536; h++)
        for (int k = 0; k < 2; k++) {
            enum hc_dtype t = k ? HC_F16 : HC_BF16;
            uint8_t in[2], out[2];
            double v;
            store16(in, (uint16_t)h);
            hc_weights_load(&v, in, 1, t);
            if (!isfinite(v))
                continue;
            assert_int_equal(hc_weight_store(out, v, t), 1);
            assert_memory_equal(in, out, 2);
        }
}

/* Rounding of doubles to halves: nearest, ties to even, against the neighbours. */
static void test_rounding(void **unused)
{
    (void)unused;
    static const enum hc_dtype types[] = {HC_F16, HC_BF16};
    for (int k = 0; k < 2; k++)
        for (unsigned h = 0; h < 0x7bff; h++) {
            uint8_t low[2], high[2], out[2];
            double a, b;
            store16(low, (uint16_t)h);
            store16(high, (uint16_t)(h + 1));
            hc_weights_load(&a, low, 1, types[k]);
            hc_weights_load(&b, high, 1, types[k]);
            double middle = (a + b) / 2;
            hc_weight_store(out, middle, types[k]);
            assert_memory_equal(out, h % 2 ? high : low, 2);
            hc_weight_store(out, nextafter(middle, 0), types[k]);
            assert_memory_equal(out, low, 2);
            hc_weight_store(out, nextafter(middle, INFINITY), types[k]);
            assert_memory_equal(out, high, 2);
        }
    uint8_t out[2];
    assert_int_equal(hc_weight_store(out, 65520, HC_F16), 0);
    assert_int_equal(hc_weight_store(out, 65519, HC_F16), 1);
}

/* ---- lattice ---- */

static void test_lattice_is_near_hexagonal(void **unused)
{
    (void)unused;
    for (unsigned split = 1; split <= HC_MAX_SPLIT; split++) {
        struct hc_trajectory t;
        assert_int_equal(hc_lattice_for(256u << (split - 1), &t), 0);
        assert_int_equal(hc_lattice_check(&t), 0);
        /* Minimum distance against that of the hexagonal lattice of the same density. */
        double shortest = hypot(t.b1[0], t.b1[1]), ideal = hc_lattice_spacing(t.points);
        assert_true(shortest / ideal > 0.993);
        struct hc_lattice *l;
        assert_int_equal(hc_lattice_new(&t, &l), 0);
        assert_true(l->radius > 0.95 * sqrt(4.0 * t.points * t.npoints / 3.14159265));
        hc_lattice_free(l);
        struct hc_trajectory best = t;
        if (split < 8) /* the winding in the table is the one that a search finds */
            hc_lattice_choose(t.points, &best);
        assert_int_equal(best.winding, t.winding);
        assert_true(shortest / ideal <= 1.0 + 1e-12);
    }
}

/* The winding is the best of all, by trial of every shortest vector. */
static void test_winding_is_best(void **unused)
{
    (void)unused;
    for (uint32_t u = 64; u < 200; u += 7) {
        struct hc_trajectory t;
        long best = 0;
        hc_lattice_choose(u, &t);
        for (long z = 1; z < (long)u; z++) {
            long shortest = (long)u * u;
            for (long k = 1; k < (long)u; k++) {
                long y = k * z % (long)u, x = k > (long)u / 2 ? k - (long)u : k;
                y = y > (long)u / 2 ? y - (long)u : y;
                shortest = x * x + y * y < shortest ? x * x + y * y : shortest;
            }
            best = shortest > best ? shortest : best;
        }
        assert_int_equal(best, (long)t.b1[0] * t.b1[0] + (long)t.b1[1] * t.b1[1]);
    }
}

/* Every ranked point is on the trajectory of its phase; ranks ascend; none within reach is missing.
 */
static void test_ranks(void **unused)
{
    (void)unused;
    struct hc_trajectory t;
    struct hc_lattice *l;
    hc_lattice_for(512, &t);
    assert_int_equal(hc_lattice_new(&t, &l), 0);
    const int64_t u = t.points;
    size_t within = 0, ranked_within = 0;
    for (unsigned k = 0; k < 4; k++) {
        int64_t before = -1;
        for (uint32_t i = 0; i < l->npoints; i++) {
            struct hc_point p = l->point[k][i];
            int64_t x = hc_point_x(l, p), y = hc_point_y(l, p), d2 = x * x + y * y;
            assert_true(d2 >= before);
            before = d2;
            ranked_within += (double)d2 < l->radius * l->radius;
        }
        /* All U points of the phase, from the definition tau(theta a + phi). */
        int64_t px = (k & 1 ? t.b1[0] : 0) + (k & 2 ? t.b2[0] : 0);
        int64_t py = (k & 1 ? t.b1[1] : 0) + (k & 2 ? t.b2[1] : 0);
        for (int64_t theta = 0; theta < u; theta++) {
            int64_t x = (2 * theta + px) % (2 * u),
                    y = (2 * (theta * t.winding % u) + py) % (2 * u);
            x += x < -u ? 2 * u : x >= u ? -2 * u : 0;
            y += y < -u ? 2 * u : y >= u ? -2 * u : 0;
            within += (double)(x * x + y * y) < l->radius * l->radius;
        }
    }
    assert_int_equal(within, ranked_within);
    hc_lattice_free(l);
}

static void test_bad_lattices_are_refused(void **unused)
{
    (void)unused;
    struct hc_trajectory good, t;
    hc_lattice_for(256, &good);
#define REFUSED(change)                                                                            \
    do {                                                                                           \
        t = good;                                                                                  \
        change;                                                                                    \
        assert_int_not_equal(hc_lattice_check(&t), 0);                                             \
    } while (0)
    REFUSED(t.points = 0);
    REFUSED(t.points = HC_MAX_POINTS + 1);
    REFUSED(t.points++);
    REFUSED(t.winding = 0);
    REFUSED(t.winding = t.points);
    REFUSED(t.winding++);
    REFUSED(t.npoints = 0);
    REFUSED(t.npoints = HC_MAX_NPOINTS + 1);
    REFUSED(t.npoints = t.points + 1);
    REFUSED(t.b1[0] = INT32_MIN);
    REFUSED(t.b2[1] = INT32_MAX);
    REFUSED(memcpy(t.b1, t.b2, sizeof t.b1));
    REFUSED((t.b1[0] = t.b1[1] = 0));
#undef REFUSED
    t = good;
    t.npoints = t.points; /* wider than the torus */
    struct hc_lattice *l;
    assert_int_not_equal(hc_lattice_new(&t, &l), 0);
}

/* A trajectory of a random number of points, as many of them ranked as the torus allows. */
static struct hc_lattice *random_lattice(struct hc_trajectory *t)
{
    struct hc_lattice *l;
    do {
        hc_lattice_choose(HC_MIN_POINTS + (uint32_t)(random64() % 8000), t);
        t->npoints = t->points * 7 / 10;
    } while (hc_lattice_new(t, &l) != 0);
    return l;
}

/* Squared distance from (x, y) to the point of a phase that the closed form finds. */
static double closed_form(const struct hc_kernels *k, const struct hc_trajectory *t,
                          const struct hc_lattice *l, unsigned phase, double x, double y)
{
    enum { STRIDE = 1 << 12, ORIGIN = 1 << 23 };
    const double det = (double)t->b1[0] * t->b2[1] - (double)t->b1[1] * t->b2[0];
    const struct hc_quadratic q = {(float)(4.0 * (t->b1[0] * t->b1[0] + t->b1[1] * t->b1[1])),
                                   (float)(4.0 * (t->b1[0] * t->b2[0] + t->b1[1] * t->b2[1])),
                                   (float)(4.0 * (t->b2[0] * t->b2[0] + t->b2[1] * t->b2[1]))};
    const float m = (float)((x * t->b2[1] - y * t->b2[0]) / det);
    const float n = (float)((y * t->b1[0] - x * t->b1[1]) / det);
    const uint8_t p = (uint8_t)phase;
    int32_t place;
    k->nearest_places(&place, &m, &n, &p, 1, &q, STRIDE, ORIGIN);
    place -= ORIGIN;
    int32_t pn = ((place % STRIDE) + STRIDE + STRIDE / 2) % STRIDE - STRIDE / 2;
    struct hc_point found = {(place - pn) / STRIDE, pn};
    assert_int_equal((found.m & 1) | (found.n & 1) << 1, phase);
    double dx = x - hc_point_x(l, found), dy = y - hc_point_y(l, found);
    return dx * dx + dy * dy;
}

/* The closed form finds the point that a k-d tree over all points finds: 1.2 million queries on
 * random trajectories. */
static void test_nearest_point_is_the_trees(void **unused)
{
    (void)unused;
    enum { TRAJECTORIES = 30, QUERIES = 10000 };
    const struct hc_kernels *kernels[] = {hc_kernels_of(HC_ISA_PORTABLE),
                                          hc_kernels_of(HC_ISA_AVX2)};
    for (int round = 0; round < TRAJECTORIES; round++) {
        struct hc_trajectory t;
        struct hc_lattice *l = random_lattice(&t);
        const double window = l->radius - hc_lattice_covering_radius(&t);
        double *px = calloc(l->npoints, sizeof *px), *py = calloc(l->npoints, sizeof *py);
        for (unsigned phase = 0; phase < 4; phase++) {
            for (uint32_t i = 0; i < l->npoints; i++) {
                px[i] = hc_point_x(l, l->point[phase][i]);
                py[i] = hc_point_y(l, l->point[phase][i]);
            }
            struct hc_kdtree *tree = hc_kdtree_new(px, py, l->npoints);
            assert_non_null(tree);
            for (int i = 0; i < QUERIES; i++) {
                double angle = 6.283185307179586 * uniform(), r = window * sqrt(uniform());
                double x = r * cos(angle), y = r * sin(angle), least;
                hc_kdtree_nearest(tree, x, y, &least);
                double got = closed_form(kernels[i % 2], &t, l, phase, x, y);
                /* Single precision may take either of two points that are equally near. */
                if (got > least * (1 + 1e-4) + 1e-2)
                    fail_msg("U=%u z=%u phase %u (%.9g, %.9g): %.9g, tree %.9g", t.points,
                             t.winding, phase, x, y, got, least);
            }
            hc_kdtree_free(tree);
        }
        free(px);
        free(py);
        hc_lattice_free(l);
    }
}

/* ---- trellis ---- */

static void test_planes_are_the_trellis_step_by_step(void **unused)
{
    (void)unused;
    enum { N = 1000, WORDS = (N + 63) / 64 };
    for (unsigned nu = 1; nu <= HC_MAX_NU; nu++) {
        struct hc_taps taps = hc_trellis_taps(nu);
        uint64_t with_front[1 + WORDS] = {0}, *path = with_front + 1, c0[WORDS], c1[WORDS];
        unsigned history = 0;
        for (size_t i = 0; i < WORDS; i++)
            path[i] = random64();
        hc_kernels_of(nu % 2 ? HC_ISA_AVX2 : HC_ISA_PORTABLE)
            ->phase_planes(c0, c1, path, WORDS, nu, taps.g0, taps.g1);
        for (size_t i = 0; i < N; i++) {
            unsigned b = path[i / 64] >> i % 64 & 1;
            unsigned phase = hc_phase(history, b, taps.g0, taps.g1);
            assert_int_equal(c0[i / 64] >> i % 64 & 1, phase & 1);
            assert_int_equal(c1[i / 64] >> i % 64 & 1, phase >> 1);
            history = (history << 1 | b) & ((1u << nu) - 1);
        }
    }
}

static uint64_t path_cost(unsigned nu, struct hc_taps taps, const uint32_t *metric, size_t n,
                          const uint8_t *path, const uint8_t *phase)
{
    uint64_t cost = 0;
    unsigned history = 0;
    for (size_t t = 0; t < n; t++) {
        unsigned k = hc_phase(history, path[t], taps.g0, taps.g1);
        assert_int_equal(k, phase[t]);
        cost += metric[2 * t + (k >> 1)] >> (k & 1 ? 16 : 0) & 0xffff;
        history = (history << 1 | path[t]) & ((1u << nu) - 1);
    }
    return cost;
}

/* Viterbi finds the cheapest of all 2^n paths. */
static void test_viterbi_is_optimal(void **unused)
{
    (void)unused;
    enum { N = 12, LONG = 3000 };
    for (unsigned nu = 1; nu <= HC_MAX_NU; nu++) {
        struct hc_taps taps = hc_trellis_taps(nu);
        uint32_t *metric = malloc(2 * LONG * sizeof *metric);
        uint32_t *decisions = malloc(LONG * hc_trellis_words(nu) * sizeof *decisions + 64);
        uint8_t path[2][LONG], phase[2][LONG], short_path[N], short_phase[N];
        for (size_t t = 0; t < 2 * LONG; t++)
            metric[t] = (uint32_t)(random64() % 1024 | (random64() % 1024) << 16);
        uint64_t least = UINT64_MAX;
        for (unsigned bits = 0; bits < 1u << N; bits++) {
            unsigned history = 0;
            uint64_t cost = 0;
            for (size_t t = 0; t < N; t++) {
                unsigned b = bits >> t & 1, k = hc_phase(history, b, taps.g0, taps.g1);
                cost += metric[2 * t + (k >> 1)] >> (k & 1 ? 16 : 0) & 0xffff;
                history = (history << 1 | b) & ((1u << nu) - 1);
            }
            least = cost < least ? cost : least;
        }
        for (int isa = HC_ISA_PORTABLE; isa <= (int)hc_isa_best(); isa++) {
            const struct hc_kernels *k = hc_kernels_of((enum hc_isa)isa);
            k->viterbi(nu, taps.g0, taps.g1, metric, N, decisions, short_path, short_phase);
            assert_int_equal(path_cost(nu, taps, metric, N, short_path, short_phase), least);
            k->viterbi(nu, taps.g0, taps.g1, metric, LONG, decisions, path[isa], phase[isa]);
        }
        if (hc_isa_best() == HC_ISA_AVX2) {
            assert_memory_equal(path[0], path[1], LONG);
            assert_memory_equal(phase[0], phase[1], LONG);
        }
        free(metric);
        free(decisions);
    }
}

#if defined(__x86_64__)
/* With gathers, without them and portably the same pairs are decoded, whatever the job. */
static void test_kernels_decode_alike(void **unused)
{
    (void)unused;
    enum { N = 1003, POINTS = 1 << 16 };
    uint8_t *table = malloc(2 * 2 * POINTS * 16), hi[N + 64], low[N + 64];
    uint64_t c0[N / 64 + 1], c1[N / 64 + 1];
    if (hc_isa_best() != HC_ISA_AVX2) {
        free(table);
        return;
    }
    for (size_t i = 0; i < 2 * 2 * POINTS * 2; i++)
        store64(table + 8 * i, random64());
    for (unsigned low_bits = 0; low_bits <= 8; low_bits++) {
        static uint8_t out[3][16 * N];
        const struct hc_kernels *k[] = {&hc_kernels_portable, &hc_kernels_avx2,
                                        &hc_kernels_avx2_by_loads};
        for (size_t i = 0; i < N + 64; i++)
            hi[i] = (uint8_t)random64(), low[i] = (uint8_t)random64();
        for (size_t i = 0; i < N / 64 + 1; i++)
            c0[i] = random64(), c1[i] = random64();
        for (unsigned width = 4; width <= 16; width *= 2) {
            for (int i = 0; i < 3; i++) {
                struct hc_decode_job job = {.hi = hi,
                                            .low = low,
                                            .low_bits = low_bits,
                                            .c0 = c0,
                                            .c1 = c1,
                                            .table = table,
                                            .half = 2 * POINTS,
                                            .n = N,
                                            .dst = out[i]};
                (width == 4   ? k[i]->decode_pairs4
                 : width == 8 ? k[i]->decode_pairs8
                              : k[i]->decode_pairs16)(&job);
            }
            assert_memory_equal(out[0], out[1], width * N);
            assert_memory_equal(out[0], out[2], width * N);
        }
    }
    free(table);
}
#endif

/* ---- whole blocks ---- */

static struct hc_code trajectory_code(enum hc_dtype t, unsigned nu, unsigned split, double d)
{
    struct hc_taps taps = hc_trellis_taps(nu);
    struct hc_code code = {.type = HC_CODE_TRAJECTORY, .dtype = t};
    code.t.nu = (uint8_t)nu;
    code.t.g0 = taps.g0;
    code.t.g1 = taps.g1;
    code.t.split = (uint8_t)split;
    assert_int_equal(hc_lattice_for(256u << (split - 1), &code.t), 0);
    code.t.step = hc_step_from(d / hc_lattice_spacing(code.t.points));
    return code;
}

/* Codes a block with both instruction sets, decodes it with both, expects the same bytes. Returns
 * the coded size; decoded receives the result. */
static size_t both_ways(const struct hc_code *code, const uint8_t *raw, size_t len,
                        uint8_t *decoded, struct hc_block_stats *stats)
{
    size_t size[2] = {0};
    uint8_t *out[2];
    struct hc_decoder *d;
    struct hc_encoder *e;

    assert_int_equal(hc_decoder_new(code, &d), 0);
    assert_int_equal(hc_encoder_new(code, &e), 0);
    for (int isa = HC_ISA_PORTABLE; isa <= HC_ISA_AVX2; isa++) {
        struct hc_block_stats s;
        struct hc_work *w = hc_work_new((enum hc_isa)isa);
        assert_non_null(w);
        out[isa] = malloc(hc_code_bound(code, len));
        assert_int_equal(hc_encode(e, w, raw, len, out[isa], &size[isa], NULL, &s), 0);
        assert_true(size[isa] <= hc_code_bound(code, len));
        if (isa)
            assert_memory_equal(&s, stats, sizeof s);
        *stats = s;
        hc_work_free(w);
    }
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(out[0], out[1], size[0]);
    uint8_t *again = malloc(len + 1);
    for (int isa = HC_ISA_PORTABLE; isa <= HC_ISA_AVX2; isa++) {
        struct hc_work *w = hc_work_new((enum hc_isa)isa);
        uint8_t *to = isa ? again : decoded;
        to[len] = 0x5a;
        assert_int_equal(hc_decode(d, w, out[0], size[0], to, len), 0);
        assert_int_equal(to[len], 0x5a);
        hc_work_free(w);
    }
    assert_memory_equal(decoded, again, len);
    free(again);
    free(out[0]);
    free(out[1]);
    hc_decoder_free(d);
    hc_encoder_free(e);
    return size[0];
}

/* The decoder against the description of the code, pair by pair, in the plainest way. */
static void test_decoder_follows_the_description(void **unused)
{
    (void)unused;
    enum { PAIRS = 999 };
    for (unsigned nu = 0; nu <= HC_MAX_NU; nu += 2) {
        struct hc_code code = trajectory_code(HC_F32, nu, 3, 0.2);
        const struct hc_trajectory *t = &code.t;
        struct hc_lattice *l;
        struct hc_decoder *d;
        struct hc_work *w = hc_work_new(hc_isa_best());
        uint8_t block[8 + PAIRS + PAIRS * 2 / 8 + 1 + PAIRS / 8 + 1] = {0}, out[PAIRS * 8];
        const size_t low_at = 8 + PAIRS, low_len = (PAIRS * 2 + 7) / 8;
        const size_t path_at = low_at + low_len, path_len = nu ? (PAIRS + 7) / 8 : 0;
        unsigned history = 0;

        assert_int_equal(hc_lattice_new(t, &l), 0);
        assert_int_equal(hc_decoder_new(&code, &d), 0);
        store32(block + 4, PAIRS);
        for (size_t i = 8; i < path_at + path_len; i++)
            block[i] = (uint8_t)random64();
        block[path_at - 1] &= 0x3f; /* 999 * 2 bits = 249 bytes and 6 bits */
        if (nu)
            block[path_at + path_len - 1] &= 0x7f;
        assert_int_equal(hc_decode(d, w, block, path_at + path_len, out, sizeof out), 0);
        for (size_t k = 0; k < PAIRS; k++) {
            unsigned low = block[low_at + k / 4] >> k % 4 * 2 & 3;
            unsigned i = block[8 + k] << 2 | low, b = 0, phase = 0;
            if (nu) {
                b = block[path_at + k / 8] >> k % 8 & 1;
                phase = hc_phase(history, b, t->g0, t->g1);
                history = (history << 1 | b) & ((1u << nu) - 1);
            }
            struct hc_point p = l->point[phase][i];
            uint8_t expect[8];
            hc_weight_store(expect, hc_point_x(l, p) * hc_step_value(t->step), HC_F32);
            hc_weight_store(expect + 4, hc_point_y(l, p) * hc_step_value(t->step), HC_F32);
            assert_memory_equal(out + 8 * k, expect, 8);
        }
        hc_lattice_free(l);
        hc_decoder_free(d);
        hc_work_free(w);
    }
}

static void test_trajectory_round_trip(void **unused)
{
    (void)unused;
    static const size_t lengths[] = {1, 2, 3, 15, 16, 17, 4097, 131071, 131072};
    for (int k = 0; k < 4; k++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            enum hc_dtype t = weight_types[k];
            struct hc_code code = trajectory_code(t, (unsigned)i % 9, 3, 0.2);
            struct hc_block_stats s;
            size_t len = lengths[i] * elem_size(t);
            uint8_t *raw = weights(t, lengths[i], 1), *out = malloc(len + 1);
            both_ways(&code, raw, len, out, &s);
            assert_int_equal(s.carried + s.exact, lengths[i]);
            if (lengths[i] % 2)
                assert_memory_equal(out + len - elem_size(t), raw + len - elem_size(t),
                                    elem_size(t));
            if (lengths[i] > 4000 && code.t.nu) {
                double mse = s.noise / (double)s.carried / (0.2 * 0.2);
                assert_true(fabs(mse / hc_trellis_taps(code.t.nu).mse - 1) < 0.06);
            }
            free(raw);
            free(out);
        }
}

/* NaN with its payload, infinities, signed zeros, subnormals and outliers come back; the first
 * and the last by their bits. */
static void test_extreme_values(void **unused)
{
    (void)unused;
    enum { N = 8192 };
    for (int k = 0; k < 4; k++) {
        enum hc_dtype t = weight_types[k];
        size_t e = elem_size(t);
        struct hc_code code = trajectory_code(t, 8, 3, 0.002);
        uint8_t *raw = weights(t, N, 0.01), *out = malloc(N * e + 1);
        struct hc_block_stats s;
        hc_weight_store(raw + 100 * e, 1e30, t); /* an infinity for F16 */
        memset(raw + 200 * e, 0xff, e);          /* NaN, payload all ones */
        hc_weight_store(raw + 300 * e, -1e300, t);
        hc_weight_store(raw + 401 * e, t == HC_F16 ? 6e4 : 1e20, t);
        both_ways(&code, raw, N * e, out, &s);
        assert_true(s.exact >= 8);
        static const size_t at[] = {100, 101, 200, 201, 300, 301, 400, 401};
        for (size_t i = 0; i < 8; i++)
            assert_memory_equal(raw + at[i] * e, out + at[i] * e, e);
        free(raw);
        free(out);
    }
}

static void test_lossless_round_trip(void **unused)
{
    (void)unused;
    static const size_t lengths[] = {1, 2, 3, 7, 8, 9, 31, 4096, 100001, HC_BYTES_BLOCK};
    for (unsigned t = 0; t < HC_DTYPE_COUNT; t++)
        for (int kind = 0; kind < 3; kind++)
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                struct hc_code code = hc_lossless((enum hc_dtype)t, 3);
                struct hc_block_stats s;
                size_t len = lengths[i];
                uint8_t *raw = malloc(len + 1), *out = malloc(len + 1);
                for (size_t b = 0; b < len; b++)
                    raw[b] = (uint8_t)(kind == 0 ? random64() : kind == 1 ? 7 : random64() % 5);
                size_t size = both_ways(&code, raw, len, out, &s);
                assert_memory_equal(raw, out, len);
                assert_true(kind != 1 || len < 4096 || size < 64);
                free(raw);
                free(out);
            }
}

/* The lossless code's size on Gaussian weights: a third off BF16. */
static void test_lossless_sizes(void **unused)
{
    (void)unused;
    enum { N = HC_BYTES_BLOCK / 2 };
    struct hc_block_stats s;
    uint8_t *raw = weights(HC_BF16, N, 0.02), *out = malloc(HC_BYTES_BLOCK + 1);
    struct hc_code code = hc_lossless(HC_BF16, 0);
    size_t size = both_ways(&code, raw, 2 * N, out, &s);
    assert_true((double)size / (2 * N) < 0.675);
    uint8_t *wide = calloc(N / 2, 4);
    for (size_t i = 0; i < N / 2; i++)
        memcpy(wide + 4 * i + 2, raw + 2 * i, 2);
    code = hc_lossless(HC_F32, 0);
    size = both_ways(&code, wide, 2 * N, out, &s);
    assert_true((double)size / (2 * N) < 0.34);
    free(raw);
    free(wide);
    free(out);
}

/* ---- choosing ---- */

static struct hc_code chosen(enum hc_dtype t, const uint8_t *raw, size_t n, double db)
{
    struct hc_scan *scan = hc_scan_new(t);
    struct hc_work *w = hc_work_new(hc_isa_best());
    struct hc_target target = {db, HC_DEFAULT_NU, HC_DEFAULT_NU};
    size_t len = n * elem_size(t);
    struct hc_code code;
    hc_scan_block(scan, raw, len);
    assert_int_equal(hc_choose(scan, &target, w, &raw, &len, 1, &code), 0);
    hc_scan_free(scan);
    hc_work_free(w);
    return code;
}

/* ---- forecasts ---- */

/* Bits a weight of all blocks, and the SQNR. */
static double coded_bits(const struct hc_code *code, const uint8_t *raw, size_t n, double *db)
{
    struct hc_block_stats sum = {0}, s;
    struct hc_encoder *e;
    struct hc_work *w = hc_work_new(hc_isa_best());
    size_t len = n * elem_size(code->dtype), block = hc_code_block_bytes(code), bytes = 0, size;
    uint8_t *out = malloc(hc_code_bound(code, block));
    assert_int_equal(hc_encoder_new(code, &e), 0);
    for (size_t at = 0; at < len; at += block) {
        size_t part = len - at < block ? len - at : block;
        assert_int_equal(hc_encode(e, w, raw + at, part, out, &size, NULL, &s), 0);
        hc_block_stats_add(&sum, &s);
        bytes += size;
    }
    *db = hc_sqnr_db(&sum);
    hc_encoder_free(e);
    hc_work_free(w);
    free(out);
    return 8 * (double)bytes / (double)n;
}

/* Gaussian weights, or products of two: with long tails. */
static uint8_t *mixed(size_t n, bool tails)
{
    float *v = malloc(n * sizeof *v);
    float *a = (float *)weights(HC_F32, n, 1), *b = (float *)weights(HC_F32, n, 1);
    for (size_t i = 0; i < n; i++)
        v[i] = tails ? 0.02f * a[i] * b[n - 1 - i] : 0.02f * a[i];
    free(a);
    free(b);
    return (uint8_t *)v;
}

static void test_forecasts_are_near_what_is_coded(void **unused)
{
    (void)unused;
    enum { N = 1 << 18 };
    for (int tails = 0; tails < 2; tails++) {
        uint8_t *raw = mixed(N, tails);
        struct hc_scan *scan = hc_scan_new(HC_F32);
        hc_scan_block(scan, raw, N * 4);
        double offset = 0;
        for (double db = 12; db <= 40; db += 7) {
            struct hc_target target = {db, HC_DEFAULT_NU, HC_DEFAULT_NU};
            struct hc_code code = chosen(HC_F32, raw, 2 * HC_TRAJECTORY_PAIRS, db);
            double got, bits = coded_bits(&code, raw, N, &got);
            bits += (db - got) / 6.0206;
            double miss = hc_predict_bits(scan, &target) - bits;
            if (fabs(miss) > 0.1)
                fail_msg("%g dB: forecast %g bits, not %g", db, miss + bits, bits);
            /* Where it is off, it is off by the same at all qualities. */
            if (db > 12 && fabs(miss - offset) > 0.05)
                fail_msg("%g dB: off by %g bits, at 7 dB less by %g", db, miss, offset);
            offset = miss;
        }
        hc_scan_free(scan);
        free(raw);
    }
}

static void test_a_packed_scan_chooses_the_same_code(void **unused)
{
    (void)unused;
    enum { N = 65536 };
    struct hc_work *w = hc_work_new(hc_isa_best());
    for (int k = 0; k < 4; k++) {
        enum hc_dtype t = weight_types[k];
        uint8_t *raw = weights(t, N, 0.5);
        memset(raw, 0, N / 50 * elem_size(t));
        struct hc_scan *scan = hc_scan_new(t);
        hc_scan_block(scan, raw, N * elem_size(t));
        struct hc_scan_pack *pack = hc_scan_pack(scan);
        struct hc_scan *again = hc_scan_unpack(pack);
        struct hc_target target = {23, 4, 4};
        size_t len = N / 2 * elem_size(t);
        struct hc_code a, b;
        assert_int_equal(hc_choose(scan, &target, w, (const uint8_t *const *)&raw, &len, 1, &a), 0);
        assert_int_equal(hc_choose(again, &target, w, (const uint8_t *const *)&raw, &len, 1, &b),
                         0);
        assert_memory_equal(&a.t, &b.t, sizeof a.t);
        assert_true(hc_predict_bits(scan, &target) == hc_predict_bits(again, &target));
        assert_int_equal(hc_scan_elements(again), N);
        hc_scan_free(scan);
        hc_scan_free(again);
        free(pack);
        free(raw);
    }
    hc_work_free(w);
}

static void test_a_forecast_of_nothing(void **unused)
{
    (void)unused;
    struct hc_scan *scan = hc_scan_new(HC_F32);
    struct hc_target target = {23, 4, 4};
    static const uint32_t strange[4] = {0x7f800000, 0x7fc00000, 0, 0};
    assert_true(isinf(hc_predict_bits(scan, &target)));
    hc_scan_block(scan, (const uint8_t *)strange, sizeof strange);
    assert_true(isinf(hc_predict_bits(scan, &target)));
    hc_scan_free(scan);
}

static void test_chosen_code_reaches_its_target(void **unused)
{
    (void)unused;
    enum { N = 65536 };
    for (int k = 0; k < 4; k++)
        for (double db = HC_MIN_DB; db <= HC_MAX_DB; db += 6) {
            enum hc_dtype t = weight_types[k];
            /* Squares of 1e-200 are zero in double precision: such a tensor stays lossless. */
            double sigma = t == HC_F64 ? 1e-200 : t == HC_F16 ? 1 : 1e-20;
            uint8_t *raw = weights(t, N, sigma), *out = malloc(N * elem_size(t) + 1);
            struct hc_code code = chosen(t, raw, N, db);
            struct hc_block_stats s;
            assert_int_equal(code.type, t == HC_F64 ? HC_CODE_PLANES : HC_CODE_TRAJECTORY);
            if (code.type == HC_CODE_TRAJECTORY) {
                size_t size = both_ways(&code, raw, N * elem_size(t), out, &s);
                double gap = 6.0206 * (double)size * 8 / N - hc_sqnr_db(&s);
                assert_true(fabs(hc_sqnr_db(&s) - db) < 0.03);
                assert_true(gap < (db < 18 ? 1.2 : 0.55));
            }
            free(raw);
            free(out);
        }
}

static void test_hopeless_tensors_stay_lossless(void **unused)
{
    (void)unused;
    enum { N = 16384 };
    uint8_t *raw = calloc(N, 4);
    assert_int_equal(chosen(HC_F32, raw, N, 29).type, HC_CODE_PLANES); /* zero */
    for (size_t i = 0; i < N; i++)
        store32(raw + 4 * i, 0x7fc00000 + (uint32_t)i); /* NaNs */
    assert_int_equal(chosen(HC_F32, raw, N, 29).type, HC_CODE_PLANES);
    for (size_t i = 0; i < N; i++)
        store32(raw + 4 * i, (uint32_t)(random64() % 200)); /* few subnormals */
    assert_int_equal(chosen(HC_F32, raw, N, 29).type, HC_CODE_PLANES);
    free(raw);
}

/* Tensors at the edges of their types: they come out at their SQNR or exactly, never wrong. */
static void test_extreme_tensors(void **unused)
{
    (void)unused;
    enum { N = 8191, KINDS = 5 };
    static const double least[] = {0x1p-24, 0x1p-133, 0x1p-149, 0x1p-1074};
    static const double most[] = {65504, 3.3e38, 3.4e38, 1.7e308};
    for (int k = 0; k < 4; k++)
        for (int kind = 0; kind < KINDS; kind++) {
            enum hc_dtype t = weight_types[k];
            const size_t e = elem_size(t);
            uint8_t *raw = malloc(N * e), *out = malloc(N * e + 1);
            struct hc_block_stats s;
            for (size_t i = 0; i < N; i++) {
                double g = gauss(), v = 0;
                v = kind == 0   ? least[k] * rint(300 * g)           /* subnormals */
                    : kind == 1 ? most[k] * fmax(-1, fmin(1, g / 2)) /* up to the largest */
                    : kind == 2 ? (i % 2 ? -1 : 1) * (1 + 0.01 * g)  /* alternating */
                    : kind == 3 ? (i == 77 ? most[k] : 0.02 * g)     /* an outlier */
                                : exp(fmin(4, fmax(-12, 3 * g)));    /* skewed, all positive */
                hc_weight_store(raw + i * e, v, t);
            }
            struct hc_code code = chosen(t, raw, N, 23);
            both_ways(&code, raw, N * e, out, &s);
            if (code.type != HC_CODE_TRAJECTORY)
                assert_memory_equal(raw, out, N * e);
            /* All pairs at one place: the noise depends on where the lattice lies, by leaps.
             * mkhyperfs codes such a tensor again, or exactly. */
            else if (fabs(hc_sqnr_db(&s) - 23) > (kind == 2 ? 2 : 0.3))
                fail_msg("%s, kind %d: %.2f dB", hc_dtype_name(t), kind, hc_sqnr_db(&s));
            free(raw);
            free(out);
        }
}

/* One weight of 1e30 must not set the step for all others. */
static void test_outlier_does_not_set_the_step(void **unused)
{
    (void)unused;
    enum { N = 16384 };
    uint8_t *raw = weights(HC_F32, N, 0.02), *out = malloc(4 * N + 1);
    struct hc_block_stats s;
    hc_weight_store(raw + 4 * 5000, 1e30, HC_F32);
    struct hc_code code = chosen(HC_F32, raw, N, 23);
    assert_int_equal(code.type, HC_CODE_TRAJECTORY);
    size_t size = both_ways(&code, raw, 4 * N, out, &s);
    assert_int_equal(s.exact, 2);
    assert_true(fabs(hc_sqnr_db(&s) - 23) < 0.05);
    assert_true((double)size * 8 / N < 4.1);
    assert_memory_equal(raw + 4 * 5000, out + 4 * 5000, 8);
    free(raw);
    free(out);
}

/* A pruned tensor keeps its zeros, and its size is what entropy says within 5 %: H(p) + (1-p)
 * times the bits of the others. */
static void test_pruned_tensors(void **unused)
{
    (void)unused;
    enum { N = 131072 };
    for (int k = 0; k < 4; k++)
        for (int percent = 50; percent <= 90; percent += 20) {
            enum hc_dtype t = weight_types[k];
            const size_t e = elem_size(t), zero_count = (size_t)N * (unsigned)percent / 100;
            uint8_t *raw = weights(t, N, 0.02), *full = weights(t, N, 0.02);
            uint8_t *out = malloc(N * e + 1);
            struct hc_block_stats s;
            size_t zeros = 0;
            while (zeros < zero_count) {
                uint8_t *at = raw + random64() % N * e;
                double v;
                hc_weights_load(&v, at, 1, t);
                if (v == 0)
                    continue;
                hc_weight_store(at, v < 0 ? -0.0 : 0.0, t); /* as a product with a mask */
                zeros++;
            }
            struct hc_code code = chosen(t, raw, N, 23), dense = chosen(t, full, N, 23);
            assert_int_equal(code.type, HC_CODE_TRAJECTORY);
            assert_int_equal(code.t.zero_map, 1);
            assert_int_equal(dense.t.zero_map, 0);
            size_t full_size = both_ways(&dense, full, N * e, out, &s);
            size_t size = both_ways(&code, raw, N * e, out, &s);
            for (size_t i = 0; i < N; i++) {
                double a, b;
                hc_weights_load(&a, raw + i * e, 1, t);
                hc_weights_load(&b, out + i * e, 1, t);
                assert_true(a != 0 || (b == 0 && !signbit(b)));
            }
            assert_true(fabs(hc_sqnr_db(&s) - 23) < 0.05);
            double p = (double)zeros / N, h = -p * log2(p) - (1 - p) * log2(1 - p);
            double bits = (double)size * 8 / N, ideal = h + (1 - p) * (double)full_size * 8 / N;
            if (bits > 1.05 * ideal)
                fail_msg("%d %% zeros: %.3f bits, entropy %.3f", percent, bits, ideal);
            free(raw);
            free(full);
            free(out);
        }
}

/* ---- records and damaged blocks ---- */

static void test_records(void **unused)
{
    (void)unused;
    struct hc_code codes[] = {hc_lossless(HC_DTYPE_NONE, 3), hc_lossless(HC_BF16, 3),
                              trajectory_code(HC_F16, 8, 4, 1e-3)};
    for (int k = 0; k < 3; k++) {
        uint8_t body[HC_CODE_RECORD_MAX];
        struct hc_code c;
        size_t len = hc_code_store(&codes[k], body);
        assert_int_equal(hc_code_load(codes[k].type, body, len, &c), 0);
        uint8_t again[HC_CODE_RECORD_MAX];
        assert_int_equal(c.type, codes[k].type);
        assert_int_equal(c.dtype, codes[k].dtype);
        assert_int_equal(hc_code_store(&c, again), len);
        assert_memory_equal(again, body, len);
        assert_int_not_equal(hc_code_load(codes[k].type, body, len + 1, &c), 0);
        if (len)
            assert_int_not_equal(hc_code_load(codes[k].type, body, len - 1, &c), 0);
    }
    struct hc_code c;
    assert_int_equal(hc_code_load(4, NULL, 0, &c), -95 /* ENOTSUP */);
}

static void test_step_has_twelve_bits(void **unused)
{
    (void)unused;
    for (int i = 0; i < 100000; i++) {
        double v = ldexp(0.5 + uniform() / 2, (int)(random64() % 1800) - 900);
        struct hc_step s = hc_step_from(v);
        assert_in_range(s.mantissa, 2048, 4095);
        assert_true(fabs(hc_step_value(s) / v - 1) <= 0x1p-12);
    }
}

/* Random damage to coded blocks: decoders answer -EBADMSG or give some block back, and never
 * touch a byte beyond it (run under sanitizers by `make test-san`). */
static void test_damaged_blocks(void **unused)
{
    (void)unused;
    enum { N = 3001 };
    struct hc_code codes[] = {trajectory_code(HC_BF16, 8, 3, 0.2),
                              trajectory_code(HC_F32, 0, 2, 0.2), hc_lossless(HC_BF16, 3),
                              hc_lossless(HC_DTYPE_NONE, 3), trajectory_code(HC_F16, 8, 3, 0.2)};
    codes[4].t.zero_map = 1;
    for (int k = 0; k < 5; k++) {
        enum hc_dtype t = codes[k].dtype ? codes[k].dtype : HC_BF16;
        size_t len = N * elem_size(t), size;
        uint8_t *raw = weights(t, N, 1), *block = malloc(hc_code_bound(&codes[k], len));
        struct hc_encoder *e;
        struct hc_decoder *d;
        struct hc_work *w[2] = {hc_work_new(HC_ISA_PORTABLE), hc_work_new(HC_ISA_AVX2)};
        hc_weight_store(raw + 77 * elem_size(t), 1e4, t);
        for (int i = 0; i < 1000; i++) /* for the zero map */
            hc_weight_store(raw + random64() % N * elem_size(t), 0, t);
        assert_int_equal(hc_encoder_new(&codes[k], &e), 0);
        assert_int_equal(hc_decoder_new(&codes[k], &d), 0);
        assert_int_equal(hc_encode(e, w[0], raw, len, block, &size, NULL, NULL), 0);
        for (int i = 0; i < 3000; i++) {
            size_t n = i % 3 ? size : random64() % (size + 1); /* cut */
            uint8_t *bad = malloc(n + 1), *out[2] = {malloc(len), malloc(len)};
            memcpy(bad, block, n);
            for (int f = i % 4; f > 0 && n; f--)
                bad[random64() % (f == 1 ? (n < 16 ? n : 16) : n)] ^= (uint8_t)random64();
            int rc[2];
            for (int isa = 0; isa < 2; isa++) {
                memset(out[isa], 0, len);
                rc[isa] = hc_decode(d, w[isa], bad, n, out[isa], len);
                assert_true(rc[isa] == 0 || rc[isa] == -74 /* EBADMSG */);
            }
            assert_int_equal(rc[0], rc[1]);
            if (rc[0] == 0)
                assert_memory_equal(out[0], out[1], len);
            free(bad);
            free(out[0]);
            free(out[1]);
        }
        hc_encoder_free(e);
        hc_decoder_free(d);
        hc_work_free(w[0]);
        hc_work_free(w[1]);
        free(raw);
        free(block);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half_survives),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_lattice_is_near_hexagonal),
        cmocka_unit_test(test_winding_is_best),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_bad_lattices_are_refused),
        cmocka_unit_test_setup(test_nearest_point_is_the_trees, seed),
        cmocka_unit_test_setup(test_planes_are_the_trellis_step_by_step, seed),
        cmocka_unit_test_setup(test_viterbi_is_optimal, seed),
#if defined(__x86_64__)
        cmocka_unit_test_setup(test_kernels_decode_alike, seed),
#endif
        cmocka_unit_test_setup(test_decoder_follows_the_description, seed),
        cmocka_unit_test_setup(test_trajectory_round_trip, seed),
        cmocka_unit_test_setup(test_extreme_values, seed),
        cmocka_unit_test_setup(test_lossless_round_trip, seed),
        cmocka_unit_test_setup(test_lossless_sizes, seed),
        cmocka_unit_test_setup(test_forecasts_are_near_what_is_coded, seed),
        cmocka_unit_test_setup(test_a_packed_scan_chooses_the_same_code, seed),
        cmocka_unit_test(test_a_forecast_of_nothing),
        cmocka_unit_test_setup(test_chosen_code_reaches_its_target, seed),
        cmocka_unit_test_setup(test_hopeless_tensors_stay_lossless, seed),
        cmocka_unit_test_setup(test_extreme_tensors, seed),
        cmocka_unit_test_setup(test_outlier_does_not_set_the_step, seed),
        cmocka_unit_test_setup(test_pruned_tensors, seed),
        cmocka_unit_test_setup(test_records, seed),
        cmocka_unit_test(test_step_has_twelve_bits),
        cmocka_unit_test_setup(test_damaged_blocks, seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
