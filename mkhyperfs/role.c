#include "mkhyperfs/role.h"

#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mkhyperfs/config.h"

#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(element) ((element)->failed = true)
#include <uthash.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))
enum { MAX_NAME = 1000 };

/* Globs of names; a name has a dot put before it and ".weight" taken from its end. The first match
 * is the kind. */
static const struct {
    enum mk_kind kind;
    const char *glob;
} names[] = {
    {MK_ROUTER, "*.router"},
    {MK_ROUTER, "*.router.*"},
    {MK_ROUTER, "*.mlp.gate"},
    {MK_ROUTER, "*moe.gate"},
    {MK_ROUTER, "*.ffn.gate"},
    {MK_ROUTER, "*.feed_forward.gate"},
    {MK_ROUTER, "*.gate.wg"},
    {MK_ROUTER, "*.shared_expert_gate"},

    {MK_HEAD, "*.lm_head"},
    {MK_HEAD, "*.lm_head.decoder"},
    {MK_HEAD, "*.embed_out"},
    {MK_HEAD, "*.predictions.decoder"},
    {MK_HEAD, ".output"},
    {MK_HEAD, ".proj_out"},
    {MK_HEAD, ".head"},

    {MK_POSITION, "*.wpe"},
    {MK_POSITION, "*.embed_positions"},
    {MK_POSITION, "*.pos_embed*"},
    {MK_POSITION, "*position_embedding*"},
    {MK_POSITION, "*positional_embedding*"},

    {MK_EMBEDDING, "*.embed_tokens"},
    {MK_EMBEDDING, "*.wte"},
    {MK_EMBEDDING, "*.word_embeddings"},
    {MK_EMBEDDING, "*.tok_embeddings"},
    {MK_EMBEDDING, "*.token_embedding"},
    {MK_EMBEDDING, "*.embed_in"},
    {MK_EMBEDDING, "*.backbone.embedding*"},
    {MK_EMBEDDING, ".shared"},

    {MK_ATTN_QKV, "*.qkv_proj"},
    {MK_ATTN_QKV, "*.c_attn"},
    {MK_ATTN_QKV, "*.query_key_value"},
    {MK_ATTN_QKV, "*.[Ww]qkv"},
    {MK_ATTN_QKV, "*.qkv"},
    {MK_ATTN_QKV, "*.to_qkv"},
    {MK_ATTN_QKV, "*.W_pack"},
    {MK_ATTN_QKV, "*attn*.in_proj*"},
    {MK_ATTN_QKV, "*.kv_[ab]_proj*"},
    {MK_ATTN_QKV, "*.kv_proj"},

    {MK_ATTN_Q, "*.q_proj"},
    {MK_ATTN_Q, "*.q_[ab]_proj"},
    {MK_ATTN_Q, "*.to_q"},
    {MK_ATTN_Q, "*.query"},
    {MK_ATTN_Q, "*.wq"},
    {MK_ATTN_Q, "*.q_lin"},
    {MK_ATTN_Q, "*Attention.q"},
    {MK_ATTN_K, "*.k_proj"},
    {MK_ATTN_K, "*.to_k"},
    {MK_ATTN_K, "*.key"},
    {MK_ATTN_K, "*.wk"},
    {MK_ATTN_K, "*.k_lin"},
    {MK_ATTN_K, "*Attention.k"},
    {MK_ATTN_V, "*.v_proj"},
    {MK_ATTN_V, "*.to_v"},
    {MK_ATTN_V, "*.value"},
    {MK_ATTN_V, "*.wv"},
    {MK_ATTN_V, "*.v_lin"},
    {MK_ATTN_V, "*Attention.v"},
    {MK_ATTN_O, "*.o_proj"},
    {MK_ATTN_O, "*att*.out_proj"},
    {MK_ATTN_O, "*attn*.c_proj"},
    {MK_ATTN_O, "*attn*.proj"},
    {MK_ATTN_O, "*attn*.dense"},
    {MK_ATTN_O, "*attention*.dense"},
    {MK_ATTN_O, "*att*.[Ww]o"},
    {MK_ATTN_O, "*.out_lin"},
    {MK_ATTN_O, "*.to_out*"},
    {MK_ATTN_O, "*Attention.o"},

    {MK_MLP_GATE_UP, "*.gate_up_proj"},
    {MK_MLP_GATE_UP, "*.up_gate_proj"},
    {MK_MLP_GATE_UP, "*.ff.net.0.proj"},
    {MK_MLP_GATE_UP, "*.mlp.Wi"},
    {MK_MLP_GATE, "*.gate_proj"},
    {MK_MLP_GATE, "*.wi_0"},
    {MK_MLP_GATE, "*.w1"},
    {MK_MLP_UP, "*.up_proj"},
    {MK_MLP_UP, "*.wi_1"},
    {MK_MLP_UP, "*.w3"},
    {MK_MLP_UP, "*.wi"},
    {MK_MLP_UP, "*.fc1"},
    {MK_MLP_UP, "*.fc_in"},
    {MK_MLP_UP, "*.c_fc"},
    {MK_MLP_UP, "*.dense_h_to_4h"},
    {MK_MLP_UP, "*.intermediate.dense"},
    {MK_MLP_UP, "*.lin1"},
    {MK_MLP_DOWN, "*.down_proj"},
    {MK_MLP_DOWN, "*.w2"},
    {MK_MLP_DOWN, "*.wo"},
    {MK_MLP_DOWN, "*.fc2"},
    {MK_MLP_DOWN, "*.fc_out"},
    {MK_MLP_DOWN, "*mlp*.c_proj"},
    {MK_MLP_DOWN, "*.dense_4h_to_h"},
    {MK_MLP_DOWN, "*.output.dense"},
    {MK_MLP_DOWN, "*.lin2"},
    {MK_MLP_DOWN, "*.ff.net.2"},
    {MK_MLP_DOWN, "*.mlp.Wo"},
};

