/* If these fail, a good model is refused, or a damaged or hostile one is cut at wrong places. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "codec/bytes.h"
#include "mkhyperfs/safetensors.h"

/* A file in memory: length, header, `data` bytes of zeros. */
static int make_file(uint64_t length, const char *header, size_t header_len, uint64_t data)
{
    int fd = memfd_create("model.safetensors", MFD_CLOEXEC);
    uint8_t first[8];
    assert_true(fd >= 0);
    store64(first, length);
    assert_int_equal(write(fd, first, 8), 8);
    assert_int_equal(write(fd, header, header_len), header_len);
    assert_int_equal(ftruncate(fd, (off_t)(8 + header_len + data)), 0);
    return fd;
}

static int read_header(const char *header, uint64_t data, struct st_header *h,
                       struct hfs_error *err)
{
    size_t len = strlen(header);
    int fd = make_file(len, header, len, data);
    memset(err, 0, sizeof *err);
    int r = st_read(fd, 8 + len + data, "model.safetensors", h, err);
    close(fd);
    return r;
}

static void accept_header(const char *header, uint64_t data, struct st_header *h)
{
    struct hfs_error err;
    int r = read_header(header, data, h, &err);
    if (r < 0)
        fail_msg("refused: %s\n%s", header, err.text);
}

/* The sentence names the file, the byte, and has `reason` in it. */
static void refuse(const char *header, uint64_t data, unsigned byte, const char *reason)
{
    struct hfs_error err;
    struct st_header h;
    char start[64];
    int r = read_header(header, data, &h, &err);
    if (r != -EBADMSG)
        fail_msg("%d instead of a refusal: %.200s", r, header);
    snprintf(start, sizeof start, "model.safetensors: byte %u: ", byte);
    if (strncmp(err.text, start, strlen(start)) != 0 || !strstr(err.text, reason))
        fail_msg("expected \"%s...%s\", got \"%s\"\n%.200s", start, reason, err.text, header);
    assert_int_equal(h.count, 0);
    assert_null(h.tensors);
}

#define TENSOR(name, dtype, shape, begin, end)                                                     \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin        \
    "," #end "]}"

static void test_tensors_come_in_the_order_of_their_data(void **state)
{
    (void)state;
    struct st_header h;
    const char *text = "{" TENSOR(
        "b", "F32", "2,3", 6, 30) ","
                                  "\"__metadata__\":{\"format\":\"pt\",\"x\":\"\\u00e9\"}," TENSOR(
                                      "a", "BF16", "3", 0, 6) "}   ";
    accept_header(text, 24 + 6, &h);
    uint64_t start = 8 + strlen(text);
    assert_int_equal(h.bytes, start);
    assert_int_equal(h.count, 2);
    assert_string_equal(h.tensors[0].name, "a");
    assert_int_equal(h.tensors[0].dtype, HC_BF16);
    assert_int_equal(h.tensors[0].begin, start);
    assert_int_equal(h.tensors[0].end, start + 6);
    assert_string_equal(h.tensors[1].name, "b");
    assert_int_equal(h.tensors[1].rank, 2);
    assert_int_equal(h.tensors[1].dims[0], 2);
    assert_int_equal(h.tensors[1].dims[1], 3);
    assert_int_equal(h.tensors[1].elements, 6);
    assert_int_equal(h.tensors[1].end, start + 30);
    st_free(&h);
}

static void test_every_dtype_of_the_format(void **state)
{
    (void)state;
    for (unsigned d = 1; d < HC_DTYPE_COUNT; d++) {
        char text[200];
        struct st_header h;
        unsigned bytes = hc_dtype_bits((enum hc_dtype)d); /* of 8 elements */
        snprintf(text, sizeof text,
                 "{\"t\":{\"dtype\":\"%s\",\"shape\":[8],\"data_offsets\":[0,%u]}}",
                 hc_dtype_name(d), bytes);
        accept_header(text, bytes, &h);
        assert_int_equal(h.tensors[0].dtype, d);
        st_free(&h);
    }
}

