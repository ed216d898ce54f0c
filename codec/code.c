/* Codes as records, and the way from a code to its encoder and decoder. */
#include "codec/codec.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/lossless.h"
#include "codec/trajectory.h"
#include "codec/work.h"
#include "codec/zeromap.h"

enum {
    STEP_LEAST = 2048,
    STEP_MOST = 4095,
    STEP_MIN_EXPONENT = -1000,
    STEP_MAX_EXPONENT = 1000,
    BYTES_RECORD = 0,
    PLANES_RECORD = 4,
    TRAJECTORY_RECORD = 48,
    MAP_HEADER = 4,
    MAP_LEVEL = 3,     /* zstd's */
    MAP_AT = 256 << 10 /* place of a zero map in the work's bytes, beyond what a block takes */
};

double hc_step_value(struct hc_step s)
{
    return ldexp(s.mantissa, s.exponent);
}

struct hc_step hc_step_from(double value)
{
    int e;
    double m = rint(ldexp(frexp(value, &e), 12));
    if (m > STEP_MOST) {
        m /= 2;
        e++;
    }
    e -= 12;
    e = e < STEP_MIN_EXPONENT ? STEP_MIN_EXPONENT : e > STEP_MAX_EXPONENT ? STEP_MAX_EXPONENT : e;
    return (struct hc_step){(uint16_t)m, (int16_t)e};
}

size_t hc_code_block_bytes(const struct hc_code *code)
{
    if (code->type == HC_CODE_TRAJECTORY)
        return (size_t)HC_TRAJECTORY_PAIRS * 2 * (hc_dtype_bits(code->dtype) / 8);
    return HC_BYTES_BLOCK;
}

size_t hc_code_bound(const struct hc_code *code, size_t raw_len)
{
    if (code->type != HC_CODE_TRAJECTORY)
        return hc_lossless_bound(raw_len);
    size_t map = code->t.zero_map ? MAP_HEADER + hc_zeromap_bytes(raw_len) : 0;
    return map + hc_trajectory_bound(code, raw_len);
}

struct hc_code hc_lossless(enum hc_dtype dtype, int level)
{
    struct hc_code code = {.type = HC_CODE_BYTES, .dtype = HC_DTYPE_NONE, .level = level};
    if (dtype != HC_DTYPE_NONE && hc_dtype_bits(dtype) >= 16) {
        code.type = HC_CODE_PLANES;
        code.dtype = dtype;
    }
    return code;
}

size_t hc_code_store(const struct hc_code *code, uint8_t *body)
{
    const struct hc_trajectory *t = &code->t;
    if (code->type == HC_CODE_BYTES)
        return BYTES_RECORD;
    store16(body, (uint16_t)code->dtype);
    if (code->type == HC_CODE_PLANES) {
        store16(body + 2, 0);
        return PLANES_RECORD;
    }
    body[2] = t->nu;
    body[3] = t->split;
    store16(body + 4, t->g0);
    store16(body + 6, t->g1);
    store32(body + 8, t->points);
    store32(body + 12, t->winding);
    for (int i = 0; i < 2; i++) {
        store32(body + 16 + 4 * i, (uint32_t)t->b1[i]);
        store32(body + 24 + 4 * i, (uint32_t)t->b2[i]);
    }
    store32(body + 32, t->npoints);
    store16(body + 36, t->step.mantissa);
    store16(body + 38, (uint16_t)t->step.exponent);
    store16(body + 40, 0); /* scan order: storage order */
    store16(body + 42, 0); /* row classes: none */
    body[44] = t->zero_map;
    memset(body + 45, 0, 3);
    return TRAJECTORY_RECORD;
}

