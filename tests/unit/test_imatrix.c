/* If these fail, a good importance matrix is refused, a damaged or hostile one is believed, or its
 * numbers go to the wrong tensors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "codec/bytes.h"
#include "mkhyperfs/imatrix.h"
#include "mkhyperfs/importance.h"
#include "mkhyperfs/llama_names.h"

/* ---- files in memory ---- */

struct bytes {
    uint8_t at[8192];
    size_t len;
};

static void put(struct bytes *b, const void *data, size_t len)
{
    assert_true(len <= sizeof b->at - b->len);
    memcpy(b->at + b->len, data, len);
    b->len += len;
}

static void put32(struct bytes *b, uint32_t v)
{
    uint8_t raw[4];
    store32(raw, v);
    put(b, raw, 4);
}

static void put64(struct bytes *b, uint64_t v)
{
    uint8_t raw[8];
    store64(raw, v);
    put(b, raw, 8);
}

static void put_float(struct bytes *b, float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    put32(b, bits);
}

static void put_string(struct bytes *b, const char *text)
{
    put64(b, strlen(text));
    put(b, text, strlen(text));
}

static int read_bytes(const struct bytes *b, size_t len, struct imatrix *im, struct hfs_error *err)
{
    char path[64];
    int fd = memfd_create("imatrix", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b->at, len), (ssize_t)len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    memset(err, 0, sizeof *err);
    int r = imatrix_read(path, im, err);
    close(fd);
    return r;
}

/* Refused with a sentence that has `reason` in it. */
static void refuse(const struct bytes *b, const char *reason)
{
    struct imatrix im;
    struct hfs_error err;
    int r = read_bytes(b, b->len, &im, &err);
    imatrix_free(&im);
    if (r != -EBADMSG || !strstr(err.text, reason) || !strstr(err.text, "/proc/self/fd/"))
        fail_msg("%d, \"%s\" instead of \"%s\"", r, err.text, reason);
}

/* A tensor of a GGUF file; up to 8 values, all of dims[0] x dims[1]. */
struct tensor {
    const char *name;
    uint64_t dims[2];
    float values[8];
    uint32_t type;
};

static const char *const general_type = "imatrix";

/* What llama.cpp writes, and a few keys of other types; the data at multiples of 32. */
static void make_gguf(struct bytes *b, const struct tensor *t, size_t count, const char *type)
{
    b->len = 0;
    put(b, "GGUF", 4);
    put32(b, 3);
    put64(b, count);
    put64(b, 4);
    put_string(b, "general.type");
    put32(b, 8);
    put_string(b, type);
    put_string(b, "imatrix.datasets");
    put32(b, 9);
    put32(b, 8);
    put64(b, 2);
    put_string(b, "a.txt");
    put_string(b, "");
    put_string(b, "some.numbers");
    put32(b, 9);
    put32(b, 2);
    put64(b, 3);
    put(b, "\1\0\2\0\3\0", 6);
    put_string(b, "imatrix.chunk_size");
    put32(b, 4);
    put32(b, 512);
    for (size_t i = 0; i < count; i++) {
        put_string(b, t[i].name);
        put32(b, 2);
        put64(b, t[i].dims[0]);
        put64(b, t[i].dims[1]);
        put32(b, t[i].type);
        put64(b, 32 * i);
    }
    while (b->len % 32)
        put(b, "", 1);
    size_t start = b->len;
    for (size_t i = 0; i < count; i++) {
        while (b->len < start + 32 * i)
            put(b, "", 1);
        uint64_t n = t[i].dims[0] * t[i].dims[1];
        for (size_t k = 0; k < 8 && k < n; k++)
            put_float(b, t[i].values[k]);
    }
}