static void test_empty_and_rank_0_tensors(void **state)
{
    (void)state;
    struct st_header h;
    accept_header("{}", 0, &h);
    assert_int_equal(h.count, 0);
    st_free(&h);
    accept_header("{" TENSOR("a", "F32", "", 0, 4) "," TENSOR("e", "F32", "0,7", 4, 4) "," TENSOR(
                      "b", "U8", "1", 4, 5) "," TENSOR("z", "F64", "0", 5, 5) "}",
                  5, &h);
    assert_int_equal(h.count, 4);
    assert_int_equal(h.tensors[0].elements, 1);
    assert_int_equal(h.tensors[0].rank, 0);
    assert_string_equal(h.tensors[1].name, "e");
    assert_int_equal(h.tensors[1].elements, 0);
    assert_string_equal(h.tensors[2].name, "b");
    st_free(&h);
}

static void test_json_with_white_space_and_escapes(void **state)
{
    (void)state;
    struct st_header h;
    accept_header("{ \"\\u0061\\\"\" :\n {\"shape\" : [ 2 ] , \"dtype\":\"U8\",\t\"data_offsets\":"
                  "[0, 2], \"more\": null}\r\n}",
                  2, &h);
    assert_string_equal(h.tensors[0].name, "a\"");
    st_free(&h);
}

static void test_bad_lengths(void **state)
{
    (void)state;
    static const struct {
        uint64_t length;
        const char *reason;
    } bad[] = {
        {100000001, "100000001 bytes, more than the format's"},
        {UINT64_MAX, "more than the format's"},
        {100000000, "but only 2 follow"},
        {3, "but only 2 follow"},
        {0, "does not begin with '{'"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hfs_error err = {0};
        struct st_header h;
        int fd = make_file(bad[i].length, "{}", 2, 0);
        assert_int_equal(st_read(fd, 10, "m", &h, &err), -EBADMSG);
        if (!strstr(err.text, bad[i].reason) || strncmp(err.text, "m: byte ", 8) != 0)
            fail_msg("expected \"%s\", got \"%s\"", bad[i].reason, err.text);
        close(fd);
    }
    for (uint64_t size = 0; size < 8; size++) {
        struct hfs_error err = {0};
        struct st_header h;
        int fd = make_file(0, "", 0, 0);
        assert_int_equal(ftruncate(fd, (off_t)size), 0);
        assert_int_equal(st_read(fd, size, "m", &h, &err), -EBADMSG);
        close(fd);
    }
}

static void test_a_git_lfs_pointer_is_called_by_its_name(void **state)
{
    (void)state;
    struct hfs_error err = {0};
    struct st_header h;
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    int fd = memfd_create("m", MFD_CLOEXEC);
    assert_int_equal(write(fd, pointer, sizeof pointer - 1), sizeof pointer - 1);
    assert_int_equal(st_read(fd, sizeof pointer - 1, "m", &h, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "Git LFS pointer"));
    close(fd);
}

static void test_damaged_json(void **state)
{
    (void)state;
    refuse("", 0, 8, "does not begin with '{'");
    refuse("[]", 0, 8, "does not begin with '{'");
    refuse(" {}", 0, 8, "does not begin with '{'");
    refuse("{", 0, 9, "the header ends before");
    refuse("{}x", 0, 10, "something other than spaces");
    refuse("{}\n", 0, 10, "something other than spaces");
    refuse("{} {}", 0, 11, "something other than spaces");
    refuse("{1:2}", 0, 9, "a tensor's name");
    refuse("{\"a\"}", 0, 12, "':'");
    refuse("{\"a\":1}", 0, 13, "a tensor's description");
    refuse("{\"a\":{]}", 0, 14, "damaged");
    refuse("{\"a\":{\"dtype\":tru}}", 0, 25, "damaged");
    refuse("{\"a\":{\"dtype\"", 0, 21, "the header ends within");
    refuse("{\"a", 0, 11, "the header ends within");
    refuse("{\"a\xff\":{}}", 0, 11, "damaged");
    refuse("{\"a\\u0000b\":{}}", 0, 18, "damaged");
    refuse("{" TENSOR("a", "U8", "1", 0, 1) ",}", 1, 61, "a tensor's name");
    refuse("{" TENSOR("a", "U8", "1", 0, 1) TENSOR("b", "U8", "1", 1, 2) "}", 2, 60, "','");
    refuse("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
           33, "duplicate");
}

static void test_damaged_metadata(void **state)
{
    (void)state;
    refuse("{\"__metadata__\":null}", 0, 24, "maps strings to strings");
    refuse("{\"__metadata__\":{\"a\":1}}", 0, 29, "a value of __metadata__");
    refuse("{\"__metadata__\":{\"a\":{}}}", 0, 29, "a value of __metadata__");
    refuse("{\"__metadata__\":{\"a\":\"b\",}}", 0, 33, "a key of __metadata__");
    refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, 27, "a second time");
}

