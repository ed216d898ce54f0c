#include "mkhyperfs/policy.h"

#include <errno.h>
#include <fnmatch.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/ui.h"
#include "mkhyperfs/config.h"
#include "mkhyperfs/sensitivity.h"

#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(element) ((element)->failed = true)
#include <uthash.h>

/* Names of tensors that are no weights, or few of them that count. "mask_decoder.layers.0.weight"
 * is one, so a mask's name has to end as such. */
static const struct {
    const char *glob, *why;
} by_tensor_name[] = {
    {"*exp_avg*", "state of an optimiser"},
    {"*momentum_buffer*", "state of an optimiser"},
    {"*.momentum", "state of an optimiser"},
    {"optimizer.*", "state of an optimiser"},
    {"optimizer_state*", "state of an optimiser"},
    {"*.optimizer.*", "state of an optimiser"},
    {"mask", "a mask"},
    {"*.mask", "a mask"},
    {"*_mask", "a mask"},
    {"*.causal_bias", "a mask"},
    {"*.bias", "a bias"},
    {"*_bias", "a bias"},
};

/* Names of files that hold no weights. */
static const struct {
    const char *glob, *why;
} by_file_name[] = {
    {"optimizer*.safetensors", "state of an optimiser"},
    {"*_optimizer.safetensors", "state of an optimiser"},
    {"*optim_states*.safetensors", "state of an optimiser"},
};

/* Files that say that the model beside them is quantised: by a key of the top object or of
 * an object in it ("text_config" of models for text and images), or by being there. */
static const struct {
    const char *file, *key, *why;
} by_config[] = {
    {"config.json", "quantization_config", "config.json says that the model is quantised"},
    {"config.json", "quantization", "config.json says that the model is quantised"},
    {"quantize_config.json", NULL, "quantize_config.json says that the model is quantised"},
    {"quant_config.json", NULL, "quant_config.json says that the model is quantised"},
    {"hf_quant_config.json", NULL, "hf_quant_config.json says that the model is quantised"},
};
#define COUNT(table) (sizeof(table) / sizeof *(table))

/* The integer and FP8 tensors of one module in one directory. */
struct module {
    bool failed;
    uint64_t elements; /* of the largest */
    UT_hash_handle hh;
    size_t key_len;
    char key[]; /* directory, NUL, module */
};

struct rule_use {
    uint64_t matched, lossy;
};

struct mk_policy {
    const struct mk_options *opt;
    struct module *modules;
    struct mk_roles *roles;
    struct rule_use *uses;
    const struct mk_importance *importance; /* or NULL */
};

int mk_policy_new(const struct mk_options *opt, struct mk_policy **out)
{
    struct mk_policy *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    p->opt = opt;
    p->uses = calloc(opt->nrules + 1, sizeof *p->uses);
    if (!p->uses || mk_roles_new(&p->roles) < 0) {
        mk_policy_free(p);
        return -ENOMEM;
    }
    *out = p;
    return 0;
}

void mk_policy_free(struct mk_policy *p)
{
    if (!p)
        return;
    struct module *m, *next;
    HASH_ITER(hh, p->modules, m, next)
    {
        HASH_DEL(p->modules, m);
        free(m);
    }
    mk_roles_free(p->roles);
    free(p->uses);
    free(p);
}

void mk_policy_importance(struct mk_policy *p, const struct mk_importance *importance)
{
    p->importance = importance;
}

/* ---- modules ---- */

static bool is_packed(enum hc_dtype dtype)
{
    switch (dtype) {
    case HC_F16:
    case HC_BF16:
    case HC_F32:
    case HC_F64:
    case HC_C64:
    case HC_BOOL:
        return false;
    default:
        return true;
    }
}

