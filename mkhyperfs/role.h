/* What a tensor is in its model: its kind, and the layer it belongs to.
 *
 * Recognised from its name and shape, from the names of the other tensors in its directory, and
 * from the config.json there. The names are those that Llama, Qwen, Mistral, Gemma, Phi, GPT-2,
 * GPT-J, GPT-NeoX, OPT, Falcon, BERT, T5, ViT, Whisper, mixtures of experts and diffusion models
 * use; what has another name is MK_OTHER, which is always safe. Nothing here decides anything: that
 * is sensitivity.h.
 *
 * Use: new; note every header, and the config.json beside it; then ask. One thread.
 */
#ifndef HYPERFS_MKHYPERFS_ROLE_H
#define HYPERFS_MKHYPERFS_ROLE_H

#include "mkhyperfs/safetensors.h"

enum mk_kind {
    MK_OTHER,
    MK_TIED_EMBEDDING, /* of tokens, and the head as well */
    MK_EMBEDDING,      /* of tokens; the head is another tensor, or there is none */
    MK_HEAD,
    MK_POSITION, /* table of positions */
    MK_ATTN_Q,
    MK_ATTN_K,
    MK_ATTN_V,
    MK_ATTN_QKV, /* two or all of them in one */
    MK_ATTN_O,
    MK_MLP_GATE,
    MK_MLP_UP,
    MK_MLP_GATE_UP, /* both in one */
    MK_MLP_DOWN,
    MK_CONV,
    MK_ROUTER, /* of a mixture of experts */
    MK_KINDS
};

struct mk_role {
    enum mk_kind kind;
    int layer;      /* from 0; -1: in none */
    int layers;     /* of its stack */
    double share;   /* of the elements of all matrices in its directory, 0 .. 1 */
    double queries; /* rows of q for each row of k in its stack: more than 1 with grouped queries */
};

struct mk_roles;

int mk_roles_new(struct mk_roles **out);
void mk_roles_free(struct mk_roles *r); /* NULL is allowed */

/* Remembers the tensors of the file `path` (below SOURCE). -ENOMEM. */
int mk_roles_note(struct mk_roles *r, const char *path, const struct st_header *h);
/* Reads the config.json beside root/path, unless it is known already. One that is no JSON, or has
 * numbers out of range, says nothing; one that cannot be read is an error. */
int mk_roles_config(struct mk_roles *r, const char *root, const char *path, struct hfs_error *err);

/* Roles of tensors in the file `path`. -ENOMEM. */
int mk_role_of(const struct mk_roles *r, const char *path, const struct st_tensor *t,
               struct mk_role *out);

const char *mk_kind_name(enum mk_kind kind);

#endif
