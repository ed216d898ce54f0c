/* Decoding ahead of readers.
 *
 * Every read that the kernel asks for is noted. Reads that follow each other in a file are a
 * stream, whoever asks for them: loaders share descriptors between processes and threads, and
 * one descriptor may run through several parts of a file at once, so streams are found by place
 * in the file and not by descriptor. At most HFS_STREAMS are known; the one unused for longest
 * makes room. Of a stream that has run for HFS_STREAM_CONFIRMED bytes the blocks that follow are
 * decoded into the reader's cache by threads of low priority, as far ahead as it has run by
 * now, at most HFS_AHEAD_MAX and at most its share of half of the cache. Before that the
 * blocks' stored bytes are asked of the disk, so that a slow disk and the decoders overlap.
 *
 * What the kernel has been given is not decoded again, as long as the kernel is not seen to
 * ask for it twice: so a stream that runs into what another one has read stops costing.
 *
 * Errors are nobody's business here: a block that fails is read again when somebody wants it.
 *
 * Threads: all functions but new and free may be called from several threads at once. One mutex
 * guards the streams; it is not held while a block is decoded.
 */
#ifndef HYPERFS_FS_READAHEAD_H
#define HYPERFS_FS_READAHEAD_H

#include "fs/mount_read.h"

enum {
    HFS_STREAMS = 64,
    HFS_STREAM_CONFIRMED = 256 << 10,
    HFS_AHEAD_MAX = 8 << 20, /* bytes of a file */
    HFS_FETCH = 4 << 20,     /* bytes of a file whose stored bytes are asked for at one time */
    HFS_FETCH_MAX = 32 << 20 /* how far ahead of the reader, bytes of the file */
};

struct hfs_ahead;

/* The reader must outlive it. threads: at least 1. Starts them: not before the last fork.
 * -ENOMEM or -EAGAIN. */
int hfs_ahead_new(struct hfs_reader *r, unsigned threads, struct hfs_ahead **out);
/* Waits for the blocks being decoded. NULL is allowed. */
void hfs_ahead_free(struct hfs_ahead *a);

/* [offset, offset + size) of a regular file is about to be read. */
void hfs_ahead_note(struct hfs_ahead *a, const struct hfs_inode *ino, uint64_t offset, size_t size);

#endif
