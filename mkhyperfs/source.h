/* The tree that is to be stored, and the files in it.
 *
 * mk_source_read (source.c) walks SOURCE once, on one thread, and decides for every name what the
 * image holds in its place:
 *   - a symbolic link stays one if in the image it leads to the same file as in the source;
 *     an absolute one is made relative. Otherwise the file or directory that it leads to is
 *     stored in its place. One that leads nowhere is an error.
 *   - names of one inode (hard links, links to one file outside) become names of one struct
 *     mk_file.
 *   - sockets, pipes and devices are an error, or left out.
 * Children are sorted by name, so nothing depends on the order in which a directory is read.
 *
 * The source may change while it is read. What the walk saw is the reference: mk_file_open
 * and mk_file_check compare with it and fail if the file is another one now.
 */
#ifndef HYPERFS_MKHYPERFS_SOURCE_H
#define HYPERFS_MKHYPERFS_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "fs/error.h"
#include "mkhyperfs/options.h"

/* A regular file: one inode of the image. */
struct mk_file {
    char *path;   /* to open it */
    char *shown;  /* its first name below SOURCE, printable, for messages */
    char **names; /* all of them, and those of links that are kept and lead to it */
    size_t nnames;
    struct stat st;
    uint32_t nlink;       /* names in the image, links not counted */
    bool safetensors;     /* one of its names says so */
    uint32_t inode;       /* number in the image */
    struct mk_plan *plan; /* plan.h; NULL before */
};

enum mk_node_type { MK_DIR, MK_FILE, MK_LINK };

struct mk_node {
    enum mk_node_type type;
    char *name; /* "" for the root */
    struct mk_node *parent;
    struct stat st; /* of the link itself for MK_LINK */
    struct mk_node **children;
    size_t nchildren;
    struct mk_file *file; /* MK_FILE */
    char *target;         /* MK_LINK */
    uint32_t inode;       /* number in the image, of a directory or link */
};

struct mk_source {
    char *root; /* SOURCE without trailing slashes; the directory of a single file */
    struct mk_node *top;
    struct mk_file **files; /* in the order of the walk */
    size_t nfiles, nnodes, nlinks;
    uint64_t bytes;        /* of all files, each inode once */
    size_t skipped;        /* special files left out */
    double mean_offset;    /* dB, of the tensors that may lose something; set by the plan */
    char imatrix_hash[33]; /* of --imatrix, hexadecimal; "" without, and before the plan */
    bool *exclude_used;    /* for each --exclude, whether it left something out */
};

int mk_source_read(const struct mk_options *opt, struct mk_source **out, struct hfs_error *err);
void mk_source_free(struct mk_source *src); /* NULL is allowed */

/* Opens the file for reading; *fd is set on success. */
int mk_file_open(const struct mk_file *f, int *fd, struct hfs_error *err);
/* Reads exactly len bytes at offset; a file that ends before is one that shrinks. */
int mk_file_read(const struct mk_file *f, int fd, void *buf, size_t len, uint64_t offset,
                 struct hfs_error *err);
/* After the last read: 0 if the file is still what the walk saw. */
int mk_file_check(const struct mk_file *f, struct hfs_error *err);

#endif