static const struct tensor good[] = {
    {"blk.0.attn_q.weight.in_sum2", {4, 1}, {1, 2, 3, 4}, 0},
    {"blk.0.attn_q.weight.counts", {1, 1}, {5}, 0},
    {"blk.0.ffn_down_exps.weight.in_sum2", {2, 3}, {1, 2, 9, 9, 5, 6}, 0},
    {"blk.0.ffn_down_exps.weight.counts", {1, 3}, {4, 0, 3}, 0},
    {"blk.0.attn_q.weight.in_sum", {4, 1}, {-1, -2, 3, 4}, 0},
};
enum { GOOD = sizeof good / sizeof *good };

static void put_old_entry(struct bytes *b, const char *name, uint32_t calls, uint32_t values,
                          const float *v)
{
    put32(b, (uint32_t)strlen(name));
    put(b, name, strlen(name));
    put32(b, calls);
    put32(b, values);
    for (uint32_t i = 0; i < values; i++)
        put_float(b, v[i]);
}

static void make_old(struct bytes *b)
{
    b->len = 0;
    put32(b, 2);
    put_old_entry(b, "blk.1.ffn_up.weight", 2, 4, (float[]){2, 4, 6, 8});
    put_old_entry(b, "blk.0.attn_q.weight", 10, 2, (float[]){1, 2});
}

/* ---- good files ---- */

/* The mean of fourth roots, to the fourth power. */
static double typical(const double *v, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += pow(v[i], 0.25);
    return pow(sum / (double)count, 4);
}

static void test_gguf(void **state)
{
    (void)state;
    struct bytes b;
    struct imatrix im;
    struct hfs_error err;
    double energy;
    make_gguf(&b, good, GOOD, general_type);
    assert_int_equal(read_bytes(&b, b.len, &im, &err), 0);
    assert_int_equal(im.count, 2);
    const struct imatrix_entry *q = imatrix_find(&im, "blk.0.attn_q.weight");
    assert_non_null(q);
    assert_true(imatrix_energy(q, 4, &energy));
    assert_true(fabs(energy - 4 * typical((double[]){0.2, 0.4, 0.6, 0.8}, 4)) < 1e-12);
    assert_false(imatrix_energy(q, 3, &energy));
    assert_false(imatrix_energy(q, 0, &energy));
    assert_false(imatrix_energy(q, 8, &energy));
    /* An expert that saw no token is left out. */
    const struct imatrix_entry *down = imatrix_find(&im, "blk.0.ffn_down_exps.weight");
    assert_non_null(down);
    assert_true(imatrix_energy(down, 2, &energy));
    double first = 2 * typical((double[]){0.25, 0.5}, 2),
           last = 2 * typical((double[]){5 / 3., 2}, 2);
    assert_true(fabs(energy - (4 * first + 3 * last) / 7) < 1e-12);
    assert_false(imatrix_energy(down, 6, &energy));
    assert_false(imatrix_energy(down, 3, &energy));
    assert_null(imatrix_find(&im, "blk.0.attn_q"));
    imatrix_free(&im);
}

static void test_old_form(void **state)
{
    (void)state;
    struct bytes b;
    struct imatrix im;
    struct hfs_error err;
    double energy;
    make_old(&b);
    for (int form = 0; form < 3; form++) {
        if (form == 1)
            put32(&b, 7);
        if (form == 2) {
            put32(&b, 5);
            put(&b, "a.txt", 5);
        }
        assert_int_equal(read_bytes(&b, b.len, &im, &err), 0);
        assert_int_equal(im.count, 2);
        assert_string_equal(im.entries[0].name, "blk.0.attn_q.weight");
        assert_true(imatrix_energy(&im.entries[1], 4, &energy));
        double mean = typical((double[]){1, 2, 3, 4}, 4);
        assert_true(fabs(energy - 4 * mean) < 1e-12);
        /* Two matrices of experts in one entry: their mean. */
        assert_true(imatrix_energy(&im.entries[1], 2, &energy));
        assert_true(fabs(energy - 2 * mean) < 1e-12);
        imatrix_free(&im);
    }
}

