#include "codec/work.h"

#include <errno.h>
#include <stdlib.h>

#include <zstd_errors.h>

#include "codec/trellis.h"

static bool set_up_literals(ZSTD_CCtx *c)
{
    /* ZSTD_fast with a long minMatch and a large step finds no matches and loses no time
     * over it; literal compression is off by default for this strategy. */
    static const struct {
        ZSTD_cParameter parameter;
        int value;
    } settings[] = {
        {ZSTD_c_format, ZSTD_f_zstd1_magicless},
        {ZSTD_c_strategy, ZSTD_fast},
        {ZSTD_c_windowLog, 17},
        {ZSTD_c_hashLog, 6},
        {ZSTD_c_minMatch, 7},
        {ZSTD_c_targetLength, 131072},
        {ZSTD_c_literalCompressionMode, ZSTD_ps_enable},
        {ZSTD_c_contentSizeFlag, 0},
        {ZSTD_c_checksumFlag, 0},
        {ZSTD_c_dictIDFlag, 0},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (ZSTD_isError(ZSTD_CCtx_setParameter(c, settings[i].parameter, settings[i].value)))
            return false;
    return true;
}

static bool set_up_full(ZSTD_CCtx *c)
{
    return !ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_format, ZSTD_f_zstd1_magicless)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 0)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, 20));
}

struct hc_work *hc_work_new(enum hc_isa isa)
{
    struct hc_work *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->isa = isa;
    w->k = hc_kernels_of(isa);
    w->literals = ZSTD_createCCtx();
    w->full = ZSTD_createCCtx();
    w->expand = ZSTD_createDCtx();
    w->bytes = calloc(1, HC_MAX_BLOCK_BYTES + HC_SLACK);
    w->planes = calloc(3, HC_PLANE_WORDS * sizeof *w->planes);
    if (!w->literals || !w->full || !w->expand || !w->bytes || !w->planes ||
        !set_up_literals(w->literals) || !set_up_full(w->full) ||
        ZSTD_isError(ZSTD_DCtx_setParameter(w->expand, ZSTD_d_format, ZSTD_f_zstd1_magicless)) ||
        ZSTD_isError(ZSTD_DCtx_setParameter(w->expand, ZSTD_d_windowLogMax, 20))) {
        hc_work_free(w);
        return NULL;
    }
    return w;
}

void hc_work_free(struct hc_work *w)
{
    if (!w)
        return;
    ZSTD_freeCCtx(w->literals);
    ZSTD_freeCCtx(w->full);
    ZSTD_freeDCtx(w->expand);
    free(w->bytes);
    free(w->planes);
    free(w->e.x);
    free(w->e.y);
    free(w->e.metric);
    free(w->e.decisions);
    free(w->e.rank);
    free(w->e.phase);
    free(w->e.path);
    free(w->e.outside);
    free(w->e.decoded);
    free(w->e.trial);
    free(w->e.compact);
    free(w->dense);
    free(w);
}

static bool make(void *pointer, size_t bytes)
{
    void **p = pointer;
    if (!*p)
        *p = calloc(1, bytes + HC_SLACK);
    return *p != NULL;
}

int hc_work_for_zero_maps(struct hc_work *w)
{
    return make(&w->dense, HC_MAX_BLOCK_BYTES) ? 0 : -ENOMEM;
}

int hc_work_for_encoding(struct hc_work *w, unsigned nu)
{
    struct hc_encode_buffers *e = &w->e;
    const size_t n = HC_TRAJECTORY_PAIRS;
    size_t words = n * hc_trellis_words(nu);

    if (words > e->decision_words) {
        free(e->decisions);
        e->decisions = NULL;
        e->decision_words = 0;
        if (!make(&e->decisions, words * sizeof *e->decisions))
            return -ENOMEM;
        e->decision_words = words;
    }
    return make(&e->x, n * sizeof *e->x) && make(&e->y, n * sizeof *e->y) &&
                   make(&e->metric, 2 * n * sizeof *e->metric) &&
                   make(&e->rank, n * sizeof *e->rank) && make(&e->phase, n) && make(&e->path, n) &&
                   make(&e->outside, n) && make(&e->decoded, HC_MAX_BLOCK_BYTES) &&
                   make(&e->trial, HC_MAX_BLOCK_BYTES) && make(&e->compact, HC_MAX_BLOCK_BYTES)
               ? 0
               : -ENOMEM;
}

/* What ZSTD_compress2 returned; an error, most often too small a room, as 0. */
static size_t compressed(struct hc_work *w, size_t size, size_t n)
{
    if (ZSTD_getErrorCode(size) == ZSTD_error_memory_allocation)
        w->out_of_memory = true;
    return ZSTD_isError(size) || size >= n ? 0 : size;
}

size_t hc_compress_literals(struct hc_work *w, uint8_t *dst, const uint8_t *src, size_t n)
{
    return compressed(w, ZSTD_compress2(w->literals, dst, n, src, n), n);
}

size_t hc_compress_full(struct hc_work *w, uint8_t *dst, const uint8_t *src, size_t n, int level)
{
    if (ZSTD_isError(ZSTD_CCtx_setParameter(w->full, ZSTD_c_compressionLevel, level)))
        return 0;
    return compressed(w, ZSTD_compress2(w->full, dst, n, src, n), n);
}

int hc_expand(struct hc_work *w, uint8_t *dst, size_t n, const uint8_t *src, size_t len)
{
    size_t size = ZSTD_decompressDCtx(w->expand, dst, n, src, len);
    return ZSTD_isError(size) || size != n ? -EBADMSG : 0;
}
