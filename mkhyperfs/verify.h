/* Reads a finished image back: opens it as a mount would, decodes every block of every segment on
 * the worker threads and compares the checksums of the decoded bytes, and checks all tables. */
#ifndef HYPERFS_MKHYPERFS_VERIFY_H
#define HYPERFS_MKHYPERFS_VERIFY_H

#include "fs/error.h"
#include "mkhyperfs/options.h"

int mk_verify(const struct mk_options *opt, const char *path, struct hfs_error *err);

#endif
