/* The digest of an image: SHA-256 (FIPS 180-4) over every byte of it, as a hash tree of three
 * levels, so that a mount can check any block alone.
 *
 *   block    SHA-256 of the stored bytes of a data block
 *   leaf     SHA-256 of an index leaf followed by the hashes of its blocks
 *   root     SHA-256 of HFS_DIGEST_TAG, the superblock with digest and checksum zero, the section
 *            directory, the SHA-256 of the stored bytes of each section but DIGEST in the order
 *            of the directory, and the hashes of all leaves
 *
 * The section DIGEST holds the hashes of the leaves, then those of the blocks; the superblock holds
 * the root, which is the digest. Stored bytes are hashed, not decoded ones: what does not match
 * is never given to a decoder, and there are four times fewer of them.
 */
#ifndef HYPERFS_FS_DIGEST_H
#define HYPERFS_FS_DIGEST_H

#include <nettle/sha2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fs/format.h"

#define HFS_DIGEST_TAG "hyperfs digest 1\n"

struct hfs_hash {
    uint8_t byte[HFS_DIGEST_BYTES];
};

enum { HFS_HASH_TEXT = 2 * HFS_DIGEST_BYTES + 1 };

void hfs_hash_of(const void *data, size_t len, struct hfs_hash *out);
bool hfs_hash_equal(const struct hfs_hash *a, const struct hfs_hash *b);
/* 64 hexadecimal digits, with or without "sha256:" before them. */
bool hfs_hash_parse(const char *text, struct hfs_hash *out);
const char *hfs_hash_print(char text[HFS_HASH_TEXT], const struct hfs_hash *h);

void hfs_digest_leaf(const uint8_t *leaf, size_t len, const struct hfs_hash *blocks, size_t count,
                     struct hfs_hash *out);

/* The root, from its parts in their order. */
struct hfs_digest_root {
    struct sha256_ctx sha;
};
void hfs_digest_root_begin(struct hfs_digest_root *r, const struct hfs_disk_super *super);
void hfs_digest_root_add(struct hfs_digest_root *r, const void *data, size_t len);
void hfs_digest_root_end(struct hfs_digest_root *r, struct hfs_hash *out);

#endif
