/* fsck.hyperfs --extract: the tree of an image as files in a directory.
 *
 * The tree grows in a staging directory that only its owner may enter, beside a new DIR or
 * inside an empty one, and is moved to its place when it is whole; on any error it is removed.
 * Every name is created relative to the descriptor of its directory, with O_EXCL and O_NOFOLLOW,
 * symbolic links after all files, so that no image can write outside DIR.
 */
#ifndef HYPERFS_FS_FSCK_EXTRACT_H
#define HYPERFS_FS_FSCK_EXTRACT_H

#include "fs/fsck.h"

/* 0; a negative errno with err filled where nothing was extracted. Damaged blocks are counted in
 * f; without f->opt.keep_going the first one ends the extraction with -EBADMSG. */
int fsck_extract(struct fsck *f, struct hfs_error *err);

#endif
