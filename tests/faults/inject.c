/* A library for LD_PRELOAD that makes calls fail, for tests of what a program does then.
 *
 *   INJECT_CONTROL=FILE   the state, shared with the test and with forked processes: struct control
 *   INJECT_CALLS=A,B,...  calls that are made to fail, by their names in `names`; "alloc" and "io"
 *                         stand for all allocations and for all others
 *   INJECT_ACTION=WORD    what happens at the call that the countdown in FILE picks:
 *                           NUMBER     it fails with this errno
 *                           short      it reads or writes half of what it was asked for; only
 *                                      read, pread, write and pwrite are made to do so
 *                           sh:SCRIPT  the shell runs SCRIPT first, then the call is made
 *   INJECT_STICKY=1       all later ones too
 *   INJECT_PATH=TEXT      counts only calls on files whose path contains TEXT
 *   INJECT_BAD=AT+LEN,... reads of these bytes of such files give EIO, as a bad sector does
 *   INJECT_CLOCK=SEED     the time of day jumps by up to a day at every call, back and forth
 *
 * Calls are counted whether one is to fail or not. The variables are for the program itself: what
 * it executes does not inherit the library.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* clang-format off */
#define ALLOCATIONS X(malloc) X(calloc) X(realloc) X(posix_memalign) X(aligned_alloc)
#define CALLS                                                                                    \
    X(open) X(openat) X(opendir) X(fdopendir) X(readdir) X(stat) X(lstat) X(fstat) X(fstatat)    \
    X(read) X(pread) X(write) X(pwrite) X(fsync) X(syncfs) X(ftruncate) X(rename) X(renameat)    \
    X(renameat2) X(unlinkat) X(mkdirat) X(linkat) X(symlinkat) X(fchmod) X(fchown) X(fchownat)   \
    X(futimens) X(utimensat) X(flock) X(getrandom) X(mmap) X(pipe2) X(fork) X(pthread_create)
/* clang-format on */

enum call {
#define X(name) CALL_##name,
    ALLOCATIONS CALLS
#undef X
        NCALLS
};
static const char *const names[] = {
#define X(name) #name,
    ALLOCATIONS CALLS
#undef X
};

/* tests/faults/inject.py knows this layout. */
struct control {
    _Atomic int64_t countdown; /* the fault hits when it goes from 1 to 0; 0: never */
    _Atomic uint64_t hits;
    struct {
        char name[24];
        _Atomic uint64_t calls;
    } call[NCALLS];
};

enum { MAX_BAD = 16 };

static struct control private_control, *control = &private_control;
static bool selected[NCALLS], sticky, is_short, active;
static int error;
static const char *script, *path_part;
static unsigned nbad;
static struct {
    uint64_t at, len;
} bad[MAX_BAD];
static _Atomic uint64_t clock_state;
/* A call from inside of this library, or of the libc function that it calls, is not counted. */
static _Thread_local bool inside __attribute__((tls_model("initial-exec")));

#define REAL(name)                                                                                 \
    static __typeof__(name) *real;                                                                 \
    if (!real)                                                                                     \
    real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void select_calls(const char *list)
{
    for (unsigned i = 0; i < NCALLS; i++) {
        const char *group = i < CALL_open ? "alloc" : "io";
        char text[512];
        snprintf(text, sizeof text, "%s", list);
        for (char *save, *word = strtok_r(text, ",", &save); word;
             word = strtok_r(NULL, ",", &save))
            selected[i] |= strcmp(word, names[i]) == 0 || strcmp(word, group) == 0;
    }
}

static void parse_bad(const char *text)
{
    while (nbad < MAX_BAD && *text) {
        char *end;
        bad[nbad].at = strtoull(text, &end, 10);
        bad[nbad++].len = strtoull(end + 1, &end, 10);
        text = *end ? end + 1 : end;
    }
}

__attribute__((constructor)) static void start(void)
{
    const char *file = getenv("INJECT_CONTROL"), *action = getenv("INJECT_ACTION");
    const char *clock = getenv("INJECT_CLOCK");
    inside = true;
    unsetenv("LD_PRELOAD");
    if (getenv("INJECT_CALLS"))
        select_calls(getenv("INJECT_CALLS"));
    if (getenv("INJECT_BAD"))
        parse_bad(getenv("INJECT_BAD"));
    path_part = getenv("INJECT_PATH");
    sticky = getenv("INJECT_STICKY") != NULL;
    is_short = action && strcmp(action, "short") == 0;
    script = action && strncmp(action, "sh:", 3) == 0 ? action + 3 : NULL;
    error = action && !is_short && !script ? atoi(action) : 0;
    if (clock)
        clock_state = strtoull(clock, NULL, 10) * 2 + 1;
    int fd = file ? open(file, O_RDWR | O_CLOEXEC) : -1;
    if (file && fd < 0)
        abort();
    if (fd >= 0) {
        control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
    }
    for (unsigned i = 0; i < NCALLS; i++)
        snprintf(control->call[i].name, sizeof control->call[i].name, "%s", names[i]);
    active = true;
    inside = false;
}

