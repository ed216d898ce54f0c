#include "fs/image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "codec/bytes.h"
#include "fs/image_private.h"

#define damaged(img, err, format, ...)                                                             \
    hfs_fail(err, EBADMSG, "%s is damaged: " format, (img)->path, ##__VA_ARGS__)

/* ---- reading ---- */

int hfs_read_at(int fd, void *buf, size_t len, uint64_t offset)
{
    uint8_t *p = buf;
    if (offset > INT64_MAX || len > INT64_MAX - offset)
        return -EIO;
    while (len > 0) {
        ssize_t n = pread(fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        p += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int read_or_fail(const struct hfs_image *img, void *buf, size_t len, uint64_t offset,
                        const char *what, struct hfs_error *err)
{
    int r = hfs_read_at(img->fd, buf, len, offset);
    if (r < 0)
        return hfs_fail(err, -r, "%s: cannot read %s at byte %" PRIu64 ": %s", img->path, what,
                        offset, strerror(-r));
    return 0;
}

/* ---- superblock and section directory ---- */

static int open_file(struct hfs_image *img, uint64_t *size, bool *regular, struct hfs_error *err)
{
    struct stat st;
    /* O_NONBLOCK: a fifo must be refused, not waited for. */
    img->fd = open(img->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (img->fd < 0 || fstat(img->fd, &st) < 0) {
        int e = errno;
        return hfs_fail(err, e, "cannot open %s: %s", img->path, strerror(e));
    }
    *regular = S_ISREG(st.st_mode);
    off_t end = S_ISBLK(st.st_mode) ? lseek(img->fd, 0, SEEK_END) : st.st_size;
    if (!(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) || end < 0)
        return hfs_fail(err, EINVAL, "%s is %s, not a hyperfs image", img->path,
                        S_ISDIR(st.st_mode) ? "a directory" : "no regular file");
    *size = (uint64_t)end;
    return 0;
}

static bool super_valid(const uint8_t *bytes)
{
    const struct hfs_disk_super *s = (const struct hfs_disk_super *)bytes;
    return memcmp(s->magic, HFS_MAGIC, sizeof s->magic) == 0 &&
           XXH3_64bits(s, offsetof(struct hfs_disk_super, checksum)) == load64(s->checksum);
}

/* Finds a superblock with a good checksum: the first, or the copy at the end of the file. */
static int find_super(struct hfs_image *img, uint64_t file_size, bool regular,
                      struct hfs_error *err)
{
    const struct hfs_disk_super *s = (const struct hfs_disk_super *)img->super;
    size_t n = sizeof img->super;
    size_t there = file_size < n ? (size_t)file_size : n;
    int first = hfs_read_at(img->fd, img->super, there, 0); /* a bad sector: there is the copy */
    if (first == 0 && super_valid(img->super))
        return 0;
    bool magic = first == 0 && memcmp(s->magic, HFS_MAGIC, sizeof s->magic) == 0;
    uint32_t version = first == 0 ? load32(s->version) : 0;
    if (regular && file_size >= 2 * n) {
        int r = read_or_fail(img, img->super, n, file_size - n, "the superblock's copy", err);
        if (r < 0)
            return r;
        img->info.used_copy = super_valid(img->super);
        if (img->info.used_copy)
            return 0;
    }
    if (first < 0)
        return hfs_fail(err, -first, "%s: cannot read the superblock at byte 0: %s", img->path,
                        strerror(-first));
    if (!magic)
        return hfs_fail(err, EINVAL, "%s is not a hyperfs image", img->path);
    if (file_size >= n && version > HFS_VERSION)
        return hfs_fail(err, ENOTSUP,
                        "%s is damaged, or an image of version %u: this hyperfs reads version %d",
                        img->path, version, HFS_VERSION);
    return damaged(img, err,
                   "neither its superblock nor the copy at its end is whole (is it truncated?)");
}

static bool all_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

/* Versions and features before sizes: of a newer image the sizes may mean something else. */
static int check_features(struct hfs_image *img, struct hfs_error *err)
{
    const struct hfs_disk_super *s = (const struct hfs_disk_super *)img->super;
    img->info.version = load32(s->version);
    img->info.incompat = load64(s->incompat);
    img->info.compat = load64(s->compat);
    if (img->info.version > HFS_VERSION)
        return hfs_fail(err, ENOTSUP,
                        "%s is an image of version %u, this hyperfs reads version %d: use a newer "
                        "hyperfs",
                        img->path, img->info.version, HFS_VERSION);
    if (img->info.incompat & ~HFS_INCOMPAT_KNOWN)
        return hfs_fail(err, ENOTSUP,
                        "%s uses features that this hyperfs does not know (bits %#" PRIx64
                        "): use a newer hyperfs",
                        img->path, img->info.incompat & ~HFS_INCOMPAT_KNOWN);
    if (img->info.version < 1 || load32(s->size) != sizeof *s)
        return damaged(img, err, "its superblock has an impossible version or size");
    /* A compatible feature may use fields that are reserved today. */
    bool digest = img->info.compat & HFS_COMPAT_DIGEST;
    if (!(img->info.compat & ~HFS_COMPAT_KNOWN) &&
        (load32(s->reserved0) || load32(s->reserved1) ||
         (!digest && (load32(s->digest_kind) || !all_zero(s->digest, sizeof s->digest)))))
        return damaged(img, err, "a reserved field of its superblock is set");
    img->info.has_digest = digest && load32(s->digest_kind) == HFS_DIGEST_SHA256;
    memcpy(img->info.digest.byte, s->digest, sizeof s->digest);
    return 0;
}

static int check_geometry(struct hfs_image *img, uint64_t file_size, bool regular,
                          struct hfs_error *err)
{
    const struct hfs_disk_super *s = (const struct hfs_disk_super *)img->super;
    uint64_t size = load64(s->image_size), blocks = load64(s->block_count);
    uint64_t tail = sizeof *s + (uint64_t)load32(s->dir_count) * sizeof(struct hfs_disk_section);
    img->data_end = load64(s->data_end);
    img->dir_offset = load64(s->dir_offset);
    img->nsections = load32(s->dir_count);
    if (size > file_size)
        return damaged(img, err, "it is truncated, %" PRIu64 " of %" PRIu64 " bytes are there",
                       file_size, size);
    if (regular && size < file_size)
        return damaged(img, err, "%" PRIu64 " bytes follow its end at %" PRIu64, file_size - size,
                       size);
    if (img->nsections < 1 || img->nsections > HFS_MAX_SECTIONS || tail > size ||
        img->dir_offset != size - tail || img->data_end < sizeof *s ||
        img->data_end > img->dir_offset)
        return damaged(img, err, "the offsets in its superblock are impossible");
    uint64_t room = img->dir_offset - img->data_end;
    uint64_t data = img->data_end - sizeof *s;
    if (blocks > room / sizeof(struct hfs_disk_block) || data < blocks ||
        data / HFS_MAX_STORED > blocks || (data > 0 && blocks == 0))
        return damaged(img, err, "%" PRIu64 " blocks cannot be in %" PRIu64 " bytes", blocks, data);
    img->nleaves = hfs_block_count(blocks, HFS_LEAF_BLOCKS);
    img->info.leaf_bytes =
        img->nleaves * sizeof(struct hfs_disk_leaf) + blocks * sizeof(struct hfs_disk_block);
    if (img->info.leaf_bytes > room)
        return damaged(img, err, "its index does not fit in");
    img->info.image_size = size;
    img->info.data_bytes = data;
    img->info.block_count = img->tables.nblocks = blocks;
    return 0;
}

static int check_section(const struct hfs_image *img, const struct hfs_section_entry *sec,
                         unsigned last_type, uint64_t next, struct hfs_error *err)
{
    bool known = sec->type <= HFS_SEC_DIGEST;
    if (sec->type <= last_type || sec->offset != next || sec->stored_size > img->dir_offset - next)
        return damaged(img, err, "section %u is not where the one before it ends", sec->type);
    if (sec->raw_size > HFS_MAX_SECTION_BYTES || sec->stored_size > HFS_MAX_SECTION_BYTES)
        return hfs_fail(err, EFBIG, "%s: section %u is larger than the limit of %" PRIu64 " bytes",
                        img->path, sec->type, HFS_MAX_SECTION_BYTES);
    if ((!known && (sec->flags & HFS_SECTION_REQUIRED)) || (sec->flags & ~HFS_SECTION_REQUIRED) ||
        (known && sec->packing > HFS_PACK_ZSTD))
        return hfs_fail(err, ENOTSUP,
                        "%s has a section (type %u, flags %#x, packing %u) that this hyperfs does "
                        "not know: use a newer hyperfs",
                        img->path, sec->type, sec->flags, sec->packing);
    if ((sec->packing == HFS_PACK_NONE && sec->stored_size != sec->raw_size) ||
        (known && sec->packing == HFS_PACK_ZSTD &&
         (sec->type == HFS_SEC_NAMES || sec->type == HFS_SEC_DIGEST ||
          sec->stored_size >= sec->raw_size)))
        return damaged(img, err, "section %u has an impossible size or packing", sec->type);
    return 0;
}

static int read_directory(struct hfs_image *img, struct hfs_error *err)
{
    const struct hfs_disk_super *s = (const struct hfs_disk_super *)img->super;
    struct hfs_disk_section disk[HFS_MAX_SECTIONS];
    size_t bytes = img->nsections * sizeof disk[0];
    uint64_t next = img->data_end + img->info.leaf_bytes, tables = 0;
    uint64_t most = hfs_max_tables(img->info.image_size);
    unsigned type = 0;
    int r = read_or_fail(img, disk, bytes, img->dir_offset, "the section directory", err);
    if (r < 0)
        return r;
    if (XXH3_64bits(disk, bytes) != load64(s->dir_checksum))
        return damaged(img, err, "the checksum of its section directory is wrong");
    for (unsigned i = 0; i < img->nsections; i++) {
        struct hfs_section_entry *sec = &img->sections[i];
        *sec = (struct hfs_section_entry){
            .type = load32(disk[i].type),
            .flags = load16(disk[i].flags),
            .packing = load16(disk[i].packing),
            .offset = load64(disk[i].offset),
            .stored_size = load64(disk[i].stored_size),
            .raw_size = load64(disk[i].raw_size),
            .checksum = load64(disk[i].checksum),
        };
        if ((r = check_section(img, sec, type, next, err)) < 0)
            return r;
        next += sec->stored_size;
        type = sec->type;
        tables += type < HFS_SEC_DIGEST ? sec->raw_size : 0;
    }
    if (tables > most)
        return hfs_fail(err, EFBIG,
                        "%s: its tables unpack to %" PRIu64
                        " bytes, more than the limit of %" PRIu64 " for an image of its size",
                        img->path, tables, most);
    if (next != img->dir_offset)
        return damaged(img, err, "its sections end at %" PRIu64 ", their directory is at %" PRIu64,
                       next, img->dir_offset);
    return 0;
}

/* ---- sections ---- */

const struct hfs_section_entry *hfs_section_find(const struct hfs_image *img, unsigned type)
{
    for (unsigned i = 0; i < img->nsections; i++)
        if (img->sections[i].type == type)
            return &img->sections[i];
    return NULL;
}

int hfs_section_read(const struct hfs_image *img, const struct hfs_section_entry *sec,
                     uint8_t **out, struct hfs_error *err)
{
    uint8_t *p = malloc((size_t)sec->stored_size + 1);
    if (!p)
        return hfs_fail(err, ENOMEM, "%s: out of memory for section %u", img->path, sec->type);
    int r = read_or_fail(img, p, (size_t)sec->stored_size, sec->offset, "a section", err);
    if (r == 0 && XXH3_64bits(p, (size_t)sec->stored_size) != sec->checksum)
        r = damaged(img, err, "the checksum of section %u is wrong", sec->type);
    if (r == 0 && !hfs_trust_section(img, sec, p))
        r = damaged(img, err, "section %u is not what the digest says", sec->type);
    if (r < 0)
        free(p);
    else
        *out = p;
    return r;
}

/* One zstd frame of exactly raw_size bytes; the sizes are compared before memory is taken. */
static int unpack(const struct hfs_image *img, const struct hfs_section_entry *sec,
                  const uint8_t *packed, uint8_t **out, struct hfs_error *err)
{
    size_t stored = (size_t)sec->stored_size, raw = (size_t)sec->raw_size;
    if (ZSTD_getFrameContentSize(packed, stored) != raw ||
        ZSTD_findFrameCompressedSize(packed, stored) != stored)
        return damaged(img, err, "section %u does not unpack to its size", sec->type);
    uint8_t *p = malloc(raw + 1);
    if (!p)
        return hfs_fail(err, ENOMEM, "%s: out of memory for section %u", img->path, sec->type);
    size_t n = ZSTD_decompress(p, raw, packed, stored);
    if (n != raw) {
        free(p);
        if (ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation)
            return hfs_fail(err, ENOMEM, "%s: out of memory for section %u", img->path, sec->type);
        return damaged(img, err, "section %u does not unpack", sec->type);
    }
    *out = p;
    return 0;
}

/* Reads and unpacks the section into img->raw[type], a zero byte after it. A missing optional
 * section is an empty one. */
static int load_section(struct hfs_image *img, unsigned type, uint64_t *size, struct hfs_error *err)
{
    const struct hfs_section_entry *sec = hfs_section_find(img, type);
    uint8_t *stored, *raw = NULL;
    int r = 0;
    if (!sec) {
        *size = 0;
        img->raw[type] = calloc(1, 1);
        return img->raw[type] ? 0 : hfs_fail(err, ENOMEM, "%s: out of memory", img->path);
    }
    if ((r = hfs_section_read(img, sec, &stored, err)) < 0)
        return r;
    if (sec->packing == HFS_PACK_ZSTD) {
        r = unpack(img, sec, stored, &raw, err);
        free(stored);
        if (r < 0)
            return r;
    } else {
        raw = stored;
    }
    raw[sec->raw_size] = 0;
    img->raw[type] = raw;
    *size = sec->raw_size;
    return 0;
}

/* Loads a section that must be there and holds an array of items of `item` bytes. */
static int load_array(struct hfs_image *img, unsigned type, size_t item, const uint8_t **array,
                      uint64_t *count, struct hfs_error *err)
{
    uint64_t size = 0;
    if (!hfs_section_find(img, type))
        return damaged(img, err, "section %u is missing", type);
    int r = load_section(img, type, &size, err);
    if (r < 0)
        return r;
    if (size % item)
        return damaged(img, err, "section %u is no whole number of records", type);
    *array = img->raw[type];
    *count = size / item;
    return 0;
}

static int load_code(struct hfs_image *img, const uint8_t *p, uint64_t left, struct hc_code *code,
                     uint64_t *length, struct hfs_error *err)
{
    const struct hfs_disk_record *rec = (const struct hfs_disk_record *)p;
    uint64_t n = img->tables.ncodes;
    if (left < sizeof *rec || load32(rec->length) > left - sizeof *rec || load16(rec->reserved))
        return damaged(img, err, "code record %" PRIu64 " has an impossible header", n);
    int r = hc_code_load(load16(rec->type), p + sizeof *rec, load32(rec->length), code);
    if (r == -ENOTSUP)
        return hfs_fail(err, ENOTSUP,
                        "%s uses a code (type %u) that this hyperfs does not know: use a newer "
                        "hyperfs",
                        img->path, load16(rec->type));
    if (r < 0)
        return damaged(img, err, "code record %" PRIu64 " has a value out of range", n);
    *length = sizeof *rec + load32(rec->length);
    return 0;
}

/* More codes than segments would be a waste that only a hostile image makes. */
static int load_codes(struct hfs_image *img, struct hfs_error *err)
{
    const uint8_t *p;
    uint64_t size, length = 0, room = img->tables.nsegments;
    int r = load_array(img, HFS_SEC_CODES, 1, &p, &size, err);
    if (r < 0)
        return r;
    if (room > size / sizeof(struct hfs_disk_record) + 1)
        room = size / sizeof(struct hfs_disk_record) + 1;
    img->codes = calloc((size_t)room + 1, sizeof *img->codes);
    if (!img->codes)
        return hfs_fail(err, ENOMEM, "%s: out of memory for its codes", img->path);
    for (uint64_t pos = 0; pos < size; pos += length) {
        if (img->tables.ncodes >= room)
            return damaged(img, err, "it has more codes than segments");
        r = load_code(img, p + pos, size - pos, &img->codes[img->tables.ncodes], &length, err);
        if (r < 0)
            return r;
        img->tables.ncodes++;
    }
    img->tables.codes = img->codes;
    return 0;
}

static int load_tables(struct hfs_image *img, struct hfs_error *err)
{
    struct hfs_tables *t = &img->tables;
    const uint8_t *index;
    uint64_t hashes;
    int r;
    if ((r = load_array(img, HFS_SEC_INODES, sizeof(struct hfs_disk_inode), &t->inodes, &t->ninodes,
                        err)) < 0 ||
        (r = load_array(img, HFS_SEC_DIRENTS, sizeof(struct hfs_disk_dirent), &t->dirents,
                        &t->ndirents, err)) < 0 ||
        (r = load_array(img, HFS_SEC_NAMES, 1, &t->names, &t->names_len, err)) < 0 ||
        (r = load_array(img, HFS_SEC_SEGMENTS, sizeof(struct hfs_disk_segment), &t->segments,
                        &t->nsegments, err)) < 0 ||
        (r = load_array(img, HFS_SEC_INDEX, 8, &index, &hashes, err)) < 0 ||
        (r = load_codes(img, err)) < 0)
        return r;
    if (hashes != img->nleaves)
        return damaged(img, err, "its index has %" PRIu64 " leaves, %" PRIu64 " checksums",
                       img->nleaves, hashes);
    img->info.inodes = t->ninodes;
    img->info.dirents = t->ndirents;
    img->info.segments = t->nsegments;
    img->info.codes = t->ncodes;
    return hfs_tables_check(t, img->path, &img->info.content_bytes, err);
}

/* ---- open and close ---- */

static int open_image(struct hfs_image *img, const struct hfs_hash *digest, struct hfs_error *err)
{
    uint64_t file_size = 0;
    bool regular = false;
    int r;
    if ((r = open_file(img, &file_size, &regular, err)) < 0 ||
        (r = find_super(img, file_size, regular, err)) < 0 || (r = check_features(img, err)) < 0 ||
        (r = check_geometry(img, file_size, regular, err)) < 0 ||
        (r = read_directory(img, err)) < 0 ||
        (digest && (r = hfs_trust_as(img, digest, err)) < 0) || (r = load_tables(img, err)) < 0)
        return r;
    uint64_t slots = digest ? HFS_TRUSTED_LEAF_SLOTS : HFS_LEAF_SLOTS;
    img->leaf_slots = img->nleaves < slots ? img->nleaves : slots;
    img->leaves = calloc((size_t)img->leaf_slots + 1, sizeof(struct hfs_leaf *));
    return img->leaves ? 0 : hfs_fail(err, ENOMEM, "%s: out of memory", img->path);
}

int hfs_image_open(const char *path, struct hfs_image **out, struct hfs_error *err)
{
    return hfs_image_open_digest(path, NULL, out, err);
}

int hfs_image_open_digest(const char *path, const struct hfs_hash *digest, struct hfs_image **out,
                          struct hfs_error *err)
{
    struct hfs_image *img = calloc(1, sizeof *img);
    char *copy = strdup(path);
    if (!img || !copy) {
        free(img);
        free(copy);
        return hfs_fail(err, ENOMEM, "%s: out of memory", path);
    }
    img->path = copy;
    img->fd = -1;
    pthread_mutex_init(&img->lazy, NULL);
    pthread_mutex_init(&img->leaf_lock, NULL);
    hfs_decoders_init(&img->decoders);
    int r = open_image(img, digest, err);
    if (r < 0)
        hfs_image_close(img);
    else
        *out = img;
    return r;
}

void hfs_image_close(struct hfs_image *img)
{
    if (!img)
        return;
    hfs_decoders_free(&img->decoders);
    for (uint64_t i = 0; img->leaves && i < img->leaf_slots; i++)
        free(img->leaves[i]);
    free(img->leaves);
    free(img->tensor_offsets);
    hfs_trust_free(img->trust);
    free(img->codes);
    for (unsigned i = 0; i <= HFS_SEC_TENSORS; i++)
        free(img->raw[i]);
    if (img->fd >= 0)
        close(img->fd);
    pthread_mutex_destroy(&img->lazy);
    pthread_mutex_destroy(&img->leaf_lock);
    free(img->path);
    free(img);
}

/* ---- the tree ---- */

const char *hfs_image_path(const struct hfs_image *img)
{
    return img->path;
}

int hfs_image_fd(const struct hfs_image *img)
{
    return img->fd;
}

void hfs_image_info(const struct hfs_image *img, struct hfs_info *out)
{
    *out = img->info;
}

void hfs_image_inode(const struct hfs_image *img, uint32_t number, struct hfs_inode *out)
{
    hfs_tables_inode(&img->tables, number, out);
}

void hfs_image_dirent(const struct hfs_image *img, uint64_t entry, struct hfs_dirent *out)
{
    hfs_tables_dirent(&img->tables, entry, out);
}

void hfs_image_segment(const struct hfs_image *img, uint64_t number, struct hfs_segment *out)
{
    hfs_tables_segment(&img->tables, number, out);
}

const struct hc_code *hfs_image_code(const struct hfs_image *img, uint32_t number)
{
    return &img->codes[number];
}

const char *hfs_image_target(const struct hfs_image *img, const struct hfs_inode *ino)
{
    return (const char *)img->tables.names + ino->first;
}

int hfs_image_lookup(const struct hfs_image *img, const struct hfs_inode *dir, const char *name,
                     size_t name_len, struct hfs_dirent *out)
{
    uint64_t low = dir->first, high = dir->first + dir->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        hfs_tables_dirent(&img->tables, middle, out);
        int c = hfs_name_compare(out->name, out->name_len, name, name_len);
        if (c == 0)
            return 0;
        if (c < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -ENOENT;
}

uint64_t hfs_image_find_segment(const struct hfs_image *img, const struct hfs_inode *ino,
                                uint64_t offset)
{
    uint64_t low = ino->first, high = ino->first + ino->count - 1;
    while (low < high) {
        struct hfs_segment s;
        uint64_t middle = low + (high - low) / 2;
        hfs_tables_segment(&img->tables, middle, &s);
        if (s.file_offset + s.length > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

uint64_t hfs_image_segment_blocks(const struct hfs_image *img, const struct hfs_segment *seg)
{
    return hfs_block_count(seg->length, hc_code_block_bytes(&img->codes[seg->code]));
}

/* The first entry that names `inode`, and the directory that it is in. */
static void find_name(const struct hfs_tables *t, uint32_t inode, struct hfs_dirent *entry,
                      uint32_t *dir)
{
    struct hfs_inode d;
    uint64_t i = 0;
    do {
        hfs_tables_dirent(t, i++, entry);
    } while (entry->inode != inode);
    for (*dir = 0;; ++*dir) {
        hfs_tables_inode(t, *dir, &d);
        if (S_ISDIR(d.mode) && i - 1 - d.first < d.count)
            return;
    }
}

char *hfs_image_path_of(const struct hfs_image *img, uint32_t inode)
{
    /* Directories nest HFS_MAX_DEPTH deep at most, so the path is bounded: built from its end. */
    size_t room = 256, len = 0;
    char *buf = malloc(room);
    while (buf && inode != 0) {
        struct hfs_dirent e;
        uint32_t dir;
        find_name(&img->tables, inode, &e, &dir);
        size_t need = len + e.name_len + 2;
        if (need > room) {
            char *larger = malloc(2 * need);
            if (larger)
                memcpy(larger + 2 * need - len, buf + room - len, len);
            free(buf);
            buf = larger;
            room = 2 * need;
            if (!buf)
                return NULL;
        }
        if (len > 0)
            buf[room - ++len] = '/';
        len += e.name_len;
        memcpy(buf + room - len, e.name, e.name_len);
        inode = dir;
    }
    if (!buf)
        return NULL;
    memmove(buf, buf + room - len, len);
    buf[len] = 0;
    return buf;
}

/* ---- META and tensors, on first use ---- */

int hfs_image_meta(struct hfs_image *img, const char **text, struct hfs_error *err)
{
    uint64_t size = 0;
    int r = 0;
    pthread_mutex_lock(&img->lazy);
    if (!img->raw[HFS_SEC_META]) {
        r = load_section(img, HFS_SEC_META, &size, err);
        if (r == 0 &&
            (r = hfs_meta_check((const char *)img->raw[HFS_SEC_META], size, img->path, err)) < 0) {
            free(img->raw[HFS_SEC_META]);
            img->raw[HFS_SEC_META] = NULL;
        }
    }
    pthread_mutex_unlock(&img->lazy);
    *text = r == 0 ? (const char *)img->raw[HFS_SEC_META] : "";
    return r;
}

int hfs_image_tensors(struct hfs_image *img, uint64_t *count, struct hfs_error *err)
{
    uint64_t size = 0;
    int r = 0;
    pthread_mutex_lock(&img->lazy);
    if (!img->raw[HFS_SEC_TENSORS]) {
        r = load_section(img, HFS_SEC_TENSORS, &size, err);
        if (r == 0 &&
            (r = hfs_tensors_check(&img->tables, img->raw[HFS_SEC_TENSORS], size, img->path,
                                   &img->tensor_offsets, &img->ntensors, err)) < 0) {
            free(img->raw[HFS_SEC_TENSORS]);
            img->raw[HFS_SEC_TENSORS] = NULL;
        }
    }
    *count = r == 0 ? img->ntensors : 0;
    pthread_mutex_unlock(&img->lazy);
    return r;
}

void hfs_image_tensor(const struct hfs_image *img, uint64_t number, struct hfs_tensor *out)
{
    hfs_tensor_parse(img->raw[HFS_SEC_TENSORS] + img->tensor_offsets[number], out);
}
