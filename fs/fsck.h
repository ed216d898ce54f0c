/* What the parts of fsck.hyperfs share: options, what was found, how it is reported.
 *
 * Findings go to stderr as sentences or, with --json, to stdout as a part of one document.
 * fsck_problem and fsck_damage may be called from several threads.
 */
#ifndef HYPERFS_FS_FSCK_H
#define HYPERFS_FS_FSCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "fs/error.h"
#include "fs/fsck_scan.h"
#include "fs/image.h"
#include "fs/json.h"

/* Exit status, as in fsck(8). */
enum {
    FSCK_CLEAN = 0,
    FSCK_DAMAGED = 4, /* errors left uncorrected: an image is never changed */
    FSCK_FAILED = 8,  /* operational error */
    FSCK_USAGE = 16,
    FSCK_CANCELLED = 32
};

struct fsck_options {
    const char *image, *extract, *against;
    const struct hfs_hash *digest; /* that the image must have; NULL: any */
    unsigned jobs;
    bool quick, keep_going, json;
};

enum fsck_reason {
    FSCK_STORED,  /* the stored bytes do not match their checksum */
    FSCK_CONTENT, /* they do, but what they decode to does not */
    FSCK_INDEX,   /* the index leaf that says where the block lies is damaged */
    FSCK_IO       /* reading failed */
};

struct fsck_damaged {
    uint64_t segment, index;
    enum fsck_reason reason;
    int error; /* errno of FSCK_IO */
};
/* Damaged blocks that are remembered, to be named; the rest is counted. */
enum { FSCK_MAX_DAMAGED = 1 << 16 };

struct fsck_tensor_ref {
    uint64_t segment, tensor;
};

struct fsck {
    struct fsck_options opt;
    struct hfs_image *img;
    struct hfs_info info;
    struct fsck_pool *pool;
    struct hfs_json json;            /* used if opt.json */
    struct fsck_tensor_ref *tensors; /* by segment; made on first use */
    uint64_t ntensors;
    bool tensors_loaded;

    pthread_mutex_t lock;     /* of all below */
    uint64_t problems;        /* in the tables */
    uint64_t blocks, content; /* blocks read, their decoded bytes */
    uint64_t ndamaged;
    struct fsck_damaged *damaged;
    uint32_t listed, room; /* of the list: used, allocated */
};

/* Reads the tensor records, once. 0, also where their section is damaged, which is a finding of its
 * own: segments then have none. -ENOMEM. */
int fsck_load_tensors(struct fsck *f);

/* Finds the tensor record of a segment, loading them first: its number, or UINT64_MAX. */
uint64_t fsck_tensor_of(struct fsck *f, uint64_t segment);

/* Counts a block and, if it cannot be read, remembers it with the reason. */
void fsck_count(struct fsck *f, const struct fsck_block *block);

/* Names the damaged blocks in the order of the image, with what they hit. */
void fsck_report_damage(struct fsck *f);

#endif
