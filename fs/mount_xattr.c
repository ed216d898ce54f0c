/* Contract: fs/mount_xattr.h. */
#include "fs/mount_xattr.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "user.hyperfs."

/* What is summed up over the files below an inode. */
struct summary {
    uint64_t size, stored; /* bytes */
    unsigned codes;        /* bit t: enum hc_code_type t; bit 0: zero segments */
    double sqnr_db;
};

struct hfs_xattrs {
    struct hfs_image *img;
    struct hfs_reader *reader;
    pthread_mutex_t lock;
    bool known;
    uint32_t inode;
    struct summary summary; /* of inode, if known */
};

struct bits {
    uint64_t count;
    uint8_t *byte;
};

static bool bits_make(struct bits *b, uint64_t count)
{
    b->count = count;
    b->byte = calloc(1, (size_t)(count / 8 + 1));
    return b->byte != NULL;
}

/* Sets bit i; true if it was not set before. */
static bool bits_set(struct bits *b, uint64_t i)
{
    uint8_t mask = (uint8_t)(1u << (i % 8));
    bool new = !(b->byte[i / 8] & mask);
    b->byte[i / 8] |= mask;
    return new;
}

static bool bits_has(const struct bits *b, uint64_t i)
{
    return i < b->count && b->byte[i / 8] >> (i % 8) & 1;
}

/* *steps bounds the work where segments overlap, which those of an honest image do not. */
static int add_segment(struct hfs_image *img, uint64_t number, uint64_t *steps, struct summary *sum)
{
    struct hfs_segment seg;
    struct hfs_block b;
    hfs_image_segment(img, number, &seg);
    if (seg.kind != HFS_SEG_CODED) {
        sum->codes |= 1;
        return 0;
    }
    sum->codes |= 1u << hfs_image_code(img, seg.code)->type;
    uint64_t count = hfs_image_segment_blocks(img, &seg);
    if (count > *steps)
        return -ENODATA;
    *steps -= count;
    for (uint64_t i = 0; i < count; i++) {
        int error = hfs_image_block(img, seg.first_block + i, &b);
        if (error < 0)
            return error;
        sum->stored += b.size;
    }
    return 0;
}

/* Marks what lies below the marked inodes (directories stand before what they contain) and
 * sums up the files among them. */
static int add_files(struct hfs_image *img, const struct hfs_info *info, struct bits *inodes,
                     struct bits *segments, struct summary *sum)
{
    uint64_t steps = 8 * (info->segments + info->inodes + info->block_count) + 1024;
    for (uint32_t n = 0; n < info->inodes; n++) {
        struct hfs_inode ino;
        if (!bits_has(inodes, n))
            continue;
        hfs_image_inode(img, n, &ino);
        for (uint32_t i = 0; S_ISDIR(ino.mode) && i < ino.count; i++) {
            struct hfs_dirent entry;
            hfs_image_dirent(img, ino.first + i, &entry);
            bits_set(inodes, entry.inode);
        }
        if (!S_ISREG(ino.mode))
            continue;
        sum->size += ino.size;
        if (ino.count > 0 && bits_has(segments, ino.first))
            continue; /* the same content as a file before: files share segments whole */
        for (uint32_t i = 0; i < ino.count; i++) {
            if (steps-- == 0)
                return -ENODATA;
            if (!bits_set(segments, ino.first + i))
                continue;
            int error = add_segment(img, ino.first + i, &steps, sum);
            if (error < 0)
                return error;
        }
    }
    return 0;
}

static int add_tensors(struct hfs_image *img, const struct bits *segments, struct summary *sum)
{
    uint64_t count;
    int error = hfs_image_tensors(img, &count, NULL);
    for (uint64_t i = 0; error == 0 && i < count; i++) {
        struct hfs_tensor t;
        hfs_image_tensor(img, i, &t);
        if (bits_has(segments, t.segment) && t.sqnr_db < sum->sqnr_db)
            sum->sqnr_db = t.sqnr_db;
    }
    return error;
}

static int summarize(struct hfs_image *img, uint32_t inode, struct summary *sum)
{
    struct hfs_info info;
    struct bits inodes = {0}, segments = {0};
    int error = -ENOMEM;
    *sum = (struct summary){.sqnr_db = INFINITY};
    hfs_image_info(img, &info);
    if (!bits_make(&inodes, info.inodes) || !bits_make(&segments, info.segments))
        goto out;
    bits_set(&inodes, inode);
    error = add_files(img, &info, &inodes, &segments, sum);
    if (error == 0)
        error = add_tensors(img, &segments, sum);
out:
    free(inodes.byte);
    free(segments.byte);
    return error;
}

