/* Files with equal content: of the same size, with the same first and last bytes, and then
 * compared whole. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fs/ui.h"
#include "mkhyperfs/plan.h"

enum { END = 64 << 10, CHUNK = 1 << 20 };

struct candidate {
    struct mk_file *file;
    size_t place; /* in the order of the walk */
    uint64_t print;
};

/* Hash of the first and last END bytes. */
static int fingerprint(struct candidate *c, uint8_t *buf, struct hfs_error *err)
{
    uint64_t size = (uint64_t)c->file->st.st_size;
    size_t n = size < END ? (size_t)size : END;
    int fd;
    int r = mk_file_open(c->file, &fd, err);
    if (r < 0)
        return r;
    r = mk_file_read(c->file, fd, buf, n, 0, err);
    if (r == 0)
        r = mk_file_read(c->file, fd, buf + n, n, size - n, err);
    close(fd);
    c->print = XXH3_64bits(buf, 2 * n);
    return r;
}

/* Compares two files of one size whole; buf has room for two chunks. */
static int equal_content(const struct mk_file *a, const struct mk_file *b, uint8_t *buf,
                         uint64_t *done, bool *equal, struct hfs_error *err)
{
    uint64_t size = (uint64_t)a->st.st_size;
    int fa = -1, fb = -1;
    int r = mk_file_open(a, &fa, err);
    if (r == 0)
        r = mk_file_open(b, &fb, err);
    *equal = true;
    for (uint64_t at = 0; at < size && *equal && r == 0;) {
        size_t n = size - at < CHUNK ? (size_t)(size - at) : CHUNK;
        r = mk_file_read(a, fa, buf, n, at, err);
        if (r == 0)
            r = mk_file_read(b, fb, buf + CHUNK, n, at, err);
        *equal = r == 0 && memcmp(buf, buf + CHUNK, n) == 0;
        at += n;
        *done += 2 * n;
        ui_progress(*done);
    }
    if (fa >= 0)
        close(fa);
    if (fb >= 0)
        close(fb);
    return r;
}

/* Equal bytes share their code only if both files are to be treated alike. */
static bool equal_plans(const struct mk_plan *a, const struct mk_plan *b)
{
    if (a->safetensors != b->safetensors || a->nitems != b->nitems)
        return false;
    for (size_t i = 0; i < a->nitems; i++) {
        const struct mk_item *x = &a->items[i], *y = &b->items[i];
        if (x->offset != y->offset || x->length != y->length ||
            x->decision.lossy != y->decision.lossy || x->decision.fixed != y->decision.fixed ||
            x->decision.offset != y->decision.offset)
            return false;
    }
    return true;
}

static int by_size(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->file->st.st_size != y->file->st.st_size)
        return x->file->st.st_size < y->file->st.st_size ? -1 : 1;
    return x->place < y->place ? -1 : 1;
}

static int by_print(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->print != y->print)
        return x->print < y->print ? -1 : 1;
    return x->place < y->place ? -1 : 1;
}

/* Files c[0..count) have one size and one fingerprint and stand in the order of the walk. */
static int compare_group(struct candidate *c, size_t count, uint8_t *buf, uint64_t *done,
                         struct hfs_error *err)
{
    for (size_t i = 1; i < count; i++) {
        struct mk_plan *plan = c[i].file->plan;
        for (size_t k = 0; k < i && !plan->same; k++) {
            bool equal;
            if (c[k].file->plan->same || !equal_plans(c[k].file->plan, plan))
                continue;
            int r = equal_content(c[k].file, c[i].file, buf, done, &equal, err);
            if (r < 0)
                return r;
            if (equal)
                plan->same = c[k].file;
        }
    }
    return 0;
}

/* Files c[0..count) have one size. */
static int split_group(struct candidate *c, size_t count, uint8_t *buf, uint64_t *done,
                       struct hfs_error *err)
{
    for (size_t i = 0; i < count; i++) {
        int r = fingerprint(&c[i], buf, err);
        if (r < 0)
            return r;
    }
    qsort(c, count, sizeof *c, by_print);
    for (size_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && c[end].print == c[i].print; end++)
            ;
        int r = compare_group(c + i, end - i, buf, done, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int mk_find_same(struct mk_source *src, struct hfs_error *err)
{
    struct candidate *c = malloc((src->nfiles + 1) * sizeof *c);
    uint8_t *buf = malloc(2 * CHUNK);
    uint64_t done = 0;
    size_t n = 0;
    int r = c && buf ? 0 : hfs_fail(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < src->nfiles && r == 0; i++)
        if (src->files[i]->st.st_size > 0)
            c[n++] = (struct candidate){.file = src->files[i], .place = i};
    if (r == 0 && n)
        qsort(c, n, sizeof *c, by_size);
    ui_progress_start("comparing", 0);
    for (size_t i = 0, end; i < n && r == 0; i = end) {
        for (end = i + 1; end < n && c[end].file->st.st_size == c[i].file->st.st_size; end++)
            ;
        if (end - i > 1)
            r = split_group(c + i, end - i, buf, &done, err);
    }
    ui_progress_end();
    free(buf);
    free(c);
    return r;
}
