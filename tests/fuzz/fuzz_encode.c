/* Any bytes as weights, and any code: the block decodes to what the encoder says, within the
 * error it says, and all kernels write the same bytes. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "codec/bytes.h"
#include "tests/fuzz/codecs.h"
#include "tests/fuzz/fuzz.h"

/* The trellis takes pairs * 2^nu steps: so that an input takes milliseconds. */
enum { MOST_STEPS = 1 << 16, MOST_POINTS = 2048 };

static void check_stats(const struct hc_code *code, const struct hc_block_stats *s, size_t raw_len)
{
    size_t elem = hc_dtype_bits(code->dtype) / 8;
    if (code->type == HC_CODE_TRAJECTORY)
        FUZZ_CHECK(s->carried + s->exact == raw_len / elem);
    FUZZ_CHECK(!(s->noise < 0) && !(s->signal < 0) && !(s->max_error < 0));
    FUZZ_CHECK(!isnan(s->noise) && !isnan(s->signal) && !isnan(s->max_error));
    FUZZ_CHECK(!isnan(hc_sqnr_db(s)) || isinf(s->signal) || s->signal == 0);
}

static int encode(const struct hc_encoder *e, const struct hc_code *code, const uint8_t *src,
                  size_t raw_len)
{
    const struct fz_works *w = fz_works();
    size_t bound = hc_code_bound(code, raw_len), first_len = 0;
    uint8_t *first = fuzz_alloc(bound), *again = fuzz_alloc(bound);
    uint8_t *said = fuzz_alloc(raw_len), *decoded = fuzz_alloc(raw_len);
    struct hc_block_stats stats[2] = {{0}};
    const struct hc_decoder *d;
    int result = 0, error;
    for (unsigned i = 0; i < w->count; i++) {
        size_t len = 0;
        int r =
            hc_encode(e, w->work[i], src, raw_len, i ? again : first, &len, said, &stats[i > 0]);
        FUZZ_CHECK(i == 0 || r == result);
        result = r;
        if (r < 0)
            continue;
        FUZZ_CHECK(len <= bound);
        if (i == 0) {
            first_len = len;
            continue;
        }
        FUZZ_CHECK(len == first_len && memcmp(first, again, len) == 0);
        FUZZ_CHECK(memcmp(&stats[0], &stats[1], sizeof stats[0]) == 0);
    }
    if (result == 0) {
        check_stats(code, &stats[0], raw_len);
        d = fz_decoder(code, &error);
        FUZZ_CHECK(d && hc_decode(d, w->work[0], first, first_len, decoded, raw_len) == 0);
        FUZZ_CHECK(memcmp(said, decoded, raw_len) == 0);
        FUZZ_CHECK(code->type == HC_CODE_TRAJECTORY || memcmp(src, decoded, raw_len) == 0);
    }
    free(first);
    free(again);
    free(said);
    free(decoded);
    return result;
}

enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size)
{
    struct hc_code code;
    struct hc_encoder *e;
    size_t raw_len = size - FZ_INPUT;
    if (size < FZ_INPUT || fz_input_code(data, size, &code))
        return FUZZ_REFUSE;
    size_t elem = hc_dtype_bits(code.dtype) / 8;
    if (code.type == HC_CODE_TRAJECTORY) {
        raw_len -= raw_len % elem;
        if (code.t.npoints > MOST_POINTS || (raw_len << code.t.nu) / (2 * elem) > MOST_STEPS)
            return FUZZ_REFUSE;
        code.shrink = load32(data + 4) % 256 / 1024.0;
    }
    code.level = 1 + (int)(load32(data + 4) % 5);
    int r = hc_encoder_new(&code, &e);
    if (r < 0) {
        FUZZ_CHECK(code.type == HC_CODE_TRAJECTORY && (r == -EINVAL || r == -ERANGE));
        return FUZZ_REFUSE;
    }
    uint8_t *copy = fuzz_alloc(raw_len);
    memcpy(copy, data + FZ_INPUT, raw_len);
    r = encode(e, &code, copy, raw_len);
    /* -EIO would be: what was decoded again is not what the code promises. */
    FUZZ_CHECK(r == 0 || (r == -EINVAL && raw_len - 1 >= hc_code_block_bytes(&code)));
    hc_encoder_free(e);
    free(copy);
    return r == 0 ? FUZZ_ACCEPT : FUZZ_REFUSE;
}

/* A code with a lattice now and then; else what lies behind it changes. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct fuzz_random r = {seed};
    uint64_t way = fuzz_below(&r, 8);
    struct hc_code code;
    if (room >= FZ_INPUT && (size < FZ_INPUT || way == 0)) {
        fz_random_trajectory(&r, &code);
        if (fuzz_below(&r, 3) == 0)
            code = hc_lossless((enum hc_dtype)fuzz_below(&r, HC_DTYPE_COUNT), 1);
        fz_input_store(data, &code, fuzz_next(&r) & 0xff);
        size = size < FZ_INPUT ? FZ_INPUT : size;
    }
    if (way < 3)
        return LLVMFuzzerMutate(data, size, room);
    return FZ_INPUT + LLVMFuzzerMutate(data + FZ_INPUT, size - FZ_INPUT, room - FZ_INPUT);
}
