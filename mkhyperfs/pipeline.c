#include "mkhyperfs/pipeline.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

/* Slots are numbered without end; number n lies in slot n % slots.
 * taken <= started <= put <= taken + slots. */
struct mk_pipeline {
    pthread_mutex_t lock;
    pthread_cond_t work_waits, slot_finished;
    uint64_t taken, started, put;
    bool stop;
    bool *finished; /* of each slot */
    unsigned slots, threads;
    size_t slot_size;
    uint8_t *memory;
    mk_work_fn work;
    void *ctx;
    struct thread {
        pthread_t id;
        struct mk_pipeline *p;
        struct mk_worker worker;
    } thread[];
};

static void *slot_of(struct mk_pipeline *p, uint64_t number)
{
    return p->memory + number % p->slots * p->slot_size;
}

static void *run(void *arg)
{
    struct thread *t = arg;
    struct mk_pipeline *p = t->p;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (p->started == p->put && !p->stop)
            pthread_cond_wait(&p->work_waits, &p->lock);
        if (p->stop)
            break;
        uint64_t number = p->started++;
        pthread_mutex_unlock(&p->lock);
        p->work(p->ctx, slot_of(p, number), &t->worker);
        pthread_mutex_lock(&p->lock);
        p->finished[number % p->slots] = true;
        pthread_cond_signal(&p->slot_finished);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Signals are for the main thread: a handler shall not run in the midst of a worker. */
static int start_threads(struct mk_pipeline *p, unsigned jobs, enum hc_isa isa)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = 0;
    while (p->threads < jobs && r == 0) {
        struct thread *t = &p->thread[p->threads];
        t->p = p;
        t->worker.work = hc_work_new(isa);
        r = t->worker.work ? -pthread_create(&t->id, NULL, run, t) : -ENOMEM;
        if (r == 0)
            p->threads++;
        else
            hc_work_free(t->worker.work);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return p->threads > 0 ? 0 : r;
}

int mk_pipeline_new(unsigned jobs, unsigned slots, size_t slot_size, enum hc_isa isa,
                    mk_work_fn work, void *ctx, struct mk_pipeline **out)
{
    struct mk_pipeline *p = calloc(1, sizeof *p + jobs * sizeof *p->thread);
    if (!p)
        return -ENOMEM;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work_waits, NULL);
    pthread_cond_init(&p->slot_finished, NULL);
    p->slots = slots;
    p->slot_size = slot_size;
    p->work = work;
    p->ctx = ctx;
    p->memory = calloc(slots, slot_size);
    p->finished = calloc(slots, sizeof *p->finished);
    int r = p->memory && p->finished ? start_threads(p, jobs, isa) : -ENOMEM;
    if (r < 0)
        mk_pipeline_free(p, NULL);
    else
        *out = p;
    return r;
}

void mk_pipeline_free(struct mk_pipeline *p, void (*release)(void *slot))
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work_waits);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->threads; i++) {
        pthread_join(p->thread[i].id, NULL);
        hc_work_free(p->thread[i].worker.work);
        free(p->thread[i].worker.buf);
        free(p->thread[i].worker.buf2);
    }
    for (unsigned i = 0; release && i < p->slots; i++)
        release(slot_of(p, i));
    pthread_cond_destroy(&p->slot_finished);
    pthread_cond_destroy(&p->work_waits);
    pthread_mutex_destroy(&p->lock);
    free(p->finished);
    free(p->memory);
    free(p);
}

void *mk_pipeline_free_slot(struct mk_pipeline *p)
{
    return p->put - p->taken < p->slots ? slot_of(p, p->put) : NULL;
}

void mk_pipeline_put(struct mk_pipeline *p)
{
    pthread_mutex_lock(&p->lock);
    p->finished[p->put % p->slots] = false;
    p->put++;
    pthread_cond_signal(&p->work_waits);
    pthread_mutex_unlock(&p->lock);
}

void *mk_pipeline_take(struct mk_pipeline *p)
{
    if (p->taken == p->put)
        return NULL;
    pthread_mutex_lock(&p->lock);
    while (!p->finished[p->taken % p->slots])
        pthread_cond_wait(&p->slot_finished, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return slot_of(p, p->taken);
}

void mk_pipeline_done(struct mk_pipeline *p)
{
    p->taken++;
}

void mk_pipeline_drop(struct mk_pipeline *p)
{
    while (mk_pipeline_take(p))
        mk_pipeline_done(p);
}