static int load_trajectory(const uint8_t *body, struct hc_code *code)
{
    struct hc_trajectory *t = &code->t;
    t->nu = body[2];
    t->split = body[3];
    t->g0 = load16(body + 4);
    t->g1 = load16(body + 6);
    t->points = load32(body + 8);
    t->winding = load32(body + 12);
    for (int i = 0; i < 2; i++) {
        t->b1[i] = (int32_t)load32(body + 16 + 4 * i);
        t->b2[i] = (int32_t)load32(body + 24 + 4 * i);
    }
    t->npoints = load32(body + 32);
    t->step.mantissa = load16(body + 36);
    t->step.exponent = (int16_t)load16(body + 38);
    t->zero_map = body[44];
    if (load16(body + 40) != 0 || load16(body + 42) != 0 || t->zero_map > 1)
        return -ENOTSUP;
    if (body[45] || body[46] || body[47])
        return -EBADMSG;
    if (!hc_dtype_is_weight(code->dtype) || t->nu > HC_MAX_NU || t->split < 1 ||
        t->split > HC_MAX_SPLIT || t->g0 >> t->nu || t->g1 >> t->nu)
        return -EBADMSG;
    if (t->step.mantissa < STEP_LEAST || t->step.mantissa > STEP_MOST ||
        t->step.exponent < STEP_MIN_EXPONENT || t->step.exponent > STEP_MAX_EXPONENT)
        return -EBADMSG;
    if (t->npoints > 256u << (t->split - 1))
        return -EBADMSG;
    return hc_lattice_check(t) ? -EBADMSG : 0;
}

int hc_code_load(unsigned type, const uint8_t *body, size_t len, struct hc_code *code)
{
    memset(code, 0, sizeof *code);
    code->type = (enum hc_code_type)type;
    switch (type) {
    case HC_CODE_BYTES:
        return len == BYTES_RECORD ? 0 : -EBADMSG;
    case HC_CODE_PLANES:
        if (len != PLANES_RECORD || load16(body) >= HC_DTYPE_COUNT || load16(body + 2) != 0)
            return -EBADMSG;
        code->dtype = (enum hc_dtype)load16(body);
        return hc_dtype_bits(code->dtype) >= 16 ? 0 : -EBADMSG;
    case HC_CODE_TRAJECTORY:
        if (len != TRAJECTORY_RECORD || load16(body) >= HC_DTYPE_COUNT)
            return -EBADMSG;
        code->dtype = (enum hc_dtype)load16(body);
        return load_trajectory(body, code);
    default:
        return -ENOTSUP;
    }
}

/* ---- decoder ---- */

struct hc_decoder {
    struct hc_code code;
    struct hc_table table; /* TRAJECTORY only */
};

static int decoder_with(const struct hc_code *code, const struct hc_lattice *l,
                        struct hc_decoder **out)
{
    struct hc_decoder *d = calloc(1, sizeof *d);
    if (!d)
        return -ENOMEM;
    d->code = *code;
    int rc = l ? hc_table_new(code, l, &d->table) : 0;
    if (rc) {
        free(d);
        return rc;
    }
    *out = d;
    return 0;
}

/* The lattice of a trajectory code; NULL for the others. */
static int lattice_of(const struct hc_code *code, struct hc_lattice **l)
{
    *l = NULL;
    return code->type == HC_CODE_TRAJECTORY ? hc_lattice_new(&code->t, l) : 0;
}

int hc_decoder_new(const struct hc_code *code, struct hc_decoder **out)
{
    struct hc_lattice *l;
    int rc = lattice_of(code, &l);
    if (rc == 0)
        rc = decoder_with(code, l, out);
    hc_lattice_free(l);
    return rc;
}

void hc_decoder_free(struct hc_decoder *d)
{
    if (!d)
        return;
    free(d->table.bytes);
    free(d);
}

size_t hc_decoder_memory(const struct hc_decoder *d)
{
    return sizeof *d + d->table.size;
}