static bool is_meant(int fd, const char *path)
{
    char link[32], target[4096];
    if (!path_part)
        return true;
    if (path && strstr(path, path_part))
        return true;
    if (fd < 0)
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, target, sizeof target - 1);
    if (n < 0)
        return false;
    target[n] = 0;
    return strstr(target, path_part) != NULL;
}

/* Whether this call is the one. */
static bool counts_down(void)
{
    int64_t n = control->countdown;
    while (n > 0) {
        int64_t next = sticky && n == 1 ? 1 : n - 1;
        if (atomic_compare_exchange_weak(&control->countdown, &n, next))
            return n == 1;
    }
    return false;
}

/* True: the call fails, or is made short; errno is set. fd -1 and path NULL: none. */
static bool fault(enum call id, int fd, const char *path)
{
    int saved = errno;
    if (!active || inside || !is_meant(fd, path))
        return false;
    errno = saved;
    control->call[id].calls++;
    bool transfers = id == CALL_read || id == CALL_pread || id == CALL_write || id == CALL_pwrite;
    if (!selected[id] || (is_short && !transfers) || !counts_down())
        return false;
    control->hits++;
    if (script) {
        inside = true;
        if (system(script) != 0)
            abort();
        inside = false;
        errno = saved;
        return false;
    }
    errno = error;
    return true;
}

/* ---- allocations ---- */

/* libseccomp 2.5 does not survive a failed allocation: it makes a filter that denies everything, or
 * never ends. It works once, before a mount serves, and is left out. */
static bool is_spared(const void *caller)
{
    Dl_info from;
    return dladdr(caller, &from) && from.dli_fname && strstr(from.dli_fname, "libseccomp");
}

