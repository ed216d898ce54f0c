/* The read path of the mount, without a mount: any piece of a file, however it is cut into
 * segments, zero runs and blocks of different sizes, is what went in. mkhyperfs does not write
 * all of what the format allows; here it is. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "fs/mount_read.c"
#include "tests/unit/image_fixture.h"

enum { SIZE = 6 << 20, THREADS = 4, ROUNDS = 300 };

static uint8_t content[SIZE];
static uint64_t seed;
static const char *path;

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void encode(struct hfs_writer *w, const struct hc_code *code, size_t start, size_t len)
{
    struct hc_work *work = hc_work_new(hc_isa_best());
    struct hfs_error err = {{0}};
    struct hc_encoder *e;
    size_t full = hc_code_block_bytes(code), size;
    uint8_t *coded = malloc(hc_code_bound(code, full));
    assert_true(work && coded && hc_encoder_new(code, &e) == 0);
    for (size_t at = start; at < start + len; at += full) {
        size_t n = start + len - at < full ? start + len - at : full;
        assert_int_equal(hc_encode(e, work, content + at, n, coded, &size, NULL, NULL), 0);
        assert_int_equal(
            hfs_writer_block(w, coded, (uint32_t)size, XXH3_64bits(content + at, n), &err), 0);
    }
    hc_encoder_free(e);
    hc_work_free(work);
    free(coded);
}

/* Segments of random kinds and lengths: hundreds of a few bytes in the first 20,000, then up to
 * three blocks long. */
static uint32_t write_file_content(struct hfs_writer *w)
{
    struct hc_code codes[] = {hc_lossless(HC_DTYPE_NONE, 1), hc_lossless(HC_BF16, 1),
                              hc_lossless(HC_F64, 1)};
    struct hfs_error err = {{0}};
    uint64_t state = seed, number;
    uint32_t count = 0, stored[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(hfs_writer_code(w, &codes[i], &stored[i], &err), 0);
    for (size_t at = 0, len; at < SIZE; at += len, count++) {
        size_t pick = next(&state) % 4;
        len = 8 * (1 + next(&state) % (at < 20000 ? 6 : at % 3 == 0 ? 400 : 100000));
        if (pick == 0)
            len -= next(&state) % 8; /* plain bytes are of any length */
        if (len > SIZE - at || SIZE - at < 1000)
            len = SIZE - at, pick = 0;
        struct hfs_segment s = {.file_offset = at, .length = len, .kind = HFS_SEG_ZERO};
        if (pick < 3) {
            for (size_t i = 0; i < len; i++)
                content[at + i] = (uint8_t)next(&state);
            s.kind = HFS_SEG_CODED;
            s.code = stored[pick];
            s.first_block = hfs_writer_blocks(w);
            encode(w, &codes[pick], at, len);
        }
        assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
    }
    return count;
}

static int build(void **state)
{
    const char *given = getenv("HYPERFS_SEED");
    struct hfs_error err = {{0}};
    uint32_t number;
    if (make_dir(state) < 0)
        return -1;
    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    print_message("seed: HYPERFS_SEED=%llu\n", (unsigned long long)seed);
    path = strdup(in_dir("read.hyperfs"));
    struct hfs_writer *w = start(path, true);
    struct hfs_inode root = {.mode = S_IFDIR | 0755};
    struct hfs_inode file = {.mode = S_IFREG | 0644, .size = SIZE, .count = write_file_content(w)};
    const struct hfs_dirent entry = {"f", 1, 1};
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &number, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &file, NULL, &number, &err), 0);
    assert_int_equal(hfs_writer_entries(w, 0, &entry, 1, &err), 0);
    assert_int_equal(hfs_writer_meta(w, "writer", "test", &err), 0);
    assert_int_equal(hfs_writer_meta(w, "options", "", &err), 0);
    finish(w);
    alarm(120); /* a deadlock ends the program */
    return 0;
}

static int clean(void **state)
{
    free((void *)path);
    return remove_dir(state);
}

struct reading {
    struct hfs_image *img;
    struct hfs_reader *reader;
    struct hfs_inode ino;
};

