/* The read path of a mount: from (inode, offset, size) to memory that a reply can be written
 * from, through the cache of decoded blocks (fs/cache.h).
 *
 * Pieces of a block of at least 16 KiB are replied straight from the cache; smaller ones, and
 * zero segments, are gathered in a buffer of the request. So a request of 1 MiB needs at most
 * 131 pieces, however many segments it crosses.
 *
 * Memory: hfs_reader_new divides its limit between the cache and the scratch memory of the
 * decoders; what a request gathers counts as held. One decoder and the blocks of one request
 * are always allowed, so that at the smallest limits somewhat more is used. The image's
 * tables are not counted.
 *
 * Threads: hfs_reader_read and _done from any number of threads; a struct hfs_read belongs to
 * one. No lock is held between the two.
 */
#ifndef HYPERFS_FS_MOUNT_READ_H
#define HYPERFS_FS_MOUNT_READ_H

#include <sys/uio.h>

#include "fs/cache.h"
#include "fs/image.h"

enum {
    HFS_READ_MAX = 1 << 20, /* largest request, bytes */
    HFS_READ_DIRECT = 16 << 10,
    HFS_READ_PIECES = 2 * (HFS_READ_MAX / HFS_READ_DIRECT) + 3
};
_Static_assert(HFS_READ_MAX / HFS_READ_DIRECT + 2 <= HFS_TICKET_BLOCKS, "blocks of a request");

struct hfs_reader;

/* decoders: blocks decoded at one time, at most. */
int hfs_reader_new(struct hfs_image *img, size_t memory, unsigned decoders,
                   struct hfs_reader **out);
void hfs_reader_free(struct hfs_reader *r); /* NULL is allowed */

/* Bytes that the cache has room for. */
size_t hfs_reader_capacity(const struct hfs_reader *r);

struct hfs_reader_stats {
    uint64_t decoded;   /* bytes of blocks, each time that one was decoded */
    uint64_t delivered; /* bytes read from files */
};
void hfs_reader_stats(struct hfs_reader *r, struct hfs_reader_stats *out);

struct hfs_read {
    struct iovec iov[HFS_READ_PIECES];
    int count;
    struct hfs_cache_key failed; /* the block that could not be read, after an error */
    struct hfs_ticket ticket;
    uint8_t *gathered;
};

/* Reads [offset, offset + size) of a regular file, cut at its end; size <= HFS_READ_MAX. On
 * success iov[0 .. count) are the bytes, until hfs_reader_done. After an error (-EBADMSG, -EIO,
 * -ENOMEM ...) there is nothing to be done. */
int hfs_reader_read(struct hfs_reader *r, const struct hfs_inode *ino, uint64_t offset, size_t size,
                    struct hfs_read *out);
void hfs_reader_done(struct hfs_reader *r, struct hfs_read *read);

/* The block, or the run of zeros, that holds byte `offset` of a regular file (offset < its size):
 * returns where it ends in the file. *len receives what hfs_reader_ahead needs, 0 where there is
 * nothing to decode: zeros, and what the kernel has been given and not asked for again. */
uint64_t hfs_reader_block(struct hfs_reader *r, const struct hfs_inode *ino, uint64_t offset,
                          struct hfs_cache_key *key, size_t *len);
/* Decodes it into the cache (hfs_cache_ahead). */
int hfs_reader_ahead(struct hfs_reader *r, const struct hfs_cache_key *key, size_t len);
/* Asks the disk for the stored bytes of [from, to) of a file (from < to <= its size), and does
 * not wait for them. */
void hfs_reader_fetch(struct hfs_reader *r, const struct hfs_inode *ino, uint64_t from,
                      uint64_t to);

#endif
