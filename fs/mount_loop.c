/* Contract: fs/mount_loop.h. */
#include "fs/mount_loop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

/* Interrupts a thread's wait for a request, and the main thread's wait for the end. */
enum { WAKE = SIGUSR1 };

struct loop;

struct worker {
    struct loop *loop;
    pthread_t id;
    enum { NONE, RUNNING, ENDED } state; /* ENDED: to be joined */
};

struct loop {
    struct fuse_session *session;
    pthread_t main;
    pthread_mutex_t lock;       /* of what follows */
    unsigned max, running;      /* threads */
    unsigned waiting;           /* of them, for a request */
    struct timespec not_before; /* no further thread: the last one found no memory */
    int error;
    struct worker worker[MOUNT_LOOP_MAX];
};

static void on_wake(int number)
{
    (void)number;
}

void mount_loop_hold_signals(sigset_t *before)
{
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGHUP);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, WAKE);
    pthread_sigmask(SIG_BLOCK, &held, before);
}

static void *work(void *arg);

/* Called with the lock held. */
static int start_worker(struct loop *l)
{
    struct worker *w = l->worker;
    while (w->state == RUNNING)
        w++;
    if (w->state == ENDED)
        pthread_join(w->id, NULL);
    w->loop = l;
    int error = pthread_create(&w->id, NULL, work, w);
    w->state = error ? NONE : RUNNING;
    if (error == 0)
        l->running++;
    return -error;
}

/* After a thread found no memory. True: it goes on. Called with the lock held. */
static bool stays(struct loop *l)
{
    static const struct timespec moment = {.tv_nsec = 100 * 1000 * 1000};
    clock_gettime(CLOCK_MONOTONIC, &l->not_before);
    l->not_before.tv_sec++;
    if (l->running > 1)
        return false;
    pthread_mutex_unlock(&l->lock);
    nanosleep(&moment, NULL);
    pthread_mutex_lock(&l->lock);
    return true;
}

/* So that the next request is not kept waiting by this one. Called with the lock held. */
static void start_another(struct loop *l)
{
    struct timespec now;
    if (l->waiting > 0 || l->running == l->max)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec < l->not_before.tv_sec)
        return;
    if (start_worker(l) < 0) { /* this thread answers alone for a second */
        l->not_before = now;
        l->not_before.tv_sec++;
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct loop *l = w->loop;
    struct fuse_buf buf = {.mem = NULL};
    sigset_t wake;
    sigemptyset(&wake);
    sigaddset(&wake, WAKE);
    pthread_sigmask(SIG_UNBLOCK, &wake, NULL);
    pthread_mutex_lock(&l->lock);
    while (!fuse_session_exited(l->session)) {
        l->waiting++;
        pthread_mutex_unlock(&l->lock);
        int n = fuse_session_receive_buf(l->session, &buf);
        pthread_mutex_lock(&l->lock);
        l->waiting--;
        if (n == -ENOMEM && !stays(l))
            break;
        if (n == -EINTR || n == -ENOMEM)
            continue;
        if (n <= 0) {
            l->error = n;
            fuse_session_exit(l->session);
            break;
        }
        start_another(l);
        pthread_mutex_unlock(&l->lock);
        fuse_session_process_buf(l->session, &buf);
        pthread_mutex_lock(&l->lock);
    }
    l->running--;
    w->state = ENDED;
    pthread_kill(l->main, WAKE);
    pthread_mutex_unlock(&l->lock);
    free(buf.mem);
    return NULL;
}

/* A signal may come just before a thread begins to wait, so it is repeated. */
static void end_workers(struct loop *l)
{
    static const struct timespec moment = {.tv_nsec = 2 * 1000 * 1000};
    pthread_mutex_lock(&l->lock);
    while (l->running > 0) {
        for (struct worker *w = l->worker; w < l->worker + l->max; w++)
            if (w->state == RUNNING)
                pthread_kill(w->id, WAKE);
        pthread_mutex_unlock(&l->lock);
        nanosleep(&moment, NULL);
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    for (struct worker *w = l->worker; w < l->worker + l->max; w++)
        if (w->state == ENDED)
            pthread_join(w->id, NULL);
}

int mount_loop(struct fuse_session *session, unsigned threads, const sigset_t *before)
{
    static const struct timespec moment = {.tv_nsec = 100 * 1000 * 1000};
    struct sigaction action = {.sa_handler = on_wake};
    struct loop l = {.session = session, .main = pthread_self()};
    sigset_t waiting = *before;
    l.max = threads < MOUNT_LOOP_MAX ? threads : MOUNT_LOOP_MAX;
    pthread_mutex_init(&l.lock, NULL);
    sigemptyset(&action.sa_mask);
    sigaction(WAKE, &action, NULL);
    sigdelset(&waiting, WAKE);
    pthread_mutex_lock(&l.lock);
    while (!fuse_session_exited(session) && start_worker(&l) < 0)
        ppoll(NULL, 0, &moment, &waiting); /* a signal may end it */
    pthread_mutex_unlock(&l.lock);
    while (!fuse_session_exited(session))
        sigsuspend(&waiting);
    end_workers(&l);
    signal(WAKE, SIG_IGN); /* also one that waits to be delivered */
    pthread_sigmask(SIG_SETMASK, before, NULL);
    pthread_mutex_destroy(&l.lock);
    return l.error;
}
