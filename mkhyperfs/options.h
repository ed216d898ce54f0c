/* The command line of mkhyperfs.
 *
 * mk_options_parse fills the structure once, before any thread is started; afterwards it is
 * read only. Strings point into argv.
 */
#ifndef HYPERFS_MKHYPERFS_OPTIONS_H
#define HYPERFS_MKHYPERFS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec/codec.h"

enum { MK_MAX_JOBS = 1024 };

/* --rule 'GLOB=DB|+DB|-DB|lossless' */
struct mk_rule {
    char *glob; /* of tensor names, fnmatch(3) */
    bool lossless;
    bool relative;    /* db is added to what the tensor would have had */
    double db;        /* unless lossless */
    const char *text; /* as given */
};
enum { MK_MAX_OFFSET = 30 }; /* dB, of a relative rule */

/* What the common level of quality is chosen for. */
enum mk_goal {
    MK_GOAL_LEVEL, /* it is given: --quality */
    MK_GOAL_BITS,  /* of a weight, on average: --bits */
    MK_GOAL_RATIO, /* of the source's size to the image's: --ratio */
    MK_GOAL_SIZE   /* of the image, bytes: --target-size */
};

struct mk_options {
    const char *source, *image; /* image: NULL only with dry_run; both with explain */
    bool quiet, verbose, force, dry_run, json;
    bool lossless;          /* --lossless: no tensor with loss */
    const char *quality;    /* as given, or the default preset; NULL with another goal */
    double db;              /* common level of quality; of another goal, a first guess */
    bool preset;            /* quality is the name of one */
    const char *allocation; /* as given, or NULL */
    bool flat;              /* no offsets between tensors (sensitivity.h) */
    enum mk_goal goal;
    double goal_value;     /* unless MK_GOAL_LEVEL */
    const char *goal_text; /* the same as it was given: "--bits=4.5" */
    bool explain;
    unsigned nu, nu_small; /* memory of the trellis, bits; in small tensors */
    const char *imatrix;   /* path of an importance matrix, or NULL */
    struct mk_rule *rules;
    size_t nrules;
    char **excludes; /* globs without trailing slashes */
    size_t nexcludes;
    bool set_mtime;   /* --mtime: every mtime becomes `mtime` */
    bool clamp_mtime; /* SOURCE_DATE_EPOCH: later ones do */
    int64_t mtime;
    bool verify, keep_broken, skip_special;
    unsigned jobs;
    enum hc_isa isa;
};

/* Returns 0; 2 after a usage error, which it has printed; -1 if there is nothing left to do
 * (--help, --version), -ENOMEM. */
int mk_options_parse(struct mk_options *opt, int argc, char **argv);
void mk_options_free(struct mk_options *opt);

/* Name and common level of preset number i; NULL behind the last. */
const char *mk_preset(size_t i, double *db);

#endif