/* A column that is huge on one token of many does not outweigh the others. */
static void test_outlier(void **state)
{
    (void)state;
    struct bytes b;
    struct imatrix im;
    struct hfs_error err;
    double energy;
    float v[1000];
    for (int i = 0; i < 1000; i++)
        v[i] = 1;
    v[7] = 1e6f;
    b.len = 0;
    put32(&b, 1);
    put_old_entry(&b, "x", 1, 1000, v);
    assert_int_equal(read_bytes(&b, b.len, &im, &err), 0);
    assert_true(imatrix_energy(&im.entries[0], 1000, &energy));
    assert_true(energy > 1000 && energy < 1200);
    assert_true(fabs(imatrix_peak(&im.entries[0]) - 1000.999 / (energy / 1000)) < 1e-3);
    imatrix_free(&im);
}

static void test_no_data(void **state)
{
    (void)state;
    struct bytes b;
    struct imatrix im;
    struct hfs_error err;
    double energy;
    struct tensor t[2] = {good[0], good[1]};
    t[1].values[0] = 0;
    make_gguf(&b, t, 2, general_type);
    assert_int_equal(read_bytes(&b, b.len, &im, &err), 0);
    assert_false(imatrix_energy(&im.entries[0], 4, &energy));
    imatrix_free(&im);
    b.len = 0;
    put32(&b, 1);
    put_old_entry(&b, "x", 0, 2, (float[]){1, 2});
    assert_int_equal(read_bytes(&b, b.len, &im, &err), 0);
    assert_false(imatrix_energy(&im.entries[0], 2, &energy));
    imatrix_free(&im);
}

static void test_hash_is_of_the_content(void **state)
{
    (void)state;
    struct bytes b;
    struct imatrix one, two;
    struct hfs_error err;
    make_old(&b);
    assert_int_equal(read_bytes(&b, b.len, &one, &err), 0);
    assert_int_equal(strlen(one.hash), 32);
    assert_int_equal(read_bytes(&b, b.len, &two, &err), 0);
    assert_string_equal(one.hash, two.hash);
    imatrix_free(&two);
    put32(&b, 7);
    assert_int_equal(read_bytes(&b, b.len, &two, &err), 0);
    assert_string_not_equal(one.hash, two.hash);
    imatrix_free(&one);
    imatrix_free(&two);
}

/* ---- bad files ---- */

/* Any ending before the last byte is an error, but for the old form's two optional fields. */
static void test_truncated(void **state)
{
    (void)state;
    struct bytes b;
    struct imatrix im;
    struct hfs_error err;
    make_gguf(&b, good, GOOD, general_type);
    for (size_t len = 0; len < b.len; len++) {
        assert_int_equal(read_bytes(&b, len, &im, &err), -EBADMSG);
        assert_true(err.text[0]);
        imatrix_free(&im);
    }
    make_old(&b);
    size_t entries = b.len;
    put32(&b, 7);
    size_t calls = b.len;
    put32(&b, 5);
    put(&b, "a.txt", 5);
    for (size_t len = 0; len < b.len; len++) {
        int r = read_bytes(&b, len, &im, &err);
        if (r != (len == entries || len == calls ? 0 : -EBADMSG))
            fail_msg("%d after %zu bytes of %zu", r, len, b.len);
        imatrix_free(&im);
    }
}

/* Whatever the bytes are: an answer, and what is accepted holds. */
static void check_any(const struct bytes *b, size_t len)
{
    struct imatrix im;
    struct hfs_error err;
    int r = read_bytes(b, len, &im, &err);
    if (r == 0) {
        assert_true(im.count > 0);
        for (size_t i = 0; i < im.count; i++) {
            assert_true(im.entries[i].strength >= 0 && isfinite(im.entries[i].strength));
            assert_true(i == 0 || strcmp(im.entries[i - 1].name, im.entries[i].name) < 0);
            assert_ptr_equal(imatrix_find(&im, im.entries[i].name), &im.entries[i]);
        }
    } else {
        assert_int_equal(r, -EBADMSG);
        assert_true(err.text[0]);
    }
    imatrix_free(&im);
}

