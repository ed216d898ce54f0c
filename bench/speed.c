/* Decoding and encoding in memory on one core, beside memcpy, zstd and lz4 of the same bytes.
 *
 *     speed            prints one JSON object
 *
 * 8 M Gaussian weights (sigma 0.02, fixed seed). Every figure is the median of REPEATS
 * runs, GB/s of uncompressed bytes. */
#include <lz4.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

#include "codec/codec.h"
#include "codec/weight.h"

enum { N = 8 << 20, REPEATS = 7 };

static uint64_t state = 20260101;

static double uniform(void)
{
    state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    z ^= z >> 31;
    return ((double)(z >> 11) + 0.5) * 0x1p-53;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void *must(void *p)
{
    if (!p) {
        fprintf(stderr, "speed: out of memory\n");
        exit(1);
    }
    return p;
}

static void check(int rc, const char *what)
{
    if (rc) {
        fprintf(stderr, "speed: %s: %s\n", what, strerror(-rc));
        exit(1);
    }
}

/* A tensor in blocks: raw, coded by hyperfs, zstd or lz4. */
struct blocks {
    const uint8_t *raw;
    size_t bytes, block, count;
    uint8_t *coded, *out;
    size_t *offset; /* count + 1 */
};

typedef int (*pass)(struct blocks *b, size_t i, void *ctx);

/* Median GB/s of a pass over all blocks. */
static double measure(struct blocks *b, pass p, void *ctx)
{
    double t[REPEATS];
    for (int r = 0; r < REPEATS; r++) {
        double start = now();
        for (size_t i = 0; i < b->count; i++)
            check(p(b, i, ctx), "pass");
        t[r] = now() - start;
    }
    qsort(t, REPEATS, sizeof *t, ascending);
    return (double)b->bytes / t[REPEATS / 2] / 1e9;
}

struct coder {
    struct hc_decoder *d;
    struct hc_work *w;
};

static int decode(struct blocks *b, size_t i, void *ctx)
{
    struct coder *c = ctx;
    return hc_decode(c->d, c->w, b->coded + b->offset[i], b->offset[i + 1] - b->offset[i], b->out,
                     b->block);
}

static int copy(struct blocks *b, size_t i, void *ctx)
{
    (void)ctx;
    memcpy(b->out, b->raw + i * b->block, b->block);
    return 0;
}

static int unzstd(struct blocks *b, size_t i, void *ctx)
{
    size_t n = ZSTD_decompressDCtx(ctx, b->out, b->block, b->coded + b->offset[i],
                                   b->offset[i + 1] - b->offset[i]);
    return n == b->block ? 0 : -5;
}

static int unlz4(struct blocks *b, size_t i, void *ctx)
{
    (void)ctx;
    int n = LZ4_decompress_safe((const char *)b->coded + b->offset[i], (char *)b->out,
                                (int)(b->offset[i + 1] - b->offset[i]), (int)b->block);
    return n == (int)b->block ? 0 : -5;
}

static struct hc_code choose(enum hc_dtype dtype, const uint8_t *raw, size_t bytes, double db,
                             unsigned nu)
{
    struct hc_scan *scan = must(hc_scan_new(dtype));
    struct hc_work *w = must(hc_work_new(hc_isa_best()));
    struct hc_target target = {db, nu, nu};
    struct hc_code code = hc_lossless(dtype, 3);
    if (db > 0) {
        size_t block = (size_t)HC_TRAJECTORY_PAIRS * 2 * hc_dtype_bits(dtype) / 8;
        hc_scan_block(scan, raw, bytes);
        check(hc_choose(scan, &target, w, &raw, &block, 1, &code), "choose");
    }
    hc_scan_free(scan);
    hc_work_free(w);
    return code;
}

/* Codes all blocks; returns bits an element and sets *encode to million elements a second. */
static double encode(struct blocks *b, const struct hc_code *code, enum hc_dtype dtype,
                     double *speed)
{
    struct hc_encoder *e;
    struct hc_work *w = must(hc_work_new(hc_isa_best()));
    check(hc_encoder_new(code, &e), "encoder");
    double start = now();
    for (size_t i = 0; i < b->count; i++) {
        size_t n;
        check(hc_encode(e, w, b->raw + i * b->block, b->block, b->coded + b->offset[i], &n, NULL,
                        NULL),
              "encode");
        b->offset[i + 1] = b->offset[i] + n;
    }
    double elements = (double)b->bytes * 8 / hc_dtype_bits(dtype);
    *speed = elements / (now() - start) / 1e6;
    hc_encoder_free(e);
    hc_work_free(w);
    return (double)b->offset[b->count] * 8 / elements;
}

static void row(const char *name, struct blocks *b, enum hc_dtype dtype, double db, unsigned nu)
{
    struct hc_code code = choose(dtype, b->raw, b->bytes, db, nu);
    double speed, gbs[2];
    struct coder c;
    b->block = hc_code_block_bytes(&code);
    b->count = b->bytes / b->block;
    double bits = encode(b, &code, dtype, &speed);
    check(hc_decoder_new(&code, &c.d), "decoder");
    for (int isa = 0; isa < 2; isa++) {
        c.w = must(hc_work_new((enum hc_isa)isa));
        gbs[isa] = measure(b, decode, &c);
        hc_work_free(c.w);
    }
    hc_decoder_free(c.d);
    printf(
        "  {\"name\": \"%s\", \"dtype\": \"%s\", \"sqnr_db\": %.1f, \"nu\": %u, \"bits\": %.4f, "
        "\"encode_mweights\": %.1f, \"decode_gbs_avx2\": %.3f, \"decode_gbs_portable\": %.3f},\n",
        name, hc_dtype_name(dtype), db, nu, bits, speed, gbs[1], gbs[0]);
}

static void peers(struct blocks *b)
{
    ZSTD_DCtx *d = must(ZSTD_createDCtx());
    b->block = HC_BYTES_BLOCK;
    b->count = b->bytes / b->block;
    printf("  {\"name\": \"memcpy\", \"decode_gbs\": %.3f},\n", measure(b, copy, NULL));
    for (size_t i = 0; i < b->count; i++)
        b->offset[i + 1] =
            b->offset[i] + ZSTD_compress(b->coded + b->offset[i], ZSTD_compressBound(b->block),
                                         b->raw + i * b->block, b->block, 3);
    printf("  {\"name\": \"zstd -3\", \"bits\": %.4f, \"decode_gbs\": %.3f},\n",
           (double)b->offset[b->count] * 16 / (double)b->bytes, measure(b, unzstd, d));
    for (size_t i = 0; i < b->count; i++)
        b->offset[i + 1] =
            b->offset[i] + (size_t)LZ4_compress_default(
                               (const char *)b->raw + i * b->block, (char *)b->coded + b->offset[i],
                               (int)b->block, LZ4_compressBound((int)b->block));
    printf("  {\"name\": \"lz4\", \"bits\": %.4f, \"decode_gbs\": %.3f}\n",
           (double)b->offset[b->count] * 16 / (double)b->bytes, measure(b, unlz4, NULL));
    ZSTD_freeDCtx(d);
}

static struct blocks gaussian(enum hc_dtype dtype, bool bf16_values)
{
    size_t elem = hc_dtype_bits(dtype) / 8;
    struct blocks b = {.bytes = N * elem};
    uint8_t *raw = must(malloc(b.bytes));
    for (size_t i = 0; i < N; i++) {
        double v = 0.02 * sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
        hc_weight_store(raw + i * elem, v, dtype);
        if (bf16_values) {
            raw[i * elem] = 0;
            raw[i * elem + 1] = 0;
        }
    }
    b.raw = raw;
    b.coded = must(malloc(b.bytes * 2));
    b.out = must(malloc(HC_MAX_BLOCK_BYTES));
    b.offset = must(calloc(b.bytes / HC_BYTES_BLOCK + 2, sizeof *b.offset));
    return b;
}

static void release(struct blocks *b)
{
    free((void *)b->raw);
    free(b->coded);
    free(b->out);
    free(b->offset);
}

int main(void)
{
    struct blocks b = gaussian(HC_BF16, false);
    printf("[\n");
    row("fast", &b, HC_BF16, 23.6, 4);
    row("default", &b, HC_BF16, 23.6, 8);
    row("best", &b, HC_BF16, 23.6, 10);
    row("lossless", &b, HC_BF16, 0, 0);
    struct blocks f = gaussian(HC_F32, false);
    row("default", &f, HC_F32, 23.6, 8);
    row("lossless", &f, HC_F32, 0, 0);
    release(&f);
    f = gaussian(HC_F32, true);
    row("lossless, BF16 values", &f, HC_F32, 0, 0);
    release(&f);
    f = gaussian(HC_F16, false);
    row("default", &f, HC_F16, 23.6, 8);
    row("lossless", &f, HC_F16, 0, 0);
    release(&f);
    peers(&b);
    printf("]\n");
    release(&b);
    return 0;
}
