/* If these fail, tensors of well-known models are taken for something else, and get the quality
 * that was meant for others; or a config.json from anywhere does harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mkhyperfs/config.h"
#include "mkhyperfs/sensitivity.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))
enum { MAX_TENSORS = 64 };

/* Headers of 512 x 256 tensors with these names. */
struct model {
    struct st_tensor t[MAX_TENSORS];
    struct st_header h;
};

static uint64_t dims[5] = {512, 256, 3, 3, 3};
static uint64_t router_dims[2] = {8, 256};

static struct st_tensor *add(struct model *m, const char *name)
{
    struct st_tensor *t = &m->t[m->h.count++];
    assert_true(m->h.count <= MAX_TENSORS);
    *t = (struct st_tensor){
        .name = (char *)name, .dtype = HC_BF16, .rank = 2, .dims = dims, .elements = 512 * 256};
    m->h.tensors = m->t;
    return t;
}

static struct mk_role role_in(const struct model *m, const char *root, const char *path,
                              const struct st_tensor *t)
{
    struct mk_roles *r;
    struct mk_role role;
    assert_int_equal(mk_roles_new(&r), 0);
    assert_int_equal(mk_roles_note(r, path, &m->h), 0);
    if (root)
        assert_int_equal(mk_roles_config(r, root, path, NULL), 0);
    assert_int_equal(mk_role_of(r, path, t, &role), 0);
    mk_roles_free(r);
    return role;
}

