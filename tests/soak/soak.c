/* Reads a mount at random from many processes and threads and compares every byte.
 *
 *   soak MOUNT EXPECTED PROCESSES THREADS SECONDS DAEMON SEED HANG
 *
 * MOUNT and EXPECTED hold the same files. PROCESSES processes of one thread and one process of
 * THREADS threads read and fault mapped pages, and drop them from the page cache, for SECONDS.
 * Meanwhile the first process watches them, and memory and descriptors of process DAEMON. Where a
 * reader finishes nothing for HANG seconds it prints where readers and daemon stand, and ends.
 *
 * Prints one line, "key=value ...". Exit status: 0, 1 for a wrong byte or an error of a read, 2 for
 * a reader that hangs.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FILES = 256, MAX_READERS = 2048, LARGEST = 3 << 20, PAGE = 4096 };

struct file {
    char path[1024]; /* below the roots */
    const uint8_t *expected;
    size_t size;
};

/* Of one reader, in memory that all processes share. */
struct progress {
    _Atomic uint64_t operations, bytes, slowest_us;
    _Atomic int pid, tid, wrong;
    _Atomic(const char *) what; /* a literal: the same address in all, they are forked */
    _Atomic uint64_t file, offset, length;
};

/* Between two looks of the watch, a tenth of a second apart; seconds. */
static const double LONG_GAP = 5;

static struct file files[MAX_FILES];
static size_t nfiles, root_len;
static const char *mount;
static struct progress *readers;
static _Atomic bool *stop;
static uint64_t seed;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(3);
}

/* ---- the readers ---- */

static uint64_t dice(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void compare(struct progress *p, const struct file *f, const uint8_t *got, size_t at,
                    size_t n)
{
    if (memcmp(got, f->expected + at, n) == 0) {
        p->bytes += n;
        return;
    }
    p->wrong++;
    fprintf(stderr, "soak: %s: wrong bytes in %zu to %zu\n", f->path, at, at + n - 1);
}

static void read_error(struct progress *p, const struct file *f, size_t at)
{
    p->wrong++;
    fprintf(stderr, "soak: %s: error at %zu: %s\n", f->path, at, strerror(errno));
}

static void by_pread(struct progress *p, const struct file *f, int fd, uint8_t *buffer, size_t at,
                     size_t n)
{
    p->what = "pread";
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, buffer + done, n - done, (off_t)(at + done));
        if (got <= 0) {
            read_error(p, f, at + done);
            return;
        }
        done += (size_t)got;
    }
    compare(p, f, buffer, at, n);
}

/* Faults pages one by one in random order, or all in theirs. */
static void by_mmap(struct progress *p, const struct file *f, int fd, uint64_t *state)
{
    p->what = "mmap";
    uint8_t *map = mmap(NULL, f->size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        read_error(p, f, 0);
        return;
    }
    madvise(map, f->size, dice(state) % 2 ? MADV_RANDOM : MADV_NORMAL);
    for (unsigned i = 0; i < 16; i++) {
        size_t at = dice(state) % f->size / PAGE * PAGE;
        size_t n = f->size - at < PAGE ? f->size - at : PAGE;
        p->what = "page fault";
        p->offset = at;
        compare(p, f, map + at, at, n);
    }
    if (dice(state) % 4 == 0) {
        madvise(map, f->size, MADV_DONTNEED);
        size_t n = f->size < LARGEST ? f->size : LARGEST;
        size_t at = dice(state) % (f->size - n + 1);
        p->what = "page faults in order";
        p->offset = at;
        compare(p, f, map + at, at, n);
    }
    munmap(map, f->size);
}

