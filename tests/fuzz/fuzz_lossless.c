/* A block of plain bytes or of byte planes: all kernels give the same result and the same bytes. */
#include <errno.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/lossless.h"
#include "tests/fuzz/codecs.h"
#include "tests/fuzz/fuzz.h"

enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size)
{
    struct hc_code code;
    int r;
    if (size < FZ_INPUT || load16(data) == HC_CODE_TRAJECTORY || fz_input_code(data, size, &code))
        return FUZZ_REFUSE;
    uint8_t body[HC_CODE_RECORD_MAX];
    size_t len = hc_code_store(&code, body);
    FUZZ_CHECK(memcmp(body, data + 8, len) == 0);
    const struct hc_decoder *d = fz_decoder(&code, &r);
    FUZZ_CHECK(d != NULL);
    size_t raw_len = load32(data + 4);
    if (raw_len > 2 * HC_BYTES_BLOCK)
        raw_len %= 2 * HC_BYTES_BLOCK;
    r = fz_decode(d, data + FZ_INPUT, size - FZ_INPUT, raw_len);
    FUZZ_CHECK(r == 0 || r == -EBADMSG || (r == -EINVAL && raw_len - 1 >= HC_BYTES_BLOCK));
    return r == 0 ? FUZZ_ACCEPT : FUZZ_DAMAGE;
}

/* ---- a mutator that makes whole blocks ---- */

/* A plane of n bytes, one of the three ways; returns its bytes. */
static size_t put_plane(struct fuzz_random *r, uint8_t *dst, size_t n)
{
    uint8_t *plain = fuzz_alloc(n);
    size_t stored = 0;
    unsigned mode = (unsigned)fuzz_below(r, 3), values = 1 + (unsigned)fuzz_below(r, 256);
    for (size_t i = 0; i < n; i++)
        plain[i] = (uint8_t)fuzz_below(r, values);
    if (mode == 2)
        stored = fuzz_below(r, 2) ? hc_compress_literals(fz_works()->work[0], dst + 4, plain, n)
                                  : hc_compress_full(fz_works()->work[0], dst + 4, plain, n, 1);
    if (!stored) {
        mode = mode == 1;
        stored = mode ? 1 : n;
        memcpy(dst + 4, plain, stored);
    }
    store32(dst, (uint32_t)(mode << 24 | stored));
    free(plain);
    return 4 + stored;
}

static size_t make_block(uint8_t *data, size_t room, struct fuzz_random *r)
{
    struct hc_code code = hc_lossless((enum hc_dtype)fuzz_below(r, HC_DTYPE_COUNT), 1);
    unsigned width = hc_plane_width(&code);
    size_t raw_len = 1 + fuzz_below(r, 600), n = raw_len / width, at = FZ_INPUT;
    if (room < FZ_INPUT + raw_len + 64)
        return LLVMFuzzerMutate(data, room, room);
    fz_input_store(data, &code, raw_len);
    for (unsigned p = 0; p < width && n; p++)
        at += put_plane(r, data + at, n);
    memset(data + at, 'r', raw_len % width);
    return at + raw_len % width;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct fuzz_random r = {seed};
    uint64_t way = fuzz_below(&r, 8);
    if (room >= FZ_INPUT && (size < FZ_INPUT || way == 0))
        return make_block(data, room, &r);
    if (size < FZ_INPUT || way < 3)
        return LLVMFuzzerMutate(data, size, room);
    return FZ_INPUT + LLVMFuzzerMutate(data + FZ_INPUT, size - FZ_INPUT, room - FZ_INPUT);
}
