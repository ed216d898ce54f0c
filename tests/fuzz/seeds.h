/* The faults of the inputs in tests/corpus, one each (seeds_faults.c); seeds.c applies them. */
#ifndef HYPERFS_TESTS_FUZZ_SEEDS_H
#define HYPERFS_TESTS_FUZZ_SEEDS_H

#include <stddef.h>
#include <stdint.h>

/* An image made from another by words (image_parts.h), with spaces between them. */
struct seed {
    const char *name, *from, *words;
};
extern const struct seed seed_images[]; /* these end with a name of NULL */

/* An input of a codec target made from another: bytes put at `at` (from the end if negative). */
struct bad_block {
    const char *target, *name, *from;
    long at;
    const char *bytes;
    size_t len;
    long cut; /* bytes cut off at the end, or zeros added if negative */
};
extern const struct bad_block seed_blocks[];

/* A safetensors file: header, its stated length (0: the true one), bytes of data. */
struct header {
    const char *name, *text;
    size_t data;
    uint64_t length;
};
extern const struct header seed_headers[];

#endif