#define ALLOCATION_FAULT(name)                                                                     \
    (!is_spared(__builtin_return_address(0)) && fault(CALL_##name, -1, NULL))

void *malloc(size_t size)
{
    REAL(malloc);
    return ALLOCATION_FAULT(malloc) ? NULL : real(size);
}

void *calloc(size_t n, size_t size)
{
    REAL(calloc);
    return ALLOCATION_FAULT(calloc) ? NULL : real(n, size);
}

void *realloc(void *p, size_t size)
{
    REAL(realloc);
    return ALLOCATION_FAULT(realloc) ? NULL : real(p, size);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    REAL(posix_memalign);
    return ALLOCATION_FAULT(posix_memalign) ? error : real(out, alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    REAL(aligned_alloc);
    return ALLOCATION_FAULT(aligned_alloc) ? NULL : real(alignment, size);
}

/* ---- reading and writing ---- */

/* Bytes that a read of [at, at + n) may give: 0 where it begins in a bad sector. */
static size_t good_bytes(int fd, uint64_t at, size_t n)
{
    for (unsigned i = 0; i < nbad; i++) {
        if (at >= bad[i].at + bad[i].len || at + n <= bad[i].at || !is_meant(fd, NULL))
            continue;
        n = at < bad[i].at ? (size_t)(bad[i].at - at) : 0;
    }
    return n;
}

static size_t half(size_t n)
{
    return n > 1 ? n / 2 : n;
}

ssize_t pread(int fd, void *buf, size_t n, off_t at)
{
    REAL(pread);
    if (fault(CALL_pread, fd, NULL)) {
        if (!is_short)
            return -1;
        n = half(n);
    }
    size_t good = inside || n == 0 ? n : good_bytes(fd, (uint64_t)at, n);
    if (n > 0 && good == 0) {
        errno = EIO;
        return -1;
    }
    return real(fd, buf, good, at);
}

ssize_t pread64(int fd, void *buf, size_t n, off_t at)
{
    return pread(fd, buf, n, at);
}

#define TRANSFER(type, name, buffer)                                                               \
    type name(int fd, buffer buf, size_t n)                                                        \
    {                                                                                              \
        REAL(name);                                                                                \
        if (!fault(CALL_##name, fd, NULL))                                                         \
            return real(fd, buf, n);                                                               \
        return is_short ? real(fd, buf, half(n)) : -1;                                             \
    }
TRANSFER(ssize_t, read, void *)
TRANSFER(ssize_t, write, const void *)

ssize_t pwrite(int fd, const void *buf, size_t n, off_t at)
{
    REAL(pwrite);
    if (!fault(CALL_pwrite, fd, NULL))
        return real(fd, buf, n, at);
    return is_short ? real(fd, buf, half(n), at) : -1;
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off_t at)
{
    return pwrite(fd, buf, n, at);
}

/* ---- opening ---- */

static mode_t mode_of(int flags, va_list args)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        REAL(name);                                                                                \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        return fault(CALL_open, -1, path) ? -1 : real(path, flags, mode);                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                               \
    int name(int dir, const char *path, int flags, ...)                                            \
    {                                                                                              \
        REAL(name);                                                                                \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        return fault(CALL_openat, dir, path) ? -1 : real(dir, path, flags, mode);                  \
    }
OPENAT(openat)
OPENAT(openat64)

/* ---- the others: CALL(result, counted as, name, failed, fd, path, parameters, arguments) ---- */

#define CALL(type, id, name, failed, fd, path, params, args)                                       \
    type name params                                                                               \
    {                                                                                              \
        REAL(name);                                                                                \
        return fault(CALL_##id, fd, path) ? failed : real args;                                    \
    }

CALL(DIR *, opendir, opendir, NULL, -1, p, (const char *p), (p))
CALL(DIR *, fdopendir, fdopendir, NULL, fd, NULL, (int fd), (fd))
CALL(struct dirent *, readdir, readdir, NULL, -1, NULL, (DIR * d), (d))
CALL(struct dirent64 *, readdir, readdir64, NULL, -1, NULL, (DIR * d), (d))
CALL(int, stat, stat, -1, -1, p, (const char *p, struct stat *s), (p, s))
CALL(int, stat, stat64, -1, -1, p, (const char *p, struct stat64 *s), (p, s))
CALL(int, lstat, lstat, -1, -1, p, (const char *p, struct stat *s), (p, s))
CALL(int, lstat, lstat64, -1, -1, p, (const char *p, struct stat64 *s), (p, s))
CALL(int, fstat, fstat, -1, fd, NULL, (int fd, struct stat *s), (fd, s))
CALL(int, fstat, fstat64, -1, fd, NULL, (int fd, struct stat64 *s), (fd, s))
CALL(int, fstatat, fstatat, -1, d, p, (int d, const char *p, struct stat *s, int f), (d, p, s, f))
CALL(int, fstatat, fstatat64, -1, d, p, (int d, const char *p, struct stat64 *s, int f),
     (d, p, s, f))
CALL(int, fsync, fsync, -1, fd, NULL, (int fd), (fd))
CALL(int, syncfs, syncfs, -1, fd, NULL, (int fd), (fd))
CALL(int, ftruncate, ftruncate, -1, fd, NULL, (int fd, off_t n), (fd, n))
CALL(int, ftruncate, ftruncate64, -1, fd, NULL, (int fd, off64_t n), (fd, n))
CALL(int, rename, rename, -1, -1, a, (const char *a, const char *b), (a, b))
CALL(int, renameat, renameat, -1, d, a, (int d, const char *a, int e, const char *b), (d, a, e, b))
CALL(int, renameat2, renameat2, -1, d, a, (int d, const char *a, int e, const char *b, unsigned f),
     (d, a, e, b, f))
CALL(int, unlinkat, unlinkat, -1, d, p, (int d, const char *p, int f), (d, p, f))
CALL(int, mkdirat, mkdirat, -1, d, p, (int d, const char *p, mode_t m), (d, p, m))
CALL(int, linkat, linkat, -1, d, a, (int d, const char *a, int e, const char *b, int f),
     (d, a, e, b, f))
CALL(int, symlinkat, symlinkat, -1, d, p, (const char *t, int d, const char *p), (t, d, p))
CALL(int, fchmod, fchmod, -1, fd, NULL, (int fd, mode_t m), (fd, m))
CALL(int, fchown, fchown, -1, fd, NULL, (int fd, uid_t u, gid_t g), (fd, u, g))
CALL(int, fchownat, fchownat, -1, d, p, (int d, const char *p, uid_t u, gid_t g, int f),
     (d, p, u, g, f))
CALL(int, futimens, futimens, -1, fd, NULL, (int fd, const struct timespec t[2]), (fd, t))
CALL(int, utimensat, utimensat, -1, d, p, (int d, const char *p, const struct timespec t[2], int f),
     (d, p, t, f))
CALL(int, flock, flock, -1, fd, NULL, (int fd, int o), (fd, o))
CALL(ssize_t, getrandom, getrandom, -1, -1, NULL, (void *p, size_t n, unsigned f), (p, n, f))
CALL(void *, mmap, mmap, MAP_FAILED, fd, NULL, (void *p, size_t n, int r, int f, int fd, off_t o),
     (p, n, r, f, fd, o))
CALL(void *, mmap, mmap64, MAP_FAILED, fd, NULL,
     (void *p, size_t n, int r, int f, int fd, off64_t o), (p, n, r, f, fd, o))
CALL(int, pipe2, pipe2, -1, -1, NULL, (int p[2], int f), (p, f))
CALL(pid_t, fork, fork, -1, -1, NULL, (void), ())
CALL(int, pthread_create, pthread_create, error, -1, NULL,
     (pthread_t * t, const pthread_attr_t *a, void *(*f)(void *), void *x), (t, a, f, x))

/* ---- the clock ---- */

int clock_gettime(clockid_t id, struct timespec *t)
{
    REAL(clock_gettime);
    int r = real(id, t);
    if (r == 0 && clock_state && id == CLOCK_REALTIME) {
        uint64_t x = atomic_fetch_add(&clock_state, 0x9e3779b97f4a7c15u);
        x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
        t->tv_sec += (time_t)(x >> 40) % 172800 - 86400;
    }
    return r;
}