static void test_mutated(void **state)
{
    (void)state;
    static const uint8_t bytes[] = {0, 1, 0x7f, 0x80, 0xff};
    const char *seed = getenv("HYPERFS_SEED");
    unsigned s = seed ? (unsigned)strtoul(seed, NULL, 0) : (unsigned)time(NULL);
    print_message("HYPERFS_SEED=%u\n", s);
    for (int form = 0; form < 2; form++) {
        struct bytes b;
        if (form)
            make_old(&b);
        else
            make_gguf(&b, good, GOOD, general_type);
        for (size_t i = 0; i < b.len; i++)
            for (size_t k = 0; k < sizeof bytes; k++) {
                uint8_t old = b.at[i];
                b.at[i] = bytes[k];
                check_any(&b, b.len);
                b.at[i] = old;
            }
        for (int round = 0; round < 2000; round++) {
            struct bytes c = b;
            for (int k = 0; k < 3; k++)
                c.at[(size_t)rand_r(&s) % c.len] = (uint8_t)rand_r(&s);
            check_any(&c, c.len);
        }
    }
}

static void refuse_changed(size_t which, struct tensor changed, const char *reason)
{
    struct bytes b;
    struct tensor t[GOOD];
    memcpy(t, good, sizeof t);
    t[which] = changed;
    make_gguf(&b, t, GOOD, general_type);
    refuse(&b, reason);
}

static void test_bad_gguf(void **state)
{
    (void)state;
    struct bytes b;
    static const char q[] = "blk.0.attn_q.weight.in_sum2", c[] = "blk.0.attn_q.weight.counts";
    refuse_changed(0, (struct tensor){q, {4, 1}, {1, 2, -3, 4}, 0}, "-3, which is no sum");
    refuse_changed(0, (struct tensor){q, {4, 1}, {1, NAN, 3, 4}, 0}, "nan, which is no sum");
    refuse_changed(0, (struct tensor){q, {4, 1}, {1, 2, 3, INFINITY}, 0}, "inf, which is no sum");
    refuse_changed(1, (struct tensor){c, {1, 1}, {-5}, 0}, "-5, which is no sum");
    refuse_changed(1, (struct tensor){c, {1, 1}, {NAN}, 0}, "nan, which is no sum");
    refuse_changed(1, (struct tensor){c, {1, 3}, {1, 1, 1}, 0}, "4 values for 3 counts");
    refuse_changed(1, (struct tensor){c, {0, 1}, {0}, 0}, "0 counts");
    refuse_changed(0, (struct tensor){q, {0, 1}, {0}, 0}, "0 values");
    refuse_changed(0, (struct tensor){q, {4, 1}, {1, 2, 3, 4}, 1}, "are not F32");
    refuse_changed(1, (struct tensor){"other.counts", {1, 1}, {5}, 0}, "has no counts beside it");
    refuse_changed(0, (struct tensor){"other", {4, 1}, {1, 2, 3, 4}, 0}, "has no sums beside it");
    refuse_changed(4, (struct tensor){q, {4, 1}, {1, 2, 3, 4}, 0}, "a second time");
    refuse_changed(0, (struct tensor){q, {UINT64_C(1) << 40, 1}, {0}, 0}, "beyond the end");
    refuse_changed(0, (struct tensor){q, {UINT64_C(1) << 62, 4}, {0}, 0}, "2^61 elements");
    make_gguf(&b, good, GOOD, "model");
    refuse(&b, "of type \"model\"");
    make_gguf(&b, good + 4, 1, general_type);
    refuse(&b, "without an importance matrix");
    make_gguf(&b, good, GOOD, general_type);
    store32(b.at + 4, 0x03000000);
    refuse(&b, "big-endian");
    store32(b.at + 4, 1);
    refuse(&b, "version 1");
    store32(b.at + 4, 3);
    store64(b.at + 8, UINT64_MAX);
    refuse(&b, "more than the file can have");
    store64(b.at + 8, GOOD);
    store64(b.at + 16, UINT64_MAX);
    refuse(&b, "");
    store64(b.at + 16, 4);
    /* 2^63 + 3 numbers of two bytes, which wrap around to the 6 that are there. */
    uint8_t *numbers = memmem(b.at, b.len, "some.numbers", 12);
    assert_non_null(numbers);
    store64(numbers + 12 + 8, (UINT64_C(1) << 63) + 3);
    refuse(&b, "longer than the file");
    store64(numbers + 12 + 8, 3);
    store64(b.at + 24, UINT64_MAX);
    refuse(&b, "more than 65535");
}