/* Components after which the number of a layer stands. A diffusion model's down_blocks.0 is no
 * layer; a transformer's transformer_blocks.0 is, if nothing stands before it. */
static const struct {
    const char *name;
    bool only_first;
} stack_names[] = {
    {"layers", false},
    {"layer", false},
    {"h", false},
    {"blocks", false},
    {"block", false},
    {"resblocks", false},
    {"transformer_blocks", true},
    {"single_transformer_blocks", true},
};

/* The tensors of one directory: that of key_len bytes at key. */
struct model {
    bool failed;
    bool head, embedding;
    bool config; /* config.json was looked for */
    struct mk_config about;
    unsigned stacks;
    uint64_t weights; /* elements of all matrices */
    UT_hash_handle hh;
    size_t key_len;
    char key[];
};

/* Layers of one stack of a directory ("model.encoder.layers"); key: directory, NUL, stack. */
struct stack {
    bool failed;
    int layers;
    uint64_t q_rows, k_rows; /* of its attention, the largest; 0 where they are fused */
    UT_hash_handle hh;
    size_t key_len;
    char key[];
};

struct mk_roles {
    struct model *models;
    struct stack *stacks;
};

int mk_roles_new(struct mk_roles **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? 0 : -ENOMEM;
}

void mk_roles_free(struct mk_roles *r)
{
    if (!r)
        return;
    struct model *m, *next_model;
    struct stack *s, *next_stack;
    HASH_ITER(hh, r->models, m, next_model)
    {
        HASH_DEL(r->models, m);
        free(m);
    }
    HASH_ITER(hh, r->stacks, s, next_stack)
    {
        HASH_DEL(r->stacks, s);
        free(s);
    }
    free(r);
}

/* ---- names ---- */

static size_t directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

static bool names_stack(const char *component, size_t len, bool first)
{
    for (size_t i = 0; i < COUNT(stack_names); i++)
        if (strlen(stack_names[i].name) == len &&
            memcmp(stack_names[i].name, component, len) == 0 &&
            (first || !stack_names[i].only_first))
            return true;
    return false;
}

/* The layer in a name, and the length of what stands before its number, dot not counted; -1 if
 * there is none. */
