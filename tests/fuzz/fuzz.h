/* What the fuzz targets share.
 *
 * A target is one file fuzz_NAME.c with fuzz_one and, where it knows the structure of its input, a
 * LLVMFuzzerCustomMutator. `make fuzz` links it with libFuzzer, `make test` with replay.c, which
 * runs the inputs of tests/corpus/NAME. Targets abort on a finding; they are not told apart from
 * what the sanitizers find. One thread.
 */
#ifndef HYPERFS_TESTS_FUZZ_H
#define HYPERFS_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* What a target made of its input; replay.c compares it with the input's name. */
enum fuzz_verdict {
    FUZZ_ACCEPT, /* good as a whole */
    FUZZ_REFUSE, /* refused before anything of it was used */
    FUZZ_DAMAGE  /* opened, but a part of it is refused or reported */
};
enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size);

#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* ---- libFuzzer's names; LLVMFuzzerMutate is replay.c's without it ---- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t room, unsigned seed);

/* ---- random numbers (splitmix64), the same for the same seed ---- */

struct fuzz_random {
    uint64_t state;
};

static inline uint64_t fuzz_next(struct fuzz_random *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* 0 .. n - 1; n > 0. */
static inline uint64_t fuzz_below(struct fuzz_random *r, uint64_t n)
{
    return fuzz_next(r) % n;
}

/* malloc that does not return NULL. */
void *fuzz_alloc(size_t size);

/* Makes the bytes a file in memory. *path, if not NULL, opens it; both stay valid until
 * the next call. Returns its descriptor. */
int fuzz_file(const uint8_t *data, size_t size, const char **path);

/* A value for a field of `width` bytes that holds `old`: limits, neighbours, bits, or one of the
 * `n` sizes and counts that the input knows of, and what is beside it. */
uint64_t fuzz_value(struct fuzz_random *r, uint64_t old, unsigned width, const uint64_t *known,
                    size_t n);

#endif
