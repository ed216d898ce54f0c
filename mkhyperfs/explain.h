/* Tensor by tensor: what was wanted of each, why, and what came of it. For --explain and --json. */
#ifndef HYPERFS_MKHYPERFS_EXPLAIN_H
#define HYPERFS_MKHYPERFS_EXPLAIN_H

#include <stdio.h>

#include "mkhyperfs/plan.h"

/* The table of rules and the presets. */
void mk_explain_rules(FILE *out);
/* The same as members of a JSON object, each followed by a comma. */
void mk_explain_rules_json(FILE *out);

/* A line for each tensor that is stored; sizes of a dry run are estimates. */
void mk_explain_tensors(const struct mk_options *opt, const struct mk_source *src, FILE *out);
/* The same as the member "per_tensor" of a JSON object, followed by a comma. */
void mk_explain_tensors_json(const struct mk_options *opt, const struct mk_source *src, FILE *out);

#endif
