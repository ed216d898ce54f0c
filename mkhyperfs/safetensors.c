#include "mkhyperfs/safetensors.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec/bytes.h"
#include "mkhyperfs/json.h"

/* The header as a stream. jansson gets one byte a call, so that after each value the stream
 * stands right behind it and `at` is the place of whatever is wrong. */
struct reader {
    int fd;
    const char *shown;
    struct hfs_error *err;
    uint64_t at, end; /* next byte of the file, end of the header */
    uint64_t limit;   /* a value may not go on beyond */
    int status;       /* errno of a failed read, negative */
    uint8_t buf[64 << 10];
    size_t have, used;
};

struct list {
    struct st_tensor *tensors;
    size_t count, room;
};

static int broken(struct reader *r, uint64_t at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int broken(struct reader *r, uint64_t at, const char *format, ...)
{
    char why[500];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    return hfs_fail(r->err, EBADMSG, "%s: byte %llu: %s", r->shown, (unsigned long long)at, why);
}

/* A tensor's name for a message: printable and not too long. */
static const char *show(char buf[120], const char *name)
{
    return hfs_printable(buf, 120, name, (unsigned)strlen(name));
}

/* Reads up to len bytes, all of them unless the file ends before. */
static ssize_t read_at(int fd, void *buf, size_t len, uint64_t offset)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(fd, (uint8_t *)buf + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/* The next byte without taking it, or -1: end of the header, or r->status says why. */
static int peek(struct reader *r)
{
    if (r->at == r->end || r->status < 0)
        return -1;
    if (r->used == r->have) {
        uint64_t left = r->end - r->at;
        size_t want = left < sizeof r->buf ? (size_t)left : sizeof r->buf;
        ssize_t n = read_at(r->fd, r->buf, want, r->at);
        if (n <= 0) {
            r->status = n < 0 ? (int)n : -ESTALE;
            hfs_fail(r->err, -r->status, "%s: the header cannot be read at byte %llu: %s", r->shown,
                     (unsigned long long)r->at, n < 0 ? strerror((int)-n) : "the file ends there");
            return -1;
        }
        r->have = (size_t)n;
        r->used = 0;
    }
    return r->buf[r->used];
}

static int take(struct reader *r)
{
    int c = peek(r);
    if (c >= 0) {
        r->used++;
        r->at++;
    }
    return c;
}

static int skip_space(struct reader *r)
{
    int c = peek(r);
    while (c == ' ' || c == '\n' || c == '\r' || c == '\t') {
        take(r);
        c = peek(r);
    }
    return c;
}

/* Takes the character `want`, after white space. */
static int expect(struct reader *r, char want, const char *what)
{
    int c = skip_space(r);
    if (c == want) {
        take(r);
        return 0;
    }
    if (r->status < 0)
        return r->status;
    return c < 0 ? broken(r, r->at, "the header ends before %s", what)
                 : broken(r, r->at, "the header's JSON is damaged: expected %s", what);
}

static size_t give_byte(void *buffer, size_t size, void *ctx)
{
    struct reader *r = ctx;
    int c = size == 0 || r->at == r->limit ? -1 : take(r);
    if (c < 0)
        return 0;
    *(char *)buffer = (char)c;
    return 1;
}

/* Reads one value that begins with `first` (a string or an object: such a value ends with its
 * last character, so jansson reads no byte too many). The limit is in bytes. */
static int value(struct reader *r, char first, const char *what, uint64_t limit, json_t **out)
{
    int c = skip_space(r);
    if (r->status < 0)
        return r->status;
    if (c < 0)
        return broken(r, r->at, "the header ends before %s", what);
    if (c != first)
        return broken(r, r->at, "the header's JSON is damaged: expected %s", what);
    uint64_t start = r->at;
    r->limit = r->end - r->at > limit ? r->at + limit : r->end;
    json_error_t e;
    int status = mk_json_load(
        give_byte, r, JSON_DISABLE_EOF_CHECK | JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, out, &e);
    if (status == 0)
        return 0;
    if (r->status < 0)
        return r->status;
    if (status == -ENOMEM)
        return hfs_fail(r->err, ENOMEM, "out of memory");
    if (r->at == r->end)
        return broken(r, r->at, "the header ends within %s", what);
    if (r->at == r->limit)
        return broken(r, start, "%s is longer than %llu bytes", what, (unsigned long long)limit);
    char text[200];
    hfs_printable(text, sizeof text, e.text, (unsigned)strlen(e.text));
    return broken(r, r->at - 1, "the header's JSON is damaged: %s", text);
}

/* Reads "__metadata__": an object of strings. One pair at a time, as it can be large. */
static int metadata(struct reader *r)
{
    int status = expect(r, '{', "'{', as __metadata__ maps strings to strings");
    if (status < 0)
        return status;
    if (skip_space(r) == '}') {
        take(r);
        return 0;
    }
    for (;;) {
        json_t *text;
        status = value(r, '"', "a key of __metadata__, a string", ST_MAX_HEADER, &text);
        if (status < 0)
            return status;
        json_decref(text);
        status = expect(r, ':', "':'");
        if (status == 0)
            status = value(r, '"', "a value of __metadata__, a string", ST_MAX_HEADER, &text);
        if (status < 0)
            return status;
        json_decref(text);
        if (skip_space(r) == '}') {
            take(r);
            return 0;
        }
        status = expect(r, ',', "',' or '}'");
        if (status < 0)
            return status;
    }
}

/* ---- one tensor ---- */

static int read_dims(struct reader *r, const json_t *shape, struct st_tensor *t)
{
    char name[120];
    show(name, t->name);
    if (!json_is_array(shape))
        return broken(r, t->where, "tensor %s has no \"shape\"", name);
    size_t rank = json_array_size(shape);
    if (rank > ST_MAX_RANK)
        return broken(r, t->where, "tensor %s has %zu dimensions", name, rank);
    t->rank = (unsigned)rank;
    t->dims = rank ? malloc(rank * sizeof *t->dims) : NULL;
    if (rank && !t->dims)
        return hfs_fail(r->err, ENOMEM, "out of memory");
    t->elements = 1;
    for (size_t i = 0; i < rank; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return broken(r, t->where, "dimension %zu of tensor %s is no natural number", i, name);
        t->dims[i] = (uint64_t)json_integer_value(dim);
        if (__builtin_mul_overflow(t->elements, t->dims[i], &t->elements))
            return broken(r, t->where,
                          "the shape of tensor %s has more elements than 64 bits count", name);
    }
    return 0;
}

/* data_offsets against the data area and against the shape. */
static int read_offsets(struct reader *r, const json_t *offsets, uint64_t file_size,
                        struct st_tensor *t)
{
    char name[120];
    show(name, t->name);
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e) ||
        json_integer_value(b) < 0 || json_integer_value(e) < 0)
        return broken(r, t->where, "tensor %s has no \"data_offsets\" of two natural numbers",
                      name);
    uint64_t begin = (uint64_t)json_integer_value(b), end = (uint64_t)json_integer_value(e);
    uint64_t data = file_size - r->end;
    if (begin > end)
        return broken(r, t->where, "tensor %s ends at %llu, before it begins at %llu", name,
                      (unsigned long long)end, (unsigned long long)begin);
    if (end > data)
        return broken(r, t->where, "tensor %s ends at byte %llu of the data, which has %llu", name,
                      (unsigned long long)end, (unsigned long long)data);
    uint64_t bits;
    if (__builtin_mul_overflow(t->elements, (uint64_t)hc_dtype_bits(t->dtype), &bits))
        return broken(r, t->where, "the shape of tensor %s has more bits than 64 bits count", name);
    if (bits % 8)
        return broken(r, t->where, "tensor %s has %llu bits, which are no whole bytes", name,
                      (unsigned long long)bits);
    if (bits / 8 != end - begin)
        return broken(r, t->where, "tensor %s has %llu bytes of data, but its shape needs %llu",
                      name, (unsigned long long)(end - begin), (unsigned long long)(bits / 8));
    t->begin = r->end + begin;
    t->end = r->end + end;
    return 0;
}

