/* The attributes user.hyperfs.* of files and directories in a mount.
 *
 *   user.hyperfs.code     codes of the blocks, comma-separated: "trajectory,planes,bytes,zero"
 *   user.hyperfs.ratio    size / stored bytes, "3.972"; what is shared counts once
 *   user.hyperfs.sqnr     dB of the worst tensor, "22.94"; "inf" where every bit is kept
 *   user.hyperfs.version    version of the image; on the root only, as the next two
 *   user.hyperfs.decoded    bytes decoded since the mount, a block decoded twice counts twice
 *   user.hyperfs.delivered  bytes given to the kernel since the mount
 *
 * A directory's are those of all that lies below it. They are worked out when they are asked
 * for, in time linear in the tables, and the last inode's are kept.
 *
 * Threads: all functions but new and free may be called from several threads; they take turns.
 */
#ifndef HYPERFS_FS_MOUNT_XATTR_H
#define HYPERFS_FS_MOUNT_XATTR_H

#include "fs/image.h"
#include "fs/mount_read.h"

struct hfs_xattrs;

enum { HFS_XATTR_VALUE = 64 }; /* no value is longer */

/* Both must outlive it. NULL: out of memory. */
struct hfs_xattrs *hfs_xattrs_new(struct hfs_image *img, struct hfs_reader *reader);
void hfs_xattrs_free(struct hfs_xattrs *x); /* NULL is allowed */

/* The names of an inode's attributes, each with its terminator; *len bytes of them. */
const char *hfs_xattrs_list(const struct hfs_inode *ino, size_t *len);

/* -ENODATA for an attribute that the inode has not; what reading the index says. */
int hfs_xattrs_get(struct hfs_xattrs *x, uint32_t inode, const char *name,
                   char value[HFS_XATTR_VALUE]);

#endif
