/* Mutations of images that know what they change. Most mend all checksums afterwards, so that
 * fuzzing gets past them; a few do not. */
#ifndef HYPERFS_TESTS_FUZZ_IMAGE_MUTATE_H
#define HYPERFS_TESTS_FUZZ_IMAGE_MUTATE_H

#include <stddef.h>
#include <stdint.h>

/* The contracts of LLVMFuzzerCustomMutator and LLVMFuzzerCustomCrossOver. */
size_t fz_mutate_image(uint8_t *data, size_t size, size_t room, unsigned seed);
size_t fz_cross_images(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                       uint8_t *out, size_t room, unsigned seed);

#endif
