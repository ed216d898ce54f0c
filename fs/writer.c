#include "fs/writer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#include "codec/bytes.h"
#include "fs/image_private.h"

#define TEMP_SUFFIX ".hyperfs-tmp"
enum {
    WRITE_BUFFER = 1 << 20,
    TEMP_RANDOM = 6,     /* characters between the name and the suffix */
    TEMP_NAME_MAX = 200, /* of the target's name in a temporary file's name */
    TABLE_LEVEL = 19,    /* zstd, of the tables */
    LARGE_TABLE_LEVEL = 9,
    LARGE_TABLE = 1 << 20 /* bytes from which level 19 would take long */
};

struct bytes {
    uint8_t *p;
    size_t len, room;
};

/* A code record that is there already. */
struct code_entry {
    uint8_t record[sizeof(struct hfs_disk_record) + HC_CODE_RECORD_MAX];
    size_t len;
    uint32_t number;
    UT_hash_handle hh;
};

struct hfs_writer {
    char *path;       /* as the user gave it, for the sentences */
    const char *name; /* its last component */
    char *temp_path;  /* beside it */
    const char *temp_name;
    int dir, fd;
    bool replace, broken, finished;

    uint8_t *buffer; /* written to `flushed` when it is full */
    size_t buffered;
    uint64_t flushed; /* bytes of the image that are in the file */

    struct bytes blocks; /* of hfs_disk_block: 20 bytes each */
    struct bytes hashes; /* of hfs_hash, of the blocks */
    struct hfs_hash digest;
    uint64_t nblocks, data_end;
    uint64_t blocks_in_use; /* blocks below belong to segments */

    struct bytes inodes, dirents, names, segments, codes, tensors, meta;
    struct code_entry *code_table;
    struct hc_code *code; /* by number */
    uint32_t ncodes;
};

