/* The cache of decoded blocks: if one of these fails, a mount hangs, takes more memory than it
 * was allowed, decodes twice, or hands out wrong bytes. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "fs/cache.h"

enum { BLOCK = 100 << 10, THREADS = 8 };

/* cmocka's assertions may not be used in other threads: those count what they find wrong. */
static atomic_uint fills, wrong;
static atomic_int fail_with; /* errno of the next fills */
static atomic_uint delay_us;

static uint8_t expected(const struct hfs_cache_key *key, size_t at)
{
    return (uint8_t)(key->segment * 31 + key->index * 7 + at);
}

static int fill(void *ctx, const struct hfs_cache_key *key, uint8_t *dst, size_t len)
{
    (void)ctx;
    atomic_fetch_add(&fills, 1);
    if (delay_us)
        usleep(delay_us);
    if (fail_with)
        return -fail_with;
    for (size_t i = 0; i < len; i++)
        dst[i] = expected(key, i);
    return 0;
}

static bool is_right(const struct hfs_cache_key *key, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (data[i] != expected(key, i))
            return false;
    return true;
}

static int set_up(void **state)
{
    (void)state;
    fills = wrong = 0;
    fail_with = 0;
    delay_us = 0;
    alarm(60); /* a deadlock ends the program */
    return 0;
}

static struct hfs_cache *make(size_t blocks)
{
    struct hfs_cache *c = NULL;
    assert_int_equal(hfs_cache_new(blocks * hfs_cache_cost(BLOCK), fill, NULL, &c), 0);
    return c;
}

/* Gets one block through a ticket of its own. */
static int visit(struct hfs_cache *c, uint64_t index, size_t wanted)
{
    struct hfs_cache_key key = {1, index};
    struct hfs_ticket t;
    const uint8_t *data;
    hfs_cache_enter(c, &t, hfs_cache_cost(BLOCK), 0);
    int error = hfs_cache_get(c, &t, &key, BLOCK, wanted, &data);
    if (error == 0 && !is_right(&key, data, BLOCK))
        atomic_fetch_add(&wrong, 1);
    hfs_cache_leave(c, &t);
    return error;
}

static void test_second_visit_is_a_hit(void **state)
{
    (void)state;
    struct hfs_cache *c = make(4);
    for (int i = 0; i < 3; i++)
        assert_int_equal(visit(c, 5, 10), 0);
    assert_int_equal(fills, 1);
    assert_int_equal(wrong, 0);
    hfs_cache_free(c);
}

struct job {
    struct hfs_cache *c;
    uint64_t seed;
    size_t capacity;
    int error;
};

static void *visit_block_9(void *data)
{
    struct job *j = data;
    j->error = visit(j->c, 9, BLOCK);
    return NULL;
}

