/* A walk through the tree of an image, directories before what they contain.
 *
 * It relies on what hfs_image_open has checked: names are single components, neither "." nor "..",
 * only files have several, and directories nest HFS_MAX_DEPTH deep at most. It does
 * not recurse; its memory is bounded by that depth and a bit for each inode.
 */
#ifndef HYPERFS_FS_WALK_H
#define HYPERFS_FS_WALK_H

#include <stdbool.h>

#include "fs/image.h"

enum { HFS_WALK_SKIP = 1 }; /* enter returns it: do not go into this directory */

struct hfs_walk_item {
    struct hfs_inode ino;
    char name[256]; /* terminated; "" for the root */
    unsigned name_len;
    const char *path; /* below the root, terminated; "" for the root; the walk's memory */
    unsigned depth;   /* 0 for the root */
    bool again;       /* one more name of a file that came before */
};

struct hfs_walk_ops {
    /* For every name, the root included. A negative errno ends the walk. */
    int (*enter)(void *ctx, const struct hfs_walk_item *item);
    /* For every directory entered, after what it contains. May be NULL. */
    int (*leave)(void *ctx, const struct hfs_walk_item *item);
};

/* 0, the negative errno that enter or leave returned, or -ENOMEM. */
int hfs_walk(const struct hfs_image *img, const struct hfs_walk_ops *ops, void *ctx);

#endif
