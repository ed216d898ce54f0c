/* Writing an image.
 *
 * The image is written to a temporary file beside the target, `.NAME.XXXXXX.hyperfs-tmp`,
 * held by flock while its writer lives; commit syncs it, renames it onto the target and syncs
 * the directory. So there is always either the old image or the new one, whole. A temporary
 * file of a writer that was killed (its lock is free) is removed by the next create on the
 * same target.
 *
 * Order of calls: create; blocks and codes; segments, inodes, entries and tensors in any
 * interleaving; finish; optionally verify by hfs_image_open on hfs_writer_temp_path; commit.
 * abort at any time. One thread only. All functions with an error argument return a
 * negative errno and leave the writer fit only for abort.
 */
#ifndef HYPERFS_FS_WRITER_H
#define HYPERFS_FS_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "codec/codec.h"
#include "fs/error.h"
#include "fs/format.h"
#include "fs/image.h"

struct hfs_writer;

/* Called with the path of each stale temporary file that was removed. May be NULL. */
typedef void (*hfs_stale_fn)(void *ctx, const char *path);

/* replace: an existing regular file may be replaced; otherwise -EEXIST. A target that exists and
 * is no regular file is refused always. */
int hfs_writer_create(const char *path, bool replace, hfs_stale_fn stale, void *ctx,
                      struct hfs_writer **out, struct hfs_error *err);
void hfs_writer_abort(struct hfs_writer *w); /* removes the temporary file; NULL is allowed */
/* Path of the temporary file, for a signal handler that unlinks it. */
const char *hfs_writer_temp_path(const struct hfs_writer *w);

/* Appends a coded block; content is XXH3-64 of its decoded bytes. Numbers count from 0. */
int hfs_writer_block(struct hfs_writer *w, const uint8_t *data, uint32_t size, uint64_t content,
                     struct hfs_error *err);
uint64_t hfs_writer_blocks(const struct hfs_writer *w);     /* blocks so far */
uint64_t hfs_writer_data_bytes(const struct hfs_writer *w); /* their stored bytes */
/* Takes back all blocks from number `blocks` on. */
int hfs_writer_rewind(struct hfs_writer *w, uint64_t blocks, struct hfs_error *err);
/* Stored bytes of blocks [first, first + count). */
uint64_t hfs_writer_range_bytes(const struct hfs_writer *w, uint64_t first, uint64_t count);

/* Adds a code record, or finds the equal one that is there; *number receives its number. */
int hfs_writer_code(struct hfs_writer *w, const struct hc_code *code, uint32_t *number,
                    struct hfs_error *err);
/* Adds segments; returns through *number the number of this one. */
int hfs_writer_segment(struct hfs_writer *w, const struct hfs_segment *seg, uint64_t *number,
                       struct hfs_error *err);
uint64_t hfs_writer_segments(const struct hfs_writer *w); /* segments so far */

/* Inodes are added in table order (root first, directories before what they contain). For a link
 * `target` has size bytes; first and count of a directory are set by hfs_writer_entries, nlink
 * and parent of all by hfs_writer_finish. */
int hfs_writer_inode(struct hfs_writer *w, const struct hfs_inode *ino, const char *target,
                     uint32_t *number, struct hfs_error *err);
/* Replaces size, first, count, mode ... of an inode added before (a link's target excepted). */
void hfs_writer_set_inode(struct hfs_writer *w, const struct hfs_inode *ino);
/* Sets the entries of directory `dir`; sorts them. Names are copied. */
int hfs_writer_entries(struct hfs_writer *w, uint32_t dir, const struct hfs_dirent *entries,
                       uint32_t count, struct hfs_error *err);
int hfs_writer_tensor(struct hfs_writer *w, const struct hfs_tensor *t, struct hfs_error *err);
/* One "key=value" line of META. value has no newline. */
int hfs_writer_meta(struct hfs_writer *w, const char *key, const char *value,
                    struct hfs_error *err);

/* Writes index, sections, directory and superblocks, and syncs. *image_size may be NULL. Tables
 * that hfs_image_open or hfs_image_tensors would refuse are refused here. */
int hfs_writer_finish(struct hfs_writer *w, uint64_t *image_size, struct hfs_error *err);
/* After finish: the digest of the image. */
void hfs_writer_digest(const struct hfs_writer *w, struct hfs_hash *out);
/* Takes back a finish, and blocks from number `blocks` on; all codes, segments, inodes, entries,
 * tensors and META are forgotten and have to be added again. */
int hfs_writer_reopen(struct hfs_writer *w, uint64_t blocks, struct hfs_error *err);
/* Renames onto the target, syncs the directory, frees the writer (also on error). */
int hfs_writer_commit(struct hfs_writer *w, struct hfs_error *err);

#endif
