/* What a valid image is, beyond its checksums: an image made by hand can have good checksums and
 * a bad tree. The first half is checked at every open and by the writer before it commits; the
 * second half, hfs_image_check_tables, is for fsck. All of it is linear in the tables' size. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"
#include "fs/image_private.h"

enum { MAX_NAME = 255, MAX_TARGET = 4095 };

#define damaged(path, err, format, ...)                                                            \
    hfs_fail(err, EBADMSG, "%s is damaged: " format, path, ##__VA_ARGS__)

uint64_t hfs_block_count(uint64_t length, uint64_t block_bytes)
{
    return length / block_bytes + (length % block_bytes != 0);
}

void hfs_tables_inode(const struct hfs_tables *t, uint64_t number, struct hfs_inode *out)
{
    const struct hfs_disk_inode *d = (const struct hfs_disk_inode *)t->inodes + number;
    *out = (struct hfs_inode){
        .number = (uint32_t)number,
        .mode = load32(d->mode),
        .uid = load32(d->uid),
        .gid = load32(d->gid),
        .nlink = load32(d->nlink),
        .size = load64(d->size),
        .mtime = (int64_t)load64(d->mtime),
        .mtime_nsec = load32(d->mtime_nsec),
        .count = load32(d->count),
        .first = load64(d->first),
        .parent = load32(d->parent),
    };
}

void hfs_tables_dirent(const struct hfs_tables *t, uint64_t entry, struct hfs_dirent *out)
{
    const struct hfs_disk_dirent *d = (const struct hfs_disk_dirent *)t->dirents + entry;
    *out = (struct hfs_dirent){
        .name = (const char *)t->names + load64(d->name),
        .name_len = load16(d->name_len),
        .inode = load32(d->inode),
    };
}

void hfs_tables_segment(const struct hfs_tables *t, uint64_t number, struct hfs_segment *out)
{
    const struct hfs_disk_segment *d = (const struct hfs_disk_segment *)t->segments + number;
    *out = (struct hfs_segment){
        .file_offset = load64(d->file_offset),
        .length = load64(d->length),
        .first_block = load64(d->first_block),
        .code = load32(d->code),
        .kind = (enum hfs_segment_kind)load16(d->kind),
    };
}

/* [first, first + count) lies in [0, total). */
static bool in_range(uint64_t first, uint64_t count, uint64_t total)
{
    return first <= total && count <= total - first;
}