static int read_tensor(struct reader *r, uint64_t file_size, struct st_tensor *t)
{
    json_t *info;
    int status = value(r, '{', "'{' of a tensor's description", ST_MAX_VALUE, &info);
    if (status < 0)
        return status;
    char name[120];
    const json_t *dtype = json_object_get(info, "dtype");
    t->dtype = json_is_string(dtype)
                   ? hc_dtype_parse(json_string_value(dtype), json_string_length(dtype))
                   : HC_DTYPE_NONE;
    if (!json_is_string(dtype)) {
        status = broken(r, t->where, "tensor %s has no \"dtype\"", show(name, t->name));
    } else if (t->dtype == HC_DTYPE_NONE) {
        char type[120];
        status = broken(r, t->where, "tensor %s has the unknown dtype %s", show(name, t->name),
                        show(type, json_string_value(dtype)));
    } else {
        status = read_dims(r, json_object_get(info, "shape"), t);
    }
    if (status == 0)
        status = read_offsets(r, json_object_get(info, "data_offsets"), file_size, t);
    json_decref(info);
    return status;
}

/* ---- the whole ---- */

static struct st_tensor *next_tensor(struct list *l)
{
    if (l->count == l->room) {
        size_t room = l->room ? 2 * l->room : 64;
        struct st_tensor *more = realloc(l->tensors, room * sizeof *more);
        if (!more)
            return NULL;
        l->tensors = more;
        l->room = room;
    }
    struct st_tensor *t = &l->tensors[l->count++];
    memset(t, 0, sizeof *t);
    return t;
}

