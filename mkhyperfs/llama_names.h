/* What llama.cpp calls the tensors of a safetensors file.
 *
 * llama.cpp names the tensors of all architectures alike: blk.N.attn_q.weight for what Llama calls
 * model.layers.N.self_attn.q_proj.weight. The table in llama_names.c has the names of Llama,
 * Mistral, Mixtral, Qwen 2 and 3 (MoE too), Gemma 1 to 3, Phi 2 and 3, DeepSeek, OLMo, GPT-2 and
 * GPT-NeoX. Source: llama.cpp, gguf-py/gguf/tensor_mapping.py and convert_hf_to_gguf.py. The
 * conversion reorders rows of some of them (q and k of Llama, for its rotary positions), never
 * columns, so what is said of inputs holds. Pure functions, any thread.
 */
#ifndef HYPERFS_MKHYPERFS_LLAMA_NAMES_H
#define HYPERFS_MKHYPERFS_LLAMA_NAMES_H

#include <stdbool.h>
#include <stdint.h>

#include "mkhyperfs/safetensors.h"

/* The part of a layer whose output is added to the residual stream. */
enum llama_branch { LLAMA_NO_BRANCH, LLAMA_ATTENTION, LLAMA_FEED_FORWARD };

enum { LLAMA_NAME = 64, LLAMA_NAMES = 2, LLAMA_MAX_LAYERS = 100000 };

struct llama_tensor {
    char names[LLAMA_NAMES][LLAMA_NAME]; /* the more likely first; "": there is no second */
    int layer;                           /* -1: in none */
    enum llama_branch branch;
    bool writes;     /* its outputs are the branch's, and are added to the residual stream */
    bool expert;     /* one of several, or all of them */
    bool embedding;  /* of tokens: the residual stream begins with its rows */
    uint64_t inputs; /* of one matrix: its columns, or its rows where it is stored transposed */
};

/* False: llama.cpp has no such tensor, or it is no matrix. */
bool llama_tensor_of(const struct st_tensor *t, struct llama_tensor *out);

#endif