int hfs_name_compare(const char *a, size_t a_len, const char *b, size_t b_len)
{
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

bool hfs_name_valid(const char *name, size_t len)
{
    if (len < 1 || len > MAX_NAME || memchr(name, '/', len) || memchr(name, 0, len))
        return false;
    return !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

/* ---- the tree, at open ---- */

struct tree {
    const struct hfs_tables *t;
    const char *path;
    struct hfs_error *err;
    uint64_t content_bytes;
    uint64_t next_entry; /* entries of the directories so far */
    uint64_t *run;       /* of each segment: the first one of its file */
    uint32_t *names;     /* of each inode: how many entries name it */
    uint32_t *subdirs;   /* of each directory */
    uint16_t *depth;     /* of each directory */
};

/* A segment at file offset 0 begins a file; any other continues the one before it. So the
 * segments can be checked once, however many files share them. */
static int check_segment(struct tree *c, uint64_t i)
{
    const struct hfs_disk_segment *d = (const struct hfs_disk_segment *)c->t->segments + i;
    struct hfs_segment s, prev;
    hfs_tables_segment(c->t, i, &s);
    if (load16(d->kind) != HFS_SEG_CODED && load16(d->kind) != HFS_SEG_ZERO)
        return hfs_fail(c->err, ENOTSUP,
                        "%s: segment %" PRIu64 " is of kind %u, which this version of hyperfs does "
                        "not know; use a newer one",
                        c->path, i, load16(d->kind));
    if (load16(d->reserved0) || load32(d->reserved1))
        return damaged(c->path, c->err, "segment %" PRIu64 " has a reserved field set", i);
    if (s.file_offset > INT64_MAX || s.length < 1 || s.length > INT64_MAX - s.file_offset)
        return damaged(c->path, c->err, "segment %" PRIu64 " has an impossible length", i);
    c->run[i] = i;
    if (s.file_offset > 0) {
        if (i > 0)
            hfs_tables_segment(c->t, i - 1, &prev);
        if (i == 0 || s.file_offset != prev.file_offset + prev.length)
            return damaged(c->path, c->err,
                           "segment %" PRIu64 " does not begin where the one before it ends", i);
        c->run[i] = c->run[i - 1];
    }
    if (s.kind == HFS_SEG_ZERO) {
        if (s.code || s.first_block)
            return damaged(c->path, c->err, "segment %" PRIu64 " of zeros names blocks", i);
        return 0;
    }
    if (s.code >= c->t->ncodes)
        return damaged(c->path, c->err, "segment %" PRIu64 " has code %u of %" PRIu64, i, s.code,
                       c->t->ncodes);
    uint64_t blocks = hfs_block_count(s.length, hc_code_block_bytes(&c->t->codes[s.code]));
    if (!in_range(s.first_block, blocks, c->t->nblocks))
        return damaged(c->path, c->err,
                       "segment %" PRIu64 " needs blocks %" PRIu64 " to %" PRIu64
                       ", the image has %" PRIu64,
                       i, s.first_block, s.first_block + blocks - 1, c->t->nblocks);
    return 0;
}

static int check_file(struct tree *c, const struct hfs_inode *ino)
{
    uint64_t end = 0;
    if (!in_range(ino->first, ino->count, c->t->nsegments))
        return damaged(c->path, c->err, "inode %u has segments outside their table", ino->number);
    if (ino->count > 0) {
        struct hfs_segment last;
        uint64_t i = ino->first + ino->count - 1;
        hfs_tables_segment(c->t, i, &last);
        if (c->run[i] != ino->first)
            return damaged(c->path, c->err, "the segments of inode %u belong to several files",
                           ino->number);
        end = last.file_offset + last.length;
    }
    if (end != ino->size)
        return damaged(c->path, c->err, "inode %u is %" PRIu64 " bytes long, its segments %" PRIu64,
                       ino->number, ino->size, end);
    if (ino->size > UINT64_MAX - c->content_bytes)
        return damaged(c->path, c->err, "its files are together longer than 2^64 bytes");
    c->content_bytes += ino->size;
    return 0;
}

static int check_link(struct tree *c, const struct hfs_inode *ino)
{
    if (ino->count || ino->size < 1 || ino->size > MAX_TARGET ||
        !in_range(ino->first, ino->size, c->t->names_len) ||
        memchr(c->t->names + ino->first, 0, (size_t)ino->size))
        return damaged(c->path, c->err, "inode %u is a link with an impossible target",
                       ino->number);
    return 0;
}

/* Entries stand in the order of their directories, without gaps: so none is in two. */
static int check_directory(struct tree *c, const struct hfs_inode *ino)
{
    if (ino->size || ino->first != c->next_entry ||
        !in_range(ino->first, ino->count, c->t->ndirents))
        return damaged(c->path, c->err,
                       "directory inode %u has entries that are not next in their table",
                       ino->number);
    c->next_entry += ino->count;
    if (ino->number == 0) {
        if (ino->parent)
            return damaged(c->path, c->err, "the root directory has a parent");
        return 0;
    }
    if (ino->parent >= ino->number)
        return damaged(c->path, c->err, "directory inode %u stands before its parent, %u",
                       ino->number, ino->parent);
    if (c->depth[ino->parent] >= HFS_MAX_DEPTH)
        return damaged(c->path, c->err, "directories nest deeper than %d", HFS_MAX_DEPTH);
    c->depth[ino->number] = (uint16_t)(c->depth[ino->parent] + 1);
    return 0;
}

static int check_inode(struct tree *c, uint64_t number)
{
    const struct hfs_disk_inode *d = (const struct hfs_disk_inode *)c->t->inodes + number;
    struct hfs_inode ino;
    hfs_tables_inode(c->t, number, &ino);
    bool dir = S_ISDIR(ino.mode);
    if ((ino.mode & ~(uint32_t)(S_IFMT | 07777)) ||
        !(dir || S_ISREG(ino.mode) || S_ISLNK(ino.mode)) || (number == 0 && !dir))
        return damaged(c->path, c->err, "inode %u has mode %o", ino.number, ino.mode);
    if (load32(d->reserved) || (ino.parent && !dir))
        return damaged(c->path, c->err, "inode %u has a reserved field set", ino.number);
    if (ino.mtime_nsec > 999999999)
        return damaged(c->path, c->err, "inode %u has an impossible time", ino.number);
    return dir                 ? check_directory(c, &ino)
           : S_ISREG(ino.mode) ? check_file(c, &ino)
                               : check_link(c, &ino);
}

static int check_child(struct tree *c, const struct hfs_inode *dir, uint32_t number)
{
    struct hfs_inode child;
    if (number >= c->t->ninodes || number <= dir->number)
        return damaged(c->path, c->err, "directory inode %u names inode %u", dir->number, number);
    hfs_tables_inode(c->t, number, &child);
    if (c->names[number] > 0 && !S_ISREG(child.mode))
        return damaged(c->path, c->err, "inode %u is no regular file and has two names", number);
    c->names[number]++;
    if (S_ISDIR(child.mode)) {
        if (child.parent != dir->number)
            return damaged(c->path, c->err, "directory inode %u names %u, whose parent is %u",
                           dir->number, number, child.parent);
        c->subdirs[dir->number]++;
    }
    return 0;
}

static int check_entries(struct tree *c, const struct hfs_inode *dir)
{
    struct hfs_dirent e, prev = {0};
    for (uint64_t i = dir->first; i < dir->first + dir->count; i++) {
        const struct hfs_disk_dirent *d = (const struct hfs_disk_dirent *)c->t->dirents + i;
        if (!in_range(load64(d->name), load16(d->name_len), c->t->names_len) || load16(d->reserved))
            return damaged(c->path, c->err, "entry %" PRIu64 " has an impossible name", i);
        hfs_tables_dirent(c->t, i, &e);
        if (!hfs_name_valid(e.name, e.name_len))
            return damaged(c->path, c->err, "entry %" PRIu64 " has a name that no file can have",
                           i);
        if (prev.name && hfs_name_compare(prev.name, prev.name_len, e.name, e.name_len) >= 0)
            return damaged(c->path, c->err,
                           "the names of directory inode %u are not in ascending order",
                           dir->number);
        int r = check_child(c, dir, e.inode);
        if (r < 0)
            return r;
        prev = e;
    }
    return 0;
}

static int check_names(struct tree *c)
{
    struct hfs_inode ino;
    for (uint64_t i = 0; i < c->t->ninodes; i++) {
        hfs_tables_inode(c->t, i, &ino);
        int r = S_ISDIR(ino.mode) ? check_entries(c, &ino) : 0;
        if (r < 0)
            return r;
    }
    for (uint64_t i = 0; i < c->t->ninodes; i++) {
        hfs_tables_inode(c->t, i, &ino);
        if (i > 0 && c->names[i] == 0)
            return damaged(c->path, c->err, "inode %" PRIu64 " has no name", i);
        uint32_t want = S_ISDIR(ino.mode) ? 2 + c->subdirs[i] : c->names[i];
        if (ino.nlink != want)
            return damaged(c->path, c->err, "inode %" PRIu64 " says %u links, there are %u", i,
                           ino.nlink, want);
    }
    return 0;
}

static int check_tree(struct tree *c)
{
    const struct hfs_tables *t = c->t;
    int r;
    if (t->ninodes < 1)
        return damaged(c->path, c->err, "it has no root directory");
    for (uint64_t i = 0; i < t->nsegments; i++)
        if ((r = check_segment(c, i)) < 0)
            return r;
    for (uint64_t i = 0; i < t->ninodes; i++)
        if ((r = check_inode(c, i)) < 0)
            return r;
    if (c->next_entry != t->ndirents)
        return damaged(c->path, c->err, "%" PRIu64 " entries belong to no directory",
                       t->ndirents - c->next_entry);
    return check_names(c);
}

int hfs_tables_check(const struct hfs_tables *t, const char *path, uint64_t *content_bytes,
                     struct hfs_error *err)
{
    struct tree c = {.t = t, .path = path, .err = err};
    size_t inodes = (size_t)t->ninodes + 1;
    c.run = calloc((size_t)t->nsegments + 1, sizeof *c.run);
    c.names = calloc(inodes, sizeof *c.names);
    c.subdirs = calloc(inodes, sizeof *c.subdirs);
    c.depth = calloc(inodes, sizeof *c.depth);
    int r = c.run && c.names && c.subdirs && c.depth
                ? check_tree(&c)
                : hfs_fail(err, ENOMEM, "%s: out of memory for its tables", path);
    free(c.run);
    free(c.names);
    free(c.subdirs);
    free(c.depth);
    *content_bytes = c.content_bytes;
    return r;
}

/* ---- tensor records ---- */

void hfs_tensor_parse(const uint8_t *record, struct hfs_tensor *out)
{
    const struct hfs_disk_tensor *d = (const struct hfs_disk_tensor *)record;
    *out = (struct hfs_tensor){
        .inode = load32(d->inode),
        .segment = load64(d->segment),
        .elements = load64(d->elements),
        .exact = load64(d->exact),
        .stored = load64(d->stored),
        .sqnr_db = load_double(d->sqnr),
        .max_error = load_double(d->max_error),
        .dtype = (enum hc_dtype)load16(d->dtype),
        .rank = load16(d->rank),
        .dims = record + sizeof *d,
        .name = (const char *)record + sizeof *d + 8 * (size_t)load16(d->rank),
        .name_len = load32(d->name_len),
    };
}

static bool dims_product(const struct hfs_tensor *t, uint64_t *product)
{
    bool overflow = false;
    *product = 1;
    for (unsigned i = 0; i < t->rank; i++)
        if (load64(t->dims + 8 * i) == 0) { /* whatever the others are */
            *product = 0;
            return true;
        }
    for (unsigned i = 0; i < t->rank; i++)
        overflow |= __builtin_mul_overflow(*product, load64(t->dims + 8 * i), product);
    return !overflow;
}

/* NULL, or what is wrong. The record's length has been checked. */
static const char *tensor_fault(const struct hfs_tables *t, const struct hfs_tensor *x)
{
    struct hfs_inode ino;
    struct hfs_segment seg;
    uint64_t product, bits;
    if (x->dtype < 1 || x->dtype >= HC_DTYPE_COUNT)
        return "an unknown dtype";
    if (!dims_product(x, &product) || product != x->elements || x->exact > x->elements)
        return "a number of elements that its shape does not have";
    if (isnan(x->sqnr_db) || isnan(x->max_error) || x->max_error < 0)
        return "an impossible error";
    if (x->inode >= t->ninodes)
        return "an inode that does not exist";
    hfs_tables_inode(t, x->inode, &ino);
    if (!S_ISREG(ino.mode))
        return "an inode that is no file";
    if (x->elements == 0)
        return x->segment == UINT64_MAX && x->stored == 0 ? NULL : "no elements, yet a segment";
    if (x->segment - ino.first >= ino.count) /* wraps where it lies before */
        return "a segment of another file";
    hfs_tables_segment(t, x->segment, &seg);
    if (__builtin_mul_overflow(x->elements, hc_dtype_bits(x->dtype), &bits) || bits % 8 ||
        bits / 8 != seg.length)
        return "a segment of another length";
    if (seg.kind == HFS_SEG_CODED && t->codes[seg.code].type == HC_CODE_TRAJECTORY &&
        t->codes[seg.code].dtype != x->dtype)
        return "a code of another dtype";
    return NULL;
}

/* Bytes of the record at p of which `left` are there, or 0 if that is no record. */
static uint64_t tensor_length(const uint8_t *p, uint64_t left)
{
    const struct hfs_disk_tensor *d = (const struct hfs_disk_tensor *)p;
    if (left < sizeof *d)
        return 0;
    uint64_t n = sizeof *d + 8 * (uint64_t)load16(d->rank) + load32(d->name_len);
    return n == load32(d->length) && n <= left ? n : 0;
}

int hfs_tensors_check(const struct hfs_tables *t, const uint8_t *raw, uint64_t len,
                      const char *path, uint64_t **offsets, uint64_t *count, struct hfs_error *err)
{
    uint64_t n = 0, room = len / sizeof(struct hfs_disk_tensor);
    uint64_t *at = malloc((size_t)(room + 1) * sizeof *at);
    if (!at)
        return hfs_fail(err, ENOMEM, "%s: out of memory for its tensor records", path);
    for (uint64_t pos = 0; pos < len; n++) {
        struct hfs_tensor x;
        char name[80];
        uint64_t length = tensor_length(raw + pos, len - pos);
        if (length == 0) {
            free(at);
            return damaged(path, err, "tensor record %" PRIu64 " has an impossible length", n);
        }
        hfs_tensor_parse(raw + pos, &x);
        const char *fault = tensor_fault(t, &x);
        if (fault) {
            free(at);
            return damaged(path, err, "tensor record %" PRIu64 " (%s) has %s", n,
                           hfs_printable(name, sizeof name, x.name, x.name_len), fault);
        }
        at[n] = pos;
        pos += length;
    }
    *offsets = at;
    *count = n;
    return 0;
}

int hfs_meta_check(const char *text, uint64_t len, const char *path, struct hfs_error *err)
{
    uint64_t line = 0;
    while (len > 0) {
        const char *end = memchr(text, '\n', (size_t)len);
        size_t n = end ? (size_t)(end - text) : 0;
        const char *equals = end ? memchr(text, '=', n) : NULL;
        bool good = equals && equals > text;
        for (size_t i = 0; i < n; i++)
            good &= (unsigned char)text[i] >= 0x20 && text[i] != 0x7f;
        line++;
        if (!good)
            return damaged(path, err, "line %" PRIu64 " of its META section is no KEY=VALUE", line);
        text += n + 1;
        len -= n + 1;
    }
    return 0;
}

/* ---- what open leaves out ---- */

struct report {
    struct hfs_image *img;
    void (*problem)(void *ctx, const char *sentence);
    void *ctx;
    uint64_t found;
    int failure; /* what kept the check from being done: -ENOMEM, -EIO */
};

/* Passes the sentence of an error on and makes room for the next one. A want of memory says nothing
 * about the image: only the result tells of it. */
static void report(struct report *r, int code, struct hfs_error *err)
{
    if (code >= 0)
        return;
    if (code == -ENOMEM) {
        r->failure = code;
        err->text[0] = 0;
        return;
    }
    r->found++;
    if (code != -EBADMSG && !r->failure)
        r->failure = code;
    r->problem(r->ctx, err->text);
    err->text[0] = 0;
}

#define report_damage(r, format, ...)                                                              \
    do {                                                                                           \
        struct hfs_error err_ = {{0}};                                                             \
        report(r, damaged((r)->img->path, &err_, format, ##__VA_ARGS__), &err_);                   \
    } while (0)

static void report_memory(struct report *r)
{
    struct hfs_error err = {{0}};
    report(r, hfs_fail(&err, ENOMEM, "%s: out of memory while checking it", r->img->path), &err);
}

static void check_superblocks(struct report *r)
{
    const struct hfs_image *img = r->img;
    uint8_t other[sizeof img->super];
    uint64_t at = img->info.used_copy ? 0 : img->info.image_size - sizeof other;
    int e = hfs_read_at(img->fd, other, sizeof other, at);
    struct hfs_error err = {{0}};
    if (e < 0)
        report(r,
               hfs_fail(&err, -e, "%s: cannot read the superblock at %" PRIu64 ": %s", img->path,
                        at, strerror(-e)),
               &err);
    else if (memcmp(other, img->super, sizeof other) != 0)
        report_damage(r, "the superblock at its %s differs from the other, which is good",
                      img->info.used_copy ? "start" : "end");
}

static void check_sections(struct report *r)
{
    const struct hfs_image *img = r->img;
    for (unsigned i = 0; i < img->nsections; i++) {
        struct hfs_error err = {{0}};
        uint8_t *stored = NULL;
        report(r, hfs_section_read(img, &img->sections[i], &stored, &err), &err);
        free(stored);
    }
}

/* The blocks fill the space between the superblock and data_end, in the order of their numbers. */
static void check_leaves(struct report *r)
{
    const struct hfs_image *img = r->img;
    struct hfs_leaf *leaf = hfs_leaf_new(img);
    uint64_t next = sizeof(struct hfs_disk_super);
    bool whole = true;
    if (!leaf) {
        report_memory(r);
        return;
    }
    for (uint64_t i = 0; i < img->nleaves; i++) {
        int e = hfs_leaf_load(img, i, leaf);
        if (e < 0) {
            struct hfs_error err = {{0}};
            report(r,
                   hfs_fail(&err, -e, "%s: index leaf %" PRIu64 " at %" PRIu64 ": %s", img->path, i,
                            img->data_end + i * HFS_LEAF_BYTES,
                            e == -EBADMSG ? "damaged" : strerror(-e)),
                   &err);
            whole = false;
            continue;
        }
        if (whole && leaf->offset != next)
            report_damage(r,
                          "block %" PRIu64 " is at %" PRIu64 ", the one before it ends at %" PRIu64,
                          i * HFS_LEAF_BLOCKS, leaf->offset, next);
        whole = true;
        next = leaf->offset + leaf->end[leaf->count - 1];
    }
    if (whole && next != img->data_end)
        report_damage(r, "its blocks end at %" PRIu64 ", its data at %" PRIu64, next,
                      img->data_end);
    free(leaf);
}

static bool bit_test_set(uint8_t *bits, uint64_t i)
{
    uint8_t mask = (uint8_t)(1u << (i & 7));
    bool was = bits[i / 8] & mask;
    bits[i / 8] |= mask;
    return was;
}

/* One sentence for each run of things that nothing refers to. */
static void report_unused(struct report *r, uint8_t *used, uint64_t n, const char *what)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t first = i;
        while (i < n && !bit_test_set(used, i))
            i++;
        if (i - first == 1)
            report_damage(r, "nothing refers to %s %" PRIu64, what, first);
        else if (i > first)
            report_damage(r, "nothing refers to %s %" PRIu64 " to %" PRIu64, what, first, i - 1);
    }
}

static void check_use_of_blocks(struct report *r)
{
    const struct hfs_tables *t = &r->img->tables;
    uint8_t *blocks = calloc((size_t)(t->nblocks / 8 + 1), 1);
    uint8_t *codes = calloc((size_t)(t->ncodes / 8 + 1), 1);
    if (!blocks || !codes) {
        report_memory(r);
        goto out;
    }
    for (uint64_t i = 0; i < t->nsegments; i++) {
        struct hfs_segment s;
        hfs_tables_segment(t, i, &s);
        if (s.kind != HFS_SEG_CODED)
            continue;
        bit_test_set(codes, s.code);
        uint64_t end = s.first_block + hfs_image_segment_blocks(r->img, &s);
        for (uint64_t b = s.first_block; b < end; b++)
            if (bit_test_set(blocks, b)) {
                report_damage(
                    r, "block %" PRIu64 " of segment %" PRIu64 " belongs to another one too", b, i);
                break; /* keeps the work linear */
            }
    }
    report_unused(r, blocks, t->nblocks, "block");
    report_unused(r, codes, t->ncodes, "code");
out:
    free(blocks);
    free(codes);
}

static void mark_name(const struct hfs_tables *t, uint8_t *used, const char *name, uint64_t len)
{
    uint64_t first = (uint64_t)((const uint8_t *)name - t->names);
    for (uint64_t i = 0; i < len; i++)
        bit_test_set(used, first + i);
}

/* Files that share segments all begin with the first of the run, so it is enough to mark how far
 * the longest goes: `reach` of its first segment. */
static void check_use_by_files(struct report *r)
{
    const struct hfs_tables *t = &r->img->tables;
    uint8_t *names = calloc((size_t)(t->names_len / 8 + 1), 1);
    uint8_t *segments = calloc((size_t)(t->nsegments / 8 + 1), 1);
    uint32_t *reach = calloc((size_t)t->nsegments + 1, sizeof *reach);
    struct hfs_inode ino;
    struct hfs_dirent e;
    if (!names || !segments || !reach) {
        report_memory(r);
        goto out;
    }
    for (uint64_t i = 0; i < t->ninodes; i++) {
        hfs_tables_inode(t, i, &ino);
        if (S_ISLNK(ino.mode))
            mark_name(t, names, (const char *)t->names + ino.first, ino.size);
        else if (S_ISREG(ino.mode) && reach[ino.first] < ino.count)
            reach[ino.first] = ino.count;
    }
    for (uint64_t i = 0; i < t->ndirents; i++) {
        hfs_tables_dirent(t, i, &e);
        mark_name(t, names, e.name, e.name_len);
    }
    for (uint64_t i = 0; i < t->nsegments; i++)
        for (uint64_t n = reach[i]; n > 0; n--)
            bit_test_set(segments, i + n - 1);
    report_unused(r, segments, t->nsegments, "segment");
    report_unused(r, names, t->names_len, "byte of its names");
out:
    free(names);
    free(segments);
    free(reach);
}

/* What a record says of its stored size against the index. */
static void check_tensor_sizes(struct report *r, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct hfs_tensor x;
        struct hfs_segment s;
        struct hfs_block first, last;
        uint64_t stored = 0;
        hfs_image_tensor(r->img, i, &x);
        if (x.segment == UINT64_MAX)
            continue;
        hfs_image_segment(r->img, x.segment, &s);
        if (s.kind == HFS_SEG_CODED) {
            uint64_t n = hfs_image_segment_blocks(r->img, &s);
            if (hfs_image_block(r->img, s.first_block, &first) < 0 ||
                hfs_image_block(r->img, s.first_block + n - 1, &last) < 0)
                continue; /* reported with its leaf */
            stored = last.offset + last.size - first.offset;
        }
        if (stored != x.stored)
            report_damage(
                r, "tensor record %" PRIu64 " says %" PRIu64 " stored bytes, there are %" PRIu64, i,
                x.stored, stored);
    }
}

int hfs_image_check_tables(struct hfs_image *img, void (*problem)(void *ctx, const char *sentence),
                           void *ctx)
{
    struct report r = {.img = img, .problem = problem, .ctx = ctx};
    struct hfs_error err = {{0}};
    const char *text;
    uint64_t tensors = 0;
    check_superblocks(&r);
    uint64_t before = r.found;
    check_sections(&r);
    bool readable = r.found == before;
    if (r.found == 0 && img->info.has_digest && !img->trust)
        report(&r, hfs_image_trust(img, &err), &err);
    before = r.found;
    check_leaves(&r);
    bool tiled = r.found == before;
    check_use_of_blocks(&r);
    check_use_by_files(&r);
    if (readable) {
        report(&r, hfs_image_meta(img, &text, &err), &err);
        report(&r, hfs_image_tensors(img, &tensors, &err), &err);
    }
    if (tiled) /* else offsets mean nothing */
        check_tensor_sizes(&r, tensors);
    return r.failure ? r.failure : r.found ? -EBADMSG : 0;
}