static int layer_of(const char *name, size_t *stack_len)
{
    const char *at = name;
    for (const char *dot; (dot = strchr(at, '.')); at = dot + 1) {
        size_t digits = strspn(dot + 1, "0123456789");
        if (digits < 1 || digits > 5 || dot[1 + digits] != '.' ||
            !names_stack(at, (size_t)(dot - at), at == name))
            continue;
        *stack_len = (size_t)(dot - name);
        return atoi(dot + 1);
    }
    return -1;
}

static enum mk_kind by_name(const char *name)
{
    static const char weight[] = ".weight";
    char text[MAX_NAME + 2];
    size_t len = strlen(name);
    if (len >= sizeof weight && strcmp(name + len - (sizeof weight - 1), weight) == 0)
        len -= sizeof weight - 1;
    if (len > MAX_NAME)
        return MK_OTHER;
    snprintf(text, sizeof text, ".%.*s", (int)len, name);
    for (size_t i = 0; i < COUNT(names); i++)
        if (fnmatch(names[i].glob, text, 0) == 0)
            return names[i].kind;
    return MK_OTHER;
}

/* A router has a row for each expert, far fewer than columns; a gate of another kind has not. */
static bool is_router(const struct st_tensor *t)
{
    if (t->rank != 2)
        return false;
    uint64_t least = t->dims[0] < t->dims[1] ? t->dims[0] : t->dims[1];
    uint64_t most = t->dims[0] < t->dims[1] ? t->dims[1] : t->dims[0];
    return least <= most / 2;
}

static enum mk_kind kind_of(const struct st_tensor *t)
{
    enum mk_kind kind = by_name(t->name);
    if (kind == MK_ROUTER && !is_router(t))
        kind = MK_OTHER;
    if (kind == MK_OTHER && (t->rank >= 4 || (t->rank == 3 && strstr(t->name, "conv"))))
        kind = MK_CONV;
    return kind;
}

/* ---- directories ---- */

static struct model *find_model(const struct mk_roles *r, const char *path)
{
    struct model *m;
    HASH_FIND(hh, r->models, path, directory_of(path), m);
    return m;
}

static struct model *get_model(struct mk_roles *r, const char *path)
{
    struct model *m = find_model(r, path);
    if (m)
        return m;
    size_t len = directory_of(path);
    m = calloc(1, sizeof *m + len + 1);
    if (!m)
        return NULL;
    m->about = (struct mk_config){.tied = -1, .predicts_tokens = true};
    m->key_len = len;
    memcpy(m->key, path, len);
    HASH_ADD(hh, r->models, key, m->key_len, m);
    if (m->failed) {
        free(m);
        return NULL;
    }
    return m;
}

/* A stack for this tensor of this file, not in the table yet. */
static struct stack *make_stack(const char *path, const char *name, size_t stack_len)
{
    size_t dir = directory_of(path);
    struct stack *s = calloc(1, sizeof *s + dir + 1 + stack_len);
    if (!s)
        return NULL;
    s->key_len = dir + 1 + stack_len;
    memcpy(s->key, path, dir);
    memcpy(s->key + dir + 1, name, stack_len);
    return s;
}

/* Rows are outputs, as in torch's Linear. */
static void note_rows(struct stack *s, const struct st_tensor *t, enum mk_kind kind)
{
    if (t->rank == 2 && kind == MK_ATTN_Q && t->dims[0] > s->q_rows)
        s->q_rows = t->dims[0];
    if (t->rank == 2 && kind == MK_ATTN_K && t->dims[0] > s->k_rows)
        s->k_rows = t->dims[0];
}

static int note_layer(struct mk_roles *r, struct model *m, const char *path,
                      const struct st_tensor *t, enum mk_kind kind)
{
    size_t stack_len;
    int layer = layer_of(t->name, &stack_len);
    if (layer < 0)
        return 0;
    struct stack *made = make_stack(path, t->name, stack_len), *s;
    if (!made)
        return -ENOMEM;
    HASH_FIND(hh, r->stacks, made->key, made->key_len, s);
    if (s) {
        free(made);
    } else {
        s = made;
        HASH_ADD(hh, r->stacks, key, s->key_len, s);
        if (s->failed) {
            free(s);
            return -ENOMEM;
        }
        m->stacks++;
    }
    if (layer >= s->layers)
        s->layers = layer + 1;
    note_rows(s, t, kind);
    return 0;
}