#define fail(w, err, code, format, ...)                                                            \
    ((w)->broken = true, hfs_fail(err, code, format, ##__VA_ARGS__))

static int fail_write(struct hfs_writer *w, int code, struct hfs_error *err)
{
    if (code == ENOSPC || code == EDQUOT)
        return fail(w, err, code,
                    "%s: no space left for the image after %" PRIu64
                    " bytes; make room or choose another place",
                    w->path, w->flushed);
    return fail(w, err, code, "%s: cannot write the image at byte %" PRIu64 ": %s", w->path,
                w->flushed, strerror(code));
}

static int fail_memory(struct hfs_writer *w, struct hfs_error *err)
{
    return fail(w, err, ENOMEM, "%s: out of memory for the image's tables", w->path);
}

static int fail_state(struct hfs_writer *w, struct hfs_error *err)
{
    return hfs_fail(err, EINVAL, "%s: the image is %s", w->path,
                    w->finished ? "finished already" : "not whole: an earlier step failed");
}

/* ---- memory ---- */

static uint8_t *bytes_grow(struct bytes *b, size_t more)
{
    if (more > b->room - b->len) {
        if (more > SIZE_MAX / 4 || b->room > SIZE_MAX / 4)
            return NULL;
        size_t room = b->room * 2 > b->len + more ? b->room * 2 : b->len + more + 256;
        uint8_t *p = realloc(b->p, room);
        if (!p)
            return NULL;
        b->p = p;
        b->room = room;
    }
    uint8_t *at = b->p + b->len;
    if (more)
        memset(at, 0, more);
    b->len += more;
    return at;
}

static bool bytes_add(struct bytes *b, const void *data, size_t len)
{
    uint8_t *p = bytes_grow(b, len);
    if (p && len)
        memcpy(p, data, len);
    return p || len == 0;
}

/* ---- the temporary file ---- */

static int split_path(struct hfs_writer *w, struct hfs_error *err)
{
    char *slash = strrchr(w->path, '/');
    w->name = slash ? slash + 1 : w->path;
    if (!*w->name || strcmp(w->name, ".") == 0 || strcmp(w->name, "..") == 0)
        return hfs_fail(err, EISDIR, "%s names a directory, not an image", w->path);
    char *dir = slash == w->path ? strdup("/")
                : slash          ? strndup(w->path, (size_t)(slash - w->path))
                                 : strdup(".");
    if (!dir)
        return fail_memory(w, err);
    w->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int e = errno;
    free(dir);
    if (w->dir < 0)
        return hfs_fail(err, e, "cannot write %s: its directory cannot be opened: %s", w->path,
                        strerror(e));
    return 0;
}

/* *mode receives the permissions of the new image: those of the one it replaces. */
static int check_target(struct hfs_writer *w, mode_t *mode, struct hfs_error *err)
{
    struct stat st;
    *mode = 0666;
    if (fstatat(w->dir, w->name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        int e = errno;
        return e == ENOENT ? 0 : hfs_fail(err, e, "cannot write %s: %s", w->path, strerror(e));
    }
    if (!S_ISREG(st.st_mode))
        return hfs_fail(err, S_ISDIR(st.st_mode) ? EISDIR : EEXIST,
                        "%s is %s; an image replaces regular files only", w->path,
                        S_ISDIR(st.st_mode)   ? "a directory"
                        : S_ISLNK(st.st_mode) ? "a symbolic link"
                                              : "a special file");
    if (!w->replace)
        return hfs_fail(err, EEXIST, "%s exists; it is replaced only if you ask for it", w->path);
    *mode = st.st_mode & 0777;
    return 0;
}

/* ".NAME." of the target's temporary files. */
static int temp_prefix(const struct hfs_writer *w, char *buf, size_t size)
{
    return snprintf(buf, size, ".%.*s.", TEMP_NAME_MAX, w->name);
}

/* Removes `name` if nobody holds its lock, that is if its writer is gone. */
static bool remove_stale(const struct hfs_writer *w, const char *name)
{
    struct stat st;
    bool removed = false;
    int fd = openat(w->dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0)
        removed = unlinkat(w->dir, name, 0) == 0;
    close(fd);
    return removed;
}

static void remove_stale_files(const struct hfs_writer *w, hfs_stale_fn stale, void *ctx)
{
    char prefix[TEMP_NAME_MAX + 3];
    size_t n = (size_t)temp_prefix(w, prefix, sizeof prefix);
    size_t whole = n + TEMP_RANDOM + strlen(TEMP_SUFFIX);
    int fd = openat(w->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0)
            close(fd);
        return;
    }
    for (struct dirent *e; (e = readdir(d));) {
        if (strlen(e->d_name) != whole || memcmp(e->d_name, prefix, n) != 0 ||
            strcmp(e->d_name + n + TEMP_RANDOM, TEMP_SUFFIX) != 0 || !remove_stale(w, e->d_name))
            continue;
        char *path = NULL;
        if (stale && asprintf(&path, "%.*s%s", (int)(w->name - w->path), w->path, e->d_name) >= 0) {
            stale(ctx, path);
            free(path);
        }
    }
    closedir(d);
}

static int temp_name(struct hfs_writer *w, struct hfs_error *err)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz012345";
    char prefix[TEMP_NAME_MAX + 3];
    uint8_t noise[TEMP_RANDOM];
    char middle[TEMP_RANDOM + 1] = "";
    temp_prefix(w, prefix, sizeof prefix);
    while (getrandom(noise, sizeof noise, 0) != (ssize_t)sizeof noise)
        if (errno != EINTR)
            return hfs_fail(err, errno, "%s: no random numbers: %s", w->path, strerror(errno));
    for (unsigned i = 0; i < TEMP_RANDOM; i++)
        middle[i] = letters[noise[i] % 32];
    free(w->temp_path);
    if (asprintf(&w->temp_path, "%.*s%s%s" TEMP_SUFFIX, (int)(w->name - w->path), w->path, prefix,
                 middle) < 0) {
        w->temp_path = NULL;
        return fail_memory(w, err);
    }
    w->temp_name = w->temp_path + (w->name - w->path);
    return 0;
}

/* Creates and locks it. Between the two another writer may take it for stale: then it has lost
 * its name, and the next try makes another. Where locks do not work, none is ever stale. */
static int create_temp(struct hfs_writer *w, mode_t mode, struct hfs_error *err)
{
    for (unsigned tries = 0; tries < 100; tries++) {
        struct stat st;
        int r = temp_name(w, err);
        if (r < 0)
            return r;
        w->fd = openat(w->dir, w->temp_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (w->fd < 0 && errno != EEXIST) {
            int e = errno;
            return hfs_fail(err, e, "cannot create %s: %s", w->temp_path, strerror(e));
        }
        if (w->fd < 0)
            continue;
        bool held = flock(w->fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
        if (held && fstat(w->fd, &st) == 0 && st.st_nlink == 1)
            return 0;
        unlinkat(w->dir, w->temp_name, 0);
        close(w->fd);
        w->fd = -1;
    }
    return hfs_fail(err, EBUSY, "cannot create a temporary file beside %s", w->path);
}

static void writer_free(struct hfs_writer *w)
{
    struct bytes *all[] = {&w->blocks,   &w->hashes, &w->inodes,  &w->dirents, &w->names,
                           &w->segments, &w->codes,  &w->tensors, &w->meta};
    struct code_entry *e, *next;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]->p);
    HASH_ITER(hh, w->code_table, e, next)
    {
        HASH_DEL(w->code_table, e);
        free(e);
    }
    if (w->fd >= 0)
        close(w->fd);
    if (w->dir >= 0)
        close(w->dir);
    free(w->code);
    free(w->buffer);
    free(w->temp_path);
    free(w->path);
    free(w);
}

int hfs_writer_create(const char *path, bool replace, hfs_stale_fn stale, void *ctx,
                      struct hfs_writer **out, struct hfs_error *err)
{
    struct hfs_writer *w = calloc(1, sizeof *w);
    mode_t mode;
    int r;
    if (!w)
        return hfs_fail(err, ENOMEM, "%s: out of memory", path);
    w->dir = w->fd = -1;
    w->replace = replace;
    w->flushed = w->data_end = sizeof(struct hfs_disk_super); /* which is written last */
    w->path = strdup(path);
    w->buffer = malloc(WRITE_BUFFER);
    if (!w->path || !w->buffer) {
        r = hfs_fail(err, ENOMEM, "%s: out of memory", path);
        goto out;
    }
    if ((r = split_path(w, err)) < 0 || (r = check_target(w, &mode, err)) < 0)
        goto out;
    remove_stale_files(w, stale, ctx);
    r = create_temp(w, mode, err);
out:
    if (r < 0)
        writer_free(w);
    else
        *out = w;
    return r;
}

void hfs_writer_abort(struct hfs_writer *w)
{
    if (!w)
        return;
    unlinkat(w->dir, w->temp_name, 0);
    writer_free(w);
}

const char *hfs_writer_temp_path(const struct hfs_writer *w)
{
    return w->temp_path;
}

/* ---- writing bytes ---- */

static int write_at(struct hfs_writer *w, const uint8_t *p, size_t len, uint64_t offset,
                    struct hfs_error *err)
{
    while (len > 0) {
        ssize_t n = pwrite(w->fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail_write(w, n < 0 ? errno : EIO, err);
        p += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int flush(struct hfs_writer *w, struct hfs_error *err)
{
    int r = write_at(w, w->buffer, w->buffered, w->flushed, err);
    if (r < 0)
        return r;
    w->flushed += w->buffered;
    w->buffered = 0;
    return 0;
}

/* Appends to the image. */
static int append(struct hfs_writer *w, const void *data, size_t len, struct hfs_error *err)
{
    const uint8_t *p = data;
    int r;
    while (len > 0) {
        size_t n = WRITE_BUFFER - w->buffered;
        if (n > len)
            n = len;
        memcpy(w->buffer + w->buffered, p, n);
        w->buffered += n;
        p += n;
        len -= n;
        if (w->buffered == WRITE_BUFFER && (r = flush(w, err)) < 0)
            return r;
    }
    return 0;
}

static uint64_t written(const struct hfs_writer *w)
{
    return w->flushed + w->buffered;
}

/* ---- blocks ---- */

int hfs_writer_block(struct hfs_writer *w, const uint8_t *data, uint32_t size, uint64_t content,
                     struct hfs_error *err)
{
    if (w->broken || w->finished)
        return fail_state(w, err);
    if (size < 1 || size > HFS_MAX_STORED)
        return fail(w, err, EINVAL, "%s: a coded block of %u bytes", w->path, size);
    struct hfs_disk_block *b = (struct hfs_disk_block *)bytes_grow(&w->blocks, sizeof *b);
    struct hfs_hash *hash = (struct hfs_hash *)bytes_grow(&w->hashes, sizeof *hash);
    if (!b || !hash)
        return fail_memory(w, err);
    hfs_hash_of(data, size, hash);
    store32(b->size, size);
    store64(b->checksum, XXH3_64bits(data, size));
    store64(b->content, content);
    w->nblocks++;
    w->data_end += size;
    return append(w, data, size, err);
}

uint64_t hfs_writer_blocks(const struct hfs_writer *w)
{
    return w->nblocks;
}

uint64_t hfs_writer_data_bytes(const struct hfs_writer *w)
{
    return w->data_end - sizeof(struct hfs_disk_super);
}

uint64_t hfs_writer_range_bytes(const struct hfs_writer *w, uint64_t first, uint64_t count)
{
    const struct hfs_disk_block *b = (const struct hfs_disk_block *)w->blocks.p;
    uint64_t sum = 0;
    for (uint64_t i = first; i < w->nblocks && i - first < count; i++)
        sum += load32(b[i].size);
    return sum;
}

int hfs_writer_rewind(struct hfs_writer *w, uint64_t blocks, struct hfs_error *err)
{
    if (w->broken || w->finished)
        return fail_state(w, err);
    if (blocks > w->nblocks || blocks < w->blocks_in_use)
        return fail(w, err, EINVAL, "%s: cannot take blocks back to %" PRIu64, w->path, blocks);
    w->data_end -= hfs_writer_range_bytes(w, blocks, w->nblocks - blocks);
    w->nblocks = blocks;
    w->blocks.len = (size_t)blocks * sizeof(struct hfs_disk_block);
    w->hashes.len = (size_t)blocks * sizeof(struct hfs_hash);
    if (w->data_end >= w->flushed) {
        w->buffered = (size_t)(w->data_end - w->flushed);
    } else { /* written over, and cut off by finish */
        w->buffered = 0;
        w->flushed = w->data_end;
    }
    return 0;
}

/* ---- tables ---- */

int hfs_writer_code(struct hfs_writer *w, const struct hc_code *code, uint32_t *number,
                    struct hfs_error *err)
{
    if (w->broken || w->finished)
        return fail_state(w, err);
    struct code_entry *found, *e = calloc(1, sizeof *e);
    if (!e)
        return fail_memory(w, err);
    struct hfs_disk_record *rec = (struct hfs_disk_record *)e->record;
    size_t body = hc_code_store(code, e->record + sizeof *rec);
    store16(rec->type, (uint16_t)code->type);
    store32(rec->length, (uint32_t)body);
    e->len = sizeof *rec + body;
    HASH_FIND(hh, w->code_table, e->record, e->len, found);
    if (found) {
        free(e);
        *number = found->number;
        return 0;
    }
    struct hc_code *codes = realloc(w->code, (w->ncodes + (size_t)1) * sizeof *codes);
    if (codes)
        w->code = codes;
    if (!codes || !bytes_add(&w->codes, e->record, e->len)) {
        free(e);
        return fail_memory(w, err);
    }
    e->number = w->ncodes;
    HASH_ADD(hh, w->code_table, record, e->len, e);
    if (!e->hh.tbl) { /* what uthash leaves when it had no memory */
        free(e);
        return fail_memory(w, err);
    }
    *number = w->ncodes;
    w->code[w->ncodes++] = *code;
    return 0;
}

int hfs_writer_segment(struct hfs_writer *w, const struct hfs_segment *seg, uint64_t *number,
                       struct hfs_error *err)
{
    if (w->broken || w->finished)
        return fail_state(w, err);
    bool coded = seg->kind == HFS_SEG_CODED;
    uint64_t end = 0;
    if (seg->length < 1 || (coded && seg->code >= w->ncodes))
        return fail(w, err, EINVAL, "%s: a segment without length or code", w->path);
    if (coded) {
        uint64_t n = hfs_block_count(seg->length, hc_code_block_bytes(&w->code[seg->code]));
        if (seg->first_block > w->nblocks || n > w->nblocks - seg->first_block)
            return fail(w, err, EINVAL, "%s: a segment of blocks that were not written", w->path);
        end = seg->first_block + n;
    }
    struct hfs_disk_segment *d = (struct hfs_disk_segment *)bytes_grow(&w->segments, sizeof *d);
    if (!d)
        return fail_memory(w, err);
    store64(d->file_offset, seg->file_offset);
    store64(d->length, seg->length);
    store64(d->first_block, coded ? seg->first_block : 0);
    store32(d->code, coded ? seg->code : 0);
    store16(d->kind, (uint16_t)seg->kind);
    if (end > w->blocks_in_use)
        w->blocks_in_use = end;
    *number = w->segments.len / sizeof *d - 1;
    return 0;
}

uint64_t hfs_writer_segments(const struct hfs_writer *w)
{
    return w->segments.len / sizeof(struct hfs_disk_segment);
}

static struct hfs_disk_inode *inode_at(const struct hfs_writer *w, uint64_t number)
{
    return (struct hfs_disk_inode *)w->inodes.p + number;
}

static uint64_t inode_count(const struct hfs_writer *w)
{
    return w->inodes.len / sizeof(struct hfs_disk_inode);
}

/* The fields that the caller decides for every type of inode. */
static void store_inode(struct hfs_disk_inode *d, const struct hfs_inode *ino)
{
    store32(d->mode, ino->mode);
    store32(d->uid, ino->uid);
    store32(d->gid, ino->gid);
    store64(d->mtime, (uint64_t)ino->mtime);
    store32(d->mtime_nsec, ino->mtime_nsec);
    if (S_ISREG(ino->mode)) {
        store64(d->size, ino->size);
        store32(d->count, ino->count);
        store64(d->first, ino->first);
    }
}

int hfs_writer_inode(struct hfs_writer *w, const struct hfs_inode *ino, const char *target,
                     uint32_t *number, struct hfs_error *err)
{
    if (w->broken || w->finished)
        return fail_state(w, err);
    if (w->inodes.len >= HFS_MAX_SECTION_BYTES)
        return fail(w, err, EFBIG, "%s: more files than an image can hold", w->path);
    struct hfs_disk_inode *d = (struct hfs_disk_inode *)bytes_grow(&w->inodes, sizeof *d);
    if (!d)
        return fail_memory(w, err);
    store_inode(d, ino);
    if (S_ISLNK(ino->mode)) {
        store64(d->size, ino->size);
        store64(d->first, w->names.len);
        if (!bytes_add(&w->names, target, (size_t)ino->size))
            return fail_memory(w, err);
    }
    *number = (uint32_t)(inode_count(w) - 1);
    return 0;
}

void hfs_writer_set_inode(struct hfs_writer *w, const struct hfs_inode *ino)
{
    if (ino->number >= inode_count(w) ||
        (load32(inode_at(w, ino->number)->mode) & S_IFMT) != (ino->mode & S_IFMT))
        w->broken = true; /* finish will say so */
    else
        store_inode(inode_at(w, ino->number), ino);
}

static int compare_entries(const void *a, const void *b)
{
    const struct hfs_dirent *x = a, *y = b;
    return hfs_name_compare(x->name, x->name_len, y->name, y->name_len);
}

/* Checks the names and stores them behind each other; `sorted` is the directory's entries. */
static int store_entries(struct hfs_writer *w, const struct hfs_dirent *sorted, uint32_t count,
                         struct hfs_error *err)
{
    char text[300];
    for (uint32_t i = 0; i < count; i++) {
        const struct hfs_dirent *e = &sorted[i];
        hfs_printable(text, sizeof text, e->name, e->name_len);
        if (!hfs_name_valid(e->name, e->name_len))
            return fail(w, err, EINVAL, "%s: \"%s\" cannot be the name of a file", w->path, text);
        if (i > 0 && compare_entries(e - 1, e) == 0)
            return fail(w, err, EEXIST, "%s: two entries of a directory are named \"%s\"", w->path,
                        text);
        struct hfs_disk_dirent *d = (struct hfs_disk_dirent *)bytes_grow(&w->dirents, sizeof *d);
        if (!d)
            return fail_memory(w, err);
        store64(d->name, w->names.len);
        store16(d->name_len, (uint16_t)e->name_len);
        store32(d->inode, e->inode);
        if (!bytes_add(&w->names, e->name, e->name_len))
            return fail_memory(w, err);
    }
    return 0;
}

int hfs_writer_entries(struct hfs_writer *w, uint32_t dir, const struct hfs_dirent *entries,
                       uint32_t count, struct hfs_error *err)
{
    if (w->broken || w->finished)
        return fail_state(w, err);
    if (dir >= inode_count(w) || !S_ISDIR(load32(inode_at(w, dir)->mode)) ||
        load32(inode_at(w, dir)->count))
        return fail(w, err, EINVAL, "%s: inode %u is no directory without entries", w->path, dir);
    struct hfs_dirent *sorted = malloc((size_t)count * sizeof *sorted + 1);
    if (!sorted)
        return fail_memory(w, err);
    if (count) {
        memcpy(sorted, entries, (size_t)count * sizeof *sorted);
        qsort(sorted, count, sizeof *sorted, compare_entries);
    }
    store64(inode_at(w, dir)->first, w->dirents.len / sizeof(struct hfs_disk_dirent));
    store32(inode_at(w, dir)->count, count);
    int r = store_entries(w, sorted, count, err);
    free(sorted);
    return r;
}

int hfs_writer_tensor(struct hfs_writer *w, const struct hfs_tensor *t, struct hfs_error *err)
{
    struct hfs_disk_tensor d = {0};
    uint64_t length = sizeof d + 8 * (uint64_t)t->rank + t->name_len;
    if (w->broken || w->finished)
        return fail_state(w, err);
    if (t->rank > UINT16_MAX || length > UINT32_MAX)
        return fail(w, err, EINVAL, "%s: a tensor of %u dimensions", w->path, t->rank);
    store32(d.length, (uint32_t)length);
    store32(d.inode, t->inode);
    store64(d.segment, t->segment);
    store64(d.elements, t->elements);
    store64(d.exact, t->exact);
    store64(d.stored, t->stored);
    store_double(d.sqnr, t->sqnr_db);
    store_double(d.max_error, t->max_error);
    store16(d.dtype, (uint16_t)t->dtype);
    store16(d.rank, (uint16_t)t->rank);
    store32(d.name_len, t->name_len);
    if (!bytes_add(&w->tensors, &d, sizeof d) ||
        !bytes_add(&w->tensors, t->dims, 8 * (size_t)t->rank) ||
        !bytes_add(&w->tensors, t->name, t->name_len))
        return fail_memory(w, err);
    return 0;
}

int hfs_writer_meta(struct hfs_writer *w, const char *key, const char *value, struct hfs_error *err)
{
    if (w->broken || w->finished)
        return fail_state(w, err);
    if (!*key || strchr(key, '='))
        return fail(w, err, EINVAL, "%s: \"%s\" is no key for META", w->path, key);
    if (!bytes_add(&w->meta, key, strlen(key)) || !bytes_add(&w->meta, "=", 1) ||
        !bytes_add(&w->meta, value, strlen(value)) || !bytes_add(&w->meta, "\n", 1))
        return fail_memory(w, err);
    return 0;
}

/* ---- finish ---- */

/* Brings the entries into the order of their directories, and sets what follows from the tree:
 * first of a directory, parent and number of links. */
static int arrange_entries(struct hfs_writer *w, struct hfs_error *err)
{
    struct bytes sorted = {0};
    uint64_t n = inode_count(w);
    for (uint64_t i = 0; i < n; i++) {
        struct hfs_disk_inode *dir = inode_at(w, i);
        uint64_t first = load64(dir->first);
        uint32_t count = load32(dir->count), subdirs = 0;
        if (!S_ISDIR(load32(dir->mode)))
            continue;
        const struct hfs_disk_dirent *e = (const struct hfs_disk_dirent *)w->dirents.p + first;
        store64(dir->first, sorted.len / sizeof *e);
        for (uint32_t k = 0; k < count; k++) {
            uint32_t number = load32(e[k].inode);
            if (number >= n || !bytes_add(&sorted, &e[k], sizeof e[k])) {
                free(sorted.p);
                return number >= n ? fail(w, err, EINVAL, "%s: an entry names no inode", w->path)
                                   : fail_memory(w, err);
            }
            struct hfs_disk_inode *child = inode_at(w, number);
            if (S_ISDIR(load32(child->mode))) {
                store32(child->parent, (uint32_t)i);
                subdirs++;
            } else {
                store32(child->nlink, load32(child->nlink) + 1);
            }
        }
        store32(dir->nlink, 2 + subdirs);
    }
    free(w->dirents.p);
    w->dirents = sorted;
    return 0;
}

/* The checks that every reader makes. */
static int check_image(struct hfs_writer *w, struct hfs_error *err)
{
    struct hfs_tables t = {
        .inodes = w->inodes.p,
        .dirents = w->dirents.p,
        .names = w->names.p,
        .segments = w->segments.p,
        .ninodes = inode_count(w),
        .ndirents = w->dirents.len / sizeof(struct hfs_disk_dirent),
        .names_len = w->names.len,
        .nsegments = hfs_writer_segments(w),
        .codes = w->code,
        .ncodes = w->ncodes,
        .nblocks = w->nblocks,
    };
    struct hfs_error found = {{0}};
    uint64_t bytes, count, *offsets = NULL;
    int r;
    if ((r = hfs_tables_check(&t, w->path, &bytes, &found)) == 0 &&
        (r = hfs_meta_check((const char *)w->meta.p, w->meta.len, w->path, &found)) == 0)
        r = hfs_tensors_check(&t, w->tensors.p, w->tensors.len, w->path, &offsets, &count, &found);
    free(offsets);
    return r == 0 ? 0
                  : fail(w, err, -r, "refused to write an image that could not be read: %s",
                         found.text);
}

/* Writes the index leaves; `index` receives their checksums, `digest` their hashes. */
static int write_leaves(struct hfs_writer *w, struct bytes *index, struct bytes *digest,
                        struct hfs_error *err)
{
    const struct hfs_disk_block *block = (const struct hfs_disk_block *)w->blocks.p;
    const struct hfs_hash *hashes = (const struct hfs_hash *)w->hashes.p;
    uint8_t leaf[HFS_LEAF_BYTES];
    uint64_t offset = sizeof(struct hfs_disk_super);
    for (uint64_t i = 0; i < w->nblocks; i += HFS_LEAF_BLOCKS) {
        uint64_t n = w->nblocks - i < HFS_LEAF_BLOCKS ? w->nblocks - i : HFS_LEAF_BLOCKS;
        size_t len = sizeof(struct hfs_disk_leaf) + (size_t)n * sizeof *block;
        store64(leaf, offset);
        memcpy(leaf + sizeof(struct hfs_disk_leaf), block + i, (size_t)n * sizeof *block);
        offset += hfs_writer_range_bytes(w, i, n);
        uint8_t *checksum = bytes_grow(index, 8);
        struct hfs_hash *hash = (struct hfs_hash *)bytes_grow(digest, sizeof *hash);
        if (!checksum || !hash)
            return fail_memory(w, err);
        store64(checksum, XXH3_64bits(leaf, len));
        hfs_digest_leaf(leaf, len, hashes + i, (size_t)n, hash);
        int r = append(w, leaf, len, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Writes a section, packed where that is smaller, and its directory entry; *hash is that of its
 * stored bytes. */
static int write_section(struct hfs_writer *w, unsigned type, const struct bytes *raw,
                         struct hfs_disk_section *entry, struct hfs_hash *hash,
                         struct hfs_error *err)
{
    const uint8_t *stored = raw->p;
    size_t len = raw->len, bound = ZSTD_compressBound(raw->len);
    if (raw->len > HFS_MAX_SECTION_BYTES)
        return fail(w, err, EFBIG, "%s: its tables would be larger than an image can hold",
                    w->path);
    uint8_t *packed = malloc(bound);
    if (!packed)
        return fail_memory(w, err);
    store16(entry->packing, HFS_PACK_NONE);
    if (type != HFS_SEC_NAMES && type != HFS_SEC_DIGEST) {
        size_t n = ZSTD_compress(packed, bound, raw->p, raw->len,
                                 raw->len < LARGE_TABLE ? TABLE_LEVEL : LARGE_TABLE_LEVEL);
        if (ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation) {
            free(packed);
            return fail_memory(w, err);
        }
        if (!ZSTD_isError(n) && n < raw->len) {
            stored = packed;
            len = n;
            store16(entry->packing, HFS_PACK_ZSTD);
        }
    }
    bool required = type != HFS_SEC_META && type < HFS_SEC_TENSORS;
    store32(entry->type, type);
    store16(entry->flags, required ? HFS_SECTION_REQUIRED : 0);
    store64(entry->offset, written(w));
    store64(entry->stored_size, len);
    store64(entry->raw_size, raw->len);
    store64(entry->checksum, XXH3_64bits(stored, len));
    hfs_hash_of(stored, len, hash);
    int r = append(w, stored, len, err);
    free(packed);
    return r;
}

/* What finish writes behind the blocks. */
struct tables {
    struct bytes index, digest; /* sections that follow from the blocks */
    size_t leaves;              /* bytes of the digest section that are hashes of leaves */
    struct hfs_disk_section dir[HFS_SEC_DIGEST];
    struct hfs_hash hash[HFS_SEC_DIGEST]; /* of the sections */
};

static void sum_digest(struct hfs_writer *w, const struct tables *t, struct hfs_disk_super *s)
{
    struct hfs_digest_root root;
    hfs_digest_root_begin(&root, s);
    hfs_digest_root_add(&root, t->dir, sizeof t->dir);
    for (unsigned type = 1; type < HFS_SEC_DIGEST; type++)
        hfs_digest_root_add(&root, &t->hash[type - 1], sizeof t->hash[type - 1]);
    hfs_digest_root_add(&root, t->digest.p, t->leaves);
    hfs_digest_root_end(&root, &w->digest);
    memcpy(s->digest, w->digest.byte, sizeof s->digest);
}

/* Directory and both superblocks, after the sections. */
static int write_super(struct hfs_writer *w, const struct tables *t, struct hfs_error *err)
{
    struct hfs_disk_super s = {0};
    uint64_t end = written(w);
    memcpy(s.magic, HFS_MAGIC, sizeof s.magic);
    store32(s.version, HFS_VERSION);
    store32(s.size, sizeof s);
    store64(s.compat, HFS_COMPAT_DIGEST);
    store64(s.image_size, end + sizeof t->dir + sizeof s);
    store64(s.data_end, w->data_end);
    store64(s.dir_offset, end);
    store32(s.dir_count, HFS_SEC_DIGEST);
    store64(s.dir_checksum, XXH3_64bits(t->dir, sizeof t->dir));
    store64(s.block_count, w->nblocks);
    store32(s.digest_kind, HFS_DIGEST_SHA256);
    sum_digest(w, t, &s);
    store64(s.checksum, XXH3_64bits(&s, offsetof(struct hfs_disk_super, checksum)));
    int r;
    if ((r = append(w, t->dir, sizeof t->dir, err)) < 0 || (r = append(w, &s, sizeof s, err)) < 0 ||
        (r = flush(w, err)) < 0)
        return r;
    return write_at(w, (const uint8_t *)&s, sizeof s, 0, err);
}

static int write_tables(struct hfs_writer *w, struct hfs_error *err)
{
    struct tables t = {.leaves = 0};
    const struct bytes *sections[] = {
        [HFS_SEC_META] = &w->meta,         [HFS_SEC_INODES] = &w->inodes,
        [HFS_SEC_DIRENTS] = &w->dirents,   [HFS_SEC_NAMES] = &w->names,
        [HFS_SEC_SEGMENTS] = &w->segments, [HFS_SEC_CODES] = &w->codes,
        [HFS_SEC_INDEX] = &t.index,        [HFS_SEC_TENSORS] = &w->tensors,
        [HFS_SEC_DIGEST] = &t.digest,
    };
    int r = write_leaves(w, &t.index, &t.digest, err);
    t.leaves = t.digest.len;
    if (r == 0 && !bytes_add(&t.digest, w->hashes.p, w->hashes.len))
        r = fail_memory(w, err);
    for (unsigned type = 1; r == 0 && type <= HFS_SEC_DIGEST; type++)
        r = write_section(w, type, sections[type], &t.dir[type - 1], &t.hash[type - 1], err);
    uint64_t raw = 0;
    for (unsigned type = 1; type < HFS_SEC_DIGEST; type++)
        raw += sections[type]->len;
    if (r == 0 && raw > hfs_max_tables(written(w)))
        r = fail(w, err, EFBIG, "%s: its tables would be larger than an image can hold", w->path);
    if (r == 0)
        r = write_super(w, &t, err);
    free(t.index.p);
    free(t.digest.p);
    return r;
}

int hfs_writer_finish(struct hfs_writer *w, uint64_t *image_size, struct hfs_error *err)
{
    int r;
    if (w->broken || w->finished)
        return fail_state(w, err);
    w->broken = true; /* until all is done */
    if ((r = arrange_entries(w, err)) < 0 || (r = check_image(w, err)) < 0 ||
        (r = write_tables(w, err)) < 0)
        return r;
    /* Blocks that were taken back may have left the file longer. */
    if (ftruncate(w->fd, (off_t)w->flushed) < 0 || fsync(w->fd) < 0)
        return fail_write(w, errno, err);
    w->broken = false;
    w->finished = true;
    if (image_size)
        *image_size = w->flushed;
    return 0;
}

void hfs_writer_digest(const struct hfs_writer *w, struct hfs_hash *out)
{
    *out = w->digest;
}

int hfs_writer_reopen(struct hfs_writer *w, uint64_t blocks, struct hfs_error *err)
{
    struct bytes *tables[] = {&w->inodes, &w->dirents, &w->names, &w->segments,
                              &w->codes,  &w->tensors, &w->meta};
    struct code_entry *e, *next;
    if (w->broken || !w->finished)
        return hfs_fail(err, EINVAL, "%s: the image is not finished", w->path);
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        tables[i]->len = 0;
    HASH_ITER(hh, w->code_table, e, next)
    {
        HASH_DEL(w->code_table, e);
        free(e);
    }
    w->ncodes = 0;
    w->blocks_in_use = 0;
    w->finished = false;
    return hfs_writer_rewind(w, blocks, err);
}

/* ---- commit ---- */

static int rename_new(struct hfs_writer *w)
{
    struct stat st;
    if (renameat2(w->dir, w->temp_name, w->dir, w->name, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    /* A file system that cannot refuse by itself; the moment between is accepted. */
    if (fstatat(w->dir, w->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        return -EEXIST;
    return renameat(w->dir, w->temp_name, w->dir, w->name) == 0 ? 0 : -errno;
}

int hfs_writer_commit(struct hfs_writer *w, struct hfs_error *err)
{
    int r = 0;
    if (w->broken || !w->finished) {
        r = hfs_fail(err, EINVAL, "%s: the image is not finished", w->path);
        hfs_writer_abort(w);
        return r;
    }
    if (!w->replace)
        r = rename_new(w);
    else if (renameat(w->dir, w->temp_name, w->dir, w->name) < 0)
        r = -errno;
    if (r < 0) {
        r = hfs_fail(err, -r, "cannot rename %s to %s: %s", w->temp_path, w->path, strerror(-r));
        hfs_writer_abort(w);
        return r;
    }
    /* Some file systems cannot sync a directory and say EINVAL. */
    if (fsync(w->dir) < 0 && errno != EINVAL)
        r = hfs_fail(err, errno, "%s is written, but its directory could not be synced: %s",
                     w->path, strerror(errno));
    writer_free(w);
    return r;
}
