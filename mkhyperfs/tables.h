/* The image's tables from the source tree and the encoded items: inodes, directory entries, tensor
 * records, META. After mk_encode; before hfs_writer_finish. */
#ifndef HYPERFS_MKHYPERFS_TABLES_H
#define HYPERFS_MKHYPERFS_TABLES_H

#include "fs/writer.h"
#include "mkhyperfs/plan.h"

int mk_write_tables(const struct mk_options *opt, struct mk_source *src, struct hfs_writer *writer,
                    struct hfs_error *err);

#endif
