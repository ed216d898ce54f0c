/* What the targets of the codec share: decoding by all kernels of this machine, compared. */
#ifndef HYPERFS_TESTS_FUZZ_CODECS_H
#define HYPERFS_TESTS_FUZZ_CODECS_H

#include "codec/codec.h"
#include "codec/work.h"

/* Scratch memory for each set of kernels; the first is the portable one. */
enum { FZ_MOST_KERNELS = 3 };
struct fz_works {
    struct hc_work *work[FZ_MOST_KERNELS];
    unsigned count;
};
const struct fz_works *fz_works(void);

/* A decoder of the code, from a few that are kept; NULL with *error if there is none. */
const struct hc_decoder *fz_decoder(const struct hc_code *code, int *error);

/* Decodes by all kernels, into buffers of exactly raw_len bytes with different contents, from a
 * copy of exactly src_len bytes. All give the same result and bytes. Returns hc_decode's. */
int fz_decode(const struct hc_decoder *d, const uint8_t *src, size_t src_len, size_t raw_len);

/* An input of the codec's targets: 2 bytes type, 2 zero, 4 bytes of raw size, 48 bytes of a code
 * record's body, then the block (or, for fuzz_encode, the raw bytes). */
enum { FZ_BODY = 48, FZ_INPUT = 8 + FZ_BODY };
int fz_input_code(const uint8_t *data, size_t size, struct hc_code *code);
void fz_input_store(uint8_t *data, const struct hc_code *code, size_t raw_len);

/* A code with a lattice that is one, and small tables. */
struct fuzz_random;
void fz_random_trajectory(struct fuzz_random *r, struct hc_code *code);

#endif
