#include "mkhyperfs/llama_names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* What stands before the number of a layer. Whole beginnings of names, so that a model's tower for
 * images, whose layers have the same names, is not taken for its layers for text. */
static const char *const stacks[] = {
    "model.layers.",                /* Llama and most others */
    "model.language_model.layers.", /* models for text and images, as transformers 5 writes them */
    "language_model.model.layers.", /* and as transformers 4 did: Gemma 3 */
    "model.text_model.layers.",     /* SmolVLM */
    "layers.",                      /* without a head */
    "transformer.h.",               /* GPT-2, Phi of old */
    "h.",                           /* GPT-2 without a head */
    "gpt_neox.layers.",
};

enum shape {
    PLAIN = 0,
    WRITES = 1,     /* its outputs are added to the residual stream */
    TRANSPOSED = 2, /* a row for each input, not for each output */
    EXPERT = 4,     /* '#' in the name is the number of an expert */
    EXPERTS = 8,    /* all experts in one tensor of three dimensions */
};

/* Tensors of a layer, between its number and ".weight". */
static const struct {
    const char *name, *llama, *other; /* other: second name, or NULL */
    enum llama_branch branch;
    unsigned shape;
} in_layers[] = {
    /* Llama, Mistral, Qwen, Gemma, OLMo, Phi 2 */
    {"self_attn.q_proj", "attn_q", NULL, LLAMA_ATTENTION, PLAIN},
    {"self_attn.k_proj", "attn_k", NULL, LLAMA_ATTENTION, PLAIN},
    {"self_attn.v_proj", "attn_v", NULL, LLAMA_ATTENTION, PLAIN},
    {"self_attn.o_proj", "attn_output", NULL, LLAMA_ATTENTION, WRITES},
    {"self_attn.dense", "attn_output", NULL, LLAMA_ATTENTION, WRITES},
    {"mlp.gate_proj", "ffn_gate", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.up_proj", "ffn_up", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.down_proj", "ffn_down", NULL, LLAMA_FEED_FORWARD, WRITES},
    {"mlp.fc1", "ffn_up", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.fc2", "ffn_down", NULL, LLAMA_FEED_FORWARD, WRITES},
    /* Phi 3 */
    {"self_attn.qkv_proj", "attn_qkv", NULL, LLAMA_ATTENTION, PLAIN},
    {"mlp.gate_up_proj", "ffn_up", NULL, LLAMA_FEED_FORWARD, PLAIN},
    /* DeepSeek */
    {"self_attn.q_a_proj", "attn_q_a", NULL, LLAMA_ATTENTION, PLAIN},
    {"self_attn.q_b_proj", "attn_q_b", NULL, LLAMA_ATTENTION, PLAIN},
    {"self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", NULL, LLAMA_ATTENTION, PLAIN},
    {"self_attn.kv_b_proj", "attn_kv_b", NULL, LLAMA_ATTENTION, PLAIN},
    /* Mixtral */
    {"block_sparse_moe.gate", "ffn_gate_inp", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"block_sparse_moe.experts.#.w1", "ffn_gate_exps", NULL, LLAMA_FEED_FORWARD, EXPERT},
    {"block_sparse_moe.experts.#.w2", "ffn_down_exps", NULL, LLAMA_FEED_FORWARD, EXPERT | WRITES},
    {"block_sparse_moe.experts.#.w3", "ffn_up_exps", NULL, LLAMA_FEED_FORWARD, EXPERT},
    /* Qwen, DeepSeek and OLMo with experts */
    {"mlp.gate", "ffn_gate_inp", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.experts.#.gate_proj", "ffn_gate_exps", NULL, LLAMA_FEED_FORWARD, EXPERT},
    {"mlp.experts.#.up_proj", "ffn_up_exps", NULL, LLAMA_FEED_FORWARD, EXPERT},
    {"mlp.experts.#.down_proj", "ffn_down_exps", NULL, LLAMA_FEED_FORWARD, EXPERT | WRITES},
    {"mlp.experts.gate_up_proj", "ffn_gate_up_exps", "ffn_up_exps", LLAMA_FEED_FORWARD, EXPERTS},
    {"mlp.experts.down_proj", "ffn_down_exps", NULL, LLAMA_FEED_FORWARD, EXPERTS | WRITES},
    {"mlp.shared_expert_gate", "ffn_gate_inp_shexp", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.shared_expert.gate_proj", "ffn_gate_shexp", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.shared_expert.up_proj", "ffn_up_shexp", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.shared_expert.down_proj", "ffn_down_shexp", NULL, LLAMA_FEED_FORWARD, WRITES},
    {"mlp.shared_experts.gate_proj", "ffn_gate_shexp", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.shared_experts.up_proj", "ffn_up_shexp", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.shared_experts.down_proj", "ffn_down_shexp", NULL, LLAMA_FEED_FORWARD, WRITES},
    /* GPT-2 */
    {"attn.c_attn", "attn_qkv", NULL, LLAMA_ATTENTION, TRANSPOSED},
    {"attn.c_proj", "attn_output", NULL, LLAMA_ATTENTION, TRANSPOSED | WRITES},
    {"mlp.c_fc", "ffn_up", NULL, LLAMA_FEED_FORWARD, TRANSPOSED},
    {"mlp.c_proj", "ffn_down", NULL, LLAMA_FEED_FORWARD, TRANSPOSED | WRITES},
    /* GPT-NeoX */
    {"attention.query_key_value", "attn_qkv", NULL, LLAMA_ATTENTION, PLAIN},
    {"attention.dense", "attn_output", NULL, LLAMA_ATTENTION, WRITES},
    {"mlp.dense_h_to_4h", "ffn_up", NULL, LLAMA_FEED_FORWARD, PLAIN},
    {"mlp.dense_4h_to_h", "ffn_down", NULL, LLAMA_FEED_FORWARD, WRITES},
};

/* Tensors outside of layers, without ".weight". A tied embedding is the head too: its inputs are
 * those of "output", where an importance matrix has that. */
static const struct {
    const char *name, *llama, *other;
} outside[] = {
    {"lm_head", "output", NULL},
    {"language_model.lm_head", "output", NULL},
    {"embed_out", "output", NULL}, /* GPT-NeoX */
    {"model.embed_tokens", "token_embd", "output"},
    {"model.language_model.embed_tokens", "token_embd", "output"},
    {"language_model.model.embed_tokens", "token_embd", "output"},
    {"model.text_model.embed_tokens", "token_embd", "output"},
    {"embed_tokens", "token_embd", "output"},
    {"transformer.wte", "token_embd", "output"},
    {"wte", "token_embd", "output"},
    {"gpt_neox.embed_in", "token_embd", "output"},
};

/* A number without leading zeros, of at most five digits, and where it ends; NULL: there is none.
 */
static const char *number(const char *text, int *out)
{
    size_t digits = strspn(text, "0123456789");
    if (digits < 1 || digits > 5 || (digits > 1 && *text == '0'))
        return NULL;
    *out = atoi(text);
    return text + digits;
}

/* Whether text is the pattern, in which '#' stands for a number. */
static bool matches(const char *pattern, const char *text, size_t len)
{
    const char *mark = strchr(pattern, '#');
    size_t head = mark ? (size_t)(mark - pattern) : strlen(pattern);
    int expert;
    if (len < head || memcmp(pattern, text, head) != 0)
        return false;
    if (!mark)
        return len == head;
    const char *tail = number(text + head, &expert);
    return tail && (size_t)(text + len - tail) == strlen(mark + 1) &&
           memcmp(tail, mark + 1, strlen(mark + 1)) == 0;
}

/* Of a matrix, or of one of several in a tensor of three dimensions. */
static bool set_inputs(const struct st_tensor *t, unsigned shape, struct llama_tensor *out)
{
    unsigned rank = shape & EXPERTS ? 3 : 2;
    if (t->rank != rank || t->elements == 0)
        return false;
    out->inputs = t->dims[shape & TRANSPOSED ? rank - 2 : rank - 1];
    return true;
}

static bool find_in_layer(const struct st_tensor *t, const char *rest, size_t len,
                          struct llama_tensor *out)
{
    for (size_t i = 0; i < COUNT(in_layers); i++) {
        if (!matches(in_layers[i].name, rest, len))
            continue;
        out->branch = in_layers[i].branch;
        out->writes = in_layers[i].shape & WRITES;
        out->expert = in_layers[i].shape & (EXPERT | EXPERTS);
        snprintf(out->names[0], LLAMA_NAME, "blk.%d.%s.weight", out->layer, in_layers[i].llama);
        if (in_layers[i].other)
            snprintf(out->names[1], LLAMA_NAME, "blk.%d.%s.weight", out->layer, in_layers[i].other);
        return set_inputs(t, in_layers[i].shape, out);
    }
    return false;
}

bool llama_tensor_of(const struct st_tensor *t, struct llama_tensor *out)
{
    static const char weight[] = ".weight";
    size_t len = strlen(t->name), tail = sizeof weight - 1;
    *out = (struct llama_tensor){.layer = -1};
    if (len > tail && strcmp(t->name + len - tail, weight) == 0)
        len -= tail;
    for (size_t i = 0; i < COUNT(outside); i++)
        if (matches(outside[i].name, t->name, len)) {
            snprintf(out->names[0], LLAMA_NAME, "%s.weight", outside[i].llama);
            out->embedding = outside[i].other != NULL;
            if (outside[i].other)
                snprintf(out->names[1], LLAMA_NAME, "%s.weight", outside[i].other);
            return set_inputs(t, PLAIN, out);
        }
    for (size_t i = 0; i < COUNT(stacks); i++) {
        size_t head = strlen(stacks[i]);
        const char *rest =
            strncmp(t->name, stacks[i], head) == 0 ? number(t->name + head, &out->layer) : NULL;
        if (rest && *rest == '.' && rest + 1 < t->name + len) {
            return find_in_layer(t, rest + 1, (size_t)(t->name + len - rest - 1), out);
        }
    }
    return false;
}