static void test_wrong_tensors(void **state)
{
    (void)state;
    refuse("{" TENSOR("a", "F99", "1", 0, 1) "}", 1, 9, "unknown dtype F99");
    refuse("{" TENSOR("a", "f32", "1", 0, 4) "}", 4, 9, "unknown dtype f32");
    refuse("{\"a\":{\"shape\":[],\"data_offsets\":[0,1]}}", 1, 9, "no \"dtype\"");
    refuse("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, 9, "no \"shape\"");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, 9, "no \"data_offsets\"");
    refuse("{" TENSOR("a", "U8", "-1", 0, 1) "}", 1, 9, "no natural number");
    refuse("{" TENSOR("a", "U8", "1.0", 0, 1) "}", 1, 9, "no natural number");
    refuse("{" TENSOR("a", "U8", "1", 0, 1.5) "}", 1, 9, "data_offsets");
    refuse("{" TENSOR("a", "U8", "1", -1, 0) "}", 1, 9, "data_offsets");
    refuse("{" TENSOR("a", "U8", "1", 1, 0) "}", 1, 9, "before it begins");
    refuse("{" TENSOR("a", "U8", "2", 0, 2) "}", 1, 9, "which has 1");
    refuse("{" TENSOR("a", "U8", "2", 0, 1) "}", 1, 9, "its shape needs 2");
    refuse("{" TENSOR("a", "F4", "3", 0, 1) "}", 1, 9, "no whole bytes");
    refuse("{" TENSOR("a", "U8", "4294967296,4294967296", 0, 0) "}", 0, 9, "64 bits");
    refuse("{" TENSOR("a", "F64", "4611686018427387904", 0, 0) "}", 0, 9, "64 bits");
    refuse("{" TENSOR("a", "U8", "99999999999999999999", 0, 0) "}", 0, 56, "damaged");
    refuse("{" TENSOR("a", "U8", "1", 0, 1) "," TENSOR("a", "U8", "1", 1, 2) "}", 2, 61,
           "a second time");
}

static void test_tensors_tile_the_data(void **state)
{
    (void)state;
    refuse("{" TENSOR("a", "U8", "2", 0, 2) "," TENSOR("b", "U8", "2", 1, 3) "}", 3, 61, "overlap");
    refuse("{" TENSOR("a", "U8", "2", 0, 2) "," TENSOR("b", "U8", "2", 0, 2) "}", 2, 61, "overlap");
    refuse("{" TENSOR("a", "U8", "1", 0, 1) "," TENSOR("b", "U8", "1", 2, 3) "}", 3, 61,
           "1 bytes before tensor b belong to no tensor");
    refuse("{" TENSOR("a", "U8", "1", 1, 2) "}", 2, 9, "belong to no tensor");
    refuse("{" TENSOR("a", "U8", "1", 0, 1) "}", 3, 62, "belong to no tensor");
    refuse("{" TENSOR("a", "U8", "3", 0, 3) "," TENSOR("e", "U8", "0", 1, 1) "}", 3, 61, "overlap");
    refuse("{}", 1, 10, "belong to no tensor");
}

