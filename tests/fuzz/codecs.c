#include "tests/fuzz/codecs.h"

#include <string.h>

#include "codec/bytes.h"
#include "codec/lattice.h"
#include "tests/fuzz/fuzz.h"

const struct fz_works *fz_works(void)
{
    static struct fz_works w;
    while (w.count == 0 || (hc_isa_best() == HC_ISA_AVX2 && w.count < FZ_MOST_KERNELS)) {
        struct hc_work *one = hc_work_new(w.count ? HC_ISA_AVX2 : HC_ISA_PORTABLE);
        FUZZ_CHECK(one != NULL);
#if defined(__x86_64__)
        if (w.count > 0) /* both, whichever is faster here */
            one->k = w.count == 1 ? &hc_kernels_avx2 : &hc_kernels_avx2_by_loads;
#endif
        w.work[w.count++] = one;
    }
    return &w;
}

const struct hc_decoder *fz_decoder(const struct hc_code *code, int *error)
{
    enum { KEPT = 16 };
    static struct {
        struct hc_code code;
        struct hc_decoder *decoder;
        int error;
        bool used;
    } kept[KEPT];
    static unsigned next;
    for (unsigned i = 0; i < KEPT; i++)
        if (kept[i].used && memcmp(&kept[i].code, code, sizeof *code) == 0) {
            *error = kept[i].error;
            return kept[i].decoder;
        }
    unsigned i = next++ % KEPT;
    hc_decoder_free(kept[i].decoder);
    kept[i].decoder = NULL;
    kept[i].used = true;
    kept[i].code = *code;
    *error = kept[i].error = hc_decoder_new(code, &kept[i].decoder);
    FUZZ_CHECK((*error == 0) == (kept[i].decoder != NULL));
    return kept[i].decoder;
}

/* What an earlier block left must not matter. */
static void soil(struct hc_work *w, size_t raw_len, int with)
{
    const size_t places[] = {0, HC_TRAJECTORY_PAIRS, 256 << 10};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        memset(w->bytes + places[i], with, raw_len + 64 < 65536 ? raw_len + 64 : 65536);
    if (w->dense)
        memset(w->dense, with, raw_len < HC_MAX_BLOCK_BYTES ? raw_len : HC_MAX_BLOCK_BYTES);
    memset(w->planes + HC_PLANE_FRONT, with, 64);
    memset(w->planes + HC_PLANE_FRONT + HC_PLANE_WORDS, with, 64);
}

int fz_decode(const struct hc_decoder *d, const uint8_t *src, size_t src_len, size_t raw_len)
{
    const struct fz_works *w = fz_works();
    uint8_t *copy = fuzz_alloc(src_len), *first = NULL;
    int result = 0;
    if (src_len)
        memcpy(copy, src, src_len);
    for (unsigned i = 0; i < w->count; i++) {
        uint8_t *dst = fuzz_alloc(raw_len);
        memset(dst, 0x55 * (int)(i + 1), raw_len);
        soil(w->work[i], raw_len, 0x5a + (int)i);
        int r = hc_decode(d, w->work[i], copy, src_len, dst, raw_len);
        if (i == 0) {
            result = r;
            first = dst;
            continue;
        }
        FUZZ_CHECK(r == result);
        FUZZ_CHECK(r < 0 || memcmp(first, dst, raw_len) == 0);
        free(dst);
    }
    free(first);
    free(copy);
    return result;
}

int fz_input_code(const uint8_t *data, size_t size, struct hc_code *code)
{
    static const size_t body[] = {0, 0, 4, FZ_BODY};
    unsigned type = load16(data);
    if (size < FZ_INPUT)
        return -1;
    return hc_code_load(type, data + 8, type < 4 ? body[type] : 0, code);
}

void fz_input_store(uint8_t *data, const struct hc_code *code, size_t raw_len)
{
    memset(data, 0, FZ_INPUT);
    store16(data, (uint16_t)code->type);
    store32(data + 4, (uint32_t)raw_len);
    hc_code_store(code, data + 8);
}

/* The most hexagonal lattice of some number of points may still not be hexagonal enough. */
static void choose_lattice(struct fuzz_random *r, struct hc_trajectory *t)
{
    do {
        hc_lattice_choose(64 + (uint32_t)fuzz_below(r, 700), t);
        t->npoints = 1;
    } while (hc_lattice_check(t) != 0);
}

void fz_random_trajectory(struct fuzz_random *r, struct hc_code *code)
{
    static const enum hc_dtype dtypes[] = {HC_F16, HC_BF16, HC_F32, HC_F64};
    memset(code, 0, sizeof *code);
    code->type = HC_CODE_TRAJECTORY;
    code->dtype = dtypes[fuzz_below(r, 4)];
    if (fuzz_below(r, 16) == 0)
        FUZZ_CHECK(hc_lattice_for(256u << fuzz_below(r, 5), &code->t) == 0);
    else
        choose_lattice(r, &code->t);
    code->t.split = (uint8_t)(1 + fuzz_below(r, HC_MAX_SPLIT));
    uint64_t most = 256u << (code->t.split - 1);
    most = most < code->t.points * 3 / 4 ? most : code->t.points * 3 / 4; /* more do not fit in */
    code->t.npoints = 1 + (uint32_t)fuzz_below(r, most);
    code->t.step =
        (struct hc_step){(uint16_t)(2048 + fuzz_below(r, 2048)), (int16_t)(fuzz_below(r, 60) - 50)};
    code->t.nu = (uint8_t)fuzz_below(r, HC_MAX_NU + 1);
    code->t.g0 = (uint16_t)fuzz_below(r, 1u << code->t.nu);
    code->t.g1 = (uint16_t)fuzz_below(r, 1u << code->t.nu);
    code->t.zero_map = fuzz_below(r, 4) == 0;
}
