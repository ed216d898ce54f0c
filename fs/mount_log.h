/* Messages of a mount: to stderr while it is in the foreground, to syslog once it is detached.
 *
 * Threads: mount_log may be called from several threads; mount_log_to_syslog once, before them.
 */
#ifndef HYPERFS_FS_MOUNT_LOG_H
#define HYPERFS_FS_MOUNT_LOG_H

#include <stdbool.h>
#include <stdint.h>

/* Takes over libfuse's own messages. Before the mount serves they are held back: what fails then is
 * said in one sentence. Later they are printed like ours, without libfuse's prefix. */
void mount_log_start(void);
void mount_log_serving(void);

/* ": " and the first sentence that was held back, to end a sentence with; "" if there is none. */
const char *mount_log_reason(void);

/* Opens the connection to syslog; from now on nothing goes to stderr. */
void mount_log_to_syslog(void);

/* priority as in syslog(3); LOG_DEBUG is shown with -d only. One sentence, no newline. */
void mount_log(int priority, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Limits reports of broken blocks: the same block at most once a minute, at most 32 blocks a
 * minute. True: report it; *hidden is the number of reports left out since the last one. */
bool mount_log_allows(uint64_t segment, uint64_t block, uint64_t *hidden);

#endif
