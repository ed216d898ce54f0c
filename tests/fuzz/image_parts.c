#include "tests/fuzz/image_parts.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>

#include "codec/bytes.h"
#include "fs/digest.h"
#include "fs/image.h"
#include "tests/fuzz/fuzz.h"

enum {
    SUPER = sizeof(struct hfs_disk_super),
    ENTRY = sizeof(struct hfs_disk_section),
    LEAF = sizeof(struct hfs_disk_leaf),
    BLOCK = sizeof(struct hfs_disk_block),
    FULL_LEAF = LEAF + HFS_LEAF_BLOCKS * BLOCK
};

/* ---- parts ---- */

void fz_resize(struct fz_part *part, size_t len)
{
    part->bytes = realloc(part->bytes, len + 1);
    FUZZ_CHECK(part->bytes != NULL);
    if (len > part->len)
        memset(part->bytes + part->len, 0, len - part->len);
    part->len = len;
}

void fz_replace(struct fz_part *part, size_t at, size_t old, const void *bytes, size_t len)
{
    size_t tail = part->len - at - old;
    uint8_t *copy = fuzz_alloc(len); /* bytes may lie in this part */
    if (len)
        memcpy(copy, bytes, len);
    if (len > old || !part->bytes)
        fz_resize(part, part->len + len - old);
    memmove(part->bytes + at + len, part->bytes + at + old, tail);
    if (len)
        memcpy(part->bytes + at, copy, len);
    if (len < old)
        fz_resize(part, part->len - (old - len));
    free(copy);
}

struct fz_part *fz_section(struct fz_image *img, unsigned type)
{
    for (unsigned i = 0; i < img->nsections; i++)
        if (img->section[i].type == type)
            return &img->section[i];
    return NULL;
}

void fz_free(struct fz_image *img)
{
    free(img->blocks.bytes);
    free(img->leaves.bytes);
    for (unsigned i = 0; i < img->nsections; i++)
        free(img->section[i].bytes);
    memset(img, 0, sizeof *img);
}

static bool take(struct fz_part *part, const uint8_t *data, size_t size, uint64_t from, uint64_t to)
{
    if (from > to || to > size)
        return false;
    fz_resize(part, (size_t)(to - from));
    memcpy(part->bytes, data + from, part->len);
    return true;
}

static bool take_section(struct fz_part *part, const uint8_t *data, size_t size,
                         const struct hfs_disk_section *e)
{
    uint64_t offset = load64(e->offset), stored = load64(e->stored_size), raw = load64(e->raw_size);
    if (offset > size || stored > size - offset)
        return false;
    part->type = load32(e->type);
    part->flags = load16(e->flags);
    part->packing = load16(e->packing);
    if (part->packing != HFS_PACK_ZSTD || raw > FZ_MAX_BYTES)
        return take(part, data, size, offset, offset + stored);
    fz_resize(part, (size_t)raw);
    if (ZSTD_decompress(part->bytes, part->len, data + offset, (size_t)stored) == raw)
        return true;
    return take(part, data, size, offset, offset + stored);
}

bool fz_take_apart(const uint8_t *data, size_t size, struct fz_image *out)
{
    const struct hfs_disk_super *s = &out->super;
    memset(out, 0, sizeof *out);
    if (size < 2 * SUPER)
        return false;
    memcpy(&out->super, data, SUPER);
    uint64_t dir = load64(s->dir_offset), end = load64(s->data_end), count = load32(s->dir_count);
    if (dir > size || count < 1 || count > FZ_SECTIONS || count * ENTRY > size - dir || end < SUPER)
        return false;
    const struct hfs_disk_section *e = (const struct hfs_disk_section *)(data + dir);
    bool good = take(&out->blocks, data, size, SUPER, end) &&
                take(&out->leaves, data, size, end, load64(e[0].offset));
    for (unsigned i = 0; good && i < count; i++)
        good = take_section(&out->section[out->nsections++], data, size, &e[i]);
    if (!good)
        fz_free(out);
    return good;
}

/* ---- checksums and layout ---- */

/* The block that entry n of the leaves describes, NULL if it lies outside. */
static const uint8_t *stored_block(const struct fz_image *img, size_t n, size_t *size)
{
    size_t start = n / HFS_LEAF_BLOCKS * FULL_LEAF;
    const uint8_t *leaf = img->leaves.bytes + start;
    const struct hfs_disk_block *b = (const struct hfs_disk_block *)(leaf + LEAF);
    uint64_t at = load64(leaf) - SUPER;
    for (size_t i = 0; i < n % HFS_LEAF_BLOCKS; i++)
        at += load32(b[i].size);
    *size = load32(b[n % HFS_LEAF_BLOCKS].size);
    if (at > img->blocks.len || *size > img->blocks.len - at)
        return NULL;
    return img->blocks.bytes + at;
}

