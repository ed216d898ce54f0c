/* Contract: fs/readahead.h. */
#include "fs/readahead.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Requests of a stream arrive out of order by as much: workers race, the kernel asks for the
 * next window while the last one is not answered. */
enum { SLACK = 2 * HFS_READ_MAX };
/* Requests after which a stream that had none no longer gets a share of the cache. */
enum { QUIET = 4 * HFS_STREAMS };
enum { NICE = 5 };

struct stream {
    struct hfs_inode ino;
    uint64_t generation; /* 0: unused. Tells a thread that the place was given away meanwhile */
    uint64_t used;       /* clock of the last request */
    uint64_t run;        /* bytes read in order */
    uint64_t next;       /* end of the furthest request */
    uint64_t ahead;      /* where decoding ahead goes on */
    uint64_t limit;      /* and where it stops for now */
    uint64_t fetched;    /* end of what was asked of the disk */
};

struct hfs_ahead {
    struct hfs_reader *reader;
    size_t budget; /* bytes that all streams together may be ahead */
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct stream streams[HFS_STREAMS];
    uint64_t clock, generations;
    unsigned idle; /* threads that wait for work */
    bool stop;
    unsigned count;
    pthread_t threads[];
};

static bool is_confirmed(const struct stream *s)
{
    return s->run >= HFS_STREAM_CONFIRMED;
}

static uint64_t largest(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t smallest(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* A young stream has to go on exactly where it is, so that reads at random are none. */
static bool continues(const struct stream *s, uint32_t inode, uint64_t offset)
{
    if (s->generation == 0 || s->ino.number != inode)
        return false;
    if (!is_confirmed(s))
        return offset == s->next;
    return offset >= s->next - smallest(s->next, SLACK) && offset <= s->next + SLACK;
}

/* The stream that a request goes on with, or a new one in the place unused for longest. */
static struct stream *find(struct hfs_ahead *a, const struct hfs_inode *ino, uint64_t offset)
{
    struct stream *oldest = a->streams;
    for (struct stream *s = a->streams; s < a->streams + HFS_STREAMS; s++) {
        if (continues(s, ino->number, offset))
            return s;
        if (s->used < oldest->used)
            oldest = s;
    }
    *oldest = (struct stream){.ino = *ino, .generation = ++a->generations, .next = offset};
    return oldest;
}

/* How far ahead a stream may be: its share of what all may be. */
static uint64_t window(const struct hfs_ahead *a, const struct stream *s)
{
    unsigned active = 0;
    for (const struct stream *o = a->streams; o < a->streams + HFS_STREAMS; o++)
        active += o->generation != 0 && is_confirmed(o) && a->clock - o->used < QUIET;
    return smallest(smallest(s->run, HFS_AHEAD_MAX), a->budget / (active ? active : 1));
}

void hfs_ahead_note(struct hfs_ahead *a, const struct hfs_inode *ino, uint64_t offset, size_t size)
{
    if (offset >= ino->size || ino->size < HFS_STREAM_CONFIRMED)
        return;
    uint64_t end = offset + smallest(size, ino->size - offset);
    pthread_mutex_lock(&a->lock);
    struct stream *s = find(a, ino, offset);
    s->used = ++a->clock;
    s->run += end - offset;
    s->next = largest(s->next, end);
    if (is_confirmed(s) && s->next < ino->size) {
        uint64_t far = window(a, s);
        s->ahead = largest(s->ahead, s->next);
        s->fetched = largest(s->fetched, s->next);
        /* A thread is worth waking for a few blocks, not for each. */
        if (s->limit < s->next + far / 2 || s->limit < s->ahead)
            s->limit = smallest(s->next + far, ino->size);
        if (s->ahead < s->limit && a->idle > 0)
            pthread_cond_signal(&a->work);
    }
    pthread_mutex_unlock(&a->lock);
}

/* The stream whose reader is nearest to where decoding stands, or NULL. */
static struct stream *most_urgent(struct hfs_ahead *a)
{
    struct stream *found = NULL;
    for (struct stream *s = a->streams; s < a->streams + HFS_STREAMS; s++)
        if (s->ahead < s->limit && (!found || s->ahead - s->next < found->ahead - found->next))
            found = s;
    return found;
}

/* Asks the disk for what comes after the blocks that are being decoded. Called with the lock
 * held, which is let go meanwhile. */
static void fetch(struct hfs_ahead *a, struct stream *s)
{
    struct hfs_inode ino = s->ino;
    uint64_t from = s->fetched;
    uint64_t to = smallest(from + HFS_FETCH, ino.size);
    s->fetched = to;
    pthread_mutex_unlock(&a->lock);
    hfs_reader_fetch(a->reader, &ino, from, to);
    pthread_mutex_lock(&a->lock);
}

static bool wants_fetch(const struct stream *s)
{
    return s->fetched < s->ino.size &&
           s->fetched + HFS_FETCH <= s->next + smallest(HFS_FETCH_MAX, HFS_FETCH + 4 * s->run);
}

/* Decodes the block at the stream's place. The same. */
static void decode_block(struct hfs_ahead *a, struct stream *s)
{
    struct hfs_inode ino = s->ino;
    uint64_t generation = s->generation, at = s->ahead, end;
    struct hfs_cache_key key;
    size_t len;
    end = hfs_reader_block(a->reader, &ino, at, &key, &len);
    s->ahead = end;
    pthread_mutex_unlock(&a->lock);
    int error = len > 0 ? hfs_reader_ahead(a->reader, &key, len) : 0;
    pthread_mutex_lock(&a->lock);
    /* No room: the next request of the stream tries again. */
    if (error == -EAGAIN && s->generation == generation) {
        s->ahead = smallest(s->ahead, at);
        s->limit = s->ahead;
    }
}

static void *serve(void *data)
{
    struct hfs_ahead *a = data;
    setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    pthread_mutex_lock(&a->lock);
    while (!a->stop) {
        struct stream *s = most_urgent(a);
        if (!s) {
            a->idle++;
            pthread_cond_wait(&a->work, &a->lock);
            a->idle--;
            continue;
        }
        if (a->idle > 0 && s->limit - s->ahead > HC_MAX_BLOCK_BYTES)
            pthread_cond_signal(&a->work);
        if (wants_fetch(s))
            fetch(a, s);
        else
            decode_block(a, s);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

int hfs_ahead_new(struct hfs_reader *r, unsigned threads, struct hfs_ahead **out)
{
    struct hfs_ahead *a = calloc(1, sizeof *a + threads * sizeof(pthread_t));
    if (!a)
        return -ENOMEM;
    a->reader = r;
    a->budget = hfs_reader_capacity(r) / 2;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->work, NULL);
    while (a->count < threads && pthread_create(&a->threads[a->count], NULL, serve, a) == 0)
        a->count++;
    if (a->count == 0) {
        hfs_ahead_free(a);
        return -EAGAIN;
    }
    *out = a;
    return 0;
}

void hfs_ahead_free(struct hfs_ahead *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_broadcast(&a->work);
    pthread_mutex_unlock(&a->lock);
    for (unsigned i = 0; i < a->count; i++)
        pthread_join(a->threads[i], NULL);
    pthread_cond_destroy(&a->work);
    pthread_mutex_destroy(&a->lock);
    free(a);
}
