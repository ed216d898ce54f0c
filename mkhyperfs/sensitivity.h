/* How exact a tensor is to be, compared with the others: an offset in dB to the common level.
 *
 * The same noise does more harm in some tensors than in others. The table of rules in sensitivity.c
 * holds what was measured; a tensor's offset is the sum of all rules that match its role. The plan
 * takes the mean over all weights off, so only differences count. What is known of this very tensor
 * (an importance matrix) takes the place of the rules that name layers.
 * Any thread.
 */
#ifndef HYPERFS_MKHYPERFS_SENSITIVITY_H
#define HYPERFS_MKHYPERFS_SENSITIVITY_H

#include <stdbool.h>
#include <stddef.h>

#include "mkhyperfs/role.h"

enum { MK_RULE_TEXT = 200 };

/* Of one tensor, measured on the user's own data. */
struct mk_evidence {
    double offset_db; /* finite */
    const char *what; /* for the report: "importance matrix" */
};

/* The offset of a tensor in dB. evidence, unless NULL, takes the place of the rules that name
 * layers; those for kinds stay. text, unless NULL, receives the rules that matched: "tied embedding
 * +8 dB", or "" if none did. */
double mk_offset(const struct mk_role *role, const struct mk_evidence *evidence,
                 char text[MK_RULE_TEXT]);

/* Rule number i as it is shown: the tensors that it is for, and its dB; where they depend on the
 * model, *low is less than *high. False behind the last. */
bool mk_sensitivity_rule(size_t i, char tensors[MK_RULE_TEXT], double *low, double *high);

/* Whether tensors of this kind are kept exactly unless a --rule says otherwise; why, or NULL. */
const char *mk_kept_kind(enum mk_kind kind);

#endif
