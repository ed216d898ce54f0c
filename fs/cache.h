/* A bounded cache of decoded blocks.
 *
 * Blocks are keyed by segment and place in the segment and made by a fill function that the
 * owner gives. A block that several threads want at once is filled once: the first thread
 * fills it, the others wait for that. A block whose fill fails is reported to all who waited
 * and forgotten, so the next get tries again.
 *
 * A thread works through a ticket:
 *
 *   hfs_cache_enter   waits until all that the ticket may hold at one time can be had, first
 *                     come, first served; nothing is held while it waits
 *   hfs_cache_get     finds or fills a block and holds it: its bytes stay where they are
 *   hfs_cache_drop    lets go of the block got last, before the others
 *   hfs_cache_leave   lets go of everything; the blocks stay in the cache, idle
 *
 * No lock is held between the calls, so a reply may be written straight from held blocks.
 *
 * Memory: blocks held, blocks idle and what tickets charge are together at most `capacity`
 * bytes. There is one exception, which keeps the smallest cache working: a ticket larger than
 * the whole capacity is let in when no other is, and then has the cache for itself. Idle blocks
 * make room: first those that have been handed out to the last byte, which the kernel's page
 * cache has now, then the one unused for longest. Of the first kind no more than HFS_CACHE_SPENT
 * bytes are kept once a new block can use the memory: a stream then runs through the same few
 * buffers, for a sixth less processor time than through fresh ones.
 *
 * Why this cannot deadlock: room is granted whole before a ticket holds anything, and a thread
 * that fills a block waits for nobody else's ticket. A fill may wait for other fills to end
 * (for scratch memory), never for a ticket. One thread has one ticket at a time.
 *
 * A thread that decodes ahead of readers has no ticket: hfs_cache_ahead fills a block and leaves
 * it idle, if that takes no room from a ticket and nobody else fills it already.
 *
 * Threads: all functions but new and free may be called from several threads at once; a ticket
 * belongs to one thread.
 */
#ifndef HYPERFS_FS_CACHE_H
#define HYPERFS_FS_CACHE_H

#include <stddef.h>
#include <stdint.h>

struct hfs_cache;
struct hfs_cache_entry;

/* The struct has no padding: it is hashed as bytes. */
struct hfs_cache_key {
    uint64_t segment; /* number of the segment in the image */
    uint64_t index;   /* block of the segment, 0 = first */
};

/* Writes exactly len bytes of block `key` to dst; 0, or a negative errno. Called without a
 * lock, from the thread that asked. */
typedef int (*hfs_cache_fill)(void *ctx, const struct hfs_cache_key *key, uint8_t *dst, size_t len);

enum { HFS_CACHE_SPENT = 8 << 20 };
enum { HFS_TICKET_BLOCKS = 96 }; /* blocks that a ticket can hold */

struct hfs_ticket {
    size_t room, charged;
    unsigned count;
    struct hfs_cache_entry *held[HFS_TICKET_BLOCKS];
};

struct hfs_cache_stats {
    size_t idle, held; /* bytes now */
    size_t peak;       /* their largest sum so far */
    uint64_t hits, fills, failed;
};

/* -ENOMEM is the only error. */
int hfs_cache_new(size_t capacity, hfs_cache_fill fill, void *ctx, struct hfs_cache **out);
/* No ticket may be in use. NULL is allowed. */
void hfs_cache_free(struct hfs_cache *c);

/* What a block of len bytes counts as: its bytes and its bookkeeping. */
size_t hfs_cache_cost(size_t len);

/* room: the largest sum of hfs_cache_cost() of the blocks that the ticket will hold at one time.
 * charged: bytes that the caller allocates by itself until it leaves, counted as held. */
void hfs_cache_enter(struct hfs_cache *c, struct hfs_ticket *t, size_t room, size_t charged);

/* Holds block `key` of len bytes (the same len at every call for one key); *data points to it
 * until it is dropped or the ticket leaves. wanted: bytes of it that the caller hands out. The
 * fill function's error, -ENOMEM, or -ENOBUFS for a ticket that is full. */
int hfs_cache_get(struct hfs_cache *c, struct hfs_ticket *t, const struct hfs_cache_key *key,
                  size_t len, size_t wanted, const uint8_t **data);
void hfs_cache_drop(struct hfs_cache *c, struct hfs_ticket *t);
void hfs_cache_leave(struct hfs_cache *c, struct hfs_ticket *t);

/* Fills block `key` for somebody who will want it. 0, also where it is there or being filled;
 * -EAGAIN where tickets wait, or hold, with this block, more than half of the capacity; what the
 * fill function says, or -ENOMEM. Waits for nobody but the fill function. */
int hfs_cache_ahead(struct hfs_cache *c, const struct hfs_cache_key *key, size_t len);

void hfs_cache_stats(struct hfs_cache *c, struct hfs_cache_stats *out);

#endif
