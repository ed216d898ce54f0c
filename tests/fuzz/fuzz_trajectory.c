/* A code record and a block of the trajectory code (codecs.h says how they lie in the input): all
 * kernels give the same result and the same bytes, whatever the block. */
#include <errno.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/zeromap.h"
#include "tests/fuzz/codecs.h"
#include "tests/fuzz/fuzz.h"

enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size)
{
    struct hc_code code;
    int r;
    if (size < FZ_INPUT || load16(data) != HC_CODE_TRAJECTORY || fz_input_code(data, size, &code))
        return FUZZ_REFUSE;
    uint8_t body[HC_CODE_RECORD_MAX];
    FUZZ_CHECK(hc_code_store(&code, body) == FZ_BODY && memcmp(body, data + 8, FZ_BODY) == 0);
    const struct hc_decoder *d = fz_decoder(&code, &r);
    if (!d) {
        FUZZ_CHECK(r == -EINVAL || r == -ERANGE);
        return FUZZ_REFUSE;
    }
    size_t raw_len = load32(data + 4);
    if (raw_len > 2 * hc_code_block_bytes(&code))
        raw_len %= 2 * hc_code_block_bytes(&code);
    r = fz_decode(d, data + FZ_INPUT, size - FZ_INPUT, raw_len);
    FUZZ_CHECK(r == 0 || r == -EBADMSG || r == -EINVAL);
    return r == 0 ? FUZZ_ACCEPT : FUZZ_DAMAGE;
}

/* ---- a mutator that makes the parts of a block fit each other ---- */

struct writer {
    uint8_t *at, *end;
};

static void put(struct writer *w, const void *bytes, size_t len)
{
    size_t room = (size_t)(w->end - w->at);
    len = len < room ? len : room;
    memcpy(w->at, bytes, len);
    w->at += len;
}

static void put_random(struct writer *w, struct fuzz_random *r, size_t len, unsigned spare)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = (uint8_t)fuzz_next(r);
        if (i + 1 == len && spare)
            byte &= (uint8_t)((1u << spare) - 1);
        put(w, &byte, 1);
    }
}

/* Bytes with few values compress; so do their frames come about. Returns the stored size. */
static size_t put_packed(struct writer *w, struct fuzz_random *r, size_t n, unsigned values)
{
    uint8_t *plain = fuzz_alloc(n), *packed = fuzz_alloc(n);
    size_t stored = 0;
    for (size_t i = 0; i < n; i++)
        plain[i] = (uint8_t)fuzz_below(r, values);
    if (n && fuzz_below(r, 2))
        stored = fuzz_below(r, 2) ? hc_compress_literals(fz_works()->work[0], packed, plain, n)
                                  : hc_compress_full(fz_works()->work[0], packed, plain, n, 1);
    put(w, stored ? packed : plain, stored ? stored : n);
    free(plain);
    free(packed);
    return stored ? stored : n;
}

static void put_block(struct writer *w, struct fuzz_random *r, const struct hc_code *code,
                      size_t raw_len)
{
    size_t elem = hc_dtype_bits(code->dtype) / 8, pairs = raw_len / (2 * elem);
    size_t odd = raw_len % (2 * elem), exact = fuzz_below(r, 4) ? fuzz_below(r, pairs / 8 + 1) : 0;
    unsigned low_bits = code->t.split - 1u, top = (code->t.npoints - 1) >> low_bits;
    uint8_t header[8], place[2];
    uint8_t *start = w->at;
    put(w, header, 8);
    size_t stored = put_packed(w, r, pairs, top + (fuzz_below(r, 8) == 0 ? 2 : 1));
    put_random(w, r, (pairs * low_bits + 7) / 8, pairs * low_bits % 8);
    put_random(w, r, code->t.nu ? (pairs + 7) / 8 : 0, pairs % 8);
    for (size_t i = 0, at = 0; i < exact; i++, at += 1 + fuzz_below(r, 8)) {
        store16(place, (uint16_t)at);
        put(w, place, 2);
    }
    put_random(w, r, exact * 2 * elem + odd, 0);
    if (w->end - start >= 8) {
        store32(start, (uint32_t)exact);
        store32(start + 4, (uint32_t)stored);
    }
}

static void put_map(struct writer *w, struct fuzz_random *r, const struct hc_code *code,
                    size_t raw_len)
{
    size_t n = raw_len / (hc_dtype_bits(code->dtype) / 8), bytes = hc_zeromap_bytes(n);
    uint8_t header[4], *map = fuzz_alloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        map[i] = (uint8_t)(fuzz_next(r) & fuzz_next(r));
    if (n % 8)
        map[bytes - 1] &= (uint8_t)((1u << n % 8) - 1);
    store32(header, (uint32_t)bytes);
    put(w, header, 4);
    put(w, map, bytes);
    size_t kept = hc_zeromap_count(map, n);
    free(map);
    if (kept)
        put_block(w, r, code, kept * (hc_dtype_bits(code->dtype) / 8));
}

/* A block of the input's code, or of another one, that is good or nearly so. */
static size_t make_block(uint8_t *data, size_t size, size_t room, struct fuzz_random *r)
{
    struct hc_code code;
    int error;
    if (size < FZ_INPUT || fuzz_below(r, 8) == 0 || fz_input_code(data, size, &code) ||
        code.type != HC_CODE_TRAJECTORY || !fz_decoder(&code, &error))
        fz_random_trajectory(r, &code);
    size_t elem = hc_dtype_bits(code.dtype) / 8, raw_len = elem * (1 + fuzz_below(r, 300));
    struct writer w = {data + FZ_INPUT, data + room};
    fz_input_store(data, &code, raw_len);
    if (code.t.zero_map)
        put_map(&w, r, &code, raw_len);
    else
        put_block(&w, r, &code, raw_len);
    return (size_t)(w.at - data);
}

/* Cuts or extends the block to the size that its header tells. */
static size_t mend_size(uint8_t *data, size_t size, size_t room)
{
    struct hc_code code;
    if (size < FZ_INPUT + 8 || fz_input_code(data, size, &code) || code.type != HC_CODE_TRAJECTORY)
        return size;
    size_t elem = hc_dtype_bits(code.dtype) / 8, raw_len = load32(data + 4);
    size_t pairs = raw_len / (2 * elem), exact = load32(data + FZ_INPUT);
    size_t want = FZ_INPUT + 8 + load32(data + FZ_INPUT + 4);
    if (raw_len > room || exact > pairs)
        return size;
    want += (pairs * (code.t.split - 1u) + 7) / 8 + (code.t.nu ? (pairs + 7) / 8 : 0);
    want += exact * (2 + 2 * elem) + raw_len % (2 * elem);
    if (want > room)
        return size;
    if (want > size)
        memset(data + size, 0, want - size);
    return want;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct fuzz_random r = {seed};
    uint64_t way = fuzz_below(&r, 8);
    if (room >= FZ_INPUT && (size < FZ_INPUT || way == 0))
        return make_block(data, size, room, &r);
    if (size < FZ_INPUT || way < 3)
        return LLVMFuzzerMutate(data, size, room);
    size_t block = LLVMFuzzerMutate(data + FZ_INPUT, size - FZ_INPUT, room - FZ_INPUT);
    return way < 5 ? FZ_INPUT + block : mend_size(data, FZ_INPUT + block, room);
}
