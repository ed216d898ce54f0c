/* The file system as libfuse's low-level operations.
 *
 * FUSE's inode number is the image's plus one. Nothing ever changes, so attributes, names,
 * names that do not exist, directory listings and file contents are given to the kernel for
 * ever, and an inode needs no count of its look-ups. What would change something gets EROFS,
 * also where the kernel would have refused it already.
 *
 * Threads: libfuse calls the operations from several threads at once. The struct hfs_mount, the
 * session's user data, does not change while the session runs, `started` apart.
 */
#ifndef HYPERFS_FS_MOUNT_OPS_H
#define HYPERFS_FS_MOUNT_OPS_H

#include <fuse_lowlevel.h>

#include "fs/image.h"
#include "fs/mount_read.h"
#include "fs/mount_xattr.h"
#include "fs/readahead.h"

struct hfs_mount {
    struct hfs_image *img;
    struct hfs_info info;
    struct hfs_reader *reader;
    struct hfs_ahead *ahead; /* NULL: nothing is decoded ahead */
    struct hfs_xattrs *xattrs;
    unsigned max_read; /* bytes of the largest read request, <= HFS_READ_MAX */
    bool started;      /* set by the kernel's first request */
};

extern const struct fuse_lowlevel_ops hfs_mount_ops;

#endif
