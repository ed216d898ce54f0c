/* A directory that appears whole or not at all: the staging area of --extract.
 *
 * fsck_stage_open makes the staging directory and in it "tree", to be filled, and "links", room
 * for files that will get several names. fsck_stage_publish moves the tree to its place. */
#ifndef HYPERFS_FS_FSCK_STAGE_H
#define HYPERFS_FS_FSCK_STAGE_H

#include <stdbool.h>

#include "fs/error.h"

struct fsck_stage {
    const char *target;
    bool existed; /* an empty directory stood there */
    int base_fd;  /* where the staging directory lies: the target, or its parent */
    int fd;       /* the staging directory */
    int tree_fd, links_fd;
    char name[300]; /* of the staging directory in base_fd */
    char last[256]; /* last component of a new target */
};

/* -ENOTEMPTY, -ENOTDIR, or what the system says. The stage needs fsck_stage_close in any case. */
int fsck_stage_open(struct fsck_stage *s, const char *target, struct hfs_error *err);
/* After it tree_fd is the directory in its place, and the staging directory is gone. */
int fsck_stage_publish(struct fsck_stage *s, struct hfs_error *err);
/* Removes whatever is left of the staging directory. */
void fsck_stage_close(struct fsck_stage *s);

#endif