static size_t block_count(const struct fz_image *img)
{
    size_t full = img->leaves.len / FULL_LEAF, rest = img->leaves.len % FULL_LEAF;
    return full * HFS_LEAF_BLOCKS + (rest > LEAF ? (rest - LEAF) / BLOCK : 0);
}

static struct hfs_disk_block *block_entry(struct fz_image *img, size_t n)
{
    uint8_t *leaf = img->leaves.bytes + n / HFS_LEAF_BLOCKS * FULL_LEAF;
    return (struct hfs_disk_block *)(leaf + LEAF) + n % HFS_LEAF_BLOCKS;
}

static void mend_leaves(struct fz_image *img)
{
    struct fz_part *index = fz_section(img, HFS_SEC_INDEX);
    for (size_t n = 0; n < block_count(img); n++) {
        size_t size;
        const uint8_t *stored = stored_block(img, n, &size);
        if (stored)
            store64(block_entry(img, n)->checksum, XXH3_64bits(stored, size));
    }
    for (size_t at = 0, i = 0; index && at < img->leaves.len; at += FULL_LEAF, i++) {
        size_t left = img->leaves.len - at;
        if (8 * i + 8 <= index->len)
            store64(index->bytes + 8 * i,
                    XXH3_64bits(img->leaves.bytes + at, left < FULL_LEAF ? left : FULL_LEAF));
    }
}

static size_t leaf_count(const struct fz_image *img)
{
    return (img->leaves.len + FULL_LEAF - 1) / FULL_LEAF;
}

/* Hashes of leaves and blocks into the section DIGEST. */
static void mend_digest(struct fz_image *img)
{
    struct fz_part *part = fz_section(img, HFS_SEC_DIGEST);
    size_t blocks = block_count(img), leaves = leaf_count(img);
    if (!part || img->keep_digest)
        return;
    fz_resize(part, (leaves + blocks) * sizeof(struct hfs_hash));
    struct hfs_hash *leaf = (struct hfs_hash *)part->bytes, *block = leaf + leaves;
    for (size_t n = 0; n < blocks; n++) {
        size_t size;
        const uint8_t *stored = stored_block(img, n, &size);
        hfs_hash_of(stored, stored ? size : 0, &block[n]);
    }
    for (size_t i = 0; i < leaves; i++) {
        size_t at = i * FULL_LEAF, left = img->leaves.len - at;
        size_t count = blocks - i * HFS_LEAF_BLOCKS;
        hfs_digest_leaf(img->leaves.bytes + at, left < FULL_LEAF ? left : FULL_LEAF,
                        block + i * HFS_LEAF_BLOCKS,
                        count < HFS_LEAF_BLOCKS ? count : HFS_LEAF_BLOCKS, &leaf[i]);
    }
}

/* The digest of the image into its superblock; `out` has the sections as they are stored. */
static void mend_root(const struct fz_image *img, const uint8_t *out,
                      const struct hfs_disk_section *dir, struct hfs_disk_super *s)
{
    const struct fz_part *digest = NULL;
    struct hfs_digest_root root;
    struct hfs_hash hash;
    uint64_t at = SUPER + img->blocks.len + img->leaves.len, size;
    memset(s->digest, 0, sizeof s->digest);
    if (!(load64(s->compat) & HFS_COMPAT_DIGEST))
        return;
    hfs_digest_root_begin(&root, s);
    hfs_digest_root_add(&root, dir, img->nsections * ENTRY);
    for (unsigned i = 0; i < img->nsections; i++, at += size) {
        size = load64(dir[i].stored_size);
        if (load64(dir[i].offset) != at || at > load64(s->dir_offset) ||
            size > load64(s->dir_offset) - at)
            return; /* an edit put it elsewhere */
        hfs_hash_of(out + at, (size_t)size, &hash);
        if (load32(dir[i].type) == HFS_SEC_DIGEST)
            digest = &img->section[i];
        else
            hfs_digest_root_add(&root, &hash, sizeof hash);
    }
    size_t leaves = leaf_count(img) * sizeof hash;
    if (digest)
        hfs_digest_root_add(&root, digest->bytes, leaves < digest->len ? leaves : digest->len);
    hfs_digest_root_end(&root, &hash);
    memcpy(s->digest, hash.byte, sizeof s->digest);
}

/* Stores a section at `to` and its directory entry; returns the bytes stored. A section that does
 * not become smaller is stored plain. */
