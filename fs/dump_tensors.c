/* dump.hyperfs --tensors: one line for each tensor of each safetensors file. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"
#include "fs/dump.h"
#include "fs/walk.h"

/* Tensor records in the order of their files, so that one walk through the tree lists them. */
struct ref {
    uint32_t inode;
    uint64_t tensor;
};

enum { MAX_SHAPE = 28 }; /* longer shapes push their line to the right */

struct table {
    struct dump *d;
    struct ref *refs;
    uint64_t count;
    int dtype, shape; /* widths */
    bool started;
};

static int compare_refs(const void *a, const void *b)
{
    const struct ref *x = a, *y = b;

    if (x->inode != y->inode)
        return x->inode < y->inode ? -1 : 1;
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

static uint64_t first_of(const struct table *t, uint32_t inode)
{
    uint64_t low = 0, high = t->count;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (t->refs[middle].inode < inode)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct hc_code *dump_code(struct dump *d, const struct hfs_tensor *t)
{
    struct hfs_segment seg;

    if (t->segment == UINT64_MAX)
        return NULL;
    hfs_image_segment(d->img, t->segment, &seg);
    return seg.kind == HFS_SEG_CODED ? hfs_image_code(d->img, seg.code) : NULL;
}

static const char *code_name(const struct hc_code *code, const struct hfs_tensor *t)
{
    if (code == NULL)
        return t->elements == 0 ? "empty" : "zero";
    switch (code->type) {
    case HC_CODE_BYTES:
        return "bytes";
    case HC_CODE_PLANES:
        return "planes";
    case HC_CODE_TRAJECTORY:
        return "trajectory";
    }
    return "?";
}

/* ---- text ---- */

static int shape_text(char *buf, size_t size, const struct hfs_tensor *t)
{
    size_t n = (size_t)snprintf(buf, size, "[");

    for (unsigned i = 0; i < t->rank && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%" PRIu64, i > 0 ? ", " : "",
                              load64(t->dims + 8 * i));
    if (n + 5 < size) {
        snprintf(buf + n, size - n, "]");
        n++;
    } else {
        n = size - 5;
        snprintf(buf + n, 5, "...]");
        n += 4;
    }
    return (int)n;
}

static void print_tensor(const struct table *table, uint64_t number)
{
    static char name[DUMP_SHOWN];
    char shape[128], bits[24] = "-", sqnr[24] = "exact", error[24] = "-", exact[32] = "-";
    struct hfs_tensor t;
    const struct hc_code *code;

    hfs_image_tensor(table->d->img, number, &t);
    code = dump_code(table->d, &t);
    shape_text(shape, sizeof shape, &t);
    if (t.elements > 0)
        snprintf(bits, sizeof bits, "%.2f", 8 * (double)t.stored / (double)t.elements);
    if (isfinite(t.sqnr_db))
        snprintf(sqnr, sizeof sqnr, "%.2f", t.sqnr_db);
    if (code != NULL && code->type == HC_CODE_TRAJECTORY) {
        snprintf(error, sizeof error, "%.2g", t.max_error);
        dump_thousands(exact, t.exact);
    }
    hfs_printable(name, sizeof name, t.name, t.name_len);
    printf("  %-*s  %-*s  %-10s  %6s  %6s  %9s  %7s  %s\n", table->dtype, hc_dtype_name(t.dtype),
           table->shape, shape, code_name(code, &t), bits, sqnr, error, exact, name);
}

static void measure(struct table *table)
{
    for (uint64_t i = 0; i < table->count; i++) {
        char shape[128];
        struct hfs_tensor t;
        int n;

        hfs_image_tensor(table->d->img, i, &t);
        n = shape_text(shape, sizeof shape, &t);
        if (n > table->shape)
            table->shape = n < MAX_SHAPE ? n : MAX_SHAPE;
        n = (int)strlen(hc_dtype_name(t.dtype));
        if (n > table->dtype)
            table->dtype = n;
    }
}

/* ---- JSON ---- */

static void json_code(struct hfs_json *j, const struct hc_code *code)
{
    const struct hc_trajectory *t = &code->t;

    hfs_json_uint(j, "points", t->points);
    hfs_json_uint(j, "winding", t->winding);
    hfs_json_uint(j, "points_used", t->npoints);
    hfs_json_uint(j, "nu", t->nu);
    hfs_json_uint(j, "split", t->split);
    hfs_json_double(j, "step", hc_step_value(t->step));
}

static void json_tensor(struct dump *d, const char *path, uint64_t number)
{
    struct hfs_json *j = d->doc;
    struct hfs_tensor t;
    const struct hc_code *code;

    hfs_image_tensor(d->img, number, &t);
    code = dump_code(d, &t);
    hfs_json_object(j, NULL);
    hfs_json_text(j, "file", path);
    hfs_json_bytes(j, "name", t.name, t.name_len);
    hfs_json_text(j, "dtype", hc_dtype_name(t.dtype));
    hfs_json_array(j, "shape");
    for (unsigned i = 0; i < t.rank; i++)
        hfs_json_uint(j, NULL, load64(t.dims + 8 * i));
    hfs_json_close(j);
    hfs_json_text(j, "code", code_name(code, &t));
    hfs_json_uint(j, "elements", t.elements);
    hfs_json_uint(j, "stored", t.stored);
    hfs_json_double(j, "bits", t.elements > 0 ? 8 * (double)t.stored / (double)t.elements : NAN);
    hfs_json_double(j, "sqnr_db", t.sqnr_db);
    hfs_json_double(j, "max_error", t.max_error);
    hfs_json_uint(j, "exact_elements", t.exact);
    if (code != NULL && code->type == HC_CODE_TRAJECTORY)
        json_code(j, code);
    hfs_json_close(j);
}

/* ---- both ---- */

static int on_enter(void *ctx, const struct hfs_walk_item *item)
{
    static char shown[DUMP_SHOWN];
    struct table *t = ctx;
    uint64_t first, end;

    if (!S_ISREG(item->ino.mode) || item->again)
        return 0;
    first = first_of(t, item->ino.number);
    for (end = first; end < t->count && t->refs[end].inode == item->ino.number; end++)
        if (t->d->doc != NULL)
            json_tensor(t->d, item->path, t->refs[end].tensor);
        else if (end == first)
            printf("%s%s:\n  %-*s  %-*s  %-10s  %6s  %6s  %9s  %7s  %s\n", t->started ? "\n" : "",
                   hfs_printable(shown, sizeof shown, item->path, (unsigned)strlen(item->path)),
                   t->dtype, "dtype", t->shape, "shape", "code", "bits", "SQNR", "max error",
                   "exact", "tensor");
    if (t->d->doc == NULL)
        for (uint64_t i = first; i < end; i++)
            print_tensor(t, t->refs[i].tensor);
    t->started |= end > first;
    return 0;
}

int dump_tensors(struct dump *d, struct hfs_error *err)
{
    static const struct hfs_walk_ops ops = {on_enter, NULL};
    struct table t = {.d = d, .dtype = 5, .shape = 5};
    int r = hfs_image_tensors(d->img, &t.count, err);

    if (r < 0)
        return r;
    t.refs = malloc((t.count + 1) * sizeof *t.refs);
    if (t.refs == NULL)
        return hfs_fail(err, ENOMEM, "not enough memory for the tensors");
    for (uint64_t i = 0; i < t.count; i++) {
        struct hfs_tensor tensor;

        hfs_image_tensor(d->img, i, &tensor);
        t.refs[i] = (struct ref){tensor.inode, i};
    }
    if (t.count > 0)
        qsort(t.refs, t.count, sizeof *t.refs, compare_refs);
    measure(&t);
    if (d->doc != NULL)
        hfs_json_array(d->doc, "tensors");
    r = hfs_walk(d->img, &ops, &t);
    if (d->doc != NULL)
        hfs_json_close(d->doc);
    else if (!t.started)
        puts("The image holds no tensors.");
    free(t.refs);
    return r < 0 ? hfs_fail(err, -r, "the tensors cannot be listed: %s", strerror(-r)) : 0;
}
