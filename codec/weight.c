#include "codec/weight.h"

#include <math.h>

#include "codec/bytes.h"

static double from_bits32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static double from_half(uint16_t h)
{
    /* Shifted into a float's fields the value is 2^-112 times the true one; exponent 31 is
     * infinity or NaN. */
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13 | (uint32_t)(h & 0x8000) << 16;
    if ((h & 0x7c00) == 0x7c00)
        return from_bits32(bits | 0x7f800000);
    return from_bits32(bits) * 0x1p112;
}

void hc_weights_load(double *dst, const uint8_t *src, size_t n, enum hc_dtype dtype)
{
    switch (dtype) {
    case HC_BF16:
        for (size_t i = 0; i < n; i++)
            dst[i] = from_bits32((uint32_t)load16(src + 2 * i) << 16);
        break;
    case HC_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = from_half(load16(src + 2 * i));
        break;
    case HC_F32:
        for (size_t i = 0; i < n; i++)
            dst[i] = from_bits32(load32(src + 4 * i));
        break;
    default:
        for (size_t i = 0; i < n; i++)
            dst[i] = load_double(src + 8 * i);
        break;
    }
}

/* Rounds a finite value to `digits` mantissa bits behind the leading one, with the least normal
 * exponent emin. Scaling by powers of two is exact; rint rounds ties to even. */
static double round_to(double value, int digits, int emin)
{
    if (value == 0)
        return value;
    int e = ilogb(value);
    e = (e < emin ? emin : e) - digits;
    return ldexp(rint(ldexp(value, -e)), e);
}

int hc_weight_store(uint8_t *dst, double value, enum hc_dtype dtype)
{
    float f;
    uint32_t bits;

    switch (dtype) {
    case HC_F64:
        store_double(dst, value);
        return isfinite(value) != 0;
    case HC_F32:
        f = (float)value;
        memcpy(&bits, &f, sizeof bits);
        store32(dst, bits);
        return isfinite(f) != 0;
    case HC_BF16:
        f = (float)round_to(value, 7, -126);
        memcpy(&bits, &f, sizeof bits);
        store16(dst, (uint16_t)(bits >> 16));
        return isfinite(f) != 0;
    default:
        f = (float)(round_to(value, 10, -14) * 0x1p-112);
        memcpy(&bits, &f, sizeof bits);
        store16(dst, (uint16_t)((bits >> 16 & 0x8000) | (bits >> 13 & 0x7fff)));
        return fabs(f) < 0x1p-96; /* 65536 * 2^-112 */
    }
}
