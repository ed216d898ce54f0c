/* Contract: fs/cache.h. One mutex guards everything but the bytes of the blocks. */
#include "fs/cache.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

/* Without this uthash ends the process when it finds no memory. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>
#include <utlist.h>

enum state { LOADING, READY, FAILED };

struct hfs_cache_entry {
    struct hfs_cache_key key;
    uint8_t *data;
    size_t len;
    size_t served; /* bytes handed out, of any part */
    unsigned refs; /* tickets that hold it */
    enum state state;
    int error;                           /* of FAILED */
    struct hfs_cache_entry *prev, *next; /* list of idle or of spent entries, while refs is 0 */
    UT_hash_handle hh;                   /* not in the hash once FAILED */
};

struct hfs_cache {
    pthread_mutex_t lock;
    pthread_cond_t filled; /* a block left LOADING */
    pthread_cond_t room;   /* `reserved` or `turn` changed */
    hfs_cache_fill fill;
    void *ctx;
    size_t capacity;
    size_t reserved; /* rooms of the tickets inside */
    size_t idle, held;
    uint64_t next_turn, turn; /* tickets are let in in the order in which they came */
    struct hfs_cache_entry *hash;
    struct hfs_cache_entry *spent;  /* list of idle entries that were handed out whole */
    struct hfs_cache_entry *oldest; /* list of the other idle entries, unused for longest first */
    size_t spent_bytes;             /* part of `idle` */
    struct hfs_cache_stats stats;
};

size_t hfs_cache_cost(size_t len)
{
    return len + sizeof(struct hfs_cache_entry);
}

int hfs_cache_new(size_t capacity, hfs_cache_fill fill, void *ctx, struct hfs_cache **out)
{
    struct hfs_cache *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->filled, NULL);
    pthread_cond_init(&c->room, NULL);
    c->fill = fill;
    c->ctx = ctx;
    c->capacity = capacity;
    *out = c;
    return 0;
}

static bool is_spent(const struct hfs_cache_entry *e)
{
    return e->served >= e->len;
}

static void list_idle(struct hfs_cache *c, struct hfs_cache_entry *e)
{
    size_t cost = hfs_cache_cost(e->len);
    c->idle += cost;
    if (is_spent(e)) {
        c->spent_bytes += cost;
        DL_APPEND(c->spent, e);
    } else {
        DL_APPEND(c->oldest, e);
    }
}

static void unlist_idle(struct hfs_cache *c, struct hfs_cache_entry *e)
{
    size_t cost = hfs_cache_cost(e->len);
    c->idle -= cost;
    if (is_spent(e)) {
        c->spent_bytes -= cost;
        DL_DELETE(c->spent, e);
    } else {
        DL_DELETE(c->oldest, e);
    }
}

static void free_entry(struct hfs_cache_entry *e)
{
    free(e->data);
    free(e);
}

/* Takes the entry to evict next out of the cache. */
static struct hfs_cache_entry *evict(struct hfs_cache *c)
{
    struct hfs_cache_entry *e = c->spent ? c->spent : c->oldest;
    unlist_idle(c, e);
    HASH_DEL(c->hash, e);
    return e;
}

/* Evicts idle blocks until `bytes` more can be held. What tickets hold fits, as they have been
 * let in, but for one that is larger than the whole. */
static void make_room(struct hfs_cache *c, size_t bytes)
{
    while (c->idle > 0 && (bytes > c->capacity || c->held > c->capacity - bytes ||
                           c->idle > c->capacity - bytes - c->held))
        free_entry(evict(c));
}