static void test_bad_old_form(void **state)
{
    (void)state;
    struct bytes b;
    static const float v[] = {1, -2};
    b.len = 0;
    put32(&b, 2);
    put_old_entry(&b, "a", 1, 1, v);
    put_old_entry(&b, "a", 1, 1, v);
    refuse(&b, "two entries of the name a");
    b.len = 0;
    put32(&b, 1);
    put_old_entry(&b, "a", 1, 2, v);
    refuse(&b, "-2, which is no sum");
    b.len = 0;
    put32(&b, 1);
    put_old_entry(&b, "a", (uint32_t)-1, 1, v);
    refuse(&b, "of -1 calls");
    b.len = 0;
    put32(&b, 1);
    put_old_entry(&b, "a\1b\xff", 1, 0, v);
    put32(&b, 0);
    refuse(&b, "a\\x01b\\xff has 0 values");
    b.len = 0;
    put32(&b, 1);
    put_old_entry(&b, "", 1, 2, v);
    refuse(&b, "without a name");
    make_old(&b);
    store32(b.at + 4, 0x7fffffff);
    refuse(&b, "more than 1024");
    store32(b.at, 0x7fffffff);
    refuse(&b, "neither GGUF nor");
    store32(b.at, 0);
    refuse(&b, "neither GGUF nor");
    make_old(&b);
    put32(&b, 7);
    put32(&b, 1);
    put(&b, "abc", 3);
    refuse(&b, "2 bytes follow");
}

