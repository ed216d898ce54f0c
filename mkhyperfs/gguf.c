#include "mkhyperfs/gguf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"

/* Types of values, and the bytes of those that have a fixed size. */
enum { VALUE_U32 = 4, VALUE_STRING = 8, VALUE_ARRAY = 9 };
static const uint8_t value_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

enum { MAX_KEY = 65535, MAX_TYPE = 100, DEFAULT_ALIGNMENT = 32, LEAST_TENSOR = 24 };

int gguf_magic(struct stream *s, bool *is)
{
    uint8_t magic[4];
    *is = false;
    if (stream_left(s) < sizeof magic)
        return 0;
    int r = stream_read(s, magic, sizeof magic, "its first bytes");
    *is = r == 0 && memcmp(magic, "GGUF", 4) == 0;
    if (!*is)
        stream_seek(s, 0);
    return r;
}

/* ---- keys ---- */

static int skip_string(struct stream *s)
{
    uint64_t len;
    int r = stream_u64(s, &len, "a string");
    return r < 0 ? r : stream_skip(s, len, "a string");
}

static int skip_array(struct stream *s)
{
    uint64_t start = s->at, count;
    uint32_t type;
    int r = stream_u32(s, &type, "an array");
    if (r == 0)
        r = stream_u64(s, &count, "an array");
    if (r < 0)
        return r;
    if (type == VALUE_ARRAY || type >= sizeof value_bytes)
        return stream_broken(s, start, "an array of values of type %u", type);
    uint64_t least = type == VALUE_STRING ? 8 : value_bytes[type];
    if (count > stream_left(s) / least)
        return stream_broken(s, start, "an array of %llu values is longer than the file",
                             (unsigned long long)count);
    if (type != VALUE_STRING)
        return stream_skip(s, count * least, "an array");
    for (uint64_t i = 0; i < count && r == 0; i++)
        r = skip_string(s);
    return r;
}

static int skip_value(struct stream *s, uint32_t type)
{
    if (type == VALUE_STRING)
        return skip_string(s);
    if (type == VALUE_ARRAY)
        return skip_array(s);
    if (type >= sizeof value_bytes)
        return stream_broken(s, s->at - 4, "a value of the unknown type %u", type);
    return stream_skip(s, value_bytes[type], "a value");
}

static int read_general_type(struct stream *s, struct gguf *g)
{
    uint64_t len;
    if (g->type)
        return stream_broken(s, s->at, "general.type stands here a second time");
    int r = stream_u64(s, &len, "general.type");
    return r < 0 ? r : stream_text(s, len, MAX_TYPE, &g->type, "general.type");
}

static int read_alignment(struct stream *s, uint32_t *alignment)
{
    uint64_t start = s->at;
    int r = stream_u32(s, alignment, "general.alignment");
    if (r == 0 && (*alignment < 8 || *alignment > 1 << 20 || (*alignment & (*alignment - 1))))
        r = stream_broken(s, start, "general.alignment is %u, not a power of two from 8 to 2^20",
                          *alignment);
    return r;
}

static int read_key(struct stream *s, struct gguf *g, uint32_t *alignment)
{
    uint64_t len;
    uint32_t type;
    char *key = NULL;
    int r = stream_u64(s, &len, "a key");
    if (r == 0)
        r = stream_text(s, len, MAX_KEY, &key, "a key");
    if (r == 0)
        r = stream_u32(s, &type, "a key");
    if (r == 0) {
        if (strcmp(key, "general.type") == 0 && type == VALUE_STRING)
            r = read_general_type(s, g);
        else if (strcmp(key, "general.alignment") == 0 && type == VALUE_U32)
            r = read_alignment(s, alignment);
        else
            r = skip_value(s, type);
    }
    free(key);
    return r;
}

/* ---- tensors ---- */

static int read_dims(struct stream *s, struct gguf_tensor *t)
{
    uint32_t rank;
    int r = stream_u32(s, &rank, "a tensor's description");
    if (r < 0)
        return r;
    if (rank > GGUF_MAX_RANK)
        return stream_broken(s, t->where, "a tensor of %u dimensions, more than %d", rank,
                             GGUF_MAX_RANK);
    t->rank = rank;
    t->elements = 1;
    for (unsigned i = 0; i < GGUF_MAX_RANK; i++) {
        t->dims[i] = 1;
        if (i < rank)
            r = stream_u64(s, &t->dims[i], "a tensor's description");
        if (r < 0)
            return r;
        if (t->dims[i] && t->elements > (UINT64_C(1) << 61) / t->dims[i])
            return stream_broken(s, t->where, "a tensor of 2^61 elements or more");
        t->elements *= t->dims[i];
    }
    return 0;
}

