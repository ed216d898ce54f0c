/* The picture that dump.hyperfs --plot draws: stored and full size of each tensor, and below it its
 * SQNR, as SVG 1.1.
 *
 * Tensors stand in the order given, one column each; more than DUMP_SVG_COLUMNS share columns.
 * Names are untrusted: they are made printable and escaped here. Write errors stay in the stream,
 * for ferror at the end. One thread only.
 */
#ifndef HYPERFS_FS_DUMP_SVG_H
#define HYPERFS_FS_DUMP_SVG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { DUMP_SVG_COLUMNS = 2000 };

struct dump_bar {
    const char *name; /* not terminated; outlives the drawing */
    unsigned name_len;
    bool lossy;
    uint64_t number;     /* of the tensor in the image */
    double size, stored; /* bytes: as the mount shows it, and in the image */
    double sqnr;         /* dB; used if lossy */
};

/* Bytes of name up to and with its first component that is a number ("model.layers.12"), and in
 * *digits where that number begins; 0 if there is none. */
unsigned dump_layer(const char *name, unsigned len, unsigned *digits);

void dump_svg(FILE *out, const char *image, const struct dump_bar *bars, uint64_t count);

#endif
