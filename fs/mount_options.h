/* The command line of hyperfs: hyperfs [-dfhsV] [-o OPTIONS] IMAGE MOUNTPOINT */
#ifndef HYPERFS_FS_MOUNT_OPTIONS_H
#define HYPERFS_FS_MOUNT_OPTIONS_H

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>

#include "fs/digest.h"

struct mount_options {
    char *image, *mountpoint; /* as given, malloc'd */
    int foreground, debug, single, nonempty, clone_fd, help, version;
    int allow_other, default_permissions, named; /* named: an fsname was given */
    size_t memory;                               /* bytes */
    unsigned threads;                            /* of the loop */
    int read_ahead_kb;                           /* -1: not given; 0: leave it */
    unsigned max_read;                           /* bytes */
    bool has_digest;
    struct hfs_hash digest; /* that the image must have, if so */
    struct fuse_args args;  /* what is left for libfuse */
};

/* Returns 0, or the exit status after a usage error (whose sentence has been printed). */
int mount_options_parse(struct mount_options *o, int argc, char **argv);
void mount_options_free(struct mount_options *o);

void mount_options_help(void); /* on stdout */

#endif
