/* An importance matrix of llama.cpp: how strong the inputs of each matrix are.
 *
 * Two forms, both little-endian, told apart by their first bytes (llama.cpp, tools/imatrix):
 *   - GGUF: for each matrix a tensor NAME.in_sum2 with the sums over tokens of the squares of its
 *     inputs, by column, and NAME.counts with the number of tokens. A matrix of experts has a row
 *     of sums and a count for each expert.
 *   - the older .dat: i32 entries; for each of them i32 length and the name, i32 calls, i32 values
 *     and the values as f32, which are the mean squares times calls; then, or not, i32 calls and
 *     i32 length and the name of the text.
 *
 * Of the columns only two means are kept: the arithmetic one, and that of fourth roots, to the
 * fourth power, which is the typical one: large language models have a few columns with huge inputs
 * on the first token alone, which outweigh all others in a sum. So memory is a few dozen bytes for
 * each entry. Square roots round correctly everywhere, so the numbers are the same on every
 * machine.
 *
 * Files come from anywhere: sums are finite and not negative, no name stands twice, lengths lie
 * within the file, and everything is read in small pieces. Any thread.
 */
#ifndef HYPERFS_MKHYPERFS_IMATRIX_H
#define HYPERFS_MKHYPERFS_IMATRIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fs/error.h"

enum { IMATRIX_MAX_COUNTS = 65536 }; /* experts of one matrix */

struct imatrix_entry {
    char *name;      /* of llama.cpp: "blk.0.attn_q.weight" */
    uint64_t values; /* columns, times matrices */
    uint64_t counts; /* how many there are: 1, or one for each matrix */
    double tokens;   /* sum of the counts; 0: there is no data */
    double strength; /* sum over the counts: count times the mean over columns, as above */
    double squares;  /* the same with the arithmetic mean */
};

struct imatrix {
    struct imatrix_entry *entries; /* sorted by name */
    size_t count;
    char hash[33]; /* XXH3, 128 bits, of the file, hexadecimal */
};

/* Reads the file at `path`. imatrix_free after success and failure alike. -EBADMSG: the file breaks
 * its format; the sentence names file and byte. -ESTALE: it changed meanwhile. -EIO and the like.
 */
int imatrix_read(const char *path, struct imatrix *out, struct hfs_error *err);
void imatrix_free(struct imatrix *im);

/* NULL: there is none of that name. */
const struct imatrix_entry *imatrix_find(const struct imatrix *im, const char *name);

/* The squared length of a typical input of one matrix of so many columns. False if the entry has no
 * data, or belongs to matrices of another width. */
bool imatrix_energy(const struct imatrix_entry *e, uint64_t columns, double *energy);
/* By what factor a few huge columns raise the arithmetic mean of the squares above the typical one:
 * 1 or more. */
double imatrix_peak(const struct imatrix_entry *e);

#endif
