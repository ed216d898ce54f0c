/* A file of binary records read from front to back, little-endian.
 *
 * Every read is compared with what is left of the file, by subtraction, before it is made. A file
 * that breaks its format is -EBADMSG and a sentence with the file's name and the byte. One thread
 * a stream. The stream does not own fd, shown and err.
 */
#ifndef HYPERFS_MKHYPERFS_STREAM_H
#define HYPERFS_MKHYPERFS_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "fs/error.h"

struct stream {
    int fd;
    const char *shown; /* the file's name for messages */
    struct hfs_error *err;
    uint64_t at, end; /* next byte, bytes of the file */
    size_t have, used;
    uint8_t buf[64 << 10];
};

/* Fails with "SHOWN: byte AT: ..."; returns -EBADMSG. */
int stream_broken(struct stream *s, uint64_t at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The next len bytes; `what` names them for "the file ends within WHAT". -EBADMSG, -ESTALE where
 * the file became shorter, -EIO and the like. */
int stream_read(struct stream *s, void *out, size_t len, const char *what);
int stream_u32(struct stream *s, uint32_t *out, const char *what);
int stream_u64(struct stream *s, uint64_t *out, const char *what);
/* Passes over len bytes. */
int stream_skip(struct stream *s, uint64_t len, const char *what);
/* len bytes of text without NUL, terminated, malloc'd; -EBADMSG if it is longer than `limit`. */
int stream_text(struct stream *s, uint64_t len, uint64_t limit, char **out, const char *what);
/* Goes to a byte of the file; `to` is at most s->end. */
void stream_seek(struct stream *s, uint64_t to);

static inline uint64_t stream_left(const struct stream *s)
{
    return s->end - s->at;
}

#endif
