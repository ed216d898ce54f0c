/* Which tensors are stored with loss, and how exactly.
 *
 * A tensor is eligible if it is made of F16, BF16, F32 or F64, has two dimensions or more and at
 * least MK_MIN_ELEMENTS elements. Of the eligible ones some had better be kept (the tables in
 * policy.c): what belongs to a quantised model, optimiser states, masks, biases, routers. The
 * user's rules stand above those tables. How exact the others are is a common level in dB and an
 * offset to it (sensitivity.h). Tensors of few distinct values are found later, by hc_choose.
 *
 * Use: new; note every header of the source and the configs; then decide. One thread.
 */
#ifndef HYPERFS_MKHYPERFS_POLICY_H
#define HYPERFS_MKHYPERFS_POLICY_H

#include <stdbool.h>

#include "fs/error.h"
#include "mkhyperfs/importance.h"
#include "mkhyperfs/options.h"
#include "mkhyperfs/role.h"
#include "mkhyperfs/safetensors.h"
#include "mkhyperfs/sensitivity.h"

enum { MK_MIN_ELEMENTS = 4096 };

struct mk_policy;

struct mk_decision {
    bool lossy;
    bool eligible;
    const char *why; /* unless lossy: why every bit is kept, for "kept exactly: ..." */
    struct mk_role role;
    struct mk_evidence evidence; /* what is known of this tensor; .what is NULL: nothing */
    bool fixed;                  /* a --rule names the quality, whatever the common level is */
    double offset;               /* dB: to the common level; if fixed, the quality itself */
    double allocated;            /* the part of offset that is not the user's: sensitivity.h */
    double db;                   /* if lossy: HC_MIN_DB .. HC_MAX_DB; see mk_decision_level */
    const struct mk_rule *rule;  /* of the user, that decided or changed db; or NULL */
};

/* Sets db for a common level in dB. */
void mk_decision_level(struct mk_decision *d, double level);

/* Where a tensor's file stands. */
struct mk_place {
    const char *path;  /* below SOURCE: "a/model.safetensors" */
    const char *model; /* the same file by another name, beside its config.json; or NULL */
    const char *kept;  /* from mk_policy_file */
};

int mk_policy_new(const struct mk_options *opt, struct mk_policy **out);
void mk_policy_free(struct mk_policy *p); /* NULL is allowed */

/* Remembers the names, and the integer and FP8 tensors, of the file `path` (below SOURCE): layers
 * and modules may lie in several files of one directory. -ENOMEM. */
int mk_policy_note(struct mk_policy *p, const char *path, const struct st_header *h);

/* Reads the config.json beside root/path, for the roles of tensors (role.h). */
int mk_policy_config(struct mk_policy *p, const char *root, const char *path,
                     struct hfs_error *err);

/* What is known of the layers, from now on; NULL: nothing. p does not own it. */
void mk_policy_importance(struct mk_policy *p, const struct mk_importance *importance);

/* Why all tensors of the file root/path are kept, by its name or because a config.json or its
 * like says that the model in its directory is quantised: *why is static, or NULL. A config
 * that is no JSON says nothing; one that cannot be read is an error. */
int mk_policy_file(const char *root, const char *path, const char **why, struct hfs_error *err);

/* -ENOMEM. */
int mk_policy_decide(struct mk_policy *p, const struct mk_place *place, const struct st_tensor *t,
                     struct mk_decision *out);

/* Warns of rules that did nothing. */
void mk_policy_report(const struct mk_policy *p);

#endif
