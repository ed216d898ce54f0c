/* What a running mount gives up, before it reads a byte for anybody.
 *
 * It needs its image, the connection to the kernel, the log, memory and threads, and to unmount at
 * its end. After mount_sandbox every other system call fails with EPERM: no file is opened for
 * writing or created, no program started, no address but a local socket's (syslog) connected to,
 * no process traced, no identity changed. Root keeps two capabilities, those for unmounting
 * (CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH). The filter is made with libseccomp, where that knows
 * the processor; elsewhere, and with sanitizers, which need more, capabilities are dropped and
 * the way to new privileges is closed (PR_SET_NO_NEW_PRIVS).
 */
#ifndef HYPERFS_FS_MOUNT_SANDBOX_H
#define HYPERFS_FS_MOUNT_SANDBOX_H

#include <stdbool.h>

/* Closes what this process inherited beyond the standard three descriptors; keep: one more that
 * stays, or -1. */
void mount_close_inherited(int keep);

/* clone_fd: libfuse will open /dev/fuse for more threads. A kernel without seccomp is no error:
 * false tells that there is no filter. Threads started from now on are under it too. */
bool mount_sandbox(bool clone_fd);

#endif