static void test_no_file(void **state)
{
    (void)state;
    struct imatrix im;
    struct hfs_error err = {0};
    assert_int_equal(imatrix_read("/nowhere/at.all", &im, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nowhere/at.all: cannot be opened"));
    memset(&err, 0, sizeof err);
    assert_int_equal(imatrix_read("/", &im, &err), -EINVAL);
    assert_non_null(strstr(err.text, "is not a regular file"));
}

/* ---- names ---- */

static void expect_name(const char *tensor, const char *llama, const char *other, bool writes,
                        enum llama_branch branch)
{
    uint64_t dims[] = {64, 32, 16};
    struct llama_tensor l;
    struct st_tensor t = {.name = (char *)tensor, .rank = 2, .dims = dims, .elements = 2048};
    if (strstr(tensor, "experts.") && !strpbrk(strstr(tensor, "experts."), "0123456789")) {
        t.rank = 3;
        t.elements = 64 * 32 * 16;
    }
    bool found = llama_tensor_of(&t, &l);
    if (!found || strcmp(l.names[0], llama) != 0 || strcmp(l.names[1], other) != 0)
        fail_msg("%s: %s, %s instead of %s, %s", tensor, l.names[0], l.names[1], llama, other);
    assert_int_equal(l.writes, writes);
    assert_int_equal(l.branch, branch);
    bool turned = strstr(tensor, "c_attn") || strstr(tensor, "c_proj") || strstr(tensor, "c_fc");
    assert_int_equal(l.inputs, t.rank == 3 ? 16 : turned ? 64 : 32);
}

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *tensor, *llama, *other;
        bool writes;
        enum llama_branch branch;
    } names[] = {
        /* Llama, Mistral, Qwen 2 and 3, Gemma */
        {"model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", "", false, 1},
        {"model.layers.31.self_attn.k_proj.weight", "blk.31.attn_k.weight", "", false, 1},
        {"model.layers.7.self_attn.v_proj.weight", "blk.7.attn_v.weight", "", false, 1},
        {"model.layers.7.self_attn.o_proj.weight", "blk.7.attn_output.weight", "", true, 1},
        {"model.layers.7.mlp.gate_proj.weight", "blk.7.ffn_gate.weight", "", false, 2},
        {"model.layers.7.mlp.up_proj.weight", "blk.7.ffn_up.weight", "", false, 2},
        {"model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight", "", true, 2},
        {"model.embed_tokens.weight", "token_embd.weight", "output.weight", false, 0},
        {"lm_head.weight", "output.weight", "", false, 0},
        /* Gemma 3 for text and images */
        {"language_model.model.layers.2.mlp.down_proj.weight", "blk.2.ffn_down.weight", "", true,
         2},
        {"model.language_model.layers.2.mlp.up_proj.weight", "blk.2.ffn_up.weight", "", false, 2},
        /* Mixtral */
        {"model.layers.3.block_sparse_moe.experts.7.w1.weight", "blk.3.ffn_gate_exps.weight", "",
         false, 2},
        {"model.layers.3.block_sparse_moe.experts.0.w2.weight", "blk.3.ffn_down_exps.weight", "",
         true, 2},
        {"model.layers.3.block_sparse_moe.experts.15.w3.weight", "blk.3.ffn_up_exps.weight", "",
         false, 2},
        {"model.layers.3.block_sparse_moe.gate.weight", "blk.3.ffn_gate_inp.weight", "", false, 2},
        /* Qwen with experts */
        {"model.layers.4.mlp.experts.127.down_proj.weight", "blk.4.ffn_down_exps.weight", "", true,
         2},
        {"model.layers.4.mlp.experts.gate_up_proj", "blk.4.ffn_gate_up_exps.weight",
         "blk.4.ffn_up_exps.weight", false, 2},
        {"model.layers.4.mlp.experts.down_proj", "blk.4.ffn_down_exps.weight", "", true, 2},
        {"model.layers.4.mlp.shared_expert.down_proj.weight", "blk.4.ffn_down_shexp.weight", "",
         true, 2},
        /* Phi 2, Phi 3 */
        {"model.layers.5.self_attn.dense.weight", "blk.5.attn_output.weight", "", true, 1},
        {"model.layers.5.mlp.fc1.weight", "blk.5.ffn_up.weight", "", false, 2},
        {"model.layers.5.mlp.fc2.weight", "blk.5.ffn_down.weight", "", true, 2},
        {"model.layers.5.self_attn.qkv_proj.weight", "blk.5.attn_qkv.weight", "", false, 1},
        {"model.layers.5.mlp.gate_up_proj.weight", "blk.5.ffn_up.weight", "", false, 2},
        /* DeepSeek */
        {"model.layers.6.self_attn.q_a_proj.weight", "blk.6.attn_q_a.weight", "", false, 1},
        /* GPT-2, with and without its head */
        {"transformer.h.11.attn.c_attn.weight", "blk.11.attn_qkv.weight", "", false, 1},
        {"h.11.attn.c_proj.weight", "blk.11.attn_output.weight", "", true, 1},
        {"h.0.mlp.c_fc.weight", "blk.0.ffn_up.weight", "", false, 2},
        {"h.0.mlp.c_proj.weight", "blk.0.ffn_down.weight", "", true, 2},
        {"wte.weight", "token_embd.weight", "output.weight", false, 0},
        /* GPT-NeoX */
        {"gpt_neox.layers.1.attention.query_key_value.weight", "blk.1.attn_qkv.weight", "", false,
         1},
        {"gpt_neox.layers.1.mlp.dense_4h_to_h.weight", "blk.1.ffn_down.weight", "", true, 2},
        {"embed_out.weight", "output.weight", "", false, 0},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        expect_name(names[i].tensor, names[i].llama, names[i].other, names[i].writes,
                    names[i].branch);
}

static void test_names_of_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {
        "",
        ".weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers..self_attn.q_proj.weight",
        "model.layers.01.self_attn.q_proj.weight",
        "model.layers.123456.self_attn.q_proj.weight",
        "model.layers.-1.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.weight.weight",
        "model.layers.0.self_attn.q_proj.extra.weight",
        "model.layers.0.weight",
        "model.layers.0.",
        "model.layers.0",
        "model.layers.0.block_sparse_moe.experts..w1.weight",
        "model.layers.0.block_sparse_moe.experts.1x.w1.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "xlm_head.weight",
    };
    uint64_t dims[] = {64, 32};
    struct llama_tensor l;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct st_tensor t = {.name = (char *)names[i], .rank = 2, .dims = dims, .elements = 2048};
        if (llama_tensor_of(&t, &l))
            fail_msg("%s: %s", names[i], l.names[0]);
    }
    struct st_tensor vector = {.name = "lm_head.weight", .rank = 1, .dims = dims, .elements = 64};
    assert_false(llama_tensor_of(&vector, &l));
}