static void run(void *(*body)(void *), struct job *jobs)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, body, &jobs[i]), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void test_many_want_one_block_it_is_filled_once(void **state)
{
    (void)state;
    struct hfs_cache *c = make(THREADS);
    struct job jobs[THREADS];
    for (int i = 0; i < THREADS; i++)
        jobs[i] = (struct job){.c = c};
    delay_us = 50000;
    run(visit_block_9, jobs);
    assert_int_equal(fills, 1);
    assert_int_equal(wrong, 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(jobs[i].error, 0);
    hfs_cache_free(c);
}

static void test_failure_reaches_all_and_is_forgotten(void **state)
{
    (void)state;
    struct hfs_cache *c = make(THREADS);
    struct hfs_cache_stats stats;
    struct job jobs[THREADS];
    for (int i = 0; i < THREADS; i++)
        jobs[i] = (struct job){.c = c};
    delay_us = 50000;
    fail_with = EBADMSG;
    run(visit_block_9, jobs);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(jobs[i].error, -EBADMSG);
    hfs_cache_stats(c, &stats);
    assert_int_equal(stats.idle + stats.held, 0);
    fail_with = 0;
    assert_int_equal(visit(c, 9, BLOCK), 0);
    assert_int_equal(wrong, 0);
    hfs_cache_free(c);
}

static void test_unused_for_longest_makes_room(void **state)
{
    (void)state;
    struct hfs_cache *c = make(3);
    visit(c, 0, 1);
    visit(c, 1, 1);
    visit(c, 0, 1);
    visit(c, 2, 1); /* fits beside 0 and 1 */
    visit(c, 3, 1); /* 1 goes */
    assert_int_equal(fills, 4);
    visit(c, 0, 1);
    assert_int_equal(fills, 4);
    visit(c, 1, 1);
    assert_int_equal(fills, 5);
    hfs_cache_free(c);
}

static void test_blocks_handed_out_whole_go_first(void **state)
{
    (void)state;
    struct hfs_cache *c = make(3);
    visit(c, 0, BLOCK / 2);
    visit(c, 1, BLOCK / 2);
    visit(c, 1, BLOCK / 2); /* now spent, and used after 0 */
    visit(c, 2, BLOCK / 2);
    visit(c, 3, BLOCK / 2);
    assert_int_equal(fills, 4);
    visit(c, 0, 0);
    assert_int_equal(fills, 4);
    visit(c, 1, 0);
    assert_int_equal(fills, 5);
    hfs_cache_free(c);
}

static void test_stream_stays_in_few_buffers(void **state)
{
    (void)state;
    size_t blocks = 4 * HFS_CACHE_SPENT / BLOCK;
    struct hfs_cache *c = make(blocks);
    struct hfs_cache_stats stats;
    for (uint64_t i = 0; i < blocks; i++)
        visit(c, i, BLOCK);
    hfs_cache_stats(c, &stats);
    assert_true(stats.peak < HFS_CACHE_SPENT + 4 * hfs_cache_cost(BLOCK));
    assert_int_equal(wrong, 0);
    hfs_cache_free(c);
}

static void test_ahead_fills_once_and_only_in_half_of_the_room(void **state)
{
    (void)state;
    struct hfs_cache *c = make(4);
    struct hfs_cache_key key[3] = {{1, 1}, {1, 2}, {1, 3}};
    struct hfs_cache_stats stats;
    struct hfs_ticket t;
    assert_int_equal(hfs_cache_ahead(c, &key[0], BLOCK), 0);
    assert_int_equal(hfs_cache_ahead(c, &key[0], BLOCK), 0);
    assert_int_equal(fills, 1);
    assert_int_equal(visit(c, 1, BLOCK), 0);
    assert_int_equal(fills, 1);
    hfs_cache_enter(c, &t, hfs_cache_cost(BLOCK), 0);
    assert_int_equal(hfs_cache_ahead(c, &key[1], BLOCK), 0);
    hfs_cache_leave(c, &t);
    hfs_cache_enter(c, &t, hfs_cache_cost(BLOCK) + 1, 0);
    assert_int_equal(hfs_cache_ahead(c, &key[2], BLOCK), -EAGAIN);
    hfs_cache_leave(c, &t);
    fail_with = EIO;
    assert_int_equal(hfs_cache_ahead(c, &key[2], BLOCK), -EIO);
    fail_with = 0;
    assert_int_equal(visit(c, 3, BLOCK), 0); /* the failure was not kept */
    hfs_cache_stats(c, &stats);
    assert_int_equal(stats.held, 0);
    assert_true(stats.peak <= 4 * hfs_cache_cost(BLOCK));
    assert_int_equal(wrong, 0);
    hfs_cache_free(c);
}

static void test_held_blocks_stay(void **state)
{
    (void)state;
    struct hfs_cache *c = make(3);
    struct hfs_cache_key key[2] = {{1, 100}, {1, 101}};
    const uint8_t *data[2];
    struct hfs_ticket t;
    hfs_cache_enter(c, &t, 2 * hfs_cache_cost(BLOCK), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(hfs_cache_get(c, &t, &key[i], BLOCK, BLOCK, &data[i]), 0);
    for (uint64_t i = 0; i < 20; i++)
        visit(c, i, 1); /* all through the one block of room that is left */
    assert_true(is_right(&key[0], data[0], BLOCK));
    assert_true(is_right(&key[1], data[1], BLOCK));
    hfs_cache_drop(c, &t);
    assert_true(is_right(&key[0], data[0], BLOCK));
    hfs_cache_leave(c, &t);
    hfs_cache_free(c);
}

static void test_charged_bytes_count(void **state)
{
    (void)state;
    struct hfs_cache *c = make(4);
    struct hfs_cache_stats stats;
    struct hfs_ticket t;
    for (uint64_t i = 0; i < 4; i++)
        visit(c, i, 1);
    hfs_cache_enter(c, &t, 0, 2 * BLOCK);
    hfs_cache_stats(c, &stats);
    assert_int_equal(stats.held, 2 * BLOCK);
    assert_int_equal(stats.idle, 2 * hfs_cache_cost(BLOCK));
    hfs_cache_leave(c, &t);
    hfs_cache_stats(c, &stats);
    assert_int_equal(stats.held, 0);
    hfs_cache_free(c);
}

static void test_full_ticket_is_refused(void **state)
{
    (void)state;
    struct hfs_cache *c = make(HFS_TICKET_BLOCKS + 1);
    struct hfs_ticket t;
    const uint8_t *data;
    hfs_cache_enter(c, &t, (HFS_TICKET_BLOCKS + 1) * hfs_cache_cost(1), 0);
    for (uint64_t i = 0; i <= HFS_TICKET_BLOCKS; i++) {
        struct hfs_cache_key key = {2, i};
        assert_int_equal(hfs_cache_get(c, &t, &key, 1, 1, &data),
                         i < HFS_TICKET_BLOCKS ? 0 : -ENOBUFS);
    }
    hfs_cache_leave(c, &t);
    hfs_cache_free(c);
}

/* Readers as a mount has them: several blocks of a few sizes each time, some let go early. */
static void *read_at_random(void *data)
{
    struct job *j = data;
    uint64_t x = j->seed;
    for (int round = 0; round < 200; round++) {
        struct hfs_cache_key keys[4];
        const uint8_t *bytes[4];
        size_t lens[4], room = 0;
        x = x * 6364136223846793005u + 1442695040888963407u;
        int n = 1 + (int)(x >> 60) % 4, held = 0;
        for (int i = 0; i < n; i++) {
            keys[i] = (struct hfs_cache_key){x >> 40 & 1, (x >> (8 * i) & 0xff) % 12};
            lens[i] = keys[i].index % 3 == 0 ? 700 : BLOCK; /* fixed for a key */
            room += hfs_cache_cost(lens[i]);
        }
        struct hfs_ticket t;
        hfs_cache_enter(j->c, &t, room, 0);
        for (int i = 0; i < n; i++)
            if (hfs_cache_get(j->c, &t, &keys[i], lens[i], lens[i] / 2, &bytes[held]) != 0)
                atomic_fetch_add(&wrong, 1);
            else if (x >> (20 + i) & 1 && i == n - 1)
                hfs_cache_drop(j->c, &t);
            else
                held++;
        for (int i = 0; i < held; i++)
            if (!is_right(&keys[i], bytes[i], lens[i]))
                atomic_fetch_add(&wrong, 1);
        hfs_cache_leave(j->c, &t);
        struct hfs_cache_stats stats;
        hfs_cache_stats(j->c, &stats);
        if (stats.peak > j->capacity)
            atomic_fetch_add(&wrong, 1);
    }
    return NULL;
}

static void stress(size_t blocks, size_t bound_blocks)
{
    const char *given = getenv("HYPERFS_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    print_message("seed: HYPERFS_SEED=%llu\n", (unsigned long long)seed);
    struct hfs_cache *c = make(blocks);
    struct hfs_cache_stats stats;
    struct job jobs[THREADS];
    for (int i = 0; i < THREADS; i++)
        jobs[i] = (struct job){
            .c = c, .seed = seed * 977 + i, .capacity = bound_blocks * hfs_cache_cost(BLOCK)};
    run(read_at_random, jobs);
    hfs_cache_stats(c, &stats);
    assert_int_equal(wrong, 0);
    assert_int_equal(stats.held, 0);
    assert_true(stats.idle <= blocks * hfs_cache_cost(BLOCK));
    hfs_cache_free(c);
}

static void test_stress_with_room(void **state)
{
    (void)state;
    stress(8, 8);
}

static void test_stress_with_room_for_one_block(void **state)
{
    (void)state;
    stress(1, 4); /* a ticket of four blocks is let in alone */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_second_visit_is_a_hit, set_up),
        cmocka_unit_test_setup(test_many_want_one_block_it_is_filled_once, set_up),
        cmocka_unit_test_setup(test_failure_reaches_all_and_is_forgotten, set_up),
        cmocka_unit_test_setup(test_unused_for_longest_makes_room, set_up),
        cmocka_unit_test_setup(test_blocks_handed_out_whole_go_first, set_up),
        cmocka_unit_test_setup(test_stream_stays_in_few_buffers, set_up),
        cmocka_unit_test_setup(test_ahead_fills_once_and_only_in_half_of_the_room, set_up),
        cmocka_unit_test_setup(test_held_blocks_stay, set_up),
        cmocka_unit_test_setup(test_charged_bytes_count, set_up),
        cmocka_unit_test_setup(test_full_ticket_is_refused, set_up),
        cmocka_unit_test_setup(test_stress_with_room, set_up),
        cmocka_unit_test_setup(test_stress_with_room_for_one_block, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
