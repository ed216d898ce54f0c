/* Little-endian loads and stores of any alignment, the same on every machine. */
#ifndef HYPERFS_CODEC_BYTES_H
#define HYPERFS_CODEC_BYTES_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define HC_LE16(x) __builtin_bswap16(x)
#define HC_LE32(x) __builtin_bswap32(x)
#define HC_LE64(x) __builtin_bswap64(x)
#else
#define HC_LE16(x) (x)
#define HC_LE32(x) (x)
#define HC_LE64(x) (x)
#endif

static inline uint16_t load16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return HC_LE16(v);
}

static inline uint32_t load32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return HC_LE32(v);
}

static inline uint64_t load64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return HC_LE64(v);
}

static inline double load_double(const void *p)
{
    uint64_t bits = load64(p);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline void store16(void *p, uint16_t v)
{
    v = HC_LE16(v);
    memcpy(p, &v, sizeof v);
}

static inline void store32(void *p, uint32_t v)
{
    v = HC_LE32(v);
    memcpy(p, &v, sizeof v);
}

static inline void store64(void *p, uint64_t v)
{
    v = HC_LE64(v);
    memcpy(p, &v, sizeof v);
}

static inline void store_double(void *p, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    store64(p, bits);
}

#endif
