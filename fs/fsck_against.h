/* fsck.hyperfs --against: does an image hold what its source holds?
 *
 * Bytes of lossless segments are compared; for a tensor of the trajectory code the SQNR over all
 * its elements is measured and held against the one that the image states. Source and image are
 * read in pieces, each once.
 */
#ifndef HYPERFS_FS_FSCK_AGAINST_H
#define HYPERFS_FS_FSCK_AGAINST_H

#include "fs/fsck.h"

/* 0 when all was compared, with *differs telling the result; a negative errno with err filled. */
int fsck_against(struct fsck *f, bool *differs, struct hfs_error *err);

#endif
