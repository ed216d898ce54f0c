/* What a digest vouches for (fs/digest.h), compared with what is read. The bytes that are hashed
 * are those that are used afterwards, so that a file that changes under a mount gains nothing. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "codec/bytes.h"
#include "fs/image_private.h"

enum { PIECE = 64 << 10 };

struct hfs_leaf *hfs_leaf_new(const struct hfs_image *img)
{
    struct hfs_leaf *leaf;
    return malloc(img->trust ? sizeof *leaf : offsetof(struct hfs_leaf, hash));
}

bool hfs_trust_section(const struct hfs_image *img, const struct hfs_section_entry *sec,
                       const uint8_t *stored)
{
    struct hfs_hash hash;
    if (!img->trust || sec->type == HFS_SEC_DIGEST) /* whose hashes are compared in use */
        return true;
    hfs_hash_of(stored, (size_t)sec->stored_size, &hash);
    return hfs_hash_equal(&hash, &img->trust->section[sec - img->sections]);
}

int hfs_trust_leaf(const struct hfs_image *img, const uint8_t *bytes, size_t len,
                   struct hfs_leaf *leaf)
{
    struct hfs_hash hash;
    size_t size = leaf->count * sizeof *leaf->hash;
    if (!img->trust)
        return 0;
    int r = hfs_read_at(img->fd, leaf->hash, size,
                        img->trust->blocks_at + leaf->number * HFS_LEAF_BLOCKS * sizeof hash);
    if (r < 0)
        return r;
    hfs_digest_leaf(bytes, len, leaf->hash, leaf->count, &hash);
    return hfs_hash_equal(&hash, &img->trust->leaves[leaf->number]) ? 0 : -EBADMSG;
}

static int hash_section(const struct hfs_image *img, const struct hfs_section_entry *sec,
                        uint8_t *buf, struct hfs_hash *out)
{
    struct sha256_ctx sha;
    int r = 0;
    sha256_init(&sha);
    for (uint64_t at = 0; at < sec->stored_size && r == 0; at += PIECE) {
        uint64_t left = sec->stored_size - at;
        size_t n = left < PIECE ? (size_t)left : PIECE;
        r = hfs_read_at(img->fd, buf, n, sec->offset + at);
        if (r == 0)
            sha256_update(&sha, n, buf);
    }
    sha256_digest(&sha, sizeof out->byte, out->byte);
    return r;
}

/* The section directory as it was read when the image was opened, and is used from then on. */
static void add_directory(const struct hfs_image *img, struct hfs_digest_root *sum)
{
    for (unsigned i = 0; i < img->nsections; i++) {
        const struct hfs_section_entry *sec = &img->sections[i];
        struct hfs_disk_section disk;
        store32(disk.type, sec->type);
        store16(disk.flags, (uint16_t)sec->flags);
        store16(disk.packing, (uint16_t)sec->packing);
        store64(disk.offset, sec->offset);
        store64(disk.stored_size, sec->stored_size);
        store64(disk.raw_size, sec->raw_size);
        store64(disk.checksum, sec->checksum);
        hfs_digest_root_add(sum, &disk, sizeof disk);
    }
}

/* Reads the hashes of sections and leaves and computes the root from them. */
static int compute_root(const struct hfs_image *img, const struct hfs_section_entry *digest,
                        struct hfs_trust *t, struct hfs_hash *root)
{
    uint8_t *buf = malloc(PIECE);
    struct hfs_digest_root sum;
    int r = 0;
    if (!buf)
        return -ENOMEM;
    hfs_digest_root_begin(&sum, (const struct hfs_disk_super *)img->super);
    add_directory(img, &sum);
    for (unsigned i = 0; i < img->nsections && r == 0; i++) {
        if (&img->sections[i] == digest)
            continue;
        r = hash_section(img, &img->sections[i], buf, &t->section[i]);
        hfs_digest_root_add(&sum, &t->section[i], sizeof t->section[i]);
    }
    size_t leaves = (size_t)img->nleaves * sizeof *t->leaves;
    if (r == 0)
        r = hfs_read_at(img->fd, t->leaves, leaves, digest->offset);
    hfs_digest_root_add(&sum, t->leaves, leaves);
    hfs_digest_root_end(&sum, root);
    free(buf);
    return r;
}

void hfs_trust_free(struct hfs_trust *t)
{
    if (!t)
        return;
    free(t->leaves);
    free(t);
}

int hfs_image_trust(struct hfs_image *img, struct hfs_error *err)
{
    const struct hfs_section_entry *sec = hfs_section_find(img, HFS_SEC_DIGEST);
    struct hfs_hash root;
    if (!img->info.has_digest)
        return hfs_fail(err, ENOENT, "%s carries no digest that this hyperfs knows", img->path);
    uint64_t hashes = img->nleaves + img->tables.nblocks; /* small: both fit in the file */
    if (!sec || sec->stored_size != hashes * sizeof(struct hfs_hash))
        return hfs_fail(err, EBADMSG, "%s is damaged: the table of its digest is %s", img->path,
                        sec ? "not as long as its blocks ask for" : "missing");
    struct hfs_trust *t = calloc(1, sizeof *t);
    if (t)
        t->leaves = malloc((size_t)img->nleaves * sizeof *t->leaves + 1);
    if (!t || !t->leaves) {
        hfs_trust_free(t);
        return hfs_fail(err, ENOMEM, "%s: out of memory for its digest", img->path);
    }
    t->blocks_at = sec->offset + img->nleaves * sizeof(struct hfs_hash);
    int r = compute_root(img, sec, t, &root);
    if (r < 0)
        hfs_fail(err, -r, "%s: cannot read what its digest covers: %s", img->path, strerror(-r));
    else if (!hfs_hash_equal(&root, &img->info.digest))
        r = hfs_fail(err, EBADMSG, "%s is damaged: its tables are not what its digest says",
                     img->path);
    if (r < 0) {
        hfs_trust_free(t);
        return r;
    }
    img->trust = t;
    for (uint64_t i = 0; img->leaves && i < img->leaf_slots; i++) { /* they have no hashes */
        free(img->leaves[i]);
        img->leaves[i] = NULL;
    }
    return 0;
}

int hfs_trust_as(struct hfs_image *img, const struct hfs_hash *digest, struct hfs_error *err)
{
    char has[HFS_HASH_TEXT];
    if (!img->info.has_digest || !hfs_hash_equal(&img->info.digest, digest))
        return hfs_fail(err, EKEYREJECTED, "%s %s%s, which is not the digest asked for", img->path,
                        img->info.has_digest ? "has the digest sha256:" : "carries no digest",
                        img->info.has_digest ? hfs_hash_print(has, &img->info.digest) : "");
    return hfs_image_trust(img, err);
}
