/* Readers for `make bench-read`: cheap ones, so that what is measured is the file system.
 *
 *     read seq FILE             read() of 1 MiB from beginning to end
 *     read mmap FILE            one thread touches a byte of each page, in order
 *     read halves FILE          two threads, read() of 1 MiB, each its half
 *     read interleaved FILE     4 processes of 2 threads; of 8 consecutive MiB each thread reads
 * one read random FILE          one thread, 64 KiB preads of a shuffled list of places read first
 * FILE OFFSET COMMAND...   runs COMMAND (a mount) to its end, then reads one byte
 *
 * Each prints a line of JSON: bytes read, operations, wall seconds, user and system seconds of the
 * readers, and for `first` how many of the seconds the mount took. Files are opened before the
 * clock starts, but for `first`.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, SMALL = 64 << 10, PAGE = 4096, PROCESSES = 4, THREADS = 2 };
enum { RANDOM_READS = 3000 };

extern char **environ;

struct range {
    int fd;
    uint64_t from, to, step; /* a chunk at from, from + step, ... below to */
};

static void die(const char *what)
{
    fprintf(stderr, "read: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint8_t *buffer(void)
{
    uint8_t *p = aligned_alloc(PAGE, CHUNK);
    if (!p)
        die("memory");
    memset(p, 0, CHUNK);
    return p;
}

static void read_at(int fd, uint8_t *buf, size_t len, uint64_t offset)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, buf + done, len - done, (off_t)(offset + done));
        if (n <= 0)
            die("pread");
        done += (size_t)n;
    }
}

static void *read_range(void *arg)
{
    const struct range *r = arg;
    uint8_t *buf = buffer();
    for (uint64_t at = r->from; at < r->to; at += r->step)
        read_at(r->fd, buf, r->to - at < CHUNK ? (size_t)(r->to - at) : CHUNK, at);
    free(buf);
    return NULL;
}

static void sequential(int fd)
{
    uint8_t *buf = buffer();
    ssize_t n;
    while ((n = read(fd, buf, CHUNK)) > 0)
        ;
    if (n < 0)
        die("read");
    free(buf);
}

static void touch(int fd, uint64_t size)
{
    const volatile uint8_t *p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    unsigned sum = 0;
    if (p == MAP_FAILED)
        die("mmap");
    for (uint64_t at = 0; at < size; at += PAGE)
        sum += p[at];
    (void)sum; /* it stays mapped: taking pages away again is not the file system's work */
}

/* Every thread has a descriptor of its own, as readers that do not know each other have. */
static void in_threads(const char *path, struct range *r, unsigned count)
{
    pthread_t thread[PROCESSES * THREADS];
    for (unsigned i = 0; i < count; i++) {
        if ((r[i].fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
            die(path);
        if ((errno = pthread_create(&thread[i], NULL, read_range, &r[i])) != 0)
            die("thread");
    }
    for (unsigned i = 0; i < count; i++) {
        pthread_join(thread[i], NULL);
        close(r[i].fd);
    }
}

static void halves(const char *path, uint64_t size)
{
    uint64_t middle = size / 2 / CHUNK * CHUNK;
    struct range r[2] = {{.to = middle, .step = CHUNK},
                         {.from = middle, .to = size, .step = CHUNK}};
    in_threads(path, r, 2);
}

static void interleaved(const char *path, uint64_t size)
{
    const uint64_t step = (uint64_t)PROCESSES * THREADS * CHUNK;
    for (unsigned p = 0; p < PROCESSES; p++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid > 0)
            continue;
        struct range r[THREADS];
        for (unsigned t = 0; t < THREADS; t++)
            r[t] = (struct range){
                .from = (uint64_t)(p + t * PROCESSES) * CHUNK, .to = size, .step = step};
        in_threads(path, r, THREADS);
        exit(0);
    }
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    if (failed)
        exit(1);
}

/* No place twice: places are multiples of 64 KiB in the order of a full-period congruence. */
static uint64_t random_reads(int fd, uint64_t size)
{
    uint64_t places = 1, state = 1, done = 0, bytes = 0;
    uint8_t *buf = buffer();
    while (places * 2 * SMALL <= size)
        places *= 2;
    for (; done < RANDOM_READS && done < places; done++) {
        state = (state * 6364136223846793005u + 1442695040888963407u) % places;
        read_at(fd, buf, SMALL, state * SMALL);
        bytes += SMALL;
    }
    free(buf);
    return bytes;
}

static double seconds(const struct timeval *t)
{
    return (double)t->tv_sec + (double)t->tv_usec * 1e-6;
}

static void print(uint64_t bytes, uint64_t operations, double wall, double mounting)
{
    struct rusage own, children;
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &children);
    printf("{\"bytes\": %llu, \"operations\": %llu, \"seconds\": %.6f, \"cpu\": %.6f, "
           "\"mount_seconds\": %.6f}\n",
           (unsigned long long)bytes, (unsigned long long)operations, wall,
           seconds(&own.ru_utime) + seconds(&own.ru_stime) + seconds(&children.ru_utime) +
               seconds(&children.ru_stime),
           mounting);
}

static int first(const char *path, uint64_t offset, char **command)
{
    uint8_t byte;
    pid_t pid;
    int status;
    double start = now();
    if ((errno = posix_spawn(&pid, command[0], NULL, NULL, command, environ)) != 0 ||
        waitpid(pid, &status, 0) < 0)
        die(command[0]);
    if (status != 0)
        return 1;
    double mounted = now();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die(path);
    read_at(fd, &byte, 1, offset);
    double end = now();
    print(1, 1, end - start, mounted - start);
    return 0;
}

int main(int argc, char **argv)
{
    const char *pattern = argc > 2 ? argv[1] : "";
    if (argc > 4 && strcmp(pattern, "first") == 0)
        return first(argv[2], strtoull(argv[3], NULL, 10), argv + 4);
    if (argc != 3) {
        fprintf(stderr, "Usage: read seq|mmap|halves|interleaved|random FILE\n"
                        "       read first FILE OFFSET COMMAND...\n");
        return 2;
    }
    const char *path = argv[2];
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        die(path);
    uint64_t size = (uint64_t)st.st_size, bytes = size;
    double start = now();
    if (strcmp(pattern, "seq") == 0)
        sequential(fd);
    else if (strcmp(pattern, "mmap") == 0)
        touch(fd, size);
    else if (strcmp(pattern, "halves") == 0)
        halves(path, size);
    else if (strcmp(pattern, "interleaved") == 0)
        interleaved(path, size);
    else if (strcmp(pattern, "random") == 0)
        bytes = random_reads(fd, size);
    else
        return 2;
    print(bytes, bytes / (strcmp(pattern, "random") == 0 ? SMALL : CHUNK), now() - start, 0);
    return 0;
}
