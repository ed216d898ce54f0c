/* What becomes of a symbolic link, and what is left out.
 *
 * Pure functions of the options, the file system and their arguments; any thread.
 */
#ifndef HYPERFS_MKHYPERFS_LINK_H
#define HYPERFS_MKHYPERFS_LINK_H

#include <stdbool.h>
#include <sys/stat.h>

#include "fs/error.h"
#include "mkhyperfs/options.h"

/* Whether an --exclude matches the path below SOURCE or its last name. Where used is not
 * NULL, used[i] is set for the option that does. */
bool mk_excluded(const struct mk_options *opt, const char *rel, bool *used);

/* The link root/rel leads to a file or directory of identity leads_to. *target receives the
 * text to store, malloc'd, if in the image it leads to the same; else NULL: then what it
 * leads to is to be stored in its place. */
int mk_link_target(const struct mk_options *opt, const char *root, const char *rel,
                   const struct stat *leads_to, char **target, struct hfs_error *err);

#endif