/* A zero map, then the code of the elements that are not zero (nothing if all are). */
static int decode_with_map(const struct hc_decoder *d, struct hc_work *w, const uint8_t *src,
                           size_t src_len, uint8_t *dst, size_t raw_len)
{
    const size_t elem = hc_dtype_bits(d->code.dtype) / 8, n = raw_len / elem;
    const size_t map_bytes = hc_zeromap_bytes(n);
    uint8_t *map = w->bytes + MAP_AT;

    int rc = hc_work_for_zero_maps(w);
    if (rc)
        return rc;
    if (src_len < MAP_HEADER)
        return -EBADMSG;
    size_t stored = load32(src);
    src += MAP_HEADER;
    src_len -= MAP_HEADER;
    if (stored > map_bytes || stored > src_len)
        return -EBADMSG;
    if (stored == map_bytes)
        memcpy(map, src, map_bytes);
    else if (hc_expand(w, map, map_bytes, src, stored))
        return -EBADMSG;
    if (n % 8 && map[map_bytes - 1] >> n % 8)
        return -EBADMSG;
    src += stored;
    src_len -= stored;
    size_t kept = hc_zeromap_count(map, n);
    if (kept)
        rc = hc_trajectory_decode(&d->code, &d->table, w, src, src_len, w->dense, kept * elem);
    else if (src_len)
        rc = -EBADMSG;
    if (rc == 0)
        hc_zeromap_expand(dst, map, w->dense, n, d->code.dtype);
    return rc;
}

int hc_decode(const struct hc_decoder *d, struct hc_work *w, const uint8_t *src, size_t src_len,
              uint8_t *dst, size_t raw_len)
{
    if (raw_len == 0 || raw_len > hc_code_block_bytes(&d->code))
        return -EINVAL;
    if (d->code.type != HC_CODE_TRAJECTORY)
        return hc_lossless_decode(&d->code, w, src, src_len, dst, raw_len);
    if (raw_len % (hc_dtype_bits(d->code.dtype) / 8))
        return -EINVAL;
    if (d->code.t.zero_map)
        return decode_with_map(d, w, src, src_len, dst, raw_len);
    return hc_trajectory_decode(&d->code, &d->table, w, src, src_len, dst, raw_len);
}

/* ---- encoder ---- */

struct hc_encoder {
    struct hc_decoder *decoder;
    struct hc_code code;
    struct hc_quantiser q; /* TRAJECTORY only */
};

int hc_encoder_new(const struct hc_code *code, struct hc_encoder **out)
{
    struct hc_encoder *e = calloc(1, sizeof *e);
    struct hc_lattice *l = NULL;
    if (!e)
        return -ENOMEM;
    e->code = *code;
    int rc = lattice_of(code, &l);
    if (rc == 0)
        rc = decoder_with(code, l, &e->decoder);
    if (rc == 0 && l)
        rc = hc_quantiser_new(code, l, &e->q);
    hc_lattice_free(l);
    if (rc) {
        hc_encoder_free(e);
        return rc;
    }
    *out = e;
    return 0;
}

void hc_encoder_free(struct hc_encoder *e)
{
    if (!e)
        return;
    hc_decoder_free(e->decoder);
    free(e->q.rank);
    free(e);
}

static bool all_zero(const uint8_t *p, size_t n)
{
    while (n > 0 && p[n - 1] == 0)
        n--;
    return n == 0;
}

static int encode_lossless(const struct hc_encoder *e, struct hc_work *w, const uint8_t *src,
                           size_t raw_len, uint8_t *dst, size_t *dst_len, uint8_t *decoded,
                           struct hc_block_stats *s)
{
    *dst_len = hc_lossless_encode(&e->code, w, src, raw_len, dst);
    s->exact = raw_len / hc_plane_width(&e->code);
    int rc = hc_decode(e->decoder, w, dst, *dst_len, decoded, raw_len);
    if (rc)
        return rc;
    return memcmp(src, decoded, raw_len) == 0 ? 0 : -EIO;
}

static int encode_trajectory(const struct hc_encoder *e, struct hc_work *w, const uint8_t *src,
                             size_t raw_len, uint8_t *dst, size_t *dst_len, uint8_t *decoded,
                             struct hc_block_stats *s)
{
    *dst_len = hc_trajectory_encode(&e->code, &e->q, w, src, raw_len, dst);
    int rc = hc_decode(e->decoder, w, dst, *dst_len, decoded, raw_len);
    if (rc)
        return rc;
    return hc_trajectory_measure(&e->code, &e->q, w, src, decoded, raw_len, s) ? 0 : -EIO;
}