/* A module for this tensor of this file, not in the table yet. */
static struct module *make_key(const char *path, const char *tensor)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(tensor, '.');
    size_t dir = slash ? (size_t)(slash - path) : 0;
    size_t prefix = dot ? (size_t)(dot - tensor) : 0;
    struct module *m = calloc(1, sizeof *m + dir + 1 + prefix);
    if (!m)
        return NULL;
    m->key_len = dir + 1 + prefix;
    memcpy(m->key, path, dir);
    memcpy(m->key + dir + 1, tensor, prefix);
    return m;
}

static struct module *find(const struct mk_policy *p, const struct module *key)
{
    struct module *m;
    HASH_FIND(hh, p->modules, key->key, key->key_len, m);
    return m;
}

int mk_policy_note(struct mk_policy *p, const char *path, const struct st_header *h)
{
    for (size_t i = 0; i < h->count; i++) {
        const struct st_tensor *t = &h->tensors[i];
        if (!is_packed(t->dtype))
            continue;
        struct module *made = make_key(path, t->name);
        if (!made)
            return -ENOMEM;
        struct module *m = find(p, made);
        if (m) {
            free(made);
        } else {
            m = made;
            HASH_ADD(hh, p->modules, key, m->key_len, m);
            if (m->failed) {
                free(m);
                return -ENOMEM;
            }
        }
        if (t->elements > m->elements)
            m->elements = t->elements;
    }
    return mk_roles_note(p->roles, path, h);
}

int mk_policy_config(struct mk_policy *p, const char *root, const char *path, struct hfs_error *err)
{
    return mk_roles_config(p->roles, root, path, err);
}

/* A float tensor beside packed weights holds their scales, zero points or the like. It is always
 * smaller than they are; a weight beside a short table of positions is not. */
static int has_packed_sibling(const struct mk_policy *p, const char *path,
                              const struct st_tensor *t, bool *has)
{
    struct module *key = make_key(path, t->name);
    if (!key)
        return -ENOMEM;
    const struct module *m = find(p, key);
    *has = m && m->elements > t->elements;
    free(key);
    return 0;
}

/* ---- config.json ---- */

static bool has_key(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return v && !json_is_null(v);
}

static bool says_quantised(const json_t *top, const char *key)
{
    const char *name;
    json_t *child;
    if (has_key(top, key))
        return true;
    json_object_foreach((json_t *)top, name,
                        child) if (json_is_object(child) && has_key(child, key)) return true;
    return false;
}

/* Whether the file of the table's row i, in the directory (ends with '/', dir_len bytes), says so.
 */
static int by_one_config(const char *dir, size_t dir_len, size_t i, bool *says,
                         struct hfs_error *err)
{
    char *path;
    if (asprintf(&path, "%.*s%s", (int)dir_len, dir, by_config[i].file) < 0)
        return hfs_fail(err, ENOMEM, "out of memory");
    json_t *top = NULL;
    int r = by_config[i].key ? mk_config_load(path, &top, err) : mk_config_exists(path, says, err);
    if (r == 0 && by_config[i].key)
        *says = says_quantised(top, by_config[i].key);
    json_decref(top);
    free(path);
    return r;
}

int mk_policy_file(const char *root, const char *path, const char **why, struct hfs_error *err)
{
    char *full;
    *why = NULL;
    if (asprintf(&full, "%s/%s", root, path) < 0)
        return hfs_fail(err, ENOMEM, "out of memory");
    const char *name = strrchr(full, '/') + 1;
    for (size_t i = 0; i < COUNT(by_file_name) && !*why; i++)
        if (fnmatch(by_file_name[i].glob, name, 0) == 0)
            *why = by_file_name[i].why;
    int r = 0;
    for (size_t i = 0; i < COUNT(by_config) && !*why && r == 0; i++) {
        bool says = false;
        r = by_one_config(full, (size_t)(name - full), i, &says, err);
        *why = says ? by_config[i].why : NULL;
    }
    free(full);
    return r;
}

/* ---- decisions ---- */

