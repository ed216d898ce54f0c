#include "mkhyperfs/sensitivity.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* Layers are counted from 0, or from the end: -1 is the last one. */
#define ANYWHERE INT_MIN, INT_MAX
enum { ANY_KIND = MK_KINDS };

/* The rules. Every one that matches is added. What no rule names has the common level. */
static const struct {
    int kind;
    int from, to; /* layers, both included */
    double db;
} rules[] = {
    {MK_TIED_EMBEDDING, ANYWHERE, +8},
    {ANY_KIND, 0, 0, +3},
    {ANY_KIND, -1, -1, +1},
    {MK_ATTN_O, 1, 1, +3},
    {MK_MLP_DOWN, 1, 1, +3},
};

enum { RULES = sizeof rules / sizeof *rules };

static bool matches(size_t i, const struct mk_role *role)
{
    if (rules[i].kind != ANY_KIND && rules[i].kind != (int)role->kind)
        return false;
    if (rules[i].from == INT_MIN)
        return true;
    int from = rules[i].from < 0 ? role->layers + rules[i].from : rules[i].from;
    int to = rules[i].to < 0 ? role->layers + rules[i].to : rules[i].to;
    return role->layer >= 0 && from <= role->layer && role->layer <= to;
}

/* "layer 0", "layers 0 to 1", "the last layer", or "" for all. */
static void where(size_t i, char *text, size_t size)
{
    int from = rules[i].from, to = rules[i].to;
    if (from == INT_MIN)
        *text = 0;
    else if (from == -1 && to == -1)
        snprintf(text, size, "the last layer");
    else if (from == to && from < 0)
        snprintf(text, size, "layer %d from the end", -from);
    else if (from == to)
        snprintf(text, size, "layer %d", from);
    else if (from < 0)
        snprintf(text, size, "layers %d to %d from the end", -from, -to);
    else if (to < 0)
        snprintf(text, size, "layers %d to %d from the end", from, -to);
    else
        snprintf(text, size, "layers %d to %d", from, to);
}

bool mk_sensitivity_rule(size_t i, char tensors[MK_RULE_TEXT], double *db)
{
    char place[60];
    if (i >= RULES)
        return false;
    where(i, place, sizeof place);
    const char *kind = rules[i].kind == ANY_KIND ? "" : mk_kind_name((enum mk_kind)rules[i].kind);
    snprintf(tensors, MK_RULE_TEXT, "%s%s%s", kind, *kind && *place ? ", " : "", place);
    *db = rules[i].db;
    return true;
}

double mk_offset(const struct mk_role *role, const struct mk_evidence *evidence,
                 char text[MK_RULE_TEXT])
{
    double sum = 0;
    size_t len = 0;
    if (text)
        *text = 0;
    if (evidence) {
        if (text)
            snprintf(text, MK_RULE_TEXT, "%s %+g dB", evidence->what, evidence->offset_db);
        return evidence->offset_db;
    }
    for (size_t i = 0; i < RULES; i++) {
        char tensors[MK_RULE_TEXT];
        double db;
        if (!matches(i, role) || !mk_sensitivity_rule(i, tensors, &db))
            continue;
        sum += db;
        if (text && len < MK_RULE_TEXT)
            len += (size_t)snprintf(text + len, MK_RULE_TEXT - len, "%s%s %+g dB", len ? "; " : "",
                                    tensors, db);
    }
    return sum;
}

const char *mk_kept_kind(enum mk_kind kind)
{
    return kind == MK_ROUTER ? "a router of a mixture of experts" : NULL;
}
