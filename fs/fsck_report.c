/* Which files and tensors a damaged block hits, and how that is said. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "fs/fsck.h"
#include "fs/ui.h"

enum {
    MAX_RUNS = 1000, /* runs of damaged blocks that are named */
    MAX_FILES = 4,   /* files named for each: files of equal content share blocks */
    SHOWN = 1024     /* bytes of a name in a sentence */
};

/* Damaged blocks that follow each other in a segment, for the same reason. */
struct run {
    struct fsck_damaged first;
    uint64_t count;
    struct hfs_segment seg;
    uint64_t start, length; /* in the segment, bytes */
};

static int compare_refs(const void *a, const void *b)
{
    const struct fsck_tensor_ref *x = a, *y = b;

    return x->segment < y->segment ? -1 : x->segment > y->segment;
}

int fsck_load_tensors(struct fsck *f)
{
    uint64_t count = 0;
    int r;

    if (f->tensors_loaded)
        return 0;
    r = hfs_image_tensors(f->img, &count, NULL);
    if (r == -ENOMEM)
        return r;
    f->tensors_loaded = true;
    if (r < 0 || count == 0)
        return 0;
    f->tensors = malloc(count * sizeof *f->tensors);
    if (f->tensors == NULL) {
        f->tensors_loaded = false;
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < count; i++) {
        struct hfs_tensor t;

        hfs_image_tensor(f->img, i, &t);
        if (t.segment != UINT64_MAX)
            f->tensors[f->ntensors++] = (struct fsck_tensor_ref){t.segment, i};
    }
    qsort(f->tensors, f->ntensors, sizeof *f->tensors, compare_refs);
    return 0;
}

uint64_t fsck_tensor_of(struct fsck *f, uint64_t segment)
{
    struct fsck_tensor_ref key = {segment, 0};
    const struct fsck_tensor_ref *found;

    if (fsck_load_tensors(f) < 0 || f->ntensors == 0)
        return UINT64_MAX;
    found = bsearch(&key, f->tensors, f->ntensors, sizeof *f->tensors, compare_refs);
    return found != NULL ? found->tensor : UINT64_MAX;
}

/* Why a block could not be read: looks at its stored bytes once more. */
static enum fsck_reason diagnose(struct fsck *f, const struct fsck_block *b)
{
    struct hfs_block where;
    size_t done = 0;