struct hfs_xattrs *hfs_xattrs_new(struct hfs_image *img, struct hfs_reader *reader)
{
    struct hfs_xattrs *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->img = img;
    x->reader = reader;
    pthread_mutex_init(&x->lock, NULL);
    return x;
}

void hfs_xattrs_free(struct hfs_xattrs *x)
{
    if (!x)
        return;
    pthread_mutex_destroy(&x->lock);
    free(x);
}

const char *hfs_xattrs_list(const struct hfs_inode *ino, size_t *len)
{
#define OF_ROOT PREFIX "version\0" PREFIX "decoded\0" PREFIX "delivered"
    static const char names[] = PREFIX "code\0" PREFIX "ratio\0" PREFIX "sqnr\0" OF_ROOT;
    *len = sizeof names;
    if (ino->number != 0)
        *len -= sizeof OF_ROOT;
    if (S_ISLNK(ino->mode)) /* Linux has no user attributes on symbolic links */
        *len = 0;
    return names;
}

static void print_codes(unsigned codes, char value[HFS_XATTR_VALUE])
{
    static const struct {
        unsigned bit;
        const char *name;
    } table[] = {{HC_CODE_TRAJECTORY, "trajectory"},
                 {HC_CODE_PLANES, "planes"},
                 {HC_CODE_BYTES, "bytes"},
                 {0, "zero"}};
    value[0] = '\0';
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (codes >> table[i].bit & 1) {
            size_t used = strlen(value);
            snprintf(value + used, HFS_XATTR_VALUE - used, "%s%s", used ? "," : "", table[i].name);
        }
}

static void print_value(const struct summary *s, const char *name, char value[HFS_XATTR_VALUE])
{
    if (strcmp(name, "code") == 0)
        print_codes(s->codes, value);
    else if (strcmp(name, "sqnr") == 0)
        snprintf(value, HFS_XATTR_VALUE, isinf(s->sqnr_db) ? "inf" : "%.2f", s->sqnr_db);
    else if (s->stored == 0) /* nothing but zeros and empty files: nothing is stored for them */
        snprintf(value, HFS_XATTR_VALUE, s->size == 0 ? "1.000" : "inf");
    else
        snprintf(value, HFS_XATTR_VALUE, "%.3f", (double)s->size / (double)s->stored);
}

/* Those of the root alone; false for any other. */
static bool print_of_root(struct hfs_xattrs *x, const char *name, char value[HFS_XATTR_VALUE])
{
    struct hfs_info info;
    struct hfs_reader_stats stats;
    hfs_image_info(x->img, &info);
    hfs_reader_stats(x->reader, &stats);
    if (strcmp(name, "version") == 0)
        snprintf(value, HFS_XATTR_VALUE, "%u", info.version);
    else if (strcmp(name, "decoded") == 0)
        snprintf(value, HFS_XATTR_VALUE, "%" PRIu64, stats.decoded);
    else if (strcmp(name, "delivered") == 0)
        snprintf(value, HFS_XATTR_VALUE, "%" PRIu64, stats.delivered);
    else
        return false;
    return true;
}

int hfs_xattrs_get(struct hfs_xattrs *x, uint32_t inode, const char *name,
                   char value[HFS_XATTR_VALUE])
{
    struct hfs_inode ino;
    hfs_image_inode(x->img, inode, &ino);
    if (S_ISLNK(ino.mode) || strncmp(name, PREFIX, sizeof PREFIX - 1) != 0)
        return -ENODATA;
    name += sizeof PREFIX - 1;
    if (inode == 0 && print_of_root(x, name, value))
        return 0;
    if (strcmp(name, "code") != 0 && strcmp(name, "ratio") != 0 && strcmp(name, "sqnr") != 0)
        return -ENODATA;
    int error = 0;
    pthread_mutex_lock(&x->lock);
    if (!x->known || x->inode != inode) {
        error = summarize(x->img, inode, &x->summary);
        x->known = error == 0;
        x->inode = inode;
    }
    if (error == 0)
        print_value(&x->summary, name, value);
    pthread_mutex_unlock(&x->lock);
    return error;
}
