#include "fs/fsck_stage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/ui.h"

enum { DIR_FLAGS = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC };

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* A stream over the directory that leaves fd open and starts at its first entry. */
static DIR *open_stream(int fd)
{
    int copy = openat(fd, ".", DIR_FLAGS);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);

    if (dir == NULL && copy >= 0)
        close(copy);
    return dir;
}

/* Calls fn for every entry but "." and "..", which it may remove or move away, and again until
 * there is none left or fn returns not 0. A negative errno, or what fn returned. */
static int each_entry(int fd, int (*fn)(void *ctx, int fd, const char *name), void *ctx)
{
    bool found = true;
    int r = 0;

    while (found && r == 0) {
        DIR *dir = open_stream(fd);
        struct dirent *de;

        if (dir == NULL)
            return -errno;
        found = false;
        while (r == 0 && (errno = 0, de = readdir(dir)) != NULL) {
            if (is_dot(de->d_name))
                continue;
            found = true;
            r = fn(ctx, fd, de->d_name);
        }
        if (r == 0 && errno != 0)
            r = -errno;
        closedir(dir);
    }
    return r;
}

struct removal {
    int top;
    unsigned moved; /* directories so far that became entries of top */
};

/* Removes an entry or, if it is a directory that is not empty, makes it an entry of top. */
static int remove_or_move(void *ctx, int fd, const char *name)
{
    struct removal *rm = ctx;
    char moved[32];

    if (unlinkat(fd, name, 0) == 0 || unlinkat(fd, name, AT_REMOVEDIR) == 0)
        return 0;
    if (errno != ENOTEMPTY && errno != EEXIST)
        return -errno; /* no directory: its mode may be that of a file of the tree, by a hard link
                        */
    snprintf(moved, sizeof moved, "remove.%u", rm->moved++);
    if (fchmodat(fd, name, 0700, 0) < 0 || renameat(fd, name, rm->top, moved) < 0)
        return -errno;
    return 0;
}

/* Removes an entry of top. Directories in it are moved up to top first, so that depth costs
 * neither descriptors nor stack. */
static int remove_entry(void *ctx, int top, const char *name)
{
    struct stat st;
    int r, fd;

    if (unlinkat(top, name, 0) == 0)
        return 0;
    r = -errno;
    if (fstatat(top, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode))
        return r;
    if (fchmodat(top, name, 0700, 0) < 0)
        return -errno;
    fd = openat(top, name, DIR_FLAGS);
    if (fd < 0)
        return -errno;
    r = each_entry(fd, remove_or_move, ctx);
    close(fd);
    if (r == 0 && unlinkat(top, name, AT_REMOVEDIR) < 0)
        r = -errno;
    return r;
}

static int remove_stage(struct fsck_stage *s)
{
    struct removal rm = {.top = s->fd};
    int r = each_entry(s->fd, remove_entry, &rm);

    if (r == 0 && unlinkat(s->base_fd, s->name, AT_REMOVEDIR) < 0)
        r = -errno;
    return r;
}

static int refuse_entry(void *ctx, int fd, const char *name)
{
    (void)ctx;
    (void)fd;
    (void)name;
    return -ENOTEMPTY;
}

/* Opens the empty directory that stands at the target, or the parent of a new one. */
static int open_base(struct fsck_stage *s, struct hfs_error *err)
{
    char parent[4096];
    size_t len = strlen(s->target);
    int r;

    s->base_fd = open(s->target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->base_fd >= 0) {
        s->existed = true;
        r = each_entry(s->base_fd, refuse_entry, NULL);
        if (r == -ENOTEMPTY)
            return hfs_fail(err, ENOTEMPTY,
                            "%s is not empty; extract into a new or an empty directory", s->target);
        return r < 0 ? hfs_fail(err, -r, "%s: %s", s->target, strerror(-r)) : 0;
    }
    if (errno != ENOENT)
        return hfs_fail(err, errno, "%s: %s", s->target, strerror(errno));
    while (len > 1 && s->target[len - 1] == '/')
        len--;
    size_t start = len;
    while (start > 0 && s->target[start - 1] != '/')
        start--;
    if (start == len || len - start > 255 || start >= sizeof parent)
        return hfs_fail(err, ENOENT, "%s: no directory can have this name", s->target);
    snprintf(s->last, sizeof s->last, "%.*s", (int)(len - start), s->target + start);
    snprintf(parent, sizeof parent, "%.*s", (int)start, s->target);
    s->base_fd = open(start > 0 ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->base_fd < 0)
        return hfs_fail(err, errno, "%s: %s", start > 0 ? parent : ".", strerror(errno));
    return 0;
}

