#include "codec/zeromap.h"

#include <string.h>

#include "codec/bytes.h"

size_t hc_zeromap_compact(uint8_t *map, uint8_t *dense, const uint8_t *src, size_t n,
                          enum hc_dtype dtype)
{
    const size_t elem = hc_dtype_bits(dtype) / 8;
    size_t kept = 0;

    memset(map, 0, hc_zeromap_bytes(n));
    for (size_t i = 0; i < n; i++) {
        const uint8_t *at = src + i * elem;
        uint64_t v = elem == 2   ? (uint64_t)load16(at) << 48
                     : elem == 4 ? (uint64_t)load32(at) << 32
                                 : load64(at);
        unsigned one = (v & ~(UINT64_C(1) << 63)) != 0;
        map[i / 8] |= (uint8_t)(one << i % 8);
        memcpy(dense + kept * elem, at, elem);
        kept += one;
    }
    return kept;
}

size_t hc_zeromap_count(const uint8_t *map, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < hc_zeromap_bytes(n); i++)
        count += (size_t)__builtin_popcount(map[i]);
    return count;
}

/* Loads and masks rather than branches: with random zeros a branch is mispredicted half the time.
 */
#define EXPAND(bits)                                                                               \
    for (size_t i = 0, k = 0; i < n; i++) {                                                        \
        unsigned one = map[i / 8] >> i % 8 & 1;                                                    \
        uint##bits##_t v = load##bits(dense + k * (bits / 8));                                     \
        store##bits(dst + i * (bits / 8), (uint##bits##_t)(v & (0 - (uint##bits##_t)one)));        \
        k += one;                                                                                  \
    }

void hc_zeromap_expand(uint8_t *dst, const uint8_t *map, const uint8_t *dense, size_t n,
                       enum hc_dtype dtype)
{
    switch (hc_dtype_bits(dtype)) {
    case 16:
        EXPAND(16)
        break;
    case 32:
        EXPAND(32)
        break;
    default:
        EXPAND(64)
        break;
    }
}
