#include "fs/error.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int hfs_fail(struct hfs_error *err, int code, const char *format, ...)
{
    if (err && !err->text[0]) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return -code;
}

unsigned hfs_utf8(const char *bytes, size_t len, uint32_t *point)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)bytes;
    unsigned n = s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (n == 0 || n > len)
        return 0;
    uint32_t c = s[0] & (0x7fu >> n);
    for (unsigned i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    bool surrogate = c >= 0xd800 && c <= 0xdfff;
    *point = c;
    return c >= least[n] && c <= 0x10ffff && !surrogate ? n : 0;
}

/* Length of the sequence at s if it stands for U+00A0 or above, else 0. Below are ASCII and the C1
 * controls, which some terminals obey. */
static unsigned printable_length(const unsigned char *s, unsigned len)
{
    uint32_t point;
    unsigned n = hfs_utf8((const char *)s, len, &point);
    return n > 0 && point >= 0xa0 ? n : 0;
}

const char *hfs_printable(char *buf, unsigned size, const char *name, unsigned len)
{
    const unsigned char *s = (const unsigned char *)name;
    unsigned out = 0;
    unsigned cut = 0; /* where "..." goes if the rest does not fit */
    if (size == 0)
        return buf;
    for (unsigned i = 0; i < len;) {
        char item[5];
        bool plain = s[i] >= 0x20 && s[i] < 0x7f;
        unsigned taken = plain ? 1 : printable_length(s + i, len - i);
        unsigned n = taken;
        if (taken) {
            memcpy(item, s + i, n);
        } else {
            n = (unsigned)snprintf(item, sizeof item, "\\x%02x", s[i]);
            taken = 1;
        }
        if (n >= size - out) {
            unsigned dots = size - 1 - cut < 3 ? size - 1 - cut : 3;
            memcpy(buf + cut, "...", dots);
            buf[cut + dots] = 0;
            return buf;
        }
        memcpy(buf + out, item, n);
        out += n;
        i += taken;
        if (out + 3 < size)
            cut = out;
    }
    buf[out] = 0;
    return buf;
}