int mk_roles_note(struct mk_roles *r, const char *path, const struct st_header *h)
{
    struct model *m = get_model(r, path);
    if (!m)
        return -ENOMEM;
    for (size_t i = 0; i < h->count; i++) {
        enum mk_kind kind = kind_of(&h->tensors[i]);
        m->head |= kind == MK_HEAD;
        m->embedding |= kind == MK_EMBEDDING;
        if (h->tensors[i].rank >= 2)
            m->weights += h->tensors[i].elements;
        int e = note_layer(r, m, path, &h->tensors[i], kind);
        if (e < 0)
            return e;
    }
    return 0;
}

int mk_roles_config(struct mk_roles *r, const char *root, const char *path, struct hfs_error *err)
{
    struct model *m = get_model(r, path);
    if (!m)
        return hfs_fail(err, ENOMEM, "out of memory");
    if (m->config)
        return 0;
    m->config = true;
    return mk_config_read(root, path, &m->about, err);
}

/* ---- roles ---- */

/* Whether embedding and head of a model are one tensor, or two with the same values. A file holds
 * shared tensors once, under either name. */
static bool is_tied(const struct model *m)
{
    if (m->head && m->embedding)
        return m->about.tied > 0;
    if (m->head)
        return m->about.tied != 0;
    return m->about.tied != 0 && m->about.predicts_tokens;
}

int mk_role_of(const struct mk_roles *r, const char *path, const struct st_tensor *t,
               struct mk_role *out)
{
    static const struct model unknown = {.about = {.tied = -1, .predicts_tokens = true}};
    const struct model *m = find_model(r, path);
    size_t stack_len;
    *out = (struct mk_role){.kind = kind_of(t), .layer = layer_of(t->name, &stack_len)};
    m = m ? m : &unknown;
    out->share = m->weights ? fmin(1, (double)t->elements / (double)m->weights) : 0;
    out->queries = 1;
    if ((out->kind == MK_EMBEDDING || out->kind == MK_HEAD) && is_tied(m))
        out->kind = MK_TIED_EMBEDDING;
    if (out->layer < 0)
        return 0;
    struct stack *key = make_stack(path, t->name, stack_len), *s;
    if (!key)
        return -ENOMEM;
    HASH_FIND(hh, r->stacks, key->key, key->key_len, s);
    out->layers = s ? s->layers : 0;
    if (s && s->q_rows && s->k_rows)
        out->queries = (double)s->q_rows / (double)s->k_rows;
    free(key);
    /* The config counts the layers of one stack; it knows more than the first file of many does,
     * and which layers for speculative decoding follow the last one. */
    if (m->stacks == 1 && m->about.layers > 0)
        out->layers = m->about.layers;
    if (out->layers == 0)
        out->layers = out->layer + 1;
    return 0;
}

const char *mk_kind_name(enum mk_kind kind)
{
    static const char *const text[MK_KINDS] = {
        [MK_OTHER] = "other",
        [MK_TIED_EMBEDDING] = "tied embedding",
        [MK_EMBEDDING] = "embedding",
        [MK_HEAD] = "head",
        [MK_POSITION] = "positions",
        [MK_ATTN_Q] = "attention q",
        [MK_ATTN_K] = "attention k",
        [MK_ATTN_V] = "attention v",
        [MK_ATTN_QKV] = "attention qkv",
        [MK_ATTN_O] = "attention o",
        [MK_MLP_GATE] = "MLP gate",
        [MK_MLP_UP] = "MLP up",
        [MK_MLP_GATE_UP] = "MLP gate and up",
        [MK_MLP_DOWN] = "MLP down",
        [MK_CONV] = "convolution",
        [MK_ROUTER] = "router",
    };
    return text[kind];
}