static void open_reading(struct reading *r, size_t memory, unsigned decoders)
{
    struct hfs_error err = {{0}};
    if (hfs_image_open(path, &r->img, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(hfs_reader_new(r->img, memory, decoders, &r->reader), 0);
    hfs_image_inode(r->img, 1, &r->ino);
}

static void close_reading(struct reading *r)
{
    struct hfs_cache_stats stats;
    hfs_cache_stats(r->reader->cache, &stats);
    assert_int_equal(stats.held, 0);
    hfs_reader_free(r->reader);
    hfs_image_close(r->img);
}

/* Reads and compares; false if a byte differs or the length does. */
static bool reads_right(struct reading *r, uint64_t offset, size_t size)
{
    struct hfs_read read;
    if (hfs_reader_read(r->reader, &r->ino, offset, size, &read) < 0)
        return false;
    size_t left = offset < SIZE ? SIZE - (size_t)offset : 0, at = (size_t)offset;
    bool right = read.count <= HFS_READ_PIECES;
    for (int i = 0; i < read.count; i++) {
        right = right && memcmp(read.iov[i].iov_base, content + at, read.iov[i].iov_len) == 0;
        at += read.iov[i].iov_len;
    }
    hfs_reader_done(r->reader, &read);
    return right && at - offset == (size < left ? size : left);
}

static void test_whole_file_in_steps_of_any_size(void **state)
{
    (void)state;
    static const size_t steps[] = {4096, 131072, HFS_READ_MAX, 99991};
    struct reading r;
    open_reading(&r, 64 << 20, 4);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        for (uint64_t at = 0; at < SIZE + 10; at += steps[i])
            assert_true(reads_right(&r, at, steps[i]));
    close_reading(&r);
}

static void test_edges(void **state)
{
    (void)state;
    struct reading r;
    struct hfs_read read;
    open_reading(&r, 1 << 20, 1);
    assert_true(reads_right(&r, 0, 0));
    assert_true(reads_right(&r, 0, 1));
    assert_true(reads_right(&r, SIZE - 1, 10));
    assert_true(reads_right(&r, SIZE, 10));
    assert_true(reads_right(&r, UINT64_MAX, HFS_READ_MAX));
    assert_int_equal(hfs_reader_read(r.reader, &r.ino, 0, HFS_READ_MAX + 1, &read), -EINVAL);
    close_reading(&r);
}

struct job {
    struct reading *r;
    uint64_t state;
    bool right;
};

static void *read_at_random(void *data)
{
    struct job *j = data;
    j->right = true;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t at = next(&j->state) % (i % 4 == 0 ? 30000 : SIZE);
        j->right = reads_right(j->r, at, 1 + next(&j->state) % HFS_READ_MAX) && j->right;
    }
    return NULL;
}

static void run_threads(size_t memory, unsigned decoders)
{
    struct reading r;
    struct job jobs[THREADS];
    pthread_t threads[THREADS];
    open_reading(&r, memory, decoders);
    for (unsigned i = 0; i < THREADS; i++) {
        jobs[i] = (struct job){.r = &r, .state = seed + i};
        assert_int_equal(pthread_create(&threads[i], NULL, read_at_random, &jobs[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(jobs[i].right);
    }
    close_reading(&r);
}

static void test_threads_with_one_decoder_and_no_memory(void **state)
{
    (void)state;
    run_threads(1 << 20, 1);
}

static void test_threads_with_memory(void **state)
{
    (void)state;
    run_threads(64 << 20, 8);
}

static void test_damaged_block_is_named_and_the_rest_is_read(void **state)
{
    (void)state;
    struct reading r;
    struct hfs_read read;
    struct hfs_block block;
    struct hfs_segment seg;
    open_reading(&r, 8 << 20, 2);
    uint64_t number = hfs_image_find_segment(r.img, &r.ino, SIZE / 2);
    do
        hfs_image_segment(r.img, number++, &seg);
    while (seg.kind != HFS_SEG_CODED || seg.length < 100000);
    assert_int_equal(hfs_image_block(r.img, seg.first_block, &block), 0);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, (long)block.offset + 5, SEEK_SET);
    int byte = fgetc(f);
    fseek(f, (long)block.offset + 5, SEEK_SET);
    fputc(byte ^ 1, f);
    fflush(f);
    uint64_t middle = seg.file_offset + 50000;
    assert_int_equal(hfs_reader_read(r.reader, &r.ino, middle, 100, &read), -EBADMSG);
    assert_int_equal(read.failed.segment, number - 1);
    assert_int_equal(read.failed.index, 0);
    assert_true(reads_right(&r, seg.file_offset - 100, 100));
    fseek(f, (long)block.offset + 5, SEEK_SET);
    fputc(byte, f);
    fclose(f);
    assert_true(reads_right(&r, middle, 100)); /* the failure was not kept */
    close_reading(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_file_in_steps_of_any_size),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_threads_with_one_decoder_and_no_memory),
        cmocka_unit_test(test_threads_with_memory),
        cmocka_unit_test(test_damaged_block_is_named_and_the_rest_is_read),
    };
    return cmocka_run_group_tests(tests, build, clean);
}
