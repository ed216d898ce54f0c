#include "mkhyperfs/stream.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec/bytes.h"

int stream_broken(struct stream *s, uint64_t at, const char *format, ...)
{
    char why[500];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    return hfs_fail(s->err, EBADMSG, "%s: byte %llu: %s", s->shown, (unsigned long long)at, why);
}

/* Fills the empty buffer; the file has at least one byte more. */
static int fill(struct stream *s)
{
    uint64_t left = stream_left(s);
    size_t want = left < sizeof s->buf ? (size_t)left : sizeof s->buf;
    ssize_t n;
    do
        n = pread(s->fd, s->buf, want, (off_t)s->at);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return hfs_fail(s->err, n < 0 ? errno : ESTALE, "%s: cannot be read at byte %llu: %s",
                        s->shown, (unsigned long long)s->at,
                        n < 0 ? strerror(errno) : "the file became shorter");
    s->have = (size_t)n;
    s->used = 0;
    return 0;
}

static int ends_within(struct stream *s, const char *what)
{
    return stream_broken(s, s->end, "the file ends within %s", what);
}

int stream_read(struct stream *s, void *out, size_t len, const char *what)
{
    uint8_t *to = out;
    if (len > stream_left(s))
        return ends_within(s, what);
    while (len > 0) {
        int r = s->used == s->have ? fill(s) : 0;
        if (r < 0)
            return r;
        size_t n = s->have - s->used < len ? s->have - s->used : len;
        memcpy(to, s->buf + s->used, n);
        s->used += n;
        s->at += n;
        to += n;
        len -= n;
    }
    return 0;
}

int stream_u32(struct stream *s, uint32_t *out, const char *what)
{
    uint8_t bytes[4] = {0};
    int r = stream_read(s, bytes, sizeof bytes, what);
    *out = load32(bytes);
    return r;
}

int stream_u64(struct stream *s, uint64_t *out, const char *what)
{
    uint8_t bytes[8] = {0};
    int r = stream_read(s, bytes, sizeof bytes, what);
    *out = load64(bytes);
    return r;
}

int stream_skip(struct stream *s, uint64_t len, const char *what)
{
    if (len > stream_left(s))
        return ends_within(s, what);
    if (len <= s->have - s->used) {
        s->used += (size_t)len;
        s->at += len;
    } else {
        stream_seek(s, s->at + len);
    }
    return 0;
}

int stream_text(struct stream *s, uint64_t len, uint64_t limit, char **out, const char *what)
{
    uint64_t start = s->at;
    *out = NULL;
    if (len > limit)
        return stream_broken(s, start, "%s is %llu bytes long, more than %llu", what,
                             (unsigned long long)len, (unsigned long long)limit);
    if (len > stream_left(s))
        return ends_within(s, what);
    char *text = malloc((size_t)len + 1);
    if (!text)
        return hfs_fail(s->err, ENOMEM, "out of memory");
    int r = stream_read(s, text, (size_t)len, what);
    text[len] = 0;
    if (r == 0 && strlen(text) != len)
        r = stream_broken(s, start, "%s contains a NUL", what);
    if (r < 0) {
        free(text);
        return r;
    }
    *out = text;
    return 0;
}

void stream_seek(struct stream *s, uint64_t to)
{
    s->at = to;
    s->have = s->used = 0;
}