static int read_tensor(struct stream *s, struct gguf_tensor *t)
{
    uint64_t len;
    t->where = s->at;
    int r = stream_u64(s, &len, "a tensor's description");
    if (r == 0)
        r = stream_text(s, len, GGUF_MAX_NAME, &t->name, "a tensor's name");
    if (r == 0)
        r = read_dims(s, t);
    if (r == 0)
        r = stream_u32(s, &t->type, "a tensor's description");
    if (r == 0)
        r = stream_u64(s, &t->offset, "a tensor's description");
    return r;
}

/* Offsets count from where the data begins, a multiple of the alignment behind the header. */
static int place_tensors(struct stream *s, struct gguf *g, uint32_t alignment)
{
    uint64_t padding = -s->at & (alignment - 1);
    if (g->count == 0)
        return 0;
    if (padding > stream_left(s))
        return stream_broken(s, s->end, "the file ends before its tensors' data");
    uint64_t start = s->at + padding, room = s->end - start;
    for (size_t i = 0; i < g->count; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        uint64_t least = t->type == GGUF_F32 ? 4 * t->elements : 0;
        char name[120];
        if (t->offset > room || least > room - t->offset)
            return stream_broken(
                s, t->where, "the data of tensor %s lies beyond the end of the file",
                hfs_printable(name, sizeof name, t->name, (unsigned)strlen(t->name)));
        t->offset += start;
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct gguf_tensor *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : x->where < y->where ? -1 : x->where > y->where;
}

static int sort_tensors(struct stream *s, struct gguf *g)
{
    char name[120];
    if (g->count)
        qsort(g->tensors, g->count, sizeof *g->tensors, by_name);
    for (size_t i = 1; i < g->count; i++)
        if (strcmp(g->tensors[i - 1].name, g->tensors[i].name) == 0)
            return stream_broken(s, g->tensors[i].where, "tensor %s stands here a second time",
                                 hfs_printable(name, sizeof name, g->tensors[i].name,
                                               (unsigned)strlen(g->tensors[i].name)));
    return 0;
}

static int read_tensors(struct stream *s, struct gguf *g, uint64_t count)
{
    size_t room = 0;
    int r = 0;
    for (uint64_t i = 0; i < count && r == 0; i++) {
        if (g->count == room) {
            room = room ? 2 * room : 64;
            struct gguf_tensor *more = realloc(g->tensors, room * sizeof *more);
            if (!more)
                return hfs_fail(s->err, ENOMEM, "out of memory");
            g->tensors = more;
        }
        struct gguf_tensor *t = &g->tensors[g->count++];
        memset(t, 0, sizeof *t);
        r = read_tensor(s, t);
    }
    return r;
}

/* ---- the whole ---- */

static int read_counts(struct stream *s, uint64_t *tensors, uint64_t *keys)
{
    uint32_t version;
    int r = stream_u32(s, &version, "the header");
    if (r < 0)
        return r;
    if (version != 0 && (version & 0xffff) == 0)
        return stream_broken(s, 4, "the file is big-endian; only little-endian GGUF is read");
    if (version < 2 || version > 3)
        return stream_broken(s, 4, "GGUF of version %u; versions 2 and 3 are read", version);
    r = stream_u64(s, tensors, "the header");
    if (r == 0)
        r = stream_u64(s, keys, "the header");
    if (r == 0 && (*tensors > GGUF_MAX_TENSORS || *tensors > stream_left(s) / LEAST_TENSOR))
        r = stream_broken(s, 8, "%llu tensors are more than the file can have",
                          (unsigned long long)*tensors);
    return r;
}

int gguf_read(struct stream *s, struct gguf *out)
{
    uint64_t tensors = 0, keys = 0;
    uint32_t alignment = DEFAULT_ALIGNMENT;
    memset(out, 0, sizeof *out);
    int r = read_counts(s, &tensors, &keys);
    for (uint64_t i = 0; i < keys && r == 0; i++)
        r = read_key(s, out, &alignment);
    if (r == 0)
        r = read_tensors(s, out, tensors);
    if (r == 0)
        r = place_tensors(s, out, alignment);
    return r == 0 ? sort_tensors(s, out) : r;
}

void gguf_free(struct gguf *g)
{
    for (size_t i = 0; i < g->count; i++)
        free(g->tensors[i].name);
    free(g->tensors);
    free(g->type);
    memset(g, 0, sizeof *g);
}

const struct gguf_tensor *gguf_find(const struct gguf *g, const char *prefix, const char *suffix)
{
    size_t len = strlen(prefix), low = 0, high = g->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const char *name = g->tensors[middle].name;
        int order = strncmp(name, prefix, len);
        if (order == 0)
            order = strcmp(name + len, suffix);
        if (order == 0)
            return &g->tensors[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
