/* Errors that cross a module's border: a negative errno and one sentence.
 *
 * A function that takes a struct hfs_error fills it whenever it returns a negative errno:
 * the sentence names the file, what is wrong and, where there is something, what to do. The
 * first error stays: a later hfs_fail on the same struct does not overwrite the text.
 */
#ifndef HYPERFS_FS_ERROR_H
#define HYPERFS_FS_ERROR_H

#include <stddef.h>
#include <stdint.h>

struct hfs_error {
    char text[768];
};

/* Formats the sentence (no newline, no program name); returns -code, code > 0. err may be NULL. */
int hfs_fail(struct hfs_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Bytes outside printable ASCII of a name from an image or a file become \xNN, so that a
 * hostile name cannot write control sequences to a terminal. Valid UTF-8 above U+009F stays.
 * Returns buf. Truncates with "..." to size. */
const char *hfs_printable(char *buf, unsigned size, const char *name, unsigned len);

/* Length of the well-formed UTF-8 sequence of 2 to 4 bytes at s (len > 0 bytes), its code point in
 * *point; 0 for ASCII and for bytes that are no UTF-8. */
unsigned hfs_utf8(const char *s, size_t len, uint32_t *point);

#endif
