/* What the parts of dump.hyperfs share. Each part writes its tables to stdout, or its members of
 * the JSON document; they return a negative errno with err filled. */
#ifndef HYPERFS_FS_DUMP_H
#define HYPERFS_FS_DUMP_H

#include <stdbool.h>
#include <stdint.h>

#include "fs/error.h"
#include "fs/image.h"
#include "fs/json.h"

struct dump {
    struct hfs_image *img;
    struct hfs_info info;
    struct hfs_json *doc; /* NULL: text */
};

enum { DUMP_SHOWN = 8192 }; /* bytes of a path that are shown */

int dump_summary(struct dump *d, struct hfs_error *err);
int dump_files(struct dump *d, struct hfs_error *err);
int dump_tensors(struct dump *d, struct hfs_error *err);

/* Draws the tensors to the file of that name, "-" for stdout. It is replaced when the picture is
 * whole; never the image. */
int dump_plot(struct dump *d, const char *path, struct hfs_error *err);

/* The code of a tensor; NULL: it is empty or its bytes are all zero. */
const struct hc_code *dump_code(struct dump *d, const struct hfs_tensor *t);

/* Stored bytes of a segment's blocks; 0 where the index cannot be read. */
uint64_t dump_stored(struct dump *d, const struct hfs_segment *seg);

/* "1,234,567" */
char *dump_thousands(char buf[32], uint64_t value);

#endif
