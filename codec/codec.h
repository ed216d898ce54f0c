/* The codec's public interface: from raw bytes of a tensor to coded blocks and back.
 *
 * The codec works on memory alone. It opens no file and keeps no global state.
 * A segment of a file (the bytes of one tensor, or any run of plain bytes) is cut
 * into blocks of hc_code_block_bytes() raw bytes, the last one shorter; blocks
 * are independent of each other. How they are coded is said by a struct hc_code,
 * which is what an image stores as a code record.
 *
 * Three codes:
 *   HC_CODE_BYTES       any bytes, zstd.
 *   HC_CODE_PLANES      elements of 2, 4 or 8 bytes, lossless, by byte planes
 *                       (design: docs/codec.md, "Lossless").
 *   HC_CODE_TRAJECTORY  pairs of F16, BF16, F32 or F64 weights as indices of points on
 *                       a trajectory (Hyper-Compression, arXiv 2409.00592, section 3),
 *                       chosen by a trellis. With loss.
 *
 * Threads: encoders, decoders and codes are immutable after construction and may be
 * shared; a struct hc_work is scratch memory of one thread at a time.
 *
 * Errors: functions return a negative errno. -EBADMSG: coded bytes that no encoder
 * writes; -EINVAL: a code or a size outside its range; -ENOMEM; -ERANGE: cannot be
 * coded this way. Decoders check every length and never read or write outside the
 * buffers they are given, whatever the bytes.
 *
 * The same input and code give the same bytes on every machine, with either isa.
 */
#ifndef HYPERFS_CODEC_CODEC_H
#define HYPERFS_CODEC_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec/dtype.h"

enum hc_code_type { HC_CODE_BYTES = 1, HC_CODE_PLANES = 2, HC_CODE_TRAJECTORY = 3 };

enum {
    HC_MAX_BLOCK_BYTES = 1 << 20,  /* no block's raw size is larger */
    HC_BYTES_BLOCK = 256 << 10,    /* raw bytes of a BYTES or PLANES block */
    HC_TRAJECTORY_PAIRS = 1 << 16, /* pairs of a TRAJECTORY block */
    HC_MAX_NU = 10,                /* memory of the trellis, bits */
    HC_MAX_SPLIT = 9,              /* s: low bits of a rank, path bit counted */
    HC_CODE_RECORD_MAX = 64        /* bytes of a stored code record's body, at most */
};

/* A step or other positive number with 12 mantissa bits: mantissa * 2^exponent. */
struct hc_step {
    uint16_t mantissa; /* 2048 .. 4095 */
    int16_t exponent;  /* -1100 .. 1000 */
};
double hc_step_value(struct hc_step s);
/* The nearest step to value (positive, finite). */
struct hc_step hc_step_from(double value);

/* Parameters of the trajectory code (design section 3). The trajectory is
 * p(theta) = theta * (1, z) / U on the torus; its points are the lattice spanned by
 * b1, b2 (in units of 1/U), each phase holds npoints of them, the nearest to the origin
 * first. A point with coordinates (X, Y), in units of 1/(2U), stands for the weights
 * (X, Y) * step. */
struct hc_trajectory {
    uint32_t points;  /* U, 64 .. 2^20 */
    uint32_t winding; /* z, 1 .. U-1 */
    int32_t b1[2];    /* reduced basis: 0 <= 2 b1.b2 <= |b1|^2 <= |b2|^2 <= 2 |b1|^2, */
    int32_t b2[2];    /*   |det(b1, b2)| = U */
    uint32_t npoints; /* I: points used of each phase, 1 .. 65536 */
    struct hc_step step;
    uint8_t nu;       /* 0 (no trellis) .. HC_MAX_NU */
    uint8_t split;    /* s, 1 .. HC_MAX_SPLIT: low s-1 bits of a rank are stored raw */
    uint16_t g0, g1;  /* taps, below 2^nu */
    uint8_t zero_map; /* 1: zeros are stored in a map (codec/zeromap.h), the others coded */
};

struct hc_code {
    enum hc_code_type type;
    enum hc_dtype dtype;    /* NONE for BYTES */
    struct hc_trajectory t; /* TRAJECTORY only */
    /* For the encoder only, not stored: */
    int level;     /* zstd level of BYTES */
    double shrink; /* TRAJECTORY, 0 .. 0.25: points are sought for weights (1 - shrink) times as
                    * large, which gives shorter codes (rate-distortion optimisation) */
};

/* Raw bytes of a full block of this code. */
size_t hc_code_block_bytes(const struct hc_code *code);

/* Upper bound of a coded block of raw_len raw bytes. */
size_t hc_code_bound(const struct hc_code *code, size_t raw_len);

/* Writes the body of the code's record, at most HC_CODE_RECORD_MAX bytes; returns its length. */
size_t hc_code_store(const struct hc_code *code, uint8_t *body);

/* Reads a body of `len` bytes for a record of type `type`, checks every field.
 * -EBADMSG if a field is out of range, -ENOTSUP for a type this version does not know. */
int hc_code_load(unsigned type, const uint8_t *body, size_t len, struct hc_code *code);

/* ---- instruction sets ---- */
enum hc_isa { HC_ISA_PORTABLE = 0, HC_ISA_AVX2 = 1 };
/* The best one of this machine. */
enum hc_isa hc_isa_best(void);
const char *hc_isa_name(enum hc_isa isa);