static void test_a_description_may_not_be_endless(void **state)
{
    (void)state;
    enum { DIMS = 700000 };
    char *text = malloc(2 * DIMS + 200), *p = text;
    p = stpcpy(p, "{\"a\":{\"dtype\":\"U8\",\"shape\":[");
    for (unsigned i = 0; i < DIMS; i++)
        p = stpcpy(p, "1,");
    stpcpy(p, "1],\"data_offsets\":[0,1]}}");
    refuse(text, 1, 13, "is longer than 1048576 bytes");
    free(text);
}

static void test_deep_nesting_is_refused(void **state)
{
    (void)state;
    enum { DEEP = 100000 };
    char *text = malloc(DEEP + 20), *p = stpcpy(text, "{\"a\":{\"x\":");
    memset(p, '[', DEEP);
    p[DEEP] = 0;
    struct st_header h;
    struct hfs_error err;
    assert_int_equal(read_header(text, 0, &h, &err), -EBADMSG);
    free(text);
}

static void test_a_file_that_shrinks_is_no_broken_one(void **state)
{
    (void)state;
    struct hfs_error err = {0};
    struct st_header h;
    int fd = make_file(200000, "{\"a", 3, 0);
    assert_int_equal(st_read(fd, 200008, "m", &h, &err), -ESTALE);
    close(fd);
}

/* What is accepted covers the data without gaps, whatever bytes the header has. */
static void check_cover(const struct st_header *h, uint64_t size)
{
    uint64_t at = h->bytes;
    for (size_t i = 0; i < h->count; i++) {
        const struct st_tensor *t = &h->tensors[i];
        assert_int_equal(t->begin, at);
        assert_true(t->end >= t->begin);
        assert_int_equal(t->elements * hc_dtype_bits(t->dtype), 8 * (t->end - t->begin));
        at = t->end;
    }
    assert_int_equal(at, size);
}

static void test_mutated_headers(void **state)
{
    (void)state;
    static const char good[] =
        "{\"__metadata__\":{\"format\":\"pt\"}," TENSOR("a.weight", "F32", "2,3", 0, 24) "," TENSOR(
            "b", "BF16", "4", 24, 32) "," TENSOR("c", "U8", "", 32, 33) "}  ";
    enum { LEN = sizeof good - 1, DATA = 33, ROUNDS = 20000 };
    const char *given = getenv("HYPERFS_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    unsigned accepted = 0;
    print_message("# seed: HYPERFS_SEED=%u\n", seed);
    srand(seed);
    for (unsigned round = 0; round < ROUNDS; round++) {
        char text[LEN];
        struct st_header h;
        struct hfs_error err = {0};
        memcpy(text, good, LEN);
        for (int k = rand() % 3; k >= 0; k--) {
            char *at = &text[rand() % LEN];
            *at = rand() % 2 ? (char)rand() : good[rand() % LEN];
        }
        size_t len = rand() % 8 ? LEN : (size_t)(rand() % LEN);
        int fd = make_file(len, text, len, DATA);
        int r = st_read(fd, 8 + len + DATA, "m", &h, &err);
        close(fd);
        if (r == 0) {
            check_cover(&h, 8 + len + DATA);
            st_free(&h);
            accepted++;
        } else {
            assert_int_equal(r, -EBADMSG);
            assert_int_equal(strncmp(err.text, "m: byte ", 8), 0);
        }
    }
    assert_true(accepted > 0 && accepted < ROUNDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_come_in_the_order_of_their_data),
        cmocka_unit_test(test_every_dtype_of_the_format),
        cmocka_unit_test(test_empty_and_rank_0_tensors),
        cmocka_unit_test(test_json_with_white_space_and_escapes),
        cmocka_unit_test(test_bad_lengths),
        cmocka_unit_test(test_a_git_lfs_pointer_is_called_by_its_name),
        cmocka_unit_test(test_damaged_json),
        cmocka_unit_test(test_damaged_metadata),
        cmocka_unit_test(test_wrong_tensors),
        cmocka_unit_test(test_tensors_tile_the_data),
        cmocka_unit_test(test_a_description_may_not_be_endless),
        cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_a_file_that_shrinks_is_no_broken_one),
        cmocka_unit_test(test_mutated_headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
