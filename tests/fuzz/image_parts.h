/* An image as its parts, to be changed and put together again with good checksums, so that what is
 * tried out is the check behind the checksum. Sections are unpacked, and packed again.
 *
 * Functions abort when out of memory. One thread.
 */
#ifndef HYPERFS_TESTS_FUZZ_IMAGE_PARTS_H
#define HYPERFS_TESTS_FUZZ_IMAGE_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fs/format.h"

enum { FZ_SECTIONS = 16, FZ_LATE = 16, FZ_MAX_BYTES = 1 << 20 };

struct fz_part {
    uint32_t type; /* of a section */
    uint16_t flags, packing;
    uint8_t *bytes; /* malloc'd, unpacked */
    size_t len;
};

/* A number put into superblock or directory once they are laid out, before their checksums. */
struct fz_late {
    bool directory;
    size_t at;
    unsigned width;
    uint64_t value;
};

struct fz_image {
    struct hfs_disk_super super; /* offsets, counts and checksums are computed */
    struct fz_part blocks, leaves, section[FZ_SECTIONS];
    unsigned nsections;
    struct fz_late late[FZ_LATE];
    unsigned nlate;
    bool keep_digest; /* the section DIGEST stays as it is */
};

/* False if the bytes are too far from an image. Checksums are not looked at. */
bool fz_take_apart(const uint8_t *data, size_t size, struct fz_image *out);
void fz_free(struct fz_image *img);

/* The bytes of the image (malloc'd), all checksums and the digest mended, but not the checksums of
 * decoded blocks. */
uint8_t *fz_put_together(struct fz_image *img, size_t *size);
/* The same, and the checksums of decoded blocks, of the blocks that can be decoded. */
uint8_t *fz_put_together_whole(struct fz_image *img, size_t *size);

void fz_resize(struct fz_part *part, size_t len); /* new bytes are zero */
/* Puts len bytes at `at`, where `old` bytes stood. */
void fz_replace(struct fz_part *part, size_t at, size_t old, const void *bytes, size_t len);
struct fz_part *fz_section(struct fz_image *img, unsigned type); /* NULL: there is none */

/* ---- records and their fields ---- */

struct fz_field {
    const char *name;
    size_t at;
    unsigned width; /* 1, 2, 4 or 8 */
};

enum fz_place { FZ_SUPER, FZ_DIRECTORY, FZ_LEAF, FZ_BLOCK, FZ_SECTION };
struct fz_kind {
    const char *name;
    enum fz_place place;
    unsigned type; /* of the section */
    size_t size;   /* of a record; 0: they tell theirs */
    const struct fz_field *fields;
    unsigned nfields;
};
extern const struct fz_kind fz_kinds[];
extern const unsigned fz_nkinds;

/* The part that holds records of a kind; NULL for superblock and directory, or if it is not
 * there. */
struct fz_part *fz_part_of(struct fz_image *img, const struct fz_kind *kind);
/* Where record n lies in it, and its length. */
bool fz_record(struct fz_image *img, const struct fz_kind *kind, size_t n, size_t *at, size_t *len);
size_t fz_records(struct fz_image *img, const struct fz_kind *kind);

uint64_t fz_load(const uint8_t *p, unsigned width);
void fz_store(uint8_t *p, unsigned width, uint64_t value);
/* Sets a field of record n; false if there is no such record. */
bool fz_set(struct fz_image *img, const struct fz_kind *kind, size_t n, const struct fz_field *f,
            uint64_t value);

/* Changes the image by a word such as
 *   inodes[2].size=-1   super.version=2   directory[0].offset=5   leaf[0].offset=0
 *   block[1].size=9     names@3=2e2e      blocks@0=ff             names+=6162     names-=4
 *   drop:tensors        pack:inodes       plain:inodes            name[1]=2e2e
 * (numbers in C's notation, bytes in hexadecimal; name[N] gives entry N a name of its own at the
 * end of the names). NULL, or what is wrong with the word. */
const char *fz_edit(struct fz_image *img, const char *word);

/* Words that change the bytes of the whole image, without mending: image@-8=00, image+=00,
 * image-=100. *data is malloc'd and replaced. False if it is no such word. */
bool fz_edit_bytes(uint8_t **data, size_t *size, const char *word);

#endif