void hfs_cache_free(struct hfs_cache *c)
{
    if (!c)
        return;
    c->capacity = 0;
    make_room(c, 0);
    pthread_cond_destroy(&c->room);
    pthread_cond_destroy(&c->filled);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static void hold_bytes(struct hfs_cache *c, size_t bytes)
{
    c->held += bytes;
    if (c->idle + c->held > c->stats.peak)
        c->stats.peak = c->idle + c->held;
}

void hfs_cache_enter(struct hfs_cache *c, struct hfs_ticket *t, size_t room, size_t charged)
{
    t->room = room + charged;
    t->charged = charged;
    t->count = 0;
    pthread_mutex_lock(&c->lock);
    uint64_t turn = c->next_turn++;
    while (turn != c->turn ||
           (c->reserved > 0 && (c->reserved > c->capacity || t->room > c->capacity - c->reserved)))
        pthread_cond_wait(&c->room, &c->lock);
    c->turn++;
    c->reserved += t->room;
    make_room(c, charged);
    hold_bytes(c, charged);
    pthread_cond_broadcast(&c->room);
    pthread_mutex_unlock(&c->lock);
}

/* An entry with room for len bytes, not in the hash yet, or NULL. Where a block has to go or is
 * spent, its memory is used again: fresh memory costs a page fault for every 4 KiB. */
static struct hfs_cache_entry *make_entry(struct hfs_cache *c, size_t len)
{
    size_t cost = hfs_cache_cost(len);
    struct hfs_cache_entry *e = NULL;
    while (c->idle > 0 && !e &&
           (c->spent_bytes > HFS_CACHE_SPENT || c->idle + c->held + cost > c->capacity)) {
        e = evict(c);
        if (e->len != len) {
            free_entry(e);
            e = NULL;
        }
    }
    make_room(c, cost);
    uint8_t *data = e ? e->data : malloc(len);
    if (!e)
        e = malloc(sizeof *e);
    if (!data || !e) {
        free(data);
        free(e);
        return NULL;
    }
    *e = (struct hfs_cache_entry){.data = data, .len = len, .refs = 1, .state = LOADING};
    return e;
}

/* A new entry in the hash, LOADING and held once, or NULL. */
static struct hfs_cache_entry *insert(struct hfs_cache *c, const struct hfs_cache_key *key,
                                      size_t len)
{
    struct hfs_cache_entry *e = make_entry(c, len);
    if (!e)
        return NULL;
    e->key = *key;
    HASH_ADD(hh, c->hash, key, sizeof e->key, e);
    if (!e->hh.tbl) {
        free_entry(e);
        return NULL;
    }
    hold_bytes(c, hfs_cache_cost(len));
    return e;
}

/* Fills e. The lock is held on entry and on return, not in between. */
static void load(struct hfs_cache *c, struct hfs_cache_entry *e)
{
    pthread_mutex_unlock(&c->lock);
    int error = c->fill(c->ctx, &e->key, e->data, e->len);
    pthread_mutex_lock(&c->lock);
    c->stats.fills++;
    e->error = error;
    e->state = error ? FAILED : READY;
    if (error) {
        c->stats.failed++;
        HASH_DEL(c->hash, e);
    }
    pthread_cond_broadcast(&c->filled);
}

static void release(struct hfs_cache *c, struct hfs_cache_entry *e)
{
    if (--e->refs > 0)
        return;
    c->held -= hfs_cache_cost(e->len);
    if (e->state == FAILED)
        free_entry(e);
    else
        list_idle(c, e);
}

static void hold(struct hfs_cache *c, struct hfs_cache_entry *e)
{
    if (e->refs++ == 0) {
        unlist_idle(c, e);
        c->held += hfs_cache_cost(e->len);
    }
    while (e->state == LOADING)
        pthread_cond_wait(&c->filled, &c->lock);
}

int hfs_cache_get(struct hfs_cache *c, struct hfs_ticket *t, const struct hfs_cache_key *key,
                  size_t len, size_t wanted, const uint8_t **data)
{
    if (t->count == HFS_TICKET_BLOCKS)
        return -ENOBUFS;
    int error = 0;
    struct hfs_cache_entry *e = NULL;
    pthread_mutex_lock(&c->lock);
    HASH_FIND(hh, c->hash, key, sizeof *key, e);
    if (e) {
        c->stats.hits++;
        hold(c, e);
    } else {
        e = insert(c, key, len);
        if (e)
            load(c, e);
    }
    if (!e) {
        error = -ENOMEM;
    } else if (e->state == FAILED) {
        error = e->error;
        release(c, e);
    } else {
        e->served += wanted;
        t->held[t->count++] = e;
        *data = e->data;
    }
    pthread_mutex_unlock(&c->lock);
    return error;
}

void hfs_cache_drop(struct hfs_cache *c, struct hfs_ticket *t)
{
    pthread_mutex_lock(&c->lock);
    release(c, t->held[--t->count]);
    pthread_mutex_unlock(&c->lock);
}

void hfs_cache_leave(struct hfs_cache *c, struct hfs_ticket *t)
{
    pthread_mutex_lock(&c->lock);
    while (t->count > 0)
        release(c, t->held[--t->count]);
    c->held -= t->charged;
    c->reserved -= t->room;
    make_room(c, 0); /* after a ticket that was larger than the whole */
    pthread_cond_broadcast(&c->room);
    pthread_mutex_unlock(&c->lock);
}

int hfs_cache_ahead(struct hfs_cache *c, const struct hfs_cache_key *key, size_t len)
{
    int error = 0;
    size_t cost = hfs_cache_cost(len), half = c->capacity / 2;
    struct hfs_cache_entry *e = NULL;
    pthread_mutex_lock(&c->lock);
    HASH_FIND(hh, c->hash, key, sizeof *key, e);
    if (!e && (c->turn != c->next_turn || cost > half || c->reserved > half - cost)) {
        error = -EAGAIN;
    } else if (!e) {
        c->reserved += cost;
        e = insert(c, key, len);
        if (e) {
            load(c, e);
            error = e->error;
            release(c, e);
        } else {
            error = -ENOMEM;
        }
        c->reserved -= cost;
        pthread_cond_broadcast(&c->room);
    }
    pthread_mutex_unlock(&c->lock);
    return error;
}

void hfs_cache_stats(struct hfs_cache *c, struct hfs_cache_stats *out)
{
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    out->idle = c->idle;
    out->held = c->held;
    pthread_mutex_unlock(&c->lock);
}