    if (b->status != -EBADMSG)
        return FSCK_IO;
    if (hfs_image_block(f->img, b->seg->first_block + b->index, &where) < 0)
        return FSCK_INDEX;
    while (done < where.size) {
        ssize_t n = pread(hfs_image_fd(f->img), b->spare + done, where.size - done,
                          (off_t)(where.offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return FSCK_STORED;
        done += (size_t)n;
    }
    return XXH3_64bits(b->spare, where.size) == where.checksum ? FSCK_CONTENT : FSCK_STORED;
}

static void remember(struct fsck *f, const struct fsck_damaged *d)
{
    f->ndamaged++;
    if (f->listed == FSCK_MAX_DAMAGED)
        return;
    if (f->listed == f->room) {
        uint32_t room = f->room ? f->room * 2 : 64;
        struct fsck_damaged *list = realloc(f->damaged, room * sizeof *list);

        if (list == NULL)
            return;
        f->damaged = list;
        f->room = room;
    }
    f->damaged[f->listed++] = *d;
}

void fsck_count(struct fsck *f, const struct fsck_block *b)
{
    struct fsck_damaged d = {b->segment, b->index, FSCK_STORED, 0};

    if (b->seg->kind != HFS_SEG_CODED)
        return;
    if (b->status < 0) {
        d.reason = diagnose(f, b);
        d.error = d.reason == FSCK_IO ? -b->status : 0;
    }
    pthread_mutex_lock(&f->lock);
    f->blocks++;
    f->content += b->len;
    if (b->status < 0)
        remember(f, &d);
    ui_progress(f->content);
    pthread_mutex_unlock(&f->lock);
}

static int compare_damaged(const void *a, const void *b)
{
    const struct fsck_damaged *x = a, *y = b;

    if (x->segment != y->segment)
        return x->segment < y->segment ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static const char *reason_text(const struct fsck_damaged *d)
{
    switch (d->reason) {
    case FSCK_STORED:
        return "the stored bytes are damaged";
    case FSCK_CONTENT:
        return "the stored bytes are as they were written, but do not decode to the content";
    case FSCK_INDEX:
        return "the index does not say where it lies";
    case FSCK_IO:
        break;
    }
    return strerror(d->error);
}

static void where_text(const struct fsck *f, const struct run *r, char *buf, size_t size)
{
    uint64_t number = r->seg.first_block + r->first.index;
    struct hfs_block b;

    if (r->count > 1)
        snprintf(buf, size, "blocks %" PRIu64 " to %" PRIu64, number, number + r->count - 1);
    else if (hfs_image_block(f->img, number, &b) == 0)
        snprintf(buf, size, "block %" PRIu64 " (%u bytes at %" PRIu64 ")", number, b.size,
                 b.offset);
    else
        snprintf(buf, size, "block %" PRIu64, number);
}

/* Calls fn for up to MAX_FILES files that hold the segment; returns how many there are. */
static uint64_t each_file(struct fsck *f, const struct run *r,
                          void (*fn)(struct fsck *f, const struct run *r, const char *path))
{
    uint64_t files = 0;

    for (uint64_t i = 0; i < f->info.inodes; i++) {
        struct hfs_inode ino;

        hfs_image_inode(f->img, (uint32_t)i, &ino);
        if (!S_ISREG(ino.mode) || r->first.segment < ino.first ||
            r->first.segment - ino.first >= ino.count)
            continue;
        if (files++ < MAX_FILES) {
            char *path = hfs_image_path_of(f->img, (uint32_t)i);

            fn(f, r, path != NULL ? path : "(a file)");
            free(path);
        }
    }
    return files;
}

static void say_file(struct fsck *f, const struct run *r, const char *path)
{
    char where[96], shown[SHOWN], name[SHOWN] = "";
    uint64_t number = fsck_tensor_of(f, r->first.segment);
    uint64_t start = r->seg.file_offset + r->start;

    if (number != UINT64_MAX) {
        struct hfs_tensor t;

        hfs_image_tensor(f->img, number, &t);
        hfs_printable(name, sizeof name, t.name, t.name_len);
    }
    where_text(f, r, where, sizeof where);
    hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path));
    ui_error("%s: %s; hits %s, bytes %" PRIu64 " to %" PRIu64 "%s%s", where, reason_text(&r->first),
             shown, start, start + r->length - 1, name[0] ? ", tensor " : "", name);
}

static void json_file(struct fsck *f, const struct run *r, const char *path)
{
    uint64_t number = fsck_tensor_of(f, r->first.segment);

    hfs_json_object(&f->json, NULL);
    hfs_json_text(&f->json, "path", path);
    hfs_json_uint(&f->json, "offset", r->seg.file_offset + r->start);
    hfs_json_uint(&f->json, "length", r->length);
    if (number != UINT64_MAX) {
        struct hfs_tensor t;

        hfs_image_tensor(f->img, number, &t);
        hfs_json_bytes(&f->json, "tensor", t.name, t.name_len);
    }
    hfs_json_close(&f->json);
}

static void report_run(struct fsck *f, const struct run *r)
{
    uint64_t number = r->seg.first_block + r->first.index;
    uint64_t files;
    char where[96];

    if (f->opt.json) {
        hfs_json_object(&f->json, NULL);
        hfs_json_uint(&f->json, "block", number);
        hfs_json_uint(&f->json, "count", r->count);
        hfs_json_text(&f->json, "reason", reason_text(&r->first));
        hfs_json_array(&f->json, "files");
        files = each_file(f, r, json_file);
        hfs_json_close(&f->json);
        hfs_json_uint(&f->json, "files_hit", files);
        hfs_json_close(&f->json);
        return;
    }
    files = each_file(f, r, say_file);
    where_text(f, r, where, sizeof where);
    if (files == 0)
        ui_error("%s: %s; no file uses it", where, reason_text(&r->first));
    else if (files > MAX_FILES)
        ui_error("%s: hits %" PRIu64 " more files of the same content", where, files - MAX_FILES);
}

/* The run that starts at list[i]; returns the place after it. */
static uint32_t next_run(const struct fsck *f, uint32_t i, struct run *r)
{
    const struct fsck_damaged *d = &f->damaged[i];
    uint64_t full;

    *r = (struct run){.first = *d, .count = 1};
    hfs_image_segment(f->img, d->segment, &r->seg);
    for (i++; i < f->listed; i++) {
        const struct fsck_damaged *e = &f->damaged[i];

        if (e->segment != d->segment || e->reason != d->reason || e->error != d->error ||
            e->index != d->index + r->count)
            break;
        r->count++;
    }
    full = hc_code_block_bytes(hfs_image_code(f->img, r->seg.code));
    r->start = d->index * full;
    r->length = r->count * full;
    if (r->length > r->seg.length - r->start)
        r->length = r->seg.length - r->start;
    return i;
}

/* Sorts the list; a block that was read for several files stands in it once. */
static void tidy(struct fsck *f)
{
    uint32_t kept = 0;

    if (f->listed > 0)
        qsort(f->damaged, f->listed, sizeof *f->damaged, compare_damaged);
    for (uint32_t i = 0; i < f->listed; i++)
        if (kept == 0 || compare_damaged(&f->damaged[kept - 1], &f->damaged[i]) != 0)
            f->damaged[kept++] = f->damaged[i];
    f->ndamaged -= f->listed - kept;
    f->listed = kept;
}

void fsck_report_damage(struct fsck *f)
{
    uint32_t i = 0;
    uint64_t named = 0;

    tidy(f);
    if (f->opt.json)
        hfs_json_array(&f->json, "damaged");
    for (unsigned runs = 0; i < f->listed && runs < MAX_RUNS; runs++) {
        struct run r;

        i = next_run(f, i, &r);
        report_run(f, &r);
        named += r.count;
    }
    if (f->opt.json)
        hfs_json_close(&f->json);
    else if (i < f->listed || f->listed < f->ndamaged)
        ui_error("%" PRIu64 " damaged blocks; only the first %" PRIu64 " are named", f->ndamaged,
                 named);
}
