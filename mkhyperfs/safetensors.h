/* The header of a safetensors file.
 *
 * Eight bytes of length, little-endian, then that many bytes of JSON: one object of tensor
 * names, padded with spaces, then the tensors' bytes. st_read reads it as a stream and checks
 * that the tensors cover the data exactly, so that whoever holds a struct st_header can cut the
 * file at the tensors' borders without further checks.
 *
 * Headers come from anywhere. Memory is bounded by a small multiple of the header, which the
 * format limits to 100,000,000 bytes; one tensor's description may have ST_MAX_VALUE bytes.
 * Any thread.
 */
#ifndef HYPERFS_MKHYPERFS_SAFETENSORS_H
#define HYPERFS_MKHYPERFS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "codec/dtype.h"
#include "fs/error.h"

#define ST_MAX_HEADER UINT64_C(100000000)
#define ST_MAX_VALUE (UINT64_C(1) << 20)
enum { ST_MAX_RANK = 65535 };

struct st_tensor {
    char *name; /* UTF-8, terminated, without NUL */
    enum hc_dtype dtype;
    unsigned rank;
    uint64_t *dims; /* NULL for rank 0 */
    uint64_t elements;
    uint64_t begin, end; /* bytes of the file, not of its data area */
    uint64_t where;      /* byte of the file at which the name stands */
};

struct st_header {
    uint64_t bytes;            /* of the file before the first tensor */
    struct st_tensor *tensors; /* in the order of their data */
    size_t count;
};

/* Reads the header of fd, a file of file_size bytes; `shown` is its name for messages.
 * -EBADMSG: the file breaks the format; the sentence then names the file, the byte and what
 * is wrong. -ESTALE: the file ends before file_size. -EIO and the like; -ENOMEM. */
int st_read(int fd, uint64_t file_size, const char *shown, struct st_header *out,
            struct hfs_error *err);
void st_free(struct st_header *h);

#endif
