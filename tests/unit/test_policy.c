/* If these fail, tensors lose something that must not, or the user's rules are not obeyed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mkhyperfs/policy.h"

/* Headers of two dimensions, made by hand. */
struct model {
    struct st_tensor t[8];
    uint64_t dims[8][2];
    struct st_header h;
};

static struct st_tensor *add(struct model *m, const char *name, enum hc_dtype dtype, uint64_t rows,
                             uint64_t columns)
{
    size_t i = m->h.count++;
    assert_true(i < 8);
    m->dims[i][0] = rows;
    m->dims[i][1] = columns;
    m->t[i] = (struct st_tensor){.name = (char *)name,
                                 .dtype = dtype,
                                 .rank = 2,
                                 .dims = m->dims[i],
                                 .elements = rows * columns};
    m->h.tensors = m->t;
    return &m->t[i];
}

/* Decides with the rules, given as "GLOB" and dB (0: lossless). */
struct setting {
    struct mk_options opt;
    struct mk_rule rules[4];
};

static void add_rule(struct setting *s, const char *glob, double db)
{
    s->rules[s->opt.nrules++] =
        (struct mk_rule){.glob = (char *)glob, .lossless = db == 0, .db = db, .text = glob};
    s->opt.rules = s->rules;
}

static struct mk_decision decide_in(struct setting *s, const struct model *m,
                                    const struct st_tensor *t, const char *noted,
                                    const struct mk_place *place)
{
    struct mk_policy *p;
    struct mk_decision d;
    if (s->opt.db == 0)
        s->opt.db = 29;
    assert_int_equal(mk_policy_new(&s->opt, &p), 0);
    assert_int_equal(mk_policy_note(p, noted, &m->h), 0);
    assert_int_equal(mk_policy_decide(p, place, t, &d), 0);
    mk_policy_free(p);
    return d;
}

static struct mk_decision decide(struct setting *s, const struct model *m,
                                 const struct st_tensor *t)
{
    return decide_in(s, m, t, "model.safetensors", &(struct mk_place){.path = "model.safetensors"});
}

static bool lossy(const char *name, enum hc_dtype dtype, unsigned rank, uint64_t elements)
{
    struct setting s = {0};
    struct model m = {0};
    struct st_tensor *t = add(&m, name, dtype, elements, 1);
    t->rank = rank;
    return decide(&s, &m, t).lossy;
}

static void test_eligible_tensors(void **state)
{
    (void)state;
    for (unsigned d = 1; d < HC_DTYPE_COUNT; d++)
        assert_int_equal(lossy("a.weight", (enum hc_dtype)d, 2, 4096),
                         hc_dtype_is_weight((enum hc_dtype)d));
    assert_false(lossy("a.weight", HC_BF16, 2, 4095));
    assert_false(lossy("a.weight", HC_BF16, 1, 1 << 20));
    assert_false(lossy("a.weight", HC_BF16, 0, 1));
    assert_true(lossy("a.weight", HC_BF16, 4, 4096));
}

static void test_masks_and_optimiser_states_are_kept(void **state)
{
    (void)state;
    static const char *const kept[] = {
        "mask",
        "attn.mask",
        "layers.0.attn_mask",
        "state.0.exp_avg",
        "exp_avg_sq.layers.0.weight",
        "layers.0.weight.momentum_buffer",
        "optimizer.state.0",
        "w.momentum",
    };
    static const char *const lost[] = {
        "mask_decoder.layers.0.weight",
        "layers.0.weight",
        "unmasked.weight",
        "lm_head.weight",
        "optimus.weight",
        "momentum_encoder.weight",
    };
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (lossy(kept[i], HC_F32, 2, 1 << 16))
            fail_msg("%s would lose something", kept[i]);
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++)
        if (!lossy(lost[i], HC_F32, 2, 1 << 16))
            fail_msg("%s would be kept", lost[i]);
}

