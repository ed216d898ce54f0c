/* What image*.c, check.c, trust.c and writer.c share, and nobody else includes.
 *
 * struct hfs_tables is the tree of an image as its unpacked sections: the reader fills it from
 * the file, the writer from its buffers, and both pass it through hfs_tables_check, so that no
 * image is written that would be refused.
 */
#ifndef HYPERFS_FS_IMAGE_PRIVATE_H
#define HYPERFS_FS_IMAGE_PRIVATE_H

#include <pthread.h>

#include "fs/digest.h"
#include "fs/image.h"

struct hfs_tables {
    const uint8_t *inodes, *dirents, *names, *segments; /* arrays of the on-disk structures */
    uint64_t ninodes, ndirents, names_len, nsegments;
    const struct hc_code *codes;
    uint64_t ncodes;
    uint64_t nblocks;
};

void hfs_tables_inode(const struct hfs_tables *t, uint64_t number, struct hfs_inode *out);
void hfs_tables_dirent(const struct hfs_tables *t, uint64_t entry, struct hfs_dirent *out);
void hfs_tables_segment(const struct hfs_tables *t, uint64_t number, struct hfs_segment *out);

/* ceil(length / block_bytes). */
uint64_t hfs_block_count(uint64_t length, uint64_t block_bytes);

/* All that a reader relies on when it follows the tree (check.c says what), in linear time.
 * `path` is for the sentences. Adds up the sizes of the regular files. */
int hfs_tables_check(const struct hfs_tables *t, const char *path, uint64_t *content_bytes,
                     struct hfs_error *err);

/* Checks the tensor records in raw[0..len). *offsets (malloc'd) receives where each starts. */
int hfs_tensors_check(const struct hfs_tables *t, const uint8_t *raw, uint64_t len,
                      const char *path, uint64_t **offsets, uint64_t *count, struct hfs_error *err);
void hfs_tensor_parse(const uint8_t *record, struct hfs_tensor *out);

/* Lines of "key=value" without control characters. */
int hfs_meta_check(const char *text, uint64_t len, const char *path, struct hfs_error *err);

int hfs_name_compare(const char *a, size_t a_len, const char *b, size_t b_len);
bool hfs_name_valid(const char *name, size_t len);

/* Section directory entry. */
struct hfs_section_entry {
    uint32_t type;
    unsigned flags, packing;
    uint64_t offset, stored_size, raw_size, checksum;
};

/* An index leaf: block i lies at offset + (i ? end[i - 1] : 0). 256 blocks of at most
 * HFS_MAX_STORED bytes fit in 32 bits. */
struct hfs_leaf {
    uint64_t number;
    uint64_t offset;
    unsigned count;
    uint32_t end[HFS_LEAF_BLOCKS];
    uint64_t checksum[HFS_LEAF_BLOCKS], content[HFS_LEAF_BLOCKS];
    struct hfs_hash hash[HFS_LEAF_BLOCKS]; /* not allocated unless the image is trusted */
};
#define HFS_LEAF_BYTES                                                                             \
    (sizeof(struct hfs_disk_leaf) + HFS_LEAF_BLOCKS * sizeof(struct hfs_disk_block))

/* Leaves kept in memory: 20 MiB at most, enough for all leaves of 256 GB of weights; with the
 * hashes of blocks as many as take the same memory. */
enum { HFS_LEAF_SLOTS = 4096, HFS_TRUSTED_LEAF_SLOTS = 1536 };

/* What an image's digest vouches for, once the root has been found right. */
struct hfs_trust {
    struct hfs_hash section[HFS_MAX_SECTIONS]; /* of their stored bytes, as in the directory */
    struct hfs_hash *leaves;
    uint64_t blocks_at; /* where the hashes of the blocks lie in the file */
};

struct hfs_decoder_entry;
struct hfs_decoder_cache {
    struct hfs_decoder_entry *by_code; /* uthash */
    struct hfs_decoder_entry *lru;     /* utlist, least recently used first */
    size_t bytes;
    pthread_mutex_t lock;
    pthread_cond_t built;
};

struct hfs_image {
    char *path;
    int fd;
    struct hfs_info info;
    uint8_t super[sizeof(struct hfs_disk_super)]; /* the one in use */
    uint64_t data_end, dir_offset;

    struct hfs_section_entry sections[HFS_MAX_SECTIONS];
    unsigned nsections;
    uint8_t *raw[HFS_SEC_TENSORS + 1]; /* unpacked sections by type, NULL if not loaded */
    struct hfs_tables tables;
    struct hc_code *codes;

    pthread_mutex_t lazy; /* META and TENSORS */
    uint64_t *tensor_offsets;
    uint64_t ntensors;

    pthread_mutex_t leaf_lock;
    struct hfs_leaf **leaves; /* direct-mapped: leaf n in slot n % leaf_slots */
    uint64_t nleaves, leaf_slots;
    struct hfs_trust *trust; /* NULL: digests are not checked */

    struct hfs_decoder_cache decoders;
};

/* Reads exactly len bytes; -EIO where the file ends before. */
int hfs_read_at(int fd, void *buf, size_t len, uint64_t offset);

/* NULL if the image has no section of this type. */
const struct hfs_section_entry *hfs_section_find(const struct hfs_image *img, unsigned type);
/* Reads a section's stored bytes and checks them. *out is malloc'd, stored_size bytes. */
int hfs_section_read(const struct hfs_image *img, const struct hfs_section_entry *sec,
                     uint8_t **out, struct hfs_error *err);

/* ---- trust.c ---- */
struct hfs_leaf *hfs_leaf_new(const struct hfs_image *img); /* to be freed with free */
/* Compares stored bytes with what the digest vouches for; true where nothing is to be compared. */
bool hfs_trust_section(const struct hfs_image *img, const struct hfs_section_entry *sec,
                       const uint8_t *stored);
/* The same for a leaf whose number and count are set; reads the hashes of its blocks. -EBADMSG ...
 */
int hfs_trust_leaf(const struct hfs_image *img, const uint8_t *bytes, size_t len,
                   struct hfs_leaf *leaf);
/* hfs_image_trust, if the image states this digest. -EKEYREJECTED if not. */
int hfs_trust_as(struct hfs_image *img, const struct hfs_hash *digest, struct hfs_error *err);
void hfs_trust_free(struct hfs_trust *t); /* NULL is allowed */

/* ---- image_index.c ---- */
/* Reads and checks leaf `number`, into what hfs_leaf_new gave, without the cache. */
int hfs_leaf_load(const struct hfs_image *img, uint64_t number, struct hfs_leaf *out);

/* ---- image_decode.c ---- */
void hfs_decoders_init(struct hfs_decoder_cache *c);
/* No decoder may be in use. */
void hfs_decoders_free(struct hfs_decoder_cache *c);

#endif
