/* Contract: fs/checksum.h. Compiled with -mavx2. */
#if defined(__x86_64__)
#include "fs/checksum.h"

#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX2
#include <xxhash.h>

uint64_t hfs_checksum_avx2(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}
#else
typedef int hfs_no_avx2; /* ISO C forbids an empty file */
#endif