/* ---- scratch memory of one thread ---- */
struct hc_work;
struct hc_work *hc_work_new(enum hc_isa isa); /* NULL: out of memory */
void hc_work_free(struct hc_work *w);         /* NULL is allowed */

/* ---- decoding ---- */
struct hc_decoder;
/* Builds the tables of a code (milliseconds for a TRAJECTORY). */
int hc_decoder_new(const struct hc_code *code, struct hc_decoder **out);
void hc_decoder_free(struct hc_decoder *d);
size_t hc_decoder_memory(const struct hc_decoder *d); /* bytes held */
/* Decodes one block of src_len bytes into exactly raw_len bytes (1 .. block size). */
int hc_decode(const struct hc_decoder *d, struct hc_work *w, const uint8_t *src, size_t src_len,
              uint8_t *dst, size_t raw_len);

/* ---- encoding ---- */
struct hc_block_stats {
    uint64_t carried; /* elements carried by the trajectory code */
    uint64_t exact;   /* elements stored exactly: outside the window, not finite, odd last */
    double signal;    /* sum of squares of the carried elements */
    double noise;     /* sum of squared errors of the carried elements */
    double max_error; /* largest absolute error */
};
void hc_block_stats_add(struct hc_block_stats *sum, const struct hc_block_stats *b);
/* 10 log10(signal / noise); INFINITY where noise is 0. */
double hc_sqnr_db(const struct hc_block_stats *s);

struct hc_encoder;
int hc_encoder_new(const struct hc_code *code, struct hc_encoder **out);
void hc_encoder_free(struct hc_encoder *e);
/* Codes one block. dst has room for hc_code_bound(code, raw_len) bytes. Sets *dst_len
 * and, unless NULL, *stats (zeros for lossless codes, exact = all elements). The block has
 * been decoded again and compared when this returns; if decoded is not NULL it receives the
 * raw_len decoded bytes. */
int hc_encode(const struct hc_encoder *e, struct hc_work *w, const uint8_t *src, size_t raw_len,
              uint8_t *dst, size_t *dst_len, uint8_t *decoded, struct hc_block_stats *stats);

/* ---- choosing a code for a tensor ---- */

/* What one pass over a tensor's bytes finds out. */
struct hc_scan;
struct hc_scan *hc_scan_new(enum hc_dtype dtype); /* one of the four weight types */
void hc_scan_free(struct hc_scan *s);
/* Takes the next raw_len bytes (whole elements, an even number of them except at the end). */
void hc_scan_block(struct hc_scan *s, const uint8_t *raw, size_t raw_len);
/* Number of different bit patterns seen; 257 means more than 256. */
unsigned hc_scan_distinct(const struct hc_scan *s);
uint64_t hc_scan_elements(const struct hc_scan *s);

/* Wanted quality. */
enum { HC_MIN_DB = 10, HC_MAX_DB = 40 };
struct hc_target {
    double sqnr_db; /* HC_MIN_DB .. HC_MAX_DB: 10 log10 of signal over noise of the carried pairs */
    unsigned nu;    /* 0 .. HC_MAX_NU; HC_DEFAULT_NU if the user did not say */
    unsigned nu_small; /* the same for tensors of at most HC_SAMPLE_BLOCKS blocks, where a block's
                        * header weighs more and time less; HC_DEFAULT_NU_SMALL */
};
enum { HC_DEFAULT_NU = 8, HC_DEFAULT_NU_SMALL = 10 };

/* Sample blocks to calibrate with: a tensor of up to this many blocks whole, else as many
 * evenly spread full blocks. */
enum { HC_SAMPLE_BLOCKS = 4 };

/* Bits a weight that the trajectory code will take at this quality, from the histogram alone, to
 * within a few percent; INFINITY for a tensor without finite non-zero weights. How it changes with
 * the quality is right to a few thousandths of a bit for each dB. */
double hc_predict_bits(const struct hc_scan *scan, const struct hc_target *target);

/* A scan in a few kilobytes, to be kept; scans take half a megabyte. Both NULL: out of memory. What
 * is unpacked takes no further blocks; the caller frees both, a pack by free(). */
struct hc_scan_pack;
struct hc_scan_pack *hc_scan_pack(const struct hc_scan *scan);
struct hc_scan *hc_scan_unpack(const struct hc_scan_pack *pack);

/* Chooses the code of a tensor: the trajectory code at target->sqnr_db, its step calibrated on
 * the sample blocks, or the lossless code where that is smaller, or where the tensor
 * has too few distinct values, no finite non-zero weight, or cannot be coded with this quality. */
int hc_choose(const struct hc_scan *scan, const struct hc_target *target, struct hc_work *w,
              const uint8_t *const sample[], const size_t sample_len[], unsigned nsamples,
              struct hc_code *out);

/* The lossless code of a dtype; level is zstd's for plain bytes. */
struct hc_code hc_lossless(enum hc_dtype dtype, int level);

/* A trajectory code with its step changed so that a tensor that came out at measured_db
 * should come out at wanted_db. */
struct hc_code hc_rescale(const struct hc_code *code, double measured_db, double wanted_db);

#endif
