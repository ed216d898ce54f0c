/* Contract: fs/checksum.h. */
#include "fs/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codec/codec.h"

uint64_t hfs_checksum(const void *data, size_t len)
{
#if defined(__x86_64__)
    if (hc_isa_best() == HC_ISA_AVX2)
        return hfs_checksum_avx2(data, len);
#endif
    return XXH3_64bits(data, len);
}
