/* The image on disk: the only place that knows byte positions.
 *
 * hyperfs-format(5) is the same in prose. All integers are little-endian, no field is
 * aligned by the compiler: records are arrays of bytes read with codec/bytes.h.
 * An image is
 *
 *   superblock | data blocks | index leaves | sections | section directory | superblock copy
 *
 * without gaps. Offsets count from the first byte of the superblock. Every byte is covered
 * by a checksum (XXH3, 64 bits, seed 0): the superblock by its own, the directory by the
 * superblock, sections by the directory, leaves by the INDEX section, blocks by the leaves.
 * Reserved fields are zero and are checked.
 */
#ifndef HYPERFS_FS_FORMAT_H
#define HYPERFS_FS_FORMAT_H

#include <stdint.h>

#define HFS_MAGIC "hyperfs\x1a" /* 8 bytes */
enum { HFS_VERSION = 1 };

/* Feature bits. An image with an unknown bit in `incompat` is refused; unknown bits in
 * `compat` are ignored. hyperfs-format(5) lists what is foreseen. */
#define HFS_INCOMPAT_KNOWN UINT64_C(0)
#define HFS_COMPAT_DIGEST UINT64_C(1) /* digest_kind, digest and the section DIGEST are there */
#define HFS_COMPAT_KNOWN HFS_COMPAT_DIGEST

enum { HFS_DIGEST_SHA256 = 1, HFS_DIGEST_BYTES = 32 };

typedef uint8_t le16[2];
typedef uint8_t le32[4];
typedef uint8_t le64[8];

struct hfs_disk_super {
    uint8_t magic[8];
    le32 version;  /* HFS_VERSION */
    le32 size;     /* of this structure: 128 */
    le64 incompat; /* feature bits */
    le64 compat;
    le64 image_size; /* bytes, both superblocks counted */
    le64 data_end;   /* end of the data blocks = start of the index leaves */
    le64 dir_offset; /* section directory */
    le32 dir_count;  /* its entries, 1 .. 256 */
    le32 reserved0;
    le64 dir_checksum;                /* XXH3 of the directory */
    le64 block_count;                 /* data blocks */
    uint8_t digest[HFS_DIGEST_BYTES]; /* of the whole image (fs/digest.h); zeros if none */
    le32 digest_kind;                 /* 0: none; HFS_DIGEST_* */
    le32 reserved1;
    le64 checksum; /* XXH3 of all bytes before this field */
};
_Static_assert(sizeof(struct hfs_disk_super) == 128, "superblock");

/* Section directory entry. Ascending by type; sections lie in this order without gaps. */
struct hfs_disk_section {
    le32 type;    /* enum hfs_section */
    le16 flags;   /* HFS_SECTION_REQUIRED */
    le16 packing; /* HFS_PACK_* */
    le64 offset;
    le64 stored_size;
    le64 raw_size; /* after unpacking; = stored_size for HFS_PACK_NONE */
    le64 checksum; /* XXH3 of the stored bytes */
};
_Static_assert(sizeof(struct hfs_disk_section) == 40, "section");

enum hfs_section {
    HFS_SEC_META = 1,     /* "key=value\n" text: writer, options, zstd version */
    HFS_SEC_INODES = 2,   /* array of hfs_disk_inode; the first is the root directory */
    HFS_SEC_DIRENTS = 3,  /* array of hfs_disk_dirent */
    HFS_SEC_NAMES = 4,    /* bytes: file names and symlink targets, not terminated */
    HFS_SEC_SEGMENTS = 5, /* array of hfs_disk_segment */
    HFS_SEC_CODES = 6,    /* code records: hfs_disk_record, then its body */
    HFS_SEC_INDEX = 7,    /* array of le64: XXH3 of each index leaf */
    HFS_SEC_TENSORS = 8,  /* tensor records: hfs_disk_tensor, dims, name */
    HFS_SEC_DIGEST = 9    /* SHA-256 of each leaf, then of each block: fs/digest.h; not packed */
};
enum { HFS_SECTION_REQUIRED = 1 }; /* a reader that does not know the type refuses the image */
enum { HFS_PACK_NONE = 0, HFS_PACK_ZSTD = 1 };
enum { HFS_MAX_SECTIONS = 256 };
#define HFS_MAX_SECTION_BYTES (UINT64_C(1) << 28) /* raw size of one section, 256 MiB */

/* Raw size of all sections but DIGEST, which readers keep in memory: a small image may not ask for
 * much of it. Real trees stay far below: what is long in a table comes with a name, a block or a
 * header that is in the image as well. */