/* Why a tensor cannot have the trajectory code, or NULL. */
static const char *not_eligible(const struct st_tensor *t)
{
    if (!hc_dtype_is_weight(t->dtype))
        return "not F16, BF16, F32 or F64";
    if (t->rank < 2)
        return "fewer than two dimensions";
    if (t->elements < MK_MIN_ELEMENTS)
        return "fewer than 4096 elements";
    return NULL;
}

/* Why the tables keep a tensor, or NULL. */
static int by_tables(const struct mk_policy *p, const struct mk_place *place,
                     const struct st_tensor *t, const struct mk_role *role, const char **why)
{
    *why = place->kept ? place->kept : mk_kept_kind(role->kind);
    for (size_t i = 0; i < COUNT(by_tensor_name) && !*why; i++)
        if (fnmatch(by_tensor_name[i].glob, t->name, 0) == 0)
            *why = by_tensor_name[i].why;
    if (*why)
        return 0;
    bool scales = false;
    int r = has_packed_sibling(p, place->path, t, &scales);
    if (scales)
        *why = "stands beside the integers or FP8 of a quantised module";
    return r;
}

/* Applies the rules that match, in their order, and counts them as used: one with a number stands
 * above the tables, an offset changes what was decided before it. */
static void apply_rules(struct mk_policy *p, const struct st_tensor *t, struct mk_decision *d)
{
    for (size_t i = 0; i < p->opt->nrules; i++) {
        const struct mk_rule *rule = &p->opt->rules[i];
        if (fnmatch(rule->glob, t->name, 0) != 0)
            continue;
        p->uses[i].matched++;
        p->uses[i].lossy += d->eligible;
        if (!d->eligible)
            continue;
        d->rule = rule;
        if (rule->relative) {
            d->offset += rule->db;
            continue;
        }
        d->why = rule->lossless ? "--rule" : NULL;
        d->fixed = !rule->lossless;
        d->offset = rule->lossless ? 0 : rule->db;
    }
}

void mk_decision_level(struct mk_decision *d, double level)
{
    double db = d->fixed ? d->offset : level + d->offset;
    d->db = db < HC_MIN_DB ? HC_MIN_DB : db > HC_MAX_DB ? HC_MAX_DB : db;
}

/* What --imatrix says of the tensor, in *e, or NULL. */
static const struct mk_evidence *evidence_of(const struct mk_policy *p,
                                             const struct mk_place *place,
                                             const struct st_tensor *t, struct mk_evidence *e)
{
    if (!p->importance || !mk_importance_of(p->importance, place->path, t, &e->offset_db))
        return NULL;
    e->what = "importance matrix";
    return e;
}

int mk_policy_decide(struct mk_policy *p, const struct mk_place *place, const struct st_tensor *t,
                     struct mk_decision *out)
{
    const char *why = not_eligible(t);
    *out = (struct mk_decision){.eligible = !why, .why = why};
    int r = mk_role_of(p->roles, place->model ? place->model : place->path, t, &out->role);
    if (r == 0 && !why)
        r = by_tables(p, place, t, &out->role, &out->why);
    if (!p->opt->flat)
        out->offset = out->allocated =
            mk_offset(&out->role, evidence_of(p, place, t, &out->evidence), NULL);
    apply_rules(p, t, out);
    if (!why && p->opt->lossless)
        out->why = "--lossless";
    out->lossy = !out->why;
    mk_decision_level(out, p->opt->db);
    return r;
}

void mk_policy_report(const struct mk_policy *p)
{
    for (size_t i = 0; i < p->opt->nrules; i++) {
        const struct mk_rule *rule = &p->opt->rules[i];
        if (p->uses[i].matched == 0)
            ui_warn("--rule %s matches no tensor", rule->text);
        else if (!rule->lossless && p->uses[i].lossy == 0)
            ui_warn("--rule %s matches only tensors that are always kept exactly: a code with "
                    "loss takes F16, BF16, F32 and F64 of two or more dimensions and at least "
                    "4096 elements",
                    rule->text);
    }
}