/* One "name": value pair of the top object. */
static int entry(struct reader *r, uint64_t file_size, struct list *l, bool *have_metadata)
{
    json_t *key;
    skip_space(r);
    uint64_t where = r->at;
    int status = value(r, '"', "a tensor's name", ST_MAX_VALUE, &key);
    if (status < 0)
        return status;
    char *name = strdup(json_string_value(key));
    json_decref(key);
    if (!name)
        return hfs_fail(r->err, ENOMEM, "out of memory");
    status = expect(r, ':', "':'");
    if (status == 0 && strcmp(name, "__metadata__") == 0) {
        free(name);
        if (*have_metadata)
            return broken(r, where, "__metadata__ stands here a second time");
        *have_metadata = true;
        return metadata(r);
    }
    struct st_tensor *t = status == 0 ? next_tensor(l) : NULL;
    if (!t) {
        free(name);
        return status < 0 ? status : hfs_fail(r->err, ENOMEM, "out of memory");
    }
    t->name = name;
    t->where = where;
    return read_tensor(r, file_size, t);
}

static int entries(struct reader *r, uint64_t file_size, struct list *l)
{
    bool have_metadata = false;
    if (peek(r) != '{')
        return r->status < 0 ? r->status : broken(r, r->at, "the header does not begin with '{'");
    take(r);
    if (skip_space(r) == '}') {
        take(r);
    } else {
        for (;;) {
            int status = entry(r, file_size, l, &have_metadata);
            if (status < 0)
                return status;
            if (skip_space(r) == '}') {
                take(r);
                break;
            }
            status = expect(r, ',', "',' or '}'");
            if (status < 0)
                return status;
        }
    }
    while (peek(r) == ' ')
        take(r);
    if (r->status < 0)
        return r->status;
    return r->at == r->end ? 0 : broken(r, r->at, "something other than spaces follows the header");
}

static int by_name(const void *a, const void *b)
{
    const struct st_tensor *x = *(struct st_tensor *const *)a, *y = *(struct st_tensor *const *)b;
    int order = strcmp(x->name, y->name);
    return order ? order : x->where < y->where ? -1 : 1;
}