static const struct {
    const char *name;
    enum mk_kind kind;
    int layer;
} known[] = {
    /* Llama, Mistral, Qwen, Gemma */
    {"lm_head.weight", MK_HEAD, -1},
    {"model.embed_tokens.weight", MK_EMBEDDING, -1},
    {"model.layers.11.self_attn.q_proj.weight", MK_ATTN_Q, 11},
    {"model.layers.0.self_attn.k_proj.weight", MK_ATTN_K, 0},
    {"model.layers.0.self_attn.v_proj.weight", MK_ATTN_V, 0},
    {"model.layers.0.self_attn.o_proj.weight", MK_ATTN_O, 0},
    {"model.layers.0.mlp.gate_proj.weight", MK_MLP_GATE, 0},
    {"model.layers.0.mlp.up_proj.weight", MK_MLP_UP, 0},
    {"model.layers.0.mlp.down_proj.weight", MK_MLP_DOWN, 0},
    {"model.norm.weight", MK_OTHER, -1},
    /* Llama as its makers publish it */
    {"tok_embeddings.weight", MK_EMBEDDING, -1},
    {"output.weight", MK_HEAD, -1},
    {"layers.3.attention.wo.weight", MK_ATTN_O, 3},
    {"layers.3.feed_forward.w1.weight", MK_MLP_GATE, 3},
    {"layers.3.feed_forward.w2.weight", MK_MLP_DOWN, 3},
    {"layers.3.feed_forward.w3.weight", MK_MLP_UP, 3},
    /* models for text and images */
    {"language_model.model.layers.2.mlp.down_proj.weight", MK_MLP_DOWN, 2},
    {"vision_tower.vision_model.encoder.layers.4.mlp.fc1.weight", MK_MLP_UP, 4},
    /* mixtures of experts: Qwen, DeepSeek, Mixtral, gpt-oss */
    {"model.layers.5.mlp.experts.17.gate_proj.weight", MK_MLP_GATE, 5},
    {"model.layers.5.mlp.shared_experts.down_proj.weight", MK_MLP_DOWN, 5},
    {"model.layers.5.self_attn.kv_a_proj_with_mqa.weight", MK_ATTN_QKV, 5},
    {"model.layers.5.self_attn.q_b_proj.weight", MK_ATTN_Q, 5},
    {"model.layers.5.block_sparse_moe.experts.3.w2.weight", MK_MLP_DOWN, 5},
    {"model.layers.5.mlp.experts.gate_up_proj", MK_MLP_GATE_UP, 5},
    /* Phi */
    {"model.layers.7.self_attn.qkv_proj.weight", MK_ATTN_QKV, 7},
    {"model.layers.7.mlp.gate_up_proj.weight", MK_MLP_GATE_UP, 7},
    {"model.layers.7.self_attn.dense.weight", MK_ATTN_O, 7},
    /* GPT-2 */
    {"wte.weight", MK_EMBEDDING, -1},
    {"transformer.wpe.weight", MK_POSITION, -1},
    {"transformer.h.3.attn.c_attn.weight", MK_ATTN_QKV, 3},
    {"h.3.attn.c_proj.weight", MK_ATTN_O, 3},
    {"h.3.mlp.c_fc.weight", MK_MLP_UP, 3},
    {"h.3.mlp.c_proj.weight", MK_MLP_DOWN, 3},
    /* GPT-NeoX, GPT-J, Falcon, OPT */
    {"gpt_neox.embed_in.weight", MK_EMBEDDING, -1},
    {"embed_out.weight", MK_HEAD, -1},
    {"gpt_neox.layers.1.attention.query_key_value.weight", MK_ATTN_QKV, 1},
    {"gpt_neox.layers.1.attention.dense.weight", MK_ATTN_O, 1},
    {"gpt_neox.layers.1.mlp.dense_h_to_4h.weight", MK_MLP_UP, 1},
    {"gpt_neox.layers.1.mlp.dense_4h_to_h.weight", MK_MLP_DOWN, 1},
    {"transformer.h.1.mlp.fc_in.weight", MK_MLP_UP, 1},
    {"transformer.h.1.self_attention.dense.weight", MK_ATTN_O, 1},
    {"model.decoder.layers.1.self_attn.out_proj.weight", MK_ATTN_O, 1},
    {"model.decoder.layers.1.fc2.weight", MK_MLP_DOWN, 1},
    /* BERT, DistilBERT */
    {"bert.embeddings.word_embeddings.weight", MK_EMBEDDING, -1},
    {"bert.embeddings.position_embeddings.weight", MK_POSITION, -1},
    {"bert.encoder.layer.2.attention.self.query.weight", MK_ATTN_Q, 2},
    {"bert.encoder.layer.2.attention.output.dense.weight", MK_ATTN_O, 2},
    {"bert.encoder.layer.2.intermediate.dense.weight", MK_MLP_UP, 2},
    {"bert.encoder.layer.2.output.dense.weight", MK_MLP_DOWN, 2},
    {"cls.predictions.decoder.weight", MK_HEAD, -1},
    {"distilbert.transformer.layer.2.attention.out_lin.weight", MK_ATTN_O, 2},
    {"distilbert.transformer.layer.2.ffn.lin1.weight", MK_MLP_UP, 2},
};

static const struct {
    const char *name;
    enum mk_kind kind;
    int layer;
} more[] = {
    /* T5 */
    {"shared.weight", MK_EMBEDDING, -1},
    {"encoder.block.6.layer.0.SelfAttention.q.weight", MK_ATTN_Q, 6},
    {"decoder.block.6.layer.1.EncDecAttention.o.weight", MK_ATTN_O, 6},
    {"encoder.block.6.layer.1.DenseReluDense.wi_0.weight", MK_MLP_GATE, 6},
    {"encoder.block.6.layer.1.DenseReluDense.wo.weight", MK_MLP_DOWN, 6},
    /* ViT, of transformers and of timm */
    {"vit.encoder.layer.9.attention.attention.key.weight", MK_ATTN_K, 9},
    {"blocks.9.attn.qkv.weight", MK_ATTN_QKV, 9},
    {"blocks.9.attn.proj.weight", MK_ATTN_O, 9},
    {"blocks.9.mlp.fc2.weight", MK_MLP_DOWN, 9},
    {"pos_embed", MK_POSITION, -1},
    /* Whisper */
    {"model.encoder.layers.0.self_attn.out_proj.weight", MK_ATTN_O, 0},
    {"model.decoder.layers.3.encoder_attn.v_proj.weight", MK_ATTN_V, 3},
    {"model.decoder.embed_positions.weight", MK_POSITION, -1},
    {"proj_out.weight", MK_HEAD, -1},
    /* diffusion models: a block of a UNet is no layer */
    {"down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight", MK_ATTN_Q, -1},
    {"down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight", MK_ATTN_O, -1},
    {"mid_block.attentions.0.proj_out.weight", MK_OTHER, -1},
    {"up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", MK_MLP_GATE_UP, -1},
    {"transformer_blocks.5.ff.net.2.weight", MK_MLP_DOWN, 5},
    /* names that say nothing */
    {"layers.x.weight", MK_OTHER, -1},
    {"layers.999999.weight", MK_OTHER, -1},
    {"layers.1", MK_OTHER, -1},
    {"players.1.weight", MK_OTHER, -1},
    {"", MK_OTHER, -1},
    {".", MK_OTHER, -1},
    {".weight", MK_OTHER, -1},
};

