#include "codec/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    unsigned bits;
} dtypes[HC_DTYPE_COUNT] = {
    [HC_DTYPE_NONE] = {"bytes", 8},
    [HC_BOOL] = {"BOOL", 8},
    [HC_F4] = {"F4", 4},
    [HC_F6_E2M3] = {"F6_E2M3", 6},
    [HC_F6_E3M2] = {"F6_E3M2", 6},
    [HC_U8] = {"U8", 8},
    [HC_I8] = {"I8", 8},
    [HC_F8_E5M2] = {"F8_E5M2", 8},
    [HC_F8_E4M3] = {"F8_E4M3", 8},
    [HC_F8_E8M0] = {"F8_E8M0", 8},
    [HC_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [HC_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [HC_I16] = {"I16", 16},
    [HC_U16] = {"U16", 16},
    [HC_F16] = {"F16", 16},
    [HC_BF16] = {"BF16", 16},
    [HC_I32] = {"I32", 32},
    [HC_U32] = {"U32", 32},
    [HC_F32] = {"F32", 32},
    [HC_C64] = {"C64", 64},
    [HC_F64] = {"F64", 64},
    [HC_I64] = {"I64", 64},
    [HC_U64] = {"U64", 64},
};

const char *hc_dtype_name(unsigned dtype)
{
    return dtype < HC_DTYPE_COUNT ? dtypes[dtype].name : NULL;
}

enum hc_dtype hc_dtype_parse(const char *name, size_t len)
{
    for (unsigned d = 1; d < HC_DTYPE_COUNT; d++)
        if (strlen(dtypes[d].name) == len && memcmp(dtypes[d].name, name, len) == 0)
            return (enum hc_dtype)d;
    return HC_DTYPE_NONE;
}

unsigned hc_dtype_bits(enum hc_dtype dtype)
{
    return dtypes[dtype].bits;
}

bool hc_dtype_is_weight(enum hc_dtype dtype)
{
    return dtype == HC_F16 || dtype == HC_BF16 || dtype == HC_F32 || dtype == HC_F64;
}