static void test_scales_beside_packed_weights_are_kept(void **state)
{
    (void)state;
    static const enum hc_dtype packed[] = {HC_U8, HC_I8, HC_I32, HC_U32, HC_F8_E4M3, HC_F4};
    for (size_t i = 0; i < sizeof packed / sizeof *packed; i++) {
        struct setting s = {0};
        struct model m = {0};
        add(&m, "layers.0.q_proj.weight", packed[i], 512, 512);
        const struct st_tensor *scales = add(&m, "layers.0.q_proj.scales", HC_F16, 512, 32);
        const struct st_tensor *other = add(&m, "layers.0.k_proj.weight", HC_F16, 512, 32);
        struct mk_decision d = decide(&s, &m, scales);
        assert_false(d.lossy);
        assert_true(d.eligible);
        assert_non_null(strstr(d.why, "quantised module"));
        assert_true(decide(&s, &m, other).lossy);
    }
}

static void test_scales_in_another_file_of_the_directory_are_kept(void **state)
{
    (void)state;
    struct setting s = {0};
    struct model m = {0};
    add(&m, "q_proj.qweight", HC_I32, 512, 512);
    const struct st_tensor *scales = add(&m, "q_proj.scales", HC_F16, 512, 32);
    m.h.count = 1; /* only the first is in the file that is noted */
    assert_false(decide_in(&s, &m, scales, "int4/a.safetensors",
                           &(struct mk_place){.path = "int4/b.safetensors"})
                     .lossy);
    assert_true(decide_in(&s, &m, scales, "int4/a.safetensors",
                          &(struct mk_place){.path = "fp16/b.safetensors"})
                    .lossy);
}

static void test_a_table_of_positions_keeps_no_weight(void **state)
{
    (void)state;
    struct setting s = {0};
    struct model m = {0};
    add(&m, "embeddings.position_ids", HC_I64, 1, 512);
    add(&m, "wte_ids", HC_I64, 1, 512);
    assert_true(decide(&s, &m, add(&m, "embeddings.table", HC_F32, 512, 384)).lossy);
    assert_true(decide(&s, &m, add(&m, "wte", HC_F32, 512, 384)).lossy);
}

static void test_the_last_rule_wins(void **state)
{
    (void)state;
    struct setting s = {.opt = {.db = 23, .flat = true}};
    struct model m = {0};
    add_rule(&s, "*.embed*", 35);
    add_rule(&s, "*.weight", 17.5);
    add_rule(&s, "*lm_head*", 0);
    assert_true(decide(&s, &m, add(&m, "model.embed.table", HC_F32, 64, 64)).db == 35);
    assert_true(decide(&s, &m, add(&m, "model.embed.weight", HC_F32, 64, 64)).db == 17.5);
    assert_true(decide(&s, &m, add(&m, "layers.0.table", HC_F32, 64, 64)).db == 23);
    struct mk_decision d = decide(&s, &m, add(&m, "lm_head.weight", HC_F32, 64, 64));
    assert_false(d.lossy);
    assert_string_equal(d.why, "--rule");
}

static void test_a_rule_with_a_number_overrides_the_tables_but_not_the_dtype(void **state)
{
    (void)state;
    struct setting s = {0};
    struct model m = {0};
    struct mk_place quantised = {.path = "m", .kept = "config.json says so"};
    add_rule(&s, "*special*", 30);
    assert_true(decide(&s, &m, add(&m, "special.mask", HC_F32, 64, 64)).lossy);
    assert_false(decide(&s, &m, add(&m, "common.mask", HC_F32, 64, 64)).lossy);
    const struct st_tensor *t = add(&m, "special.weight", HC_F32, 64, 64);
    assert_true(decide_in(&s, &m, t, "m", &quantised).lossy);
    t = add(&m, "weight", HC_F32, 64, 64);
    assert_string_equal(decide_in(&s, &m, t, "m", &quantised).why, "config.json says so");
    assert_false(decide(&s, &m, add(&m, "special.ids", HC_I32, 64, 64)).lossy);
    assert_false(decide(&s, &m, add(&m, "special.tiny", HC_F32, 8, 8)).lossy);
}

