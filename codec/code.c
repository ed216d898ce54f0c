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

enum {
    STEP_LEAST = 2048,
    STEP_MOST = 4095,
    STEP_MIN_EXPONENT = -1000,
    STEP_MAX_EXPONENT = 1000,
    BYTES_RECORD = 0,
    PLANES_RECORD = 4,
    TRAJECTORY_RECORD = 44
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
    return code->type == HC_CODE_TRAJECTORY ? hc_trajectory_bound(code, raw_len)
                                            : hc_lossless_bound(raw_len);
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
    if (load16(body + 40) != 0 || load16(body + 42) != 0)
        return -ENOTSUP;
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

int hc_decode(const struct hc_decoder *d, struct hc_work *w, const uint8_t *src, size_t src_len,
              uint8_t *dst, size_t raw_len)
{
    if (raw_len == 0 || raw_len > hc_code_block_bytes(&d->code))
        return -EINVAL;
    if (d->code.type != HC_CODE_TRAJECTORY)
        return hc_lossless_decode(&d->code, w, src, src_len, dst, raw_len);
    if (raw_len % (hc_dtype_bits(d->code.dtype) / 8))
        return -EINVAL;
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

int hc_encode(const struct hc_encoder *e, struct hc_work *w, const uint8_t *src, size_t raw_len,
              uint8_t *dst, size_t *dst_len, uint8_t *decoded, struct hc_block_stats *stats)
{
    const struct hc_code *code = &e->code;
    struct hc_block_stats sink, *s = stats ? stats : &sink;

    if (raw_len == 0 || raw_len > hc_code_block_bytes(code))
        return -EINVAL;
    int rc = hc_work_for_encoding(w, code->t.nu);
    if (rc)
        return rc;
    if (!decoded)
        decoded = w->e.decoded;
    memset(s, 0, sizeof *s);
    if (code->type == HC_CODE_TRAJECTORY) {
        if (raw_len % (hc_dtype_bits(code->dtype) / 8))
            return -EINVAL;
        *dst_len = hc_trajectory_encode(code, &e->q, w, src, raw_len, dst);
    } else {
        *dst_len = hc_lossless_encode(code, w, src, raw_len, dst);
        s->exact = raw_len / hc_plane_width(code);
    }
    rc = hc_decode(e->decoder, w, dst, *dst_len, decoded, raw_len);
    if (rc)
        return rc;
    if (code->type == HC_CODE_TRAJECTORY)
        return hc_trajectory_measure(code, &e->q, w, src, decoded, raw_len, s) ? 0 : -EIO;
    return memcmp(src, decoded, raw_len) == 0 ? 0 : -EIO;
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
