/* What mkhyperfs says at its end: sizes, quality, time, and what that means for the user. */
#ifndef HYPERFS_MKHYPERFS_REPORT_H
#define HYPERFS_MKHYPERFS_REPORT_H

#include <stdio.h>

#include "mkhyperfs/plan.h"

/* image_bytes: of the finished image; not used with --dry-run. Prints to `out`, as JSON if asked
 * for, else nothing with --quiet. -ENOMEM. */
int mk_report(const struct mk_options *opt, const struct mk_source *src, uint64_t image_bytes,
              double seconds, FILE *out);

#endif
