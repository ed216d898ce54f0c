/* The threads that take requests from the kernel and answer them.
 *
 * Like libfuse's own loop it begins with one thread, and one that finds no other waiting for
 * requests starts another. It differs in what it does when memory is short: libfuse ends the whole
 * loop where a thread finds none for its buffer, and by cancelling the others it may lose a request
 * that one of them has just been given, whose reader then waits for ever. Here no thread is ever
 * cancelled. One that finds no memory gives up as long as there are others, and else tries again.
 */
#ifndef HYPERFS_FS_MOUNT_LOOP_H
#define HYPERFS_FS_MOUNT_LOOP_H

#include <fuse_lowlevel.h>
#include <signal.h>

enum { MOUNT_LOOP_MAX = 64 };

/* Keeps the signals that end a mount, and one that the loop uses, from the calling thread and from
 * those that it starts. Before the first thread is started; *before is for mount_loop. */
void mount_loop_hold_signals(sigset_t *before);

/* Answers requests with up to `threads` threads, at most MOUNT_LOOP_MAX, until the file system is
 * unmounted or the session is told to exit by a signal. 0 or a negative errno. Called from the main
 * thread, with the handlers of fuse_set_signal_handlers in place; afterwards the signals of *before
 * come through again. */
int mount_loop(struct fuse_session *session, unsigned threads, const sigset_t *before);

#endif
