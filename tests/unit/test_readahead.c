/* Decoding ahead, without a mount: if one of these fails, a loader waits for blocks that idle
 * cores could have decoded, or blocks are decoded twice, or the mount takes more memory than it
 * may, or cannot end. */
#include <time.h>

#include "fs/mount_read.c"
#include "fs/readahead.c"
#include "tests/unit/image_fixture.h"

#define MIB ((uint64_t)1 << 20)
#define SIZE (40 * MIB) /* of file 1: four segments; file 2 is of SMALL bytes */
enum { SMALL = 100000, SEGMENTS = 4, STEP = 128 << 10, READERS = 4 };

static uint8_t *content;
static const char *path;

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void write_segment(struct hfs_writer *w, uint32_t stored, const struct hc_code *code,
                          uint64_t start, uint64_t len, uint64_t at_file)
{
    struct hc_work *work = hc_work_new(hc_isa_best());
    struct hfs_error err = {{0}};
    struct hc_encoder *e;
    size_t full = hc_code_block_bytes(code), size;
    uint64_t number;
    uint8_t *coded = malloc(hc_code_bound(code, full));
    struct hfs_segment s = {.file_offset = at_file, .length = len, .kind = HFS_SEG_CODED};
    s.code = stored;
    s.first_block = hfs_writer_blocks(w);
    assert_true(work && coded && hc_encoder_new(code, &e) == 0);
    for (uint64_t at = start; at < start + len; at += full) {
        size_t n = (size_t)smallest(full, start + len - at);
        assert_int_equal(hc_encode(e, work, content + at, n, coded, &size, NULL, NULL), 0);
        assert_int_equal(
            hfs_writer_block(w, coded, (uint32_t)size, XXH3_64bits(content + at, n), &err), 0);
    }
    assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
    hc_encoder_free(e);
    hc_work_free(work);
    free(coded);
}

static int build(void **state)
{
    struct hc_code code = hc_lossless(HC_DTYPE_NONE, 1);
    struct hfs_error err = {{0}};
    uint64_t dice = 1;
    uint32_t number, stored;
    if (make_dir(state) < 0)
        return -1;
    path = strdup(in_dir("ahead.hyperfs"));
    content = malloc(SIZE + SMALL);
    assert_non_null(content);
    for (size_t i = 0; i < SIZE + SMALL; i++)
        content[i] = (uint8_t)next_random(&dice);
    struct hfs_writer *w = start(path, true);
    assert_int_equal(hfs_writer_code(w, &code, &stored, &err), 0);
    uint64_t at = 0;
    for (unsigned i = 0; i < SEGMENTS; i++) { /* segments begin and end amid pages */
        uint64_t end = i + 1 < SEGMENTS ? (i + 1) * SIZE / SEGMENTS + 1000 : SIZE;
        write_segment(w, stored, &code, at, end - at, at);
        at = end;
    }
    write_segment(w, stored, &code, SIZE, SMALL, 0);
    struct hfs_inode root = {.mode = S_IFDIR | 0755};
    struct hfs_inode file = {.mode = S_IFREG | 0644, .size = SIZE, .count = SEGMENTS};
    struct hfs_inode small = {.mode = S_IFREG | 0644, .size = SMALL, .count = 1};
    small.first = SEGMENTS;
    const struct hfs_dirent entries[] = {{"f", 1, 1}, {"g", 1, 2}};
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &number, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &file, NULL, &number, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &small, NULL, &number, &err), 0);
    assert_int_equal(hfs_writer_entries(w, 0, entries, 2, &err), 0);
    assert_int_equal(hfs_writer_meta(w, "writer", "test", &err), 0);
    assert_int_equal(hfs_writer_meta(w, "options", "", &err), 0);
    finish(w);
    alarm(120); /* a deadlock ends the program */
    return 0;
}

static int clean(void **state)
{
    free((void *)path);
    free(content);
    return remove_dir(state);
}

struct setting {
    struct hfs_image *img;
    struct hfs_reader *reader;
    struct hfs_ahead *ahead;
    struct hfs_inode file, small;
};

