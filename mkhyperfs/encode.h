/* From planned items to blocks of the image: the second phase.
 *
 * mk_encode reads the items block by block in order, codes the blocks on the worker threads
 * and writes them in order. A tensor whose SQNR comes out beside what was asked for is coded
 * again with another step. Sets the encoder's part of every item, and adds the items'
 * codes and segments to the writer.
 */
#ifndef HYPERFS_MKHYPERFS_ENCODE_H
#define HYPERFS_MKHYPERFS_ENCODE_H

#include "fs/writer.h"
#include "mkhyperfs/plan.h"

int mk_encode(const struct mk_options *opt, struct mk_source *src, struct mk_target *target,
              size_t first, struct hfs_writer *writer, struct hfs_error *err);

#endif