static int check_names(struct reader *r, const struct list *l)
{
    const struct st_tensor **sorted = malloc((l->count + 1) * sizeof *sorted);
    if (!sorted)
        return hfs_fail(r->err, ENOMEM, "out of memory");
    for (size_t i = 0; i < l->count; i++)
        sorted[i] = &l->tensors[i];
    qsort(sorted, l->count, sizeof *sorted, by_name);
    int status = 0;
    char name[120];
    for (size_t i = 1; i < l->count && status == 0; i++)
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            status = broken(r, sorted[i]->where, "tensor %s stands here a second time",
                            show(name, sorted[i]->name));
    free(sorted);
    return status;
}

/* Empty tensors stand before the one that begins at the same byte. */
static int by_data(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->where < y->where ? -1 : x->where > y->where;
}

static int check_data(struct reader *r, uint64_t file_size, struct list *l)
{
    char name[120], other[120];
    uint64_t at = r->end;
    if (l->count)
        qsort(l->tensors, l->count, sizeof *l->tensors, by_data);
    for (size_t i = 0; i < l->count; i++) {
        const struct st_tensor *t = &l->tensors[i];
        if (t->begin < at)
            return broken(r, t->where, "tensors %s and %s overlap", show(other, t[-1].name),
                          show(name, t->name));
        if (t->begin > at)
            return broken(r, t->where, "%llu bytes before tensor %s belong to no tensor",
                          (unsigned long long)(t->begin - at), show(name, t->name));
        at = t->end;
    }
    if (at != file_size)
        return broken(r, at, "the %llu bytes from here to the end of the file belong to no tensor",
                      (unsigned long long)(file_size - at));
    return 0;
}

/* The first eight bytes. */
static int read_length(struct reader *r, uint64_t file_size)
{
    uint8_t first[24] = {0};
    ssize_t n = read_at(r->fd, first, sizeof first, 0);
    if (n < 0)
        return hfs_fail(r->err, (int)-n, "%s: cannot be read: %s", r->shown, strerror((int)-n));
    if (memcmp(first, "version https://git-lfs", 23) == 0)
        return broken(r, 0,
                      "this is a Git LFS pointer, not the file itself ('git lfs pull' gets it)");
    if (file_size < 8)
        return broken(r, file_size, "the file ends within its first 8 bytes");
    uint64_t length = load64(first);
    if (length > ST_MAX_HEADER)
        return broken(r, 0, "the header's length is %llu bytes, more than the format's 100,000,000",
                      (unsigned long long)length);
    if (length > file_size - 8)
        return broken(r, 0, "the header's length is %llu bytes, but only %llu follow",
                      (unsigned long long)length, (unsigned long long)(file_size - 8));
    r->at = 8;
    r->end = 8 + length;
    return 0;
}

int st_read(int fd, uint64_t file_size, const char *shown, struct st_header *out,
            struct hfs_error *err)
{
    struct list l = {0};
    memset(out, 0, sizeof *out);
    struct reader *r = calloc(1, sizeof *r);
    if (!r)
        return hfs_fail(err, ENOMEM, "out of memory");
    r->fd = fd;
    r->shown = shown;
    r->err = err;
    int status = read_length(r, file_size);
    if (status == 0)
        status = entries(r, file_size, &l);
    if (status == 0)
        status = check_names(r, &l);
    if (status == 0)
        status = check_data(r, file_size, &l);
    *out = (struct st_header){.bytes = r->end, .tensors = l.tensors, .count = l.count};
    free(r);
    if (status < 0)
        st_free(out);
    return status;
}

void st_free(struct st_header *h)
{
    for (size_t i = 0; i < h->count; i++) {
        free(h->tensors[i].name);
        free(h->tensors[i].dims);
    }
    free(h->tensors);
    memset(h, 0, sizeof *h);
}
