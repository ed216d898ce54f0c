/* A process that unmounts for an ordinary user's mount.
 *
 * An ordinary user unmounts through fusermount3, a set-user-ID program, which a process that
 * has given up new privileges cannot use any more. So before it gives them up, the mount
 * leaves this process behind, which reads nothing but one byte from its pipe. It also
 * unmounts when the mount's process is killed, so that no dead mount stays.
 *
 * Threads: from the main thread only; start it before there are others.
 */
#ifndef HYPERFS_FS_MOUNT_UNMOUNTER_H
#define HYPERFS_FS_MOUNT_UNMOUNTER_H

#include <stdbool.h>
#include <sys/types.h>

struct unmounter {
    pid_t pid;
    int pipe; /* its writing end */
};

/* close_fds: descriptors that the new process must not keep open. quiet: no output on the
 * terminal. 0 or a negative errno. */
int unmounter_start(struct unmounter *u, const char *mountpoint, const int *close_fds, unsigned n,
                    bool quiet);

/* Ends it and waits for that. mounted: unmount first. */
void unmounter_end(struct unmounter *u, bool mounted);

#endif
