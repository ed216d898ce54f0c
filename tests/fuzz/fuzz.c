#include "tests/fuzz/fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

void *fuzz_alloc(size_t size)
{
    void *p = malloc(size ? size : 1);
    FUZZ_CHECK(p != NULL);
    return p;
}

int fuzz_file(const uint8_t *data, size_t size, const char **path)
{
    static int fd = -1;
    static char name[64];
    if (fd < 0) {
        fd = memfd_create("input", MFD_CLOEXEC);
        FUZZ_CHECK(fd >= 0);
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    }
    FUZZ_CHECK(ftruncate(fd, (off_t)size) == 0);
    for (size_t at = 0; at < size;) {
        ssize_t n = pwrite(fd, data + at, size - at, (off_t)at);
        FUZZ_CHECK(n > 0);
        at += (size_t)n;
    }
    if (path)
        *path = name;
    return fd;
}

uint64_t fuzz_value(struct fuzz_random *r, uint64_t old, unsigned width, const uint64_t *known,
                    size_t n)
{
    switch (fuzz_below(r, 11)) {
    case 0:
        return 0;
    case 1:
        return 1;
    case 2:
        return UINT64_MAX;
    case 3:
        return UINT64_C(1) << fuzz_below(r, 8 * width);
    case 4:
        return (UINT64_C(1) << fuzz_below(r, 8 * width)) - 1;
    case 5:
        return old + 1;
    case 6:
        return old - 1;
    case 7:
        return old ^ UINT64_C(1) << fuzz_below(r, 8 * width);
    case 8:
        return fuzz_below(r, 17);
    case 9:
        return n ? known[fuzz_below(r, n)] + fuzz_below(r, 3) - 1 : old + 2;
    default:
        return fuzz_next(r);
    }
}
