/* What mkhyperfs says at its end: sizes, quality, time, and what that means for the user. */
#ifndef HYPERFS_MKHYPERFS_REPORT_H
#define HYPERFS_MKHYPERFS_REPORT_H

#include <stdio.h>

#include "fs/digest.h"
#include "mkhyperfs/plan.h"

/* The finished image. */
struct mk_image {
    uint64_t bytes;
    struct hfs_hash digest;
};

/* image is not used with --dry-run. Prints to `out`, as JSON if asked
 * for, else nothing with --quiet. -ENOMEM. */
int mk_report(const struct mk_options *opt, const struct mk_source *src,
              const struct mk_image *image, double seconds, FILE *out);

#endif
