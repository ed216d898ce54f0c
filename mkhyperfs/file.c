#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "mkhyperfs/source.h"

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static int compare(const struct mk_file *f, const struct stat *now, struct hfs_error *err)
{
    const struct stat *st = &f->st;
    const char *what = NULL;
    if (now->st_dev != st->st_dev || now->st_ino != st->st_ino)
        what = "was replaced by another file";
    else if (now->st_size != st->st_size)
        what = now->st_size < st->st_size ? "became shorter" : "grew";
    else if (!same_time(now->st_mtim, st->st_mtim) || !same_time(now->st_ctim, st->st_ctim))
        what = "changed";
    if (!what)
        return 0;
    return hfs_fail(err, ESTALE, "%s: %s while it was read; start again when nobody writes to it",
                    f->shown, what);
}

static int gone(const struct mk_file *f, struct hfs_error *err)
{
    return hfs_fail(err, ESTALE, "%s: went away while it was read; start again", f->shown);
}

int mk_file_open(const struct mk_file *f, int *fd, struct hfs_error *err)
{
    struct stat now;
    int got = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (got < 0 && (errno == ENOENT || errno == ENOTDIR))
        return gone(f, err);
    if (got < 0)
        return hfs_fail(err, errno, "%s: cannot be opened: %s", f->shown, strerror(errno));
    int r = 0;
    if (fstat(got, &now) != 0)
        r = hfs_fail(err, errno, "%s: cannot be examined: %s", f->shown, strerror(errno));
    else
        r = compare(f, &now, err);
    if (r < 0)
        close(got);
    else
        *fd = got;
    return r;
}

int mk_file_read(const struct mk_file *f, int fd, void *buf, size_t len, uint64_t offset,
                 struct hfs_error *err)
{
    uint8_t *p = buf;
    while (len > 0) {
        ssize_t n = pread(fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return hfs_fail(err, errno, "%s: cannot be read at byte %llu: %s", f->shown,
                            (unsigned long long)offset, strerror(errno));
        if (n == 0)
            return hfs_fail(err, ESTALE,
                            "%s: ends at byte %llu, had %llu bytes before: it became shorter while "
                            "it was read; start again when nobody writes to it",
                            f->shown, (unsigned long long)offset,
                            (unsigned long long)f->st.st_size);
        p += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

int mk_file_check(const struct mk_file *f, struct hfs_error *err)
{
    struct stat now;
    if (stat(f->path, &now) != 0)
        return gone(f, err);
    return compare(f, &now, err);
}
