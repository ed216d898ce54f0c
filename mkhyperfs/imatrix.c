#include "mkhyperfs/imatrix.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codec/bytes.h"
#include "mkhyperfs/gguf.h"

enum { PIECE = 16384 }; /* bytes of values that are looked at together */
/* Name, calls and values take 17 bytes at least. */
enum { LEAST_ENTRY = 17, MAX_TEXT = 65535 };

static const char *show(char buf[120], const char *name)
{
    return hfs_printable(buf, 120, name, (unsigned)strlen(name));
}

static float load_float(const uint8_t *p)
{
    uint32_t bits = load32(p);
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

struct sums {
    double values, roots; /* of the values, of their fourth roots */
};

/* Sums `count` f32 that are finite and not negative. */
static int sum_values(struct stream *s, const char *name, uint64_t count, struct sums *sums)
{
    uint8_t piece[PIECE];
    char shown[120];
    *sums = (struct sums){0};
    while (count > 0) {
        size_t n = count < PIECE / 4 ? (size_t)count : PIECE / 4;
        uint64_t start = s->at;
        int r = stream_read(s, piece, 4 * n, "an entry's values");
        if (r < 0)
            return r;
        for (size_t i = 0; i < n; i++) {
            double value = load_float(piece + 4 * i);
            if (!(value >= 0) || isinf(value))
                return stream_broken(s, start + 4 * i,
                                     "%s has the value %g, which is no sum of squares",
                                     show(shown, name), value);
            sums->values += value;
            sums->roots += sqrt(sqrt(value));
        }
        count -= n;
    }
    return 0;
}

/* Adds to e the `columns` values of one count; they are mean squares times `count`. */
static void add_matrix(struct imatrix_entry *e, uint64_t columns, const struct sums *sums,
                       double count)
{
    double mean = sums->roots / (double)columns;
    if (count > 0) {
        e->tokens += count;
        e->strength += mean * mean * mean * mean;
        e->squares += sums->values / (double)columns;
    }
}

/* An entry at the end of the list, which owns `name` from now on; *room entries fit. */
static struct imatrix_entry *add_entry(struct imatrix *im, size_t *room, char *name)
{
    if (im->count == *room) {
        size_t more = *room ? 2 * *room : 64;
        struct imatrix_entry *entries = realloc(im->entries, more * sizeof *entries);
        if (!entries) {
            free(name);
            return NULL;
        }
        im->entries = entries;
        *room = more;
    }
    struct imatrix_entry *e = &im->entries[im->count++];
    *e = (struct imatrix_entry){.name = name};
    return e;
}

static int by_name(const void *a, const void *b)
{
    const struct imatrix_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* ---- GGUF ---- */

static const char sums_suffix[] = ".in_sum2", counts_suffix[] = ".counts";

/* The name without the suffix, malloc'd. NULL: it does not end so, or out of memory. */
static int without_suffix(const char *name, const char *suffix, char **out)
{
    size_t len = strlen(name), tail = strlen(suffix);
    *out = NULL;
    if (len <= tail || strcmp(name + len - tail, suffix) != 0)
        return 0;
    *out = strndup(name, len - tail);
    return *out ? 1 : -ENOMEM;
}

static int check_pair(struct stream *s, const struct gguf_tensor *sums,
                      const struct gguf_tensor *counts)
{
    char name[120];
    show(name, sums->name);
    if (!counts)
        return stream_broken(s, sums->where, "%s has no counts beside it", name);
    if (sums->type != GGUF_F32 || counts->type != GGUF_F32)
        return stream_broken(s, sums->where, "%s or its counts are not F32", name);
    if (counts->elements == 0 || counts->elements > IMATRIX_MAX_COUNTS)
        return stream_broken(s, counts->where, "%s has %llu counts, not 1 to %d", name,
                             (unsigned long long)counts->elements, IMATRIX_MAX_COUNTS);
    if (sums->elements == 0 || sums->elements % counts->elements != 0)
        return stream_broken(s, sums->where, "%s has %llu values for %llu counts", name,
                             (unsigned long long)sums->elements,
                             (unsigned long long)counts->elements);
    return 0;
}

/* Reads the values of one pair of tensors, count by count. */
static int read_pair(struct stream *s, const struct gguf_tensor *sums,
                     const struct gguf_tensor *counts, struct imatrix_entry *e)
{
    uint64_t values_at = sums->offset;
    e->values = sums->elements;
    e->counts = counts->elements;
    for (uint64_t i = 0; i < e->counts; i++) {
        struct sums count, sum;
        stream_seek(s, counts->offset + 4 * i);
        int r = sum_values(s, counts->name, 1, &count);
        stream_seek(s, values_at);
        if (r == 0)
            r = sum_values(s, sums->name, e->values / e->counts, &sum);
        if (r < 0)
            return r;
        values_at = s->at;
        add_matrix(e, e->values / e->counts, &sum, count.values);
    }
    return 0;
}

static int add_tensor(struct stream *s, const struct gguf *g, const struct gguf_tensor *t,
                      struct imatrix *im, size_t *room)
{
    char *name, shown[120];
    int r = without_suffix(t->name, counts_suffix, &name);
    if (r > 0) {
        r = gguf_find(g, name, sums_suffix)
                ? 0
                : stream_broken(s, t->where, "%s has no sums beside it", show(shown, t->name));
        free(name);
        return r;
    }
    if (r == 0)
        r = without_suffix(t->name, sums_suffix, &name);
    if (r <= 0)
        return r < 0 ? hfs_fail(s->err, ENOMEM, "out of memory") : 0;
    struct imatrix_entry *e = add_entry(im, room, name);
    if (!e)
        return hfs_fail(s->err, ENOMEM, "out of memory");
    const struct gguf_tensor *counts = gguf_find(g, e->name, counts_suffix);
    r = check_pair(s, t, counts);
    return r < 0 ? r : read_pair(s, t, counts, e);
}

static int read_gguf(struct stream *s, struct imatrix *im)
{
    struct gguf g;
    char type[120];
    size_t room = 0;
    int r = gguf_read(s, &g);
    if (r == 0 && g.type && strcmp(g.type, "imatrix") != 0)
        r = hfs_fail(s->err, EBADMSG, "%s: is a GGUF file of type \"%s\", not an importance matrix",
                     s->shown, show(type, g.type));
    for (size_t i = 0; i < g.count && r == 0; i++)
        r = add_tensor(s, &g, &g.tensors[i], im, &room);
    if (r == 0 && im->count == 0)
        r = hfs_fail(s->err, EBADMSG,
                     "%s: is a GGUF file without an importance matrix: it has no tensor NAME%s",
                     s->shown, sums_suffix);
    gguf_free(&g);
    /* The tensors are sorted, but without their suffixes names may have another order. */
    if (r == 0)
        qsort(im->entries, im->count, sizeof *im->entries, by_name);
    return r;
}

/* ---- the older form ---- */

static int read_old_entry(struct stream *s, struct imatrix *im, size_t *room)
{
    uint32_t len, calls, values;
    uint64_t where = s->at;
    char *name, shown[120];
    int r = stream_u32(s, &len, "an entry");
    if (r == 0 && len == 0)
        r = stream_broken(s, where, "an entry without a name");
    if (r == 0)
        r = stream_text(s, len, GGUF_MAX_NAME, &name, "an entry's name");
    if (r < 0)
        return r;
    struct imatrix_entry *e = add_entry(im, room, name);
    if (!e)
        return hfs_fail(s->err, ENOMEM, "out of memory");
    r = stream_u32(s, &calls, "an entry");
    if (r == 0)
        r = stream_u32(s, &values, "an entry");
    if (r < 0)
        return r;
    if (calls > INT32_MAX || values > INT32_MAX || values == 0)
        return stream_broken(s, where, "%s has %d values of %d calls", show(shown, name),
                             (int32_t)values, (int32_t)calls);
    if (values > stream_left(s) / 4)
        return stream_broken(s, s->end, "the file ends within the values of %s", show(shown, name));
    e->values = values;
    e->counts = 1;
    struct sums sums;
    r = sum_values(s, name, values, &sums);
    if (r == 0)
        add_matrix(e, values, &sums, calls);
    return r;
}

/* What may stand behind the entries: calls, and the name of a text. */
static int read_old_end(struct stream *s)
{
    uint32_t calls, len = 0;
    char *text = NULL;
    int r = stream_left(s) ? stream_u32(s, &calls, "the number of calls") : 0;
    if (r == 0 && stream_left(s))
        r = stream_u32(s, &len, "the length of the text's name");
    if (r == 0)
        r = stream_text(s, len, MAX_TEXT, &text, "the text's name");
    free(text);
    if (r == 0 && stream_left(s))
        r = stream_broken(s, s->at, "%llu bytes follow the end of the importance matrix",
                          (unsigned long long)stream_left(s));
    return r;
}

static int read_old(struct stream *s, struct imatrix *im)
{
    uint32_t entries;
    size_t room = 0;
    char shown[120];
    int r = stream_u32(s, &entries, "its first number");
    if (r == 0 && (entries == 0 || entries > stream_left(s) / LEAST_ENTRY))
        r = hfs_fail(s->err, EBADMSG,
                     "%s: is neither GGUF nor llama.cpp's older form of an importance matrix",
                     s->shown);
    for (uint32_t i = 0; i < entries && r == 0; i++)
        r = read_old_entry(s, im, &room);
    if (r == 0)
        r = read_old_end(s);
    if (r < 0)
        return r;
    qsort(im->entries, im->count, sizeof *im->entries, by_name);
    for (size_t i = 1; i < im->count && r == 0; i++)
        if (strcmp(im->entries[i - 1].name, im->entries[i].name) == 0)
            r = hfs_fail(s->err, EBADMSG, "%s: has two entries of the name %s", s->shown,
                         show(shown, im->entries[i].name));
    return r;
}

/* ---- the whole ---- */

static int hash_file(struct stream *s, char hex[33])
{
    uint8_t piece[PIECE];
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return hfs_fail(s->err, ENOMEM, "out of memory");
    XXH3_128bits_reset(state);
    int r = 0;
    while (stream_left(s) > 0 && r == 0) {
        size_t n = stream_left(s) < PIECE ? (size_t)stream_left(s) : PIECE;
        r = stream_read(s, piece, n, "its content");
        if (r == 0)
            XXH3_128bits_update(state, piece, n);
    }
    XXH128_hash_t h = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    stream_seek(s, 0);
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
    return r;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static int read_open(int fd, const char *shown, struct imatrix *out, struct hfs_error *err)
{
    struct stat before, after;
    bool gguf;
    if (fstat(fd, &before) != 0)
        return hfs_fail(err, errno, "%s: cannot be examined: %s", shown, strerror(errno));
    if (!S_ISREG(before.st_mode))
        return hfs_fail(err, EINVAL, "%s: is not a regular file", shown);
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return hfs_fail(err, ENOMEM, "out of memory");
    *s = (struct stream){.fd = fd, .shown = shown, .err = err, .end = (uint64_t)before.st_size};
    int r = hash_file(s, out->hash);
    if (r == 0)
        r = gguf_magic(s, &gguf);
    if (r == 0)
        r = gguf ? read_gguf(s, out) : read_old(s, out);
    free(s);
    if (r == 0 && (fstat(fd, &after) != 0 || !same_file(&before, &after)))
        r = hfs_fail(err, ESTALE, "%s: changed while it was read", shown);
    return r;
}

int imatrix_read(const char *path, struct imatrix *out, struct hfs_error *err)
{
    char shown[400];
    memset(out, 0, sizeof *out);
    hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return hfs_fail(err, errno, "%s: cannot be opened: %s", shown, strerror(errno));
    int r = read_open(fd, shown, out, err);
    close(fd);
    return r;
}

void imatrix_free(struct imatrix *im)
{
    for (size_t i = 0; i < im->count; i++)
        free(im->entries[i].name);
    free(im->entries);
    memset(im, 0, sizeof *im);
}

const struct imatrix_entry *imatrix_find(const struct imatrix *im, const char *name)
{
    struct imatrix_entry key = {.name = (char *)name};
    return im->count ? bsearch(&key, im->entries, im->count, sizeof key, by_name) : NULL;
}

bool imatrix_energy(const struct imatrix_entry *e, uint64_t columns, double *energy)
{
    if (columns == 0 || e->values % columns != 0 || !(e->tokens > 0))
        return false;
    uint64_t matrices = e->values / columns;
    if (e->counts != matrices && e->counts != 1)
        return false;
    *energy = (double)columns * (e->strength / e->tokens);
    return *energy > 0 && *energy < HUGE_VAL;
}

double imatrix_peak(const struct imatrix_entry *e)
{
    return e->strength > 0 ? e->squares / e->strength : 1;
}