/* Embeddings and heads are asked for beside each other, so that neither is both. */
static void expect(const char *name, enum mk_kind kind, int layer)
{
    struct model m = {0};
    add(&m, "lm_head.weight");
    add(&m, "model.embed_tokens.weight");
    struct mk_role role = role_in(&m, "/nonexistent", "model.safetensors", add(&m, name));
    if (role.kind != kind || role.layer != layer)
        fail_msg("%s: %s of layer %d, not %s of layer %d", name, mk_kind_name(role.kind),
                 role.layer, mk_kind_name(kind), layer);
}

static void test_names_of_known_models(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(known); i++)
        expect(known[i].name, known[i].kind, known[i].layer);
    for (size_t i = 0; i < COUNT(more); i++)
        expect(more[i].name, more[i].kind, more[i].layer);
}

static void test_routers_by_name_and_shape(void **state)
{
    (void)state;
    static const char *const names[] = {
        "model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.mlp.router.weight", "encoder.block.1.layer.1.mlp.router.classifier.weight"};
    for (size_t i = 0; i < COUNT(names); i++) {
        struct model m = {0};
        struct st_tensor *t = add(&m, names[i]);
        dims[1] = 512; /* a gate that is no router: square */
        assert_int_equal(role_in(&m, NULL, "a", t).kind, MK_OTHER);
        dims[1] = 256;
        t->dims = router_dims;
        assert_int_equal(role_in(&m, NULL, "a", t).kind, MK_ROUTER);
        assert_non_null(mk_kept_kind(MK_ROUTER));
    }
}

static void test_convolutions_by_shape(void **state)
{
    (void)state;
    struct model m = {0};
    struct st_tensor *t = add(&m, "down_blocks.0.resnets.0.conv1.weight");
    t->rank = 4;
    assert_int_equal(role_in(&m, NULL, "a", t).kind, MK_CONV);
    t = add(&m, "model.encoder.conv1.weight");
    t->rank = 3;
    assert_int_equal(role_in(&m, NULL, "a", t).kind, MK_CONV);
    t = add(&m, "a.stack.weight");
    t->rank = 3;
    assert_int_equal(role_in(&m, NULL, "a", t).kind, MK_OTHER);
}

/* ---- config.json ---- */

/* The role of the named tensor in a model of these tensors and this config (NULL: none). */
static struct mk_role with_config(const char *config, const char *const *names, const char *asked)
{
    char dir[] = "/tmp/hyperfs-test-XXXXXX", path[200];
    struct model m = {0};
    struct st_tensor *t = NULL;
    for (; *names; names++) {
        struct st_tensor *added = add(&m, *names);
        t = strcmp(*names, asked) == 0 ? added : t;
    }
    assert_non_null(t);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    if (config) {
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fputs(config, f);
        fclose(f);
    }
    struct mk_role role = role_in(&m, dir, "model.safetensors", t);
    unlink(path);
    assert_int_equal(rmdir(dir), 0);
    return role;
}