static size_t store_section(const struct fz_part *x, uint8_t *to, uint64_t offset,
                            struct hfs_disk_section *e)
{
    size_t stored = 0;
    if (x->packing == HFS_PACK_ZSTD && x->len)
        stored = ZSTD_compress(to, x->len, x->bytes, x->len, 1);
    bool packed = stored > 0 && !ZSTD_isError(stored) && stored < x->len;
    if (!packed) {
        stored = x->len;
        memcpy(to, x->bytes, stored);
    }
    memset(e, 0, sizeof *e);
    store32(e->type, x->type);
    store16(e->flags, x->flags);
    store16(e->packing, packed                        ? HFS_PACK_ZSTD
                        : x->packing == HFS_PACK_ZSTD ? HFS_PACK_NONE
                                                      : x->packing);
    store64(e->offset, offset);
    store64(e->stored_size, stored);
    store64(e->raw_size, x->len);
    store64(e->checksum, XXH3_64bits(to, stored));
    return stored;
}

static void put_late(const struct fz_image *img, bool directory, uint8_t *bytes, size_t len)
{
    for (unsigned i = 0; i < img->nlate; i++) {
        const struct fz_late *l = &img->late[i];
        if (l->directory == directory && l->at + l->width <= len)
            fz_store(bytes + l->at, l->width, l->value);
    }
}

uint8_t *fz_put_together(struct fz_image *img, size_t *size)
{
    struct hfs_disk_super *s = &img->super;
    struct hfs_disk_section dir[FZ_SECTIONS];
    size_t room = 2 * SUPER + img->blocks.len + img->leaves.len + img->nsections * ENTRY;
    size_t at = SUPER;
    mend_leaves(img);
    mend_digest(img);
    for (unsigned i = 0; i < img->nsections; i++)
        room += img->section[i].len;
    uint8_t *out = fuzz_alloc(room);
    memcpy(out + at, img->blocks.bytes, img->blocks.len);
    at += img->blocks.len;
    store64(s->data_end, at);
    memcpy(out + at, img->leaves.bytes, img->leaves.len);
    at += img->leaves.len;
    for (unsigned i = 0; i < img->nsections; i++)
        at += store_section(&img->section[i], out + at, at, &dir[i]);
    put_late(img, true, (uint8_t *)dir, img->nsections * ENTRY);
    memcpy(out + at, dir, img->nsections * ENTRY);
    store64(s->dir_offset, at);
    store32(s->dir_count, img->nsections);
    store64(s->dir_checksum, XXH3_64bits(dir, img->nsections * ENTRY));
    at += img->nsections * ENTRY;
    *size = at + SUPER;
    store64(s->image_size, *size);
    store64(s->block_count, block_count(img));
    put_late(img, false, (uint8_t *)s, SUPER);
    if (load64(s->dir_offset) == at - img->nsections * ENTRY)
        mend_root(img, out, dir, s);
    put_late(img, false, (uint8_t *)s, SUPER); /* it may be the digest */
    store64(s->checksum, XXH3_64bits(s, offsetof(struct hfs_disk_super, checksum)));
    memcpy(out, s, SUPER);
    memcpy(out + at, s, SUPER);
    return out;
}

static void mend_segment(struct fz_image *img, struct hfs_image *open, struct hc_work *w,
                         const struct hfs_segment *seg)
{
    static uint8_t coded[HFS_MAX_STORED], raw[HC_MAX_BLOCK_BYTES];
    uint64_t count = hfs_image_segment_blocks(open, seg);
    for (uint64_t b = 0; b < count && b < HFS_LEAF_BLOCKS; b++) {
        size_t len;
        if (hfs_image_read_block(open, w, seg, b, coded, raw, &len, false) == 0)
            store64(block_entry(img, (size_t)(seg->first_block + b))->content,
                    XXH3_64bits(raw, len));
    }
}

uint8_t *fz_put_together_whole(struct fz_image *img, size_t *size)
{
    static struct hc_work *work;
    struct hfs_image *open;
    struct hfs_error err = {{0}};
    struct hfs_info info;
    const char *path;
    uint8_t *out = fz_put_together(img, size);
    fuzz_file(out, *size, &path);
    if (hfs_image_open(path, &open, &err) < 0)
        return out;
    if (!work)
        work = hc_work_new(hc_isa_best());
    FUZZ_CHECK(work != NULL);
    hfs_image_info(open, &info);
    for (uint64_t i = 0; i < info.segments && i < HFS_LEAF_BLOCKS; i++) {
        struct hfs_segment seg;
        hfs_image_segment(open, i, &seg);
        if (seg.kind == HFS_SEG_CODED)
            mend_segment(img, open, work, &seg);
    }
    hfs_image_close(open);
    free(out);
    return fz_put_together(img, size);
}
