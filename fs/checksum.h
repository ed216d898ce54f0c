/* The checksum of an image: XXH3, 64 bits, seed 0, of any number of bytes. Where the processor has
 * AVX2 it is taken with that, for twice the speed: Debian's library and the header alone choose
 * when they are compiled. Any thread. */
#ifndef HYPERFS_FS_CHECKSUM_H
#define HYPERFS_FS_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

uint64_t hfs_checksum(const void *data, size_t len);

/* What it chooses from. */
uint64_t hfs_checksum_avx2(const void *data, size_t len);

#endif