static int make_dir(int base, const char *name)
{
    int fd;

    if (mkdirat(base, name, 0700) < 0)
        return -errno;
    fd = openat(base, name, DIR_FLAGS);
    if (fd < 0) {
        fd = -errno;
        unlinkat(base, name, AT_REMOVEDIR);
    }
    return fd;
}

int fsck_stage_open(struct fsck_stage *s, const char *target, struct hfs_error *err)
{
    int r;

    *s = (struct fsck_stage){
        .target = target, .base_fd = -1, .fd = -1, .tree_fd = -1, .links_fd = -1};
    r = open_base(s, err);
    if (r < 0)
        return r;
    do {
        uint64_t random;

        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
            return hfs_fail(err, EIO, "%s: no random name can be made", target);
        snprintf(s->name, sizeof s->name, ".%.200s.%08x.hyperfs-tmp", s->last, (unsigned)random);
        s->fd = make_dir(s->base_fd, s->name);
    } while (s->fd == -EEXIST);
    r = s->fd;
    if (r >= 0)
        r = s->tree_fd = make_dir(s->fd, "tree");
    if (r >= 0)
        r = s->links_fd = make_dir(s->fd, "links");
    if (r < 0)
        return hfs_fail(err, -r, "%s: nothing can be written there: %s", target, strerror(-r));
    return 0;
}

/* Renames; what stands there is not replaced where the file system can promise that. */
static int move_to(int from, const char *name, int to, const char *new_name)
{
    if (renameat2(from, name, to, new_name, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    return renameat(from, name, to, new_name) == 0 ? 0 : -errno;
}

static int move_entry(void *ctx, int fd, const char *name)
{
    const struct fsck_stage *s = ctx;

    return move_to(fd, name, s->base_fd, name);
}

/* Moves what is in the tree into the directory that was there. */
static int move_entries(struct fsck_stage *s)
{
    int r = each_entry(s->tree_fd, move_entry, s);

    if (r < 0)
        return r;
    close(s->tree_fd);
    s->tree_fd = openat(s->base_fd, ".", DIR_FLAGS);
    return s->tree_fd < 0 ? -errno : 0;
}

/* Removes the staging directory with all that is left in it. */
static void discard(struct fsck_stage *s)
{
    int r = s->fd >= 0 ? remove_stage(s) : 0;

    /* What stopped it may have been a moment's want of memory or descriptors. */
    if (r < 0)
        r = remove_stage(s);
    if (r < 0)
        ui_warn("%s of %s cannot be removed: %s", s->name, s->target, strerror(-r));
    if (s->links_fd >= 0)
        close(s->links_fd);
    if (s->fd >= 0)
        close(s->fd);
    s->links_fd = s->fd = -1;
}

int fsck_stage_publish(struct fsck_stage *s, struct hfs_error *err)
{
    int r = 0;

    /* The names must not outlive a crash that the data does not. */
    if (syncfs(s->tree_fd) < 0)
        r = -errno;
    else if (s->existed)
        r = move_entries(s);
    else
        r = move_to(s->fd, "tree", s->base_fd, s->last);
    if (r < 0)
        return hfs_fail(err, -r, "%s: the extracted tree cannot be moved there: %s", s->target,
                        strerror(-r));
    discard(s);
    return 0;
}

void fsck_stage_close(struct fsck_stage *s)
{
    discard(s);
    if (s->tree_fd >= 0)
        close(s->tree_fd);
    if (s->base_fd >= 0)
        close(s->base_fd);
}
