/* Worker threads between a producer and a consumer that are one and the same thread.
 *
 * A ring of slots. The owner fills a free slot, puts it, and takes finished slots in
 * the order in which they were put; in between, workers run the work function on them in
 * any order. So memory is bounded by the slots, and what the owner sees does not depend on the
 * number or the timing of the threads.
 *
 *     while (more || in flight) {
 *         while (more && (slot = mk_pipeline_free_slot(p))) { fill slot; mk_pipeline_put(p); }
 *         slot = mk_pipeline_take(p); use slot; mk_pipeline_done(p);
 *     }
 *
 * All functions belong to the owner's thread.
 */
#ifndef HYPERFS_MKHYPERFS_PIPELINE_H
#define HYPERFS_MKHYPERFS_PIPELINE_H

#include <stddef.h>

#include "codec/codec.h"

struct mk_pipeline;

/* What a thread has for itself. */
struct mk_worker {
    struct hc_work *work;
    uint8_t *buf, *buf2; /* work function's, malloc'd when it wants them; freed at the end */
};

typedef void (*mk_work_fn)(void *ctx, void *slot, struct mk_worker *worker);

/* Starts `jobs` threads, or as many as the system lets it, and makes `slots` slots of slot_size
 * zeroed bytes. -ENOMEM, or what pthread_create says of the first thread. */
int mk_pipeline_new(unsigned jobs, unsigned slots, size_t slot_size, enum hc_isa isa,
                    mk_work_fn work, void *ctx, struct mk_pipeline **out);
/* Ends the threads after the slots that they are at; others in flight are forgotten. release, if
 * not NULL, is called with every slot. NULL is allowed for p. */
void mk_pipeline_free(struct mk_pipeline *p, void (*release)(void *slot));

void *mk_pipeline_free_slot(struct mk_pipeline *p); /* NULL: all are in flight */
void mk_pipeline_put(struct mk_pipeline *p);        /* the slot that free_slot returned */
void *mk_pipeline_take(struct mk_pipeline *p);      /* waits; NULL: nothing is in flight */
void mk_pipeline_done(struct mk_pipeline *p);       /* the slot that take returned is free */
void mk_pipeline_drop(struct mk_pipeline *p);       /* waits for all in flight, forgets them */

#endif
