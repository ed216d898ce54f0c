/* Scratch memory of one thread, and zstd as the codec uses it.
 *
 * A struct hc_work owns the zstd contexts and every buffer that coding a block takes, so that
 * coding allocates nothing block by block. Buffers of the encoder are made on its first use:
 * a thread that only decodes stays small.
 */
#ifndef HYPERFS_CODEC_WORK_H
#define HYPERFS_CODEC_WORK_H

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#include "codec/codec.h"
#include "codec/kernels.h"

/* Room behind a decode buffer that vector code may read or write. */
enum { HC_SLACK = 64 };

/* What the encoder of the trajectory code needs for one block of n <= 65,536 pairs. */
struct hc_encode_buffers {
    float *x, *y;          /* lattice coordinates of a pair, fine basis; n each */
    uint32_t *metric;      /* branch metrics of the four phases, 16 bits each: 2n */
    uint32_t *decisions;   /* survivors: n * hc_trellis_words(nu) */
    size_t decision_words; /* room in decisions */
    uint32_t *rank;        /* i: n */
    uint8_t *phase, *path; /* c0 + 2 c1; b: n each */
    uint8_t *outside;      /* 1: the pair is stored exactly: n */
    uint8_t *decoded;      /* a block decoded again: HC_MAX_BLOCK_BYTES + slack */
    uint8_t *trial;        /* a compressed plane */
    uint8_t *compact;      /* elements of the source that are not zero */
};

struct hc_work {
    enum hc_isa isa;
    const struct hc_kernels *k;
    ZSTD_CCtx *literals; /* Huffman codes of single bytes, no matches */
    ZSTD_CCtx *full;     /* ordinary zstd */
    ZSTD_DCtx *expand;
    bool out_of_memory; /* zstd was: what was encoded is valid, but larger than it should be */
    uint8_t *bytes;     /* planes or the high bytes of ranks: HC_MAX_BLOCK_BYTES + slack */
    uint64_t *planes;   /* path bits and the planes of c0, c1: 3 * (65,536 / 64 + slack) */
    uint8_t *dense;     /* elements of a block that are not zero; made on first use */
    struct hc_encode_buffers e;
};

/* Makes w->dense. 0 or -ENOMEM. */
int hc_work_for_zero_maps(struct hc_work *w);

/* Makes the encoder's buffers, with room for a trellis of nu bits. 0 or -ENOMEM. */
int hc_work_for_encoding(struct hc_work *w, unsigned nu);

/* Compresses n bytes as literals (entropy code only) into dst of n bytes. Returns the size, or
 * 0 if that is not smaller than n. */
size_t hc_compress_literals(struct hc_work *w, uint8_t *dst, const uint8_t *src, size_t n);

/* The same with zstd's matches at the given level. */
size_t hc_compress_full(struct hc_work *w, uint8_t *dst, const uint8_t *src, size_t n, int level);

/* Expands a frame of either to exactly n bytes. 0 or -EBADMSG. */
int hc_expand(struct hc_work *w, uint8_t *dst, size_t n, const uint8_t *src, size_t len);

#endif
