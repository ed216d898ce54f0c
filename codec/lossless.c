#include "codec/lossless.h"

#include <errno.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/work.h"

/* How a plane is stored. */
enum { PLANE_RAW = 0, PLANE_CONSTANT = 1, PLANE_ZSTD = 2 };
enum { HEADER = 4, SIZE_BITS = 24, MAX_WIDTH = 8, PLANE_LEVEL = 3 };

unsigned hc_plane_width(const struct hc_code *code)
{
    if (code->type == HC_CODE_BYTES)
        return 1;
    return code->dtype == HC_C64 ? 4 : hc_dtype_bits(code->dtype) / 8;
}

bool hc_plane_rotate(const struct hc_code *code)
{
    return code->type == HC_CODE_PLANES &&
           (hc_dtype_is_weight(code->dtype) || code->dtype == HC_C64);
}

size_t hc_lossless_bound(size_t raw_len)
{
    return raw_len + (size_t)HEADER * MAX_WIDTH;
}

static bool is_constant(const uint8_t *p, size_t n)
{
    return n > 0 && memcmp(p, p + 1, n - 1) == 0;
}

/* Stores one plane of n > 0 bytes in the smallest way; returns the bytes written. Matches are
 * preferred to the bare entropy code only where they save a hundredth: they decode more slowly. */
static size_t encode_plane(struct hc_work *w, const uint8_t *src, size_t n, uint8_t *dst, int level,
                           bool try_literals)
{
    uint8_t *body = dst + HEADER;
    size_t size = 0;
    unsigned mode = PLANE_RAW;

    if (is_constant(src, n)) {
        mode = PLANE_CONSTANT;
        size = 1;
        body[0] = src[0];
    } else {
        size_t literals = try_literals ? hc_compress_literals(w, body, src, n) : 0;
        size_t least = literals ? literals - literals / 100 : n;
        uint8_t *trial = w->e.trial;
        size = hc_compress_full(w, trial, src, n, level);
        if (size && size < least) {
            memcpy(body, trial, size);
            mode = PLANE_ZSTD;
        } else if (literals) {
            size = literals;
            mode = PLANE_ZSTD;
        } else {
            size = n;
            memcpy(body, src, n);
        }
    }
    store32(dst, (uint32_t)mode << SIZE_BITS | (uint32_t)size);
    return HEADER + size;
}

size_t hc_lossless_encode(const struct hc_code *code, struct hc_work *w, const uint8_t *src,
                          size_t raw_len, uint8_t *dst)
{
    const unsigned width = hc_plane_width(code);
    const size_t n = raw_len / width, rest = raw_len % width;
    const uint8_t *planes = src;
    size_t pos = 0;

    if (width > 1) {
        w->k->split_planes(w->bytes, src, n, width, hc_plane_rotate(code));
        planes = w->bytes;
    }
    for (unsigned p = 0; p < width && n > 0; p++)
        pos += encode_plane(w, planes + p * n, n, dst + pos, width > 1 ? PLANE_LEVEL : code->level,
                            width > 1);
    memcpy(dst + pos, src + raw_len - rest, rest);
    return pos + rest;
}

static int decode_plane(struct hc_work *w, uint8_t *dst, size_t n, const uint8_t **src,
                        size_t *left)
{
    if (*left < HEADER)
        return -EBADMSG;
    uint32_t header = load32(*src);
    unsigned mode = header >> SIZE_BITS;
    size_t size = header & ((1u << SIZE_BITS) - 1);
    const uint8_t *body = *src + HEADER;
    if (size > *left - HEADER)
        return -EBADMSG;
    *src = body + size;
    *left -= HEADER + size;
    switch (mode) {
    case PLANE_RAW:
        if (size != n)
            return -EBADMSG;
        memcpy(dst, body, n);
        return 0;
    case PLANE_CONSTANT:
        if (size != 1)
            return -EBADMSG;
        memset(dst, body[0], n);
        return 0;
    case PLANE_ZSTD:
        return hc_expand(w, dst, n, body, size);
    default:
        return -EBADMSG;
    }
}

int hc_lossless_decode(const struct hc_code *code, struct hc_work *w, const uint8_t *src,
                       size_t src_len, uint8_t *dst, size_t raw_len)
{
    const unsigned width = hc_plane_width(code);
    const size_t n = raw_len / width, rest = raw_len % width;
    uint8_t *planes = width > 1 ? w->bytes : dst;

    for (unsigned p = 0; p < width && n > 0; p++) {
        int rc = decode_plane(w, planes + p * n, n, &src, &src_len);
        if (rc)
            return rc;
    }
    if (src_len != rest)
        return -EBADMSG;
    if (width > 1)
        w->k->merge_planes(dst, planes, n, width, hc_plane_rotate(code));
    memcpy(dst + raw_len - rest, src, rest);
    return 0;
}