static void test_tied_embeddings(void **state)
{
    (void)state;
    static const char embed[] = "model.embed_tokens.weight", head[] = "lm_head.weight";
    static const char *const both[] = {embed, head, NULL}, *const alone[] = {embed, NULL};
    static const char *const only_head[] = {head, NULL};
    static const char tied[] = "{\"tie_word_embeddings\": true}";
    static const char separate[] = "{\"tie_word_embeddings\": false}";
    assert_int_equal(with_config(NULL, both, embed).kind, MK_EMBEDDING);
    assert_int_equal(with_config(NULL, both, head).kind, MK_HEAD);
    assert_int_equal(with_config(tied, both, embed).kind, MK_TIED_EMBEDDING);
    assert_int_equal(with_config(tied, both, head).kind, MK_TIED_EMBEDDING);
    assert_int_equal(with_config(NULL, alone, embed).kind, MK_TIED_EMBEDDING);
    assert_int_equal(with_config(separate, alone, embed).kind, MK_EMBEDDING);
    assert_int_equal(with_config(tied, only_head, head).kind, MK_TIED_EMBEDDING);
    assert_int_equal(with_config(separate, only_head, head).kind, MK_HEAD);
    assert_int_equal(
        with_config("{\"text_config\": {\"tie_word_embeddings\": false}}", alone, embed).kind,
        MK_EMBEDDING);
    assert_int_equal(with_config("{\"architectures\": [\"BertModel\"]}", alone, embed).kind,
                     MK_EMBEDDING);
    assert_int_equal(with_config("{\"architectures\": [\"GPT2LMHeadModel\"]}", alone, embed).kind,
                     MK_TIED_EMBEDDING);
}

static void test_number_of_layers(void **state)
{
    (void)state;
    static const char *const one[] = {"model.layers.0.w", "model.layers.5.w", NULL};
    static const char *const two[] = {"encoder.layers.0.w", "encoder.layers.7.w",
                                      "decoder.layers.3.w", NULL};
    static const char ten[] = "{\"num_hidden_layers\": 10}";
    assert_int_equal(with_config(NULL, one, "model.layers.0.w").layers, 6);
    assert_int_equal(with_config(ten, one, "model.layers.0.w").layers, 10);
    assert_int_equal(with_config("{\"n_layer\": 4}", one, "model.layers.5.w").layers, 4);
    assert_int_equal(with_config(ten, two, "encoder.layers.0.w").layers, 8);
    assert_int_equal(with_config(ten, two, "decoder.layers.3.w").layers, 4);
}

static void test_hostile_configs_say_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {"model.layers.0.w", "model.layers.5.w", "wte.weight", NULL};
    static const char *const configs[] = {
        "",
        "[1, 2, 3]",
        "null",
        "{\"num_hidden_layers\": 1e300}",
        "{\"num_hidden_layers\": -1}",
        "{\"num_hidden_layers\": 9223372036854775807}",
        "{\"num_hidden_layers\": 99999999999999999999999999}",
        "{\"num_hidden_layers\": 0}",
        "{\"num_hidden_layers\": \"6\"}",
        "{\"num_hidden_layers\": [6]}",
        "{\"architectures\": [[]], \"tie_word_embeddings\": \"no\"}",
        "{\"architectures\": {}, \"text_config\": 7}",
        "{\"architectures\": []}",
        "{\"tie_word_embeddings\": null, \"text_config\": {\"text_config\": {}}}",
        "\xff\xfe{",
        "{\"num_hidden_layers\": 3",
    };
    for (size_t i = 0; i < COUNT(configs); i++) {
        struct mk_role layer = with_config(configs[i], names, "model.layers.0.w");
        struct mk_role embedding = with_config(configs[i], names, "wte.weight");
        if (layer.layers != 6 || embedding.kind != MK_TIED_EMBEDDING)
            fail_msg("%s: %d layers, %s", configs[i], layer.layers, mk_kind_name(embedding.kind));
    }
}