/* Random zeros want the bare entropy code, zeros in rows want matches. */
static size_t compress_map(struct hc_work *w, uint8_t *dst, const uint8_t *map, size_t n)
{
    size_t literals = hc_compress_literals(w, dst, map, n);
    size_t matches = hc_compress_full(w, w->e.trial, map, n, MAP_LEVEL);
    if (matches && (!literals || matches < literals)) {
        memcpy(dst, w->e.trial, matches);
        return matches;
    }
    if (!literals)
        memcpy(dst, map, n);
    return literals ? literals : n;
}

static int encode_with_map(const struct hc_encoder *e, struct hc_work *w, const uint8_t *src,
                           size_t raw_len, uint8_t *dst, size_t *dst_len, uint8_t *decoded,
                           struct hc_block_stats *s)
{
    const size_t elem = hc_dtype_bits(e->code.dtype) / 8, n = raw_len / elem;
    const size_t map_bytes = hc_zeromap_bytes(n);
    uint8_t *map = w->bytes + MAP_AT, *at = dst + MAP_HEADER;

    size_t kept = hc_zeromap_compact(map, w->e.compact, src, n, e->code.dtype);
    size_t stored = compress_map(w, at, map, map_bytes);
    store32(dst, (uint32_t)stored);
    at += stored;
    if (kept)
        at += hc_trajectory_encode(&e->code, &e->q, w, w->e.compact, kept * elem, at);
    *dst_len = (size_t)(at - dst);
    int rc = hc_decode(e->decoder, w, dst, *dst_len, decoded, raw_len);
    if (rc)
        return rc;
    /* The decoder's map is the encoder's, so that w->dense is what compact came back as. */
    if (kept && !hc_trajectory_measure(&e->code, &e->q, w, w->e.compact, w->dense, kept * elem, s))
        return -EIO;
    for (size_t i = 0; i < n; i++)
        if (!(map[i / 8] >> i % 8 & 1) && !all_zero(decoded + i * elem, elem))
            return -EIO;
    s->exact += n - kept;
    return 0;
}

int hc_encode(const struct hc_encoder *e, struct hc_work *w, const uint8_t *src, size_t raw_len,
              uint8_t *dst, size_t *dst_len, uint8_t *decoded, struct hc_block_stats *stats)
{
    const struct hc_code *code = &e->code;
    struct hc_block_stats sink, *s = stats ? stats : &sink;

    if (raw_len == 0 || raw_len > hc_code_block_bytes(code))
        return -EINVAL;
    if (code->type == HC_CODE_TRAJECTORY && raw_len % (hc_dtype_bits(code->dtype) / 8))
        return -EINVAL;
    int rc = hc_work_for_encoding(w, code->t.nu);
    if (rc)
        return rc;
    if (!decoded)
        decoded = w->e.decoded;
    memset(s, 0, sizeof *s);
    w->out_of_memory = false;
    if (code->type != HC_CODE_TRAJECTORY)
        rc = encode_lossless(e, w, src, raw_len, dst, dst_len, decoded, s);
    else if (code->t.zero_map)
        rc = encode_with_map(e, w, src, raw_len, dst, dst_len, decoded, s);
    else
        rc = encode_trajectory(e, w, src, raw_len, dst, dst_len, decoded, s);
    return rc == 0 && w->out_of_memory ? -ENOMEM : rc;
}

void hc_block_stats_add(struct hc_block_stats *sum, const struct hc_block_stats *b)
{
    sum->carried += b->carried;
    sum->exact += b->exact;
    sum->signal += b->signal;
    sum->noise += b->noise;
    sum->max_error = fmax(sum->max_error, b->max_error);
}

double hc_sqnr_db(const struct hc_block_stats *s)
{
    if (!(s->noise > 0))
        return INFINITY;
    return 10 * log10(s->signal / s->noise);
}