static void step(struct progress *p, uint64_t *state, uint8_t *buffer)
{
    static const size_t sizes[] = {1, 100, PAGE, 70000, 1 << 18, 1 << 20, LARGEST};
    size_t number = dice(state) % nfiles;
    const struct file *f = &files[number];
    char path[2048];
    size_t at = dice(state) % f->size, n = sizes[dice(state) % 7];
    if (n > f->size - at)
        n = f->size - at;
    p->file = number;
    p->offset = at;
    p->length = n;
    p->what = "open";
    snprintf(path, sizeof path, "%s/%s", mount, f->path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | (dice(state) % 8 == 0 ? O_DIRECT : 0));
    if (fd < 0) {
        read_error(p, f, 0);
        return;
    }
    if (dice(state) % 4 == 0) {
        p->what = "drop from the page cache";
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    if (dice(state) % 2)
        by_pread(p, f, fd, buffer, at, n);
    else
        by_mmap(p, f, fd, state);
    p->what = "close";
    close(fd);
}

static void *read_on(void *arg)
{
    struct progress *p = arg;
    uint64_t state = seed ^ (uint64_t)(p - readers) << 40;
    void *buffer;
    if (posix_memalign(&buffer, PAGE, LARGEST + PAGE))
        die("soak: memory");
    p->tid = (int)syscall(SYS_gettid);
    p->pid = getpid();
    while (!*stop) {
        double start = now();
        step(p, &state, buffer);
        uint64_t us = (uint64_t)((now() - start) * 1e6);
        if (us > p->slowest_us)
            p->slowest_us = us;
        p->operations++;
    }
    p->what = "done";
    free(buffer);
    return NULL;
}

static void on_bus_error(int number)
{
    static const char text[] = "soak: a page fault gave SIGBUS\n";
    (void)number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(1);
    _exit(1);
}

static pid_t start_process(size_t first, size_t threads)
{
    pthread_t id[MAX_READERS];
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    signal(SIGBUS, on_bus_error);
    for (size_t i = 0; i < threads; i++)
        if (pthread_create(&id[i], NULL, read_on, &readers[first + i]) != 0)
            die("soak: thread");
    for (size_t i = 0; i < threads; i++)
        pthread_join(id[i], NULL);
    _exit(0);
}

/* ---- the watch ---- */

static long daemon_kb(int pid, const char *key)
{
    char path[64], line[256];
    long kb = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            kb = atol(line + strlen(key));
    if (f)
        fclose(f);
    return kb;
}

static long entries(int pid, const char *what)
{
    char path[64];
    long n = -2; /* "." and ".." */
    snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
    DIR *d = opendir(path);
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static void print_state(const char *name, int pid, int tid)
{
    static const char *const what[] = {"wchan", "syscall", "stack"};
    for (unsigned i = 0; i < 3; i++) {
        char path[96], text[2048];
        snprintf(path, sizeof path, "/proc/%d/task/%d/%s", pid, tid, what[i]);
        int fd = open(path, O_RDONLY);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        if (fd >= 0)
            close(fd);
        if (n > 0)
            fprintf(stderr, "  %s %d %s: %.*s\n", name, tid, what[i], (int)n, text);
    }
}

static void print_hang(size_t count, size_t stuck, int daemon)
{
    char path[64];
    for (size_t i = 0; i < count; i++) {
        const struct progress *p = &readers[i];
        fprintf(stderr, "soak: %s%zu: %s of %s at %llu, %llu bytes; %llu operations so far\n",
                i == stuck ? "HANGS: " : "", i, p->what ? p->what : "start", files[p->file].path,
                (unsigned long long)p->offset, (unsigned long long)p->length,
                (unsigned long long)p->operations);
    }
    print_state("reader", readers[stuck].pid, readers[stuck].tid);
    snprintf(path, sizeof path, "/proc/%d/task", daemon);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.')
            print_state("daemon", daemon, atoi(e->d_name));
    if (d)
        closedir(d);
}

/* The reader that has finished nothing for too long, or count. */
static size_t find_stuck(size_t count, uint64_t *seen, double *since, double hang)
{
    double time = now();
    for (size_t i = 0; i < count; i++) {
        if (readers[i].operations != seen[i]) {
            seen[i] = readers[i].operations;
            since[i] = time;
        } else if (time - since[i] > hang && (!readers[i].what || *readers[i].what != 'd')) {
            return i;
        }
    }
    return count;
}

struct watch {
    long fds, fds_max, kb_early, kb_late, threads;
    double paused; /* seconds in which this process did not run either */
};

static bool all_ended(pid_t *pid, size_t n, int *status)
{
    bool all = true;
    for (size_t i = 0; i < n; i++) {
        int s;
        if (pid[i] && waitpid(pid[i], &s, WNOHANG) == pid[i]) {
            *status |= s;
            pid[i] = 0;
        }
        all = all && !pid[i];
    }
    return all;
}

static void sample(struct watch *w, int daemon, double part)
{
    long kb = daemon_kb(daemon, "VmRSS:"), fds = entries(daemon, "fd");
    if (part < 0.2)
        w->fds = fds > w->fds ? fds : w->fds;
    w->fds_max = fds > w->fds_max ? fds : w->fds_max;
    if (part < 0.5)
        w->kb_early = kb > w->kb_early ? kb : w->kb_early;
    else
        w->kb_late = kb > w->kb_late ? kb : w->kb_late;
    long threads = entries(daemon, "task");
    w->threads = threads > w->threads ? threads : w->threads;
}

/* Until all have ended; 0, or 2 if one hangs. */
static int watch(pid_t *pid, size_t processes, size_t count, double seconds, double hang,
                 int daemon, struct watch *w, int *status)
{
    static uint64_t seen[MAX_READERS];
    static double since[MAX_READERS];
    const struct timespec moment = {.tv_nsec = 100 * 1000 * 1000};
    double start = now(), last = start;
    for (size_t i = 0; i < count; i++)
        since[i] = start;
    while (!all_ended(pid, processes, status)) {
        /* A machine that was suspended, or a container that was frozen, hangs nobody. */
        double gap = now() - last;
        last += gap;
        if (gap > LONG_GAP) {
            w->paused += gap;
            for (size_t i = 0; i < count; i++)
                since[i] += gap;
        }
        double part = (now() - start) / seconds;
        if (part >= 1)
            *stop = true;
        else
            sample(w, daemon, part);
        size_t stuck = find_stuck(count, seen, since, hang);
        if (stuck < count) {
            print_hang(count, stuck, daemon);
            return 2;
        }
        nanosleep(&moment, NULL);
    }
    return 0;
}

/* ---- the whole ---- */

static int add_file(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)at;
    if (type != FTW_F || st->st_size == 0 || nfiles == MAX_FILES)
        return 0;
    struct file *f = &files[nfiles++];
    snprintf(f->path, sizeof f->path, "%s", path + root_len + 1);
    f->size = (size_t)st->st_size;
    int fd = open(path, O_RDONLY);
    f->expected = mmap(NULL, f->size, PROT_READ, MAP_SHARED, fd, 0);
    if (fd < 0 || f->expected == MAP_FAILED)
        die(path);
    close(fd);
    return 0;
}

static void report(size_t count, const struct watch *w, int daemon)
{
    uint64_t operations = 0, bytes = 0, slowest = 0;
    int wrong = 0;
    for (size_t i = 0; i < count; i++) {
        operations += readers[i].operations;
        bytes += readers[i].bytes;
        wrong += readers[i].wrong;
        slowest = readers[i].slowest_us > slowest ? readers[i].slowest_us : slowest;
    }
    printf("operations=%llu bytes=%llu wrong=%d slowest_ms=%llu fds=%ld fds_max=%ld kb_early=%ld "
           "kb_late=%ld kb_peak=%ld threads=%ld paused_s=%.0f\n",
           (unsigned long long)operations, (unsigned long long)bytes, wrong,
           (unsigned long long)slowest / 1000, w->fds, w->fds_max, w->kb_early, w->kb_late,
           daemon_kb(daemon, "VmHWM:"), w->threads, w->paused);
}

int main(int argc, char **argv)
{
    static pid_t pid[MAX_READERS];
    struct watch w = {0};
    if (argc != 9) {
        fprintf(stderr, "usage: soak MOUNT EXPECTED PROCESSES THREADS SECONDS DAEMON SEED HANG\n");
        return 3;
    }
    mount = argv[1];
    root_len = strlen(argv[2]);
    size_t processes = strtoul(argv[3], NULL, 10), threads = strtoul(argv[4], NULL, 10);
    int daemon = atoi(argv[6]), status = 0;
    seed = strtoull(argv[7], NULL, 10);
    if (nftw(argv[2], add_file, 16, FTW_PHYS) != 0 || nfiles == 0 ||
        processes + threads > MAX_READERS)
        die(argv[2]);
    size_t count = processes + threads;
    readers = mmap(NULL, count * sizeof *readers + PAGE, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (readers == MAP_FAILED)
        die("soak: memory");
    stop = (_Atomic bool *)(readers + count);
    for (size_t i = 0; i < processes; i++)
        pid[i] = start_process(i, 1);
    if (threads > 0) {
        pid[processes] = start_process(processes, threads);
        processes++;
    }
    int result = watch(pid, processes, count, strtod(argv[5], NULL), strtod(argv[8], NULL), daemon,
                       &w, &status);
    for (size_t i = 0; result != 0 && i < processes; i++)
        if (pid[i] > 0)
            kill(pid[i], SIGKILL);
    report(count, &w, daemon);
    bool wrong = status != 0;
    for (size_t i = 0; i < count; i++)
        wrong |= readers[i].wrong != 0;
    return result ? result : wrong;
}