/* ---- offsets ---- */

static void test_rules_add_up(void **state)
{
    (void)state;
    char text[MK_RULE_TEXT], tensors[MK_RULE_TEXT];
    double low, high;
    size_t rules = 0;
    for (size_t i = 0; mk_sensitivity_rule(i, tensors, &low, &high); i++, rules++) {
        assert_true(*tensors != 0);
        assert_true(isfinite(low) && isfinite(high) && low <= high && fabs(high) <= 15);
    }
    assert_true(rules > 0);
    struct mk_role tied = {MK_TIED_EMBEDDING, -1, 0, 0.1, 1}, other = {MK_OTHER, 5, 12, 0.1, 1};
    struct mk_role v = {MK_ATTN_V, 5, 12, 0.01, 1};
    assert_true(mk_offset(&tied, NULL, text) > 3);
    assert_non_null(strstr(text, "tied embedding"));
    assert_true(mk_offset(&other, NULL, text) == 0);
    assert_string_equal(text, "");
    double alone = mk_offset(&v, NULL, NULL);
    v.queries = 4; /* heads of queries for each head of values */
    assert_true(fabs(mk_offset(&v, NULL, text) - alone - 6) < 0.1);
    v.layer = 0;
    assert_true(mk_offset(&v, NULL, text) > alone + 6);
    for (int kind = 0; kind < MK_KINDS; kind++)
        for (int layer = -1; layer < 3; layer++)
            for (double share = 0; share <= 1; share += 0.25) {
                struct mk_role role = {(enum mk_kind)kind, layer, 3, share, 1e9};
                assert_true(fabs(mk_offset(&role, NULL, text)) <= 20);
            }
}

/* A share is that of all files of the model; grouped queries are seen in the shapes. */
static void test_shares_and_grouped_queries(void **state)
{
    (void)state;
    struct model m = {0};
    static uint64_t k_dims[2] = {128, 256};
    const struct st_tensor *embedding = add(&m, "model.embed_tokens.weight");
    add(&m, "model.layers.0.self_attn.q_proj.weight");
    struct st_tensor *k = add(&m, "model.layers.0.self_attn.k_proj.weight");
    k->dims = k_dims;
    k->elements = 128 * 256;
    add(&m, "model.layers.0.input_layernorm.weight")->rank = 1;
    assert_true(fabs(role_in(&m, NULL, "a", embedding).share - 4.0 / 9) < 1e-9);
    assert_true(role_in(&m, NULL, "a", k).queries == 4);
    assert_true(role_in(&m, NULL, "a", embedding).queries == 1);
}

static void test_evidence_takes_the_place_of_rules_for_layers(void **state)
{
    (void)state;
    char text[MK_RULE_TEXT];
    struct mk_role down = {.kind = MK_MLP_DOWN, .layer = 0, .layers = 4};
    struct mk_evidence measured = {.offset_db = -1.5, .what = "importance matrix"};
    double kind =
        mk_offset(&(struct mk_role){.kind = MK_MLP_DOWN, .layer = 1, .layers = 4}, NULL, NULL);
    assert_true(mk_offset(&down, NULL, NULL) > kind);
    assert_true(mk_offset(&down, &measured, text) == kind - 1.5);
    assert_non_null(strstr(text, "importance matrix -1.5 dB"));
    assert_null(strstr(text, "layer 0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_of_known_models),
        cmocka_unit_test(test_routers_by_name_and_shape),
        cmocka_unit_test(test_convolutions_by_shape),
        cmocka_unit_test(test_tied_embeddings),
        cmocka_unit_test(test_number_of_layers),
        cmocka_unit_test(test_hostile_configs_say_nothing),
        cmocka_unit_test(test_rules_add_up),
        cmocka_unit_test(test_shares_and_grouped_queries),
        cmocka_unit_test(test_evidence_takes_the_place_of_rules_for_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
