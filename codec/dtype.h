/* Element types of safetensors.
 *
 * The 22 dtypes that the safetensors format defines (safetensors 0.8). The
 * numbers are part of the image format (hyperfs-format(5), "Element types"):
 * they never change, new ones are added at the end. All functions are pure and
 * may be called from any thread.
 */
#ifndef HYPERFS_CODEC_DTYPE_H
#define HYPERFS_CODEC_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

enum hc_dtype {
    HC_DTYPE_NONE = 0, /* plain bytes, no tensor */
    HC_BOOL = 1,
    HC_F4 = 2,
    HC_F6_E2M3 = 3,
    HC_F6_E3M2 = 4,
    HC_U8 = 5,
    HC_I8 = 6,
    HC_F8_E5M2 = 7,
    HC_F8_E4M3 = 8,
    HC_F8_E8M0 = 9,
    HC_F8_E4M3FNUZ = 10,
    HC_F8_E5M2FNUZ = 11,
    HC_I16 = 12,
    HC_U16 = 13,
    HC_F16 = 14,
    HC_BF16 = 15,
    HC_I32 = 16,
    HC_U32 = 17,
    HC_F32 = 18,
    HC_C64 = 19,
    HC_F64 = 20,
    HC_I64 = 21,
    HC_U64 = 22,
    HC_DTYPE_COUNT = 23
};

/* Name as it stands in a safetensors header ("BF16"); "bytes" for HC_DTYPE_NONE,
 * NULL for a number that is no dtype. */
const char *hc_dtype_name(unsigned dtype);

/* The dtype of that name (len bytes, no terminator needed), or HC_DTYPE_NONE if
 * safetensors has none of that name. */
enum hc_dtype hc_dtype_parse(const char *name, size_t len);

/* Bits an element: 1 byte = 8 bits, F4 = 4, F6 = 6; 8 for HC_DTYPE_NONE. */
unsigned hc_dtype_bits(enum hc_dtype dtype);

/* True for F16, BF16, F32 and F64: the types that the trajectory code takes. */
bool hc_dtype_is_weight(enum hc_dtype dtype);

#endif