static void test_relative_rules_change_what_stood_before_them(void **state)
{
    (void)state;
    struct setting s = {.opt = {.db = 23, .flat = true}};
    struct model m = {0};
    struct mk_rule *r = s.rules;
    add_rule(&s, "*.exact", 0);
    add_rule(&s, "*.better*", 30);
    add_rule(&s, "*", -4);
    add_rule(&s, "*far*", 30);
    r[2].relative = r[3].relative = true;
    assert_true(decide(&s, &m, add(&m, "a.weight", HC_F32, 64, 64)).db == 19);
    assert_true(decide(&s, &m, add(&m, "a.better", HC_F32, 64, 64)).db == 26);
    assert_false(decide(&s, &m, add(&m, "a.exact", HC_F32, 64, 64)).lossy);
    assert_false(decide(&s, &m, add(&m, "a.mask", HC_F32, 64, 64)).lossy);
    assert_true(decide(&s, &m, add(&m, "a.far", HC_F32, 64, 64)).db == HC_MAX_DB);
    s.opt.db = 11;
    assert_true(decide(&s, &m, add(&m, "b.weight", HC_F32, 64, 64)).db == HC_MIN_DB);
}

static void test_allocation(void **state)
{
    (void)state;
    struct setting s = {.opt.db = 23};
    struct model m = {0};
    const struct st_tensor *embedding = add(&m, "model.embed_tokens.weight", HC_F32, 64, 64);
    add(&m, "model.large.weight", HC_F32, 64, 640);
    const struct st_tensor *other = add(&m, "model.other.weight", HC_F32, 64, 64);
    const struct st_tensor *router = add(&m, "model.layers.0.mlp.gate.weight", HC_F32, 8, 1024);
    assert_true(decide(&s, &m, embedding).db > 23);
    assert_true(decide(&s, &m, other).db == 23);
    assert_non_null(strstr(decide(&s, &m, router).why, "router"));
    assert_string_equal(decide(&s, &m, add(&m, "w.bias", HC_F32, 64, 64)).why, "a bias");
    s.opt.flat = true;
    assert_true(decide(&s, &m, embedding).db == 23);
    add_rule(&s, "*gate*", 30);
    assert_true(decide(&s, &m, router).db == 30);
}

static void test_lossless(void **state)
{
    (void)state;
    struct setting s = {.opt.lossless = true};
    struct model m = {0};
    assert_string_equal(decide(&s, &m, add(&m, "a.weight", HC_BF16, 64, 64)).why, "--lossless");
}

/* ---- files that say that a model is quantised ---- */

static bool quantised(const char *file, const char *text)
{
    char dir[] = "/tmp/hyperfs-test-XXXXXX", path[200];
    const char *why;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(mk_policy_file(dir, "model.safetensors", &why, NULL), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
    return why != NULL;
}

static void test_configs_of_quantised_models(void **state)
{
    (void)state;
    assert_true(quantised("config.json", "{\"quantization_config\": {\"bits\": 4}}"));
    assert_true(quantised("config.json", "{\"a\": 1, \"quantization\": {\"group_size\": 64}}"));
    assert_true(quantised("config.json", "{\"text_config\": {\"quantization_config\": {}}}"));
    assert_true(quantised("quantize_config.json", "{}"));
    assert_false(quantised("config.json", "{\"quantization_config\": null}"));
    assert_false(quantised("config.json", "{\"model_type\": \"llama\"}"));
    assert_false(quantised("config.json", "quantization_config"));
    assert_false(quantised("config.json", "[\"quantization_config\"]"));
    assert_false(quantised("config.json", ""));
    assert_false(quantised("other.json", "{\"quantization_config\": {}}"));
}

static void test_files_of_optimisers(void **state)
{
    (void)state;
    const char *why;
    assert_int_equal(mk_policy_file("/nonexistent", "a/optimizer.safetensors", &why, NULL), 0);
    assert_string_equal(why, "state of an optimiser");
    assert_int_equal(mk_policy_file("/nonexistent", "optimizer/model.safetensors", &why, NULL), 0);
    assert_null(why);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eligible_tensors),
        cmocka_unit_test(test_masks_and_optimiser_states_are_kept),
        cmocka_unit_test(test_scales_beside_packed_weights_are_kept),
        cmocka_unit_test(test_scales_in_another_file_of_the_directory_are_kept),
        cmocka_unit_test(test_a_table_of_positions_keeps_no_weight),
        cmocka_unit_test(test_the_last_rule_wins),
        cmocka_unit_test(test_a_rule_with_a_number_overrides_the_tables_but_not_the_dtype),
        cmocka_unit_test(test_relative_rules_change_what_stood_before_them),
        cmocka_unit_test(test_allocation),
        cmocka_unit_test(test_lossless),
        cmocka_unit_test(test_configs_of_quantised_models),
        cmocka_unit_test(test_files_of_optimisers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
