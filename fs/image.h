/* Reading an image.
 *
 * hfs_image_open checks the superblock and every table that a mount needs, so that whoever
 * holds a struct hfs_image can follow its inodes, entries, segments and codes without
 * further checks of ranges. The image file is read by pread only, never mapped: an I/O error
 * is an errno, not a signal.
 *
 * Threads: after hfs_image_open all functions may be called from several threads at once; a
 * struct hc_work belongs to one thread at a time.
 *
 * Memory: the tables are bounded by HFS_MAX_SECTION_BYTES each and by the image's size; decoder
 * tables are kept in a cache of HFS_DECODER_CACHE bytes.
 */
#ifndef HYPERFS_FS_IMAGE_H
#define HYPERFS_FS_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "codec/codec.h"
#include "fs/digest.h"
#include "fs/error.h"
#include "fs/format.h"

#define HFS_DECODER_CACHE ((size_t)32 << 20)

struct hfs_image;

struct hfs_inode {
    uint32_t number; /* place in the table, 0 = root */
    uint32_t mode, uid, gid, nlink;
    uint64_t size;
    int64_t mtime;
    uint32_t mtime_nsec;
    uint32_t count; /* segments or entries */
    uint64_t first; /* first segment or entry, or offset of the target */
    uint32_t parent;
};

struct hfs_dirent {
    const char *name; /* not terminated, belongs to the image */
    unsigned name_len;
    uint32_t inode;
};

struct hfs_segment {
    uint64_t file_offset, length;
    uint64_t first_block;
    uint32_t code;
    enum hfs_segment_kind kind;
};

struct hfs_block {
    uint64_t offset; /* from the superblock */
    uint32_t size;
    uint64_t checksum, content;
    struct hfs_hash hash; /* of the stored bytes, if the image is trusted */
};

/* A tensor record; name and dims belong to the image. dims are read with load64. */
struct hfs_tensor {
    uint32_t inode;
    uint64_t segment; /* UINT64_MAX: empty tensor */
    uint64_t elements, exact, stored;
    double sqnr_db, max_error;
    enum hc_dtype dtype;
    unsigned rank;
    const uint8_t *dims; /* rank * 8 bytes, little-endian */
    const char *name;    /* not terminated */
    unsigned name_len;
};

struct hfs_info {
    uint32_t version;
    uint64_t incompat, compat;
    uint64_t image_size, data_bytes, leaf_bytes, block_count;
    uint64_t inodes, dirents, segments, codes;
    uint64_t content_bytes; /* sum of the sizes of all regular files, each inode once */
    bool has_digest;
    struct hfs_hash digest; /* as the image says */
    bool used_copy;         /* the first superblock was damaged, the copy at the end was used */
};

/* Opens path and reads the tables. path - is not special. Errors (negative errno):
 * -EINVAL not an image, -ENOTSUP newer version or unknown feature, -EBADMSG damaged,
 * -EFBIG tables above the limits, or what open/pread say. */
int hfs_image_open(const char *path, struct hfs_image **out, struct hfs_error *err);
/* Opens an image only if it has this digest (NULL: any). Nothing but the superblock and the section
 * directory is looked at before all tables have been found to be what the digest vouches for;
 * leaves and blocks are compared with it when they are read, before they are decoded. More
 * errors: -EKEYREJECTED, another digest or none. */
int hfs_image_open_digest(const char *path, const struct hfs_hash *digest, struct hfs_image **out,
                          struct hfs_error *err);
/* Has everything read from now on compared with the digest that the image states. To be called
 * before other threads use the image. -EBADMSG where tables do not match, -ENOENT without digest.
 */
int hfs_image_trust(struct hfs_image *img, struct hfs_error *err);
void hfs_image_close(struct hfs_image *img); /* NULL is allowed */

const char *hfs_image_path(const struct hfs_image *img);
int hfs_image_fd(const struct hfs_image *img);
void hfs_image_info(const struct hfs_image *img, struct hfs_info *out);

/* number < info.inodes and so on; the caller has it from the image or has checked it. */
void hfs_image_inode(const struct hfs_image *img, uint32_t number, struct hfs_inode *out);
void hfs_image_dirent(const struct hfs_image *img, uint64_t entry, struct hfs_dirent *out);
void hfs_image_segment(const struct hfs_image *img, uint64_t number, struct hfs_segment *out);
const struct hc_code *hfs_image_code(const struct hfs_image *img, uint32_t number);
/* Target of a symbolic link: not terminated, inode.size bytes. */
const char *hfs_image_target(const struct hfs_image *img, const struct hfs_inode *ino);

/* Entry of a directory by name (binary search): 0, or -ENOENT. */
int hfs_image_lookup(const struct hfs_image *img, const struct hfs_inode *dir, const char *name,
                     size_t name_len, struct hfs_dirent *out);

/* First segment of the file whose end is beyond offset (offset < ino->size): its number. */
uint64_t hfs_image_find_segment(const struct hfs_image *img, const struct hfs_inode *ino,
                                uint64_t offset);

/* Path of an inode below the root ("a/b.safetensors", "" for the root), one of them where it
 * has several. malloc'd; NULL when out of memory. Linear in the size of the tree: for messages. */
char *hfs_image_path_of(const struct hfs_image *img, uint32_t inode);

/* Where block `number` lies. Reads its index leaf on first use. -EBADMSG, -EIO ... */
int hfs_image_block(struct hfs_image *img, uint64_t number, struct hfs_block *out);

/* Reads and decodes block `index` (0 = first) of a CODED segment into dst, which has room for
 * a full block of the segment's code; *raw_len receives its raw bytes. The stored bytes'
 * checksum is always checked; that of the decoded bytes if check_content.
 * coded is room for HFS_MAX_STORED bytes, of this thread. */
#define HFS_MAX_STORED (HC_MAX_BLOCK_BYTES + (64u << 10))
int hfs_image_read_block(struct hfs_image *img, struct hc_work *w, const struct hfs_segment *seg,
                         uint64_t index, uint8_t *coded, uint8_t *dst, size_t *raw_len,
                         bool check_content);

/* Number of blocks of a CODED segment. */
uint64_t hfs_image_segment_blocks(const struct hfs_image *img, const struct hfs_segment *seg);

/* The tensor records, read on first use. Returns the number of them in *count. */
int hfs_image_tensors(struct hfs_image *img, uint64_t *count, struct hfs_error *err);
void hfs_image_tensor(const struct hfs_image *img, uint64_t number, struct hfs_tensor *out);

/* The META text, terminated; belongs to the image; read on first use. */
int hfs_image_meta(struct hfs_image *img, const char **text, struct hfs_error *err);

/* Everything that open leaves out, but no data block: both superblocks equal, all sections,
 * all leaves, the digest (which blocks read later are then compared with), blocks tile the data
 * area, every block belongs to exactly one segment range, no unused code, names used fully. For
 * fsck. Calls problem(ctx, sentence) for each finding. Returns 0 if there is none, -EBADMSG, or
 * what kept it from looking (-EIO, -ENOMEM ...); -ENOMEM is not a finding. */
int hfs_image_check_tables(struct hfs_image *img, void (*problem)(void *ctx, const char *sentence),
                           void *ctx);

#endif
