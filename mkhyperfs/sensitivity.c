#include "mkhyperfs/sensitivity.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Layers are counted from 0, or from the end: -1 is the last one. */
#define ANYWHERE INT_MIN, INT_MAX
enum { ANY_KIND = MK_KINDS };

/* Numbers that depend on the model, in dB between 0 and MOST: */
enum by {
    FIXED,
    BY_SHARE,  /* 10 log10((1 - a) / a), a the tensor's share of all weights: half of the harm comes
                * from the tensor that makes the logits, however small it is */
    BY_QUERIES /* 10 log10 of the heads of queries that one head of keys and values serves */
};

/* The rules. Every one that matches is added. What no rule names has the common level. An offset is
 * 10 log10 of the KL divergence that noise in the tensor causes, for each of its weights. */
static const struct {
    int kind;
    int from, to; /* layers, both included */
    double db;    /* if not FIXED: the most that it can be */
    enum by by;
} rules[] = {
    {MK_TIED_EMBEDDING, ANYWHERE, 10, BY_SHARE},
    {MK_HEAD, ANYWHERE, 10, BY_SHARE},
    {MK_EMBEDDING, ANYWHERE, -2, FIXED},

    {MK_ATTN_Q, ANYWHERE, -2, FIXED},
    {MK_ATTN_K, ANYWHERE, -2, FIXED},
    {MK_ATTN_K, ANYWHERE, 6, BY_QUERIES},
    {MK_ATTN_V, ANYWHERE, +3, FIXED},
    {MK_ATTN_V, ANYWHERE, 6, BY_QUERIES},
    {MK_MLP_GATE, ANYWHERE, -2.5, FIXED},
    {MK_MLP_GATE_UP, ANYWHERE, -2, FIXED},
    {MK_MLP_UP, ANYWHERE, -2, FIXED},
    {MK_MLP_DOWN, ANYWHERE, +1, FIXED},

    {MK_ATTN_V, 0, 0, +3, FIXED},
    {MK_ATTN_QKV, 0, 0, +3, FIXED},
    {MK_ATTN_O, 0, 0, +3, FIXED},
    {MK_MLP_GATE, 0, 0, +3, FIXED},
    {MK_MLP_UP, 0, 0, +3, FIXED},
    {MK_MLP_GATE_UP, 0, 0, +3, FIXED},
    {MK_MLP_DOWN, 0, 0, +3, FIXED},

    {MK_MLP_GATE, -1, -1, +2, FIXED},
    {MK_MLP_UP, -1, -1, +2, FIXED},
    {MK_MLP_GATE_UP, -1, -1, +2, FIXED},
    {MK_MLP_DOWN, -1, -1, +2, FIXED},
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
    /* A model of one layer has a first one only. */
    if (rules[i].from < 0 && role->layer == 0)
        return false;
    return role->layer >= 0 && from <= role->layer && role->layer <= to;
}

static double amount(size_t i, const struct mk_role *role)
{
    double ratio = role->queries;
    if (rules[i].by == FIXED)
        return rules[i].db;
    if (rules[i].by == BY_SHARE)
        ratio = role->share > 0 ? (1 - role->share) / role->share : 1;
    return fmin(rules[i].db, ratio > 1 ? 10 * log10(ratio) : 0);
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

bool mk_sensitivity_rule(size_t i, char tensors[MK_RULE_TEXT], double *low, double *high)
{
    static const char *const of[] = {
        [FIXED] = "", [BY_SHARE] = ", the more the smaller", [BY_QUERIES] = ", by grouped queries"};
    char place[60];
    if (i >= RULES)
        return false;
    where(i, place, sizeof place);
    const char *kind = rules[i].kind == ANY_KIND ? "" : mk_kind_name((enum mk_kind)rules[i].kind);
    snprintf(tensors, MK_RULE_TEXT, "%s%s%s%s", kind, *kind && *place ? ", " : "", place,
             of[rules[i].by]);
    *low = rules[i].by == FIXED ? rules[i].db : 0;
    *high = rules[i].db;
    return true;
}

double mk_offset(const struct mk_role *role, const struct mk_evidence *evidence,
                 char text[MK_RULE_TEXT])
{
    double sum = 0;
    size_t len = 0;
    if (text)
        *text = 0;
    for (size_t i = 0; i < RULES; i++) {
        char tensors[MK_RULE_TEXT];
        double low, high, db = amount(i, role);
        bool of_layers = rules[i].from != INT_MIN;
        if (!matches(i, role) || (evidence && of_layers) || db == 0 ||
            !mk_sensitivity_rule(i, tensors, &low, &high))
            continue;
        sum += db;
        if (text && len < MK_RULE_TEXT)
            len += (size_t)snprintf(text + len, MK_RULE_TEXT - len, "%s%s %+.3g dB",
                                    len ? "; " : "", tensors, db);
    }
    if (evidence && text && len < MK_RULE_TEXT)
        snprintf(text + len, MK_RULE_TEXT - len, "%s%s %+.1f dB", len ? "; " : "", evidence->what,
                 evidence->offset_db);
    return sum + (evidence ? evidence->offset_db : 0);
}

const char *mk_kept_kind(enum mk_kind kind)
{
    return kind == MK_ROUTER ? "a router of a mixture of experts" : NULL;
}
