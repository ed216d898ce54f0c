/* The header of a GGUF file (versions 2 and 3, little-endian): what tensors it has, and where.
 *
 * Source: the format's description, docs/gguf.md of ggml. Keys are passed over, but for
 * general.type and general.alignment. Files come from anywhere: all tensors lie within the file,
 * no name stands twice, and memory is bounded by GGUF_MAX_TENSORS and GGUF_MAX_NAME. Any thread.
 */
#ifndef HYPERFS_MKHYPERFS_GGUF_H
#define HYPERFS_MKHYPERFS_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mkhyperfs/stream.h"

/* ggml itself takes names of 63 bytes; a suffix may follow here. */
enum { GGUF_MAX_NAME = 1024, GGUF_MAX_RANK = 4 };
#define GGUF_MAX_TENSORS (UINT64_C(1) << 20)

enum { GGUF_F32 = 0 }; /* of ggml's types the only one that is needed here */

struct gguf_tensor {
    char *name;
    uint32_t type; /* ggml's number */
    unsigned rank;
    uint64_t dims[GGUF_MAX_RANK]; /* the innermost first; 1 beyond rank */
    uint64_t elements;            /* their product, below 2^61 */
    uint64_t offset;              /* byte of the file; of an F32 tensor all bytes lie in it */
    uint64_t where;               /* byte of the file at which its description stands */
};

struct gguf {
    char *type;                  /* general.type, or NULL */
    struct gguf_tensor *tensors; /* sorted by name */
    size_t count;
};

/* Whether the file begins as GGUF does; the stream stands behind that if so, else at 0. */
int gguf_magic(struct stream *s, bool *is);
/* The rest of the header. gguf_free after success and failure alike. */
int gguf_read(struct stream *s, struct gguf *out);
void gguf_free(struct gguf *g);

/* The tensor called prefix + suffix, or NULL. */
const struct gguf_tensor *gguf_find(const struct gguf *g, const char *prefix, const char *suffix);

#endif