static void set_up(struct setting *s, size_t memory, unsigned threads)
{
    struct hfs_error err = {{0}};
    if (hfs_image_open(path, &s->img, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(hfs_reader_new(s->img, memory, 4, &s->reader), 0);
    assert_int_equal(hfs_ahead_new(s->reader, threads, &s->ahead), 0);
    hfs_image_inode(s->img, 1, &s->file);
    hfs_image_inode(s->img, 2, &s->small);
}

/* Ends decoding ahead and tells what was decoded. */
static struct hfs_reader_stats take_down(struct setting *s)
{
    struct hfs_reader_stats stats;
    struct hfs_cache_stats cache;
    hfs_ahead_free(s->ahead);
    hfs_reader_stats(s->reader, &stats);
    hfs_cache_stats(s->reader->cache, &cache);
    assert_int_equal(cache.held, 0);
    assert_true(cache.peak <= hfs_reader_capacity(s->reader) + 2 * MIB);
    hfs_reader_free(s->reader);
    hfs_image_close(s->img);
    return stats;
}

/* A request of the kernel; whether the bytes are right. */
static bool request(struct setting *s, const struct hfs_inode *ino, uint64_t offset, size_t size)
{
    struct hfs_read read;
    hfs_ahead_note(s->ahead, ino, offset, size);
    if (hfs_reader_read(s->reader, ino, offset, size, &read) < 0)
        return false;
    const uint8_t *at = content + (ino->number == 2 ? SIZE : 0) + offset, *from = at;
    bool right = true;
    for (int i = 0; i < read.count; i++) {
        right = right && memcmp(read.iov[i].iov_base, at, read.iov[i].iov_len) == 0;
        at += read.iov[i].iov_len;
    }
    hfs_reader_done(s->reader, &read);
    return right && (uint64_t)(at - from) == smallest(size, ino->size - offset);
}

static uint64_t decoded(struct setting *s)
{
    struct hfs_reader_stats stats;
    hfs_reader_stats(s->reader, &stats);
    return stats.decoded;
}

/* Waits for other threads to decode so many bytes in all. */
static bool decodes(struct setting *s, uint64_t bytes)
{
    for (time_t end = time(NULL) + 20; decoded(s) < bytes; sched_yield())
        if (time(NULL) > end)
            return false;
    return true;
}

static void assert_decoded_once(struct hfs_reader_stats stats, uint64_t delivered)
{
    assert_int_equal(stats.delivered, delivered);
    assert_true(stats.decoded <= delivered + delivered / 20);
}

static void test_stream_is_decoded_ahead_as_far_as_it_has_run(void **state)
{
    (void)state;
    struct setting s;
    set_up(&s, 64 * MIB, 2);
    for (uint64_t at = 0; at < 2 * MIB; at += STEP)
        assert_true(request(&s, &s.file, at, STEP));
    assert_true(decodes(&s, 3 * MIB));
    struct hfs_reader_stats stats = take_down(&s);
    assert_int_equal(stats.delivered, 2 * MIB);
    assert_true(stats.decoded <= 4 * MIB + HC_BYTES_BLOCK);
}

static void test_other_reads_and_small_files_are_no_streams(void **state)
{
    (void)state;
    struct setting s;
    uint64_t dice = 7, blocks = 0;
    set_up(&s, 256 * MIB, 2);
    for (uint64_t at = 0; at < SMALL; at += 4096)
        assert_true(request(&s, &s.small, at, 4096));
    blocks = decoded(&s);
    assert_int_equal(blocks, SMALL);
    for (int i = 0; i < 500; i++) {
        struct hfs_cache_stats before, after;
        uint64_t at = next_random(&dice) % (SIZE / 4096 - 16) * 4096;
        hfs_cache_stats(s.reader->cache, &before);
        assert_true(request(&s, &s.file, at, 64 << 10));
        hfs_cache_stats(s.reader->cache, &after);
        assert_true(after.fills - before.fills <= 3);
    }
    for (struct stream *t = s.ahead->streams; t < s.ahead->streams + HFS_STREAMS; t++)
        assert_int_equal(t->limit, 0);
    take_down(&s);
}

static void test_streams_side_by_side_decode_once(void **state)
{
    (void)state;
    struct setting s;
    set_up(&s, 64 * MIB, 2);
    for (uint64_t at = 0; at < SIZE / 4; at += STEP) /* through one descriptor, or many */
        for (uint64_t part = 0; part < 4; part++)
            assert_true(request(&s, &s.file, part * SIZE / 4 + at, STEP));
    unsigned confirmed = 0;
    for (struct stream *t = s.ahead->streams; t < s.ahead->streams + HFS_STREAMS; t++)
        confirmed += is_confirmed(t);
    assert_int_equal(confirmed, 4);
    assert_decoded_once(take_down(&s), SIZE);
}

static void test_requests_out_of_order_are_one_stream(void **state)
{
    (void)state;
    struct setting s;
    set_up(&s, 64 * MIB, 2);
    for (uint64_t at = 0; at < 4 * STEP; at += STEP)
        assert_true(request(&s, &s.file, at, STEP));
    for (uint64_t at = 4 * STEP; at < SIZE; at += 2 * STEP) {
        assert_true(request(&s, &s.file, at + STEP, STEP));
        assert_true(request(&s, &s.file, at, STEP));
    }
    assert_int_equal(s.ahead->generations, 1);
    assert_decoded_once(take_down(&s), SIZE);
}

static void test_backwards_decodes_once(void **state)
{
    (void)state;
    struct setting s;
    set_up(&s, 64 * MIB, 2);
    for (uint64_t from = SIZE; from > 0; from -= MIB)
        for (uint64_t at = from - MIB; at < from; at += STEP)
            assert_true(request(&s, &s.file, at, STEP));
    assert_decoded_once(take_down(&s), SIZE);
}

static void test_what_the_kernel_has_is_not_decoded_until_it_asks_again(void **state)
{
    (void)state;
    struct setting s;
    struct hfs_cache_key key;
    size_t len;
    set_up(&s, 64 * MIB, 1);
    for (uint64_t at = 0; at < SIZE; at += MIB)
        assert_true(request(&s, &s.file, at, MIB));
    hfs_reader_block(s.reader, &s.file, 20 * MIB, &key, &len);
    assert_int_equal(len, 0);
    assert_true(request(&s, &s.file, 0, MIB));
    hfs_reader_block(s.reader, &s.file, 20 * MIB, &key, &len);
    assert_int_equal(len, HC_BYTES_BLOCK);
    take_down(&s);
}

static void test_end_of_file(void **state)
{
    (void)state;
    struct setting s;
    set_up(&s, 64 * MIB, 2);
    for (uint64_t at = SIZE - 2 * MIB; at < SIZE; at += STEP)
        assert_true(request(&s, &s.file, at, STEP));
    assert_true(request(&s, &s.file, SIZE - 10, 4096));
    hfs_ahead_note(s.ahead, &s.file, SIZE, 4096);
    hfs_ahead_note(s.ahead, &s.file, UINT64_MAX, HFS_READ_MAX);
    struct hfs_reader_stats stats = take_down(&s);
    assert_true(stats.decoded <= 2 * MIB + HC_BYTES_BLOCK);
}

struct job {
    struct setting *s;
    uint64_t from, to;
    bool right;
};

static void *read_part(void *data)
{
    struct job *j = data;
    j->right = true;
    for (uint64_t at = j->from; at < j->to; at += STEP)
        j->right = request(j->s, &j->s->file, at, STEP) && j->right;
    return NULL;
}

static struct hfs_reader_stats run_readers(size_t memory, unsigned threads)
{
    struct setting s;
    struct job jobs[READERS];
    pthread_t readers[READERS];
    set_up(&s, memory, threads);
    for (unsigned i = 0; i < READERS; i++) {
        jobs[i] = (struct job){&s, i * SIZE / READERS, (i + 1) * SIZE / READERS, false};
        assert_int_equal(pthread_create(&readers[i], NULL, read_part, &jobs[i]), 0);
    }
    for (unsigned i = 0; i < READERS; i++) {
        pthread_join(readers[i], NULL);
        assert_true(jobs[i].right);
    }
    return take_down(&s);
}

static void test_readers_with_memory_decode_once(void **state)
{
    (void)state;
    assert_decoded_once(run_readers(256 * MIB, 1), SIZE);
    assert_decoded_once(run_readers(32 * MIB, 3), SIZE);
}

static void test_readers_in_a_cache_of_one_block(void **state)
{
    (void)state;
    assert_int_equal(run_readers(MIB, 2).delivered, SIZE);
}

static void test_damage_ahead_is_the_affair_of_who_reads_it(void **state)
{
    (void)state;
    struct setting s;
    struct hfs_read read;
    struct hfs_segment seg;
    struct hfs_block block;
    set_up(&s, 64 * MIB, 2);
    hfs_image_segment(s.img, 0, &seg);
    assert_int_equal(hfs_image_block(s.img, seg.first_block + 10, &block), 0);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, (long)block.offset + 100, SEEK_SET);
    int byte = fgetc(f);
    fseek(f, (long)block.offset + 100, SEEK_SET);
    fputc(byte ^ 1, f);
    fflush(f);
    for (uint64_t at = 0; at < 2 * MIB; at += STEP)
        assert_true(request(&s, &s.file, at, STEP));
    assert_true(decodes(&s, 3 * MIB));
    assert_int_equal(hfs_reader_read(s.reader, &s.file, 10 * HC_BYTES_BLOCK + 5, STEP, &read),
                     -EBADMSG);
    assert_int_equal(read.failed.index, 10);
    assert_true(request(&s, &s.file, 11 * HC_BYTES_BLOCK, STEP));
    fseek(f, (long)block.offset + 100, SEEK_SET);
    fputc(byte, f);
    fclose(f);
    assert_true(request(&s, &s.file, 10 * HC_BYTES_BLOCK, STEP));
    take_down(&s);
}

static void test_ends_while_it_decodes(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 50; round++) {
        struct setting s;
        set_up(&s, 64 * MIB, 1 + round % 3);
        for (uint64_t at = 0; at < MIB; at += STEP)
            hfs_ahead_note(s.ahead, &s.file, at, STEP);
        take_down(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_is_decoded_ahead_as_far_as_it_has_run),
        cmocka_unit_test(test_other_reads_and_small_files_are_no_streams),
        cmocka_unit_test(test_streams_side_by_side_decode_once),
        cmocka_unit_test(test_requests_out_of_order_are_one_stream),
        cmocka_unit_test(test_backwards_decodes_once),
        cmocka_unit_test(test_what_the_kernel_has_is_not_decoded_until_it_asks_again),
        cmocka_unit_test(test_end_of_file),
        cmocka_unit_test(test_readers_with_memory_decode_once),
        cmocka_unit_test(test_readers_in_a_cache_of_one_block),
        cmocka_unit_test(test_damage_ahead_is_the_affair_of_who_reads_it),
        cmocka_unit_test(test_ends_while_it_decodes),
    };
    return cmocka_run_group_tests(tests, build, clean);
}