static inline uint64_t hfs_max_tables(uint64_t image_size)
{
    return image_size >> 40 ? UINT64_MAX : (UINT64_C(16) << 20) + 64 * image_size;
}

/* Inodes are numbered from 0 in the order of the table; FUSE adds 1. Directories stand before
 * what they contain (an entry's inode number is greater than its directory's, and hard
 * links are regular files only), so the tree has no cycle. */
enum { HFS_MAX_DEPTH = 2048 }; /* directories below the root, so that readers may recurse */
struct hfs_disk_inode {
    le32 mode; /* st_mode: S_IFREG, S_IFDIR or S_IFLNK, and 07777 */
    le32 uid, gid;
    le32 nlink;      /* names of a file; 2 + subdirectories for a directory */
    le64 size;       /* bytes of a file or a link's target; 0 for a directory */
    le64 mtime;      /* seconds since 1970, signed */
    le32 mtime_nsec; /* 0 .. 999,999,999 */
    le32 count;      /* segments, directory entries, or 0 for a link */
    le64 first;      /* first segment or entry; offset in NAMES for a link */
    le32 parent;     /* of a directory: its parent's number (the root: 0); else 0 */
    le32 reserved;
};
_Static_assert(sizeof(struct hfs_disk_inode) == 56, "inode");

/* Entries of a directory are consecutive, strictly ascending by name (memcmp, shorter first). */
struct hfs_disk_dirent {
    le64 name;     /* offset in NAMES */
    le16 name_len; /* 1 .. 255; no '/', no NUL, neither "." nor ".." */
    le16 reserved;
    le32 inode;
};
_Static_assert(sizeof(struct hfs_disk_dirent) == 16, "dirent");

/* Segments of a file are consecutive and cover it from 0 to its size without gaps. Files with
 * equal content may share theirs. */
struct hfs_disk_segment {
    le64 file_offset;
    le64 length;      /* > 0 */
    le64 first_block; /* blocks follow each other; 0 unless kind is HFS_SEG_CODED */
    le32 code;        /* number of a code record; 0 unless kind is HFS_SEG_CODED */
    le16 kind;
    le16 reserved0;
    le32 reserved1;
};
_Static_assert(sizeof(struct hfs_disk_segment) == 36, "segment");
enum hfs_segment_kind {
    HFS_SEG_CODED = 1,
    HFS_SEG_ZERO = 2 /* zero bytes, nothing stored */
    /* foreseen, each with an incompat bit: 3 copy of blocks of this image, 4 block of a base
     * image named by its digest, 5 difference to one */
};

/* Header of a code record; `length` bytes of body follow (codec/code.c). */
struct hfs_disk_record {
    le16 type;
    le16 reserved;
    le32 length;
};
_Static_assert(sizeof(struct hfs_disk_record) == 8, "record");

/* A leaf holds HFS_LEAF_BLOCKS blocks, the last leaf the rest. Leaves are stored one after
 * another from data_end. Blocks of a leaf follow each other from `offset`. */
enum { HFS_LEAF_BLOCKS = 256 };
struct hfs_disk_leaf {
    le64 offset; /* of the leaf's first block */
};
struct hfs_disk_block {
    le32 size;     /* stored bytes, 1 .. HC_MAX_BLOCK_BYTES + 64 KiB */
    le64 checksum; /* XXH3 of the stored bytes */
    le64 content;  /* XXH3 of the decoded bytes */
};
_Static_assert(sizeof(struct hfs_disk_leaf) == 8, "leaf");
_Static_assert(sizeof(struct hfs_disk_block) == 20, "block");

/* One for each tensor of each safetensors file: what dump.hyperfs reports. */
struct hfs_disk_tensor {
    le32 length;  /* of the whole record */
    le32 inode;   /* the file (one of them, where files share segments) */
    le64 segment; /* number of the segment, or UINT64_MAX for an empty tensor */
    le64 elements;
    le64 exact;     /* elements stored exactly within a lossy tensor */
    le64 stored;    /* bytes of its blocks */
    le64 sqnr;      /* dB, IEEE double; +infinity for lossless */
    le64 max_error; /* largest absolute error, IEEE double */
    le16 dtype;     /* enum hc_dtype */
    le16 rank;      /* number of dimensions, le64 each, that follow */
    le32 name_len;  /* bytes of the name that follows them */
};
_Static_assert(sizeof(struct hfs_disk_tensor) == 64, "tensor");

#endif