/* ---- the formula ---- */

static void test_offsets(void **state)
{
    (void)state;
    /* Shares of the stream: 1/2, 1/2, 1/11, unknown, 1/2. */
    struct mk_branch b[] = {
        {.layer = 0, .kind = LLAMA_ATTENTION, .energy = 1, .peak = 50},
        {.layer = 0, .kind = LLAMA_FEED_FORWARD, .energy = 2, .peak = 2},
        {.layer = 1, .kind = LLAMA_ATTENTION, .energy = 0.4, .peak = 0.4},
        {.layer = 1, .kind = LLAMA_FEED_FORWARD, .db = 9, .known = true},
        {.layer = 2, .kind = LLAMA_FEED_FORWARD, .energy = 4.4, .peak = 44},
    };
    mk_importance_offsets(b, 5, 1);
    double half = 10 * log10(0.5), small = 10 * log10(0.4 / 4.4);
    assert_true(fabs(b[0].db - 0.8 * (half - small) / 2) < 1e-9);
    assert_true(fabs(b[2].db + 0.8 * (half - small) / 2) < 1e-9);
    assert_true(fabs(b[1].db) < 1e-9 && b[1].known);
    assert_false(b[3].known);
    /* 10 dB of peak, 5 above the mean, count half. */
    assert_true(fabs(b[4].db - 2.5) < 1e-9);
    /* At most the limit, whatever the file says. */
    struct mk_branch far[] = {
        {.layer = 0, .kind = LLAMA_ATTENTION, .energy = 1e300, .peak = 1e300},
        {.layer = 1, .kind = LLAMA_ATTENTION, .energy = 1e-300, .peak = 1e-300},
        {.layer = 2, .kind = LLAMA_ATTENTION, .energy = HUGE_VAL, .peak = 1},
        {.layer = 3, .kind = LLAMA_ATTENTION, .energy = 1, .peak = HUGE_VAL},
        {.layer = 4, .kind = LLAMA_FEED_FORWARD, .energy = 1, .peak = 1},
        {.layer = 5, .kind = LLAMA_FEED_FORWARD, .energy = 1, .peak = 1e300}};
    mk_importance_offsets(far, 6, 0);
    assert_true(far[0].db == MK_IMPORTANCE_LIMIT && far[1].db == -MK_IMPORTANCE_LIMIT);
    assert_false(far[2].known || far[3].known);
    assert_true(far[5].db == MK_IMPORTANCE_LIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_old_form),
        cmocka_unit_test(test_outlier),
        cmocka_unit_test(test_no_data),
        cmocka_unit_test(test_hash_is_of_the_content),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_mutated),
        cmocka_unit_test(test_bad_gguf),
        cmocka_unit_test(test_bad_old_form),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_names_of_nothing),
        cmocka_unit_test(test_offsets),
    };
    return cmocka_run_group_tests_name("imatrix", tests, NULL, NULL);
}
