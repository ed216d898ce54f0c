/* Every block of a range of segments, read, decoded and checked, on several threads.
 *
 * A pool owns each thread's scratch memory, so that a run over a small file costs no allocation.
 * One run at a time for each pool; threads live for one run.
 */
#ifndef HYPERFS_FS_FSCK_SCAN_H
#define HYPERFS_FS_FSCK_SCAN_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "fs/image.h"

/* Set by a signal handler: runs end with -EINTR soon after. */
extern volatile sig_atomic_t fsck_stop;

struct fsck_block {
    uint64_t segment; /* its number */
    const struct hfs_segment *seg;
    uint64_t index;       /* block of the segment, 0 = first */
    uint64_t file_offset; /* of its first byte */
    const uint8_t *data;  /* len decoded bytes; NULL if status < 0 */
    size_t len;
    int status;     /* 0, or the negative errno of reading it */
    uint8_t *spare; /* HFS_MAX_STORED bytes for the caller's use */
};

/* Called from several threads at once. Not 0 ends the run, which returns it. */
typedef int (*fsck_block_fn)(void *ctx, const struct fsck_block *block);

struct fsck_range {
    uint64_t first, count; /* segments */
    uint64_t bytes;        /* about as many: decides how many threads are worth starting */
    bool zeros;            /* hand out zero segments too, in pieces; else they are passed over */
    uint8_t *claimed;      /* a bit for each block of the image: blocks that an earlier segment
                              has had are passed over; NULL for none */
};

struct fsck_pool;
/* jobs: threads at most, 1 or more. NULL: out of memory. */
struct fsck_pool *fsck_pool_new(struct hfs_image *img, unsigned jobs);
void fsck_pool_free(struct fsck_pool *pool); /* NULL is allowed */

int fsck_pool_run(struct fsck_pool *pool, const struct fsck_range *range, fsck_block_fn fn,
                  void *ctx);

#endif
