#include "fs/fsck_extract.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/fsck_stage.h"
#include "fs/ui.h"
#include "fs/walk.h"

enum { DIR_FLAGS = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC };

struct id {
    dev_t dev;
    ino_t ino;
};

struct extract {
    struct fsck *f;
    struct hfs_error *err;
    struct fsck_stage stage;
    int dir;            /* the directory the walk is in */
    struct id *parents; /* of the directories above it, by depth */
    int file;           /* being written */
    const char *path;   /* of it */
    bool bare;          /* that metadata cannot be set here was said */
    uint64_t files, dirs, links;
};

static int fail(struct extract *x, int code, const char *path, const char *what)
{
    char shown[512];

    hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path));
    return hfs_fail(x->err, code, "%s: '%s' cannot be %s: %s", x->stage.target, shown, what,
                    strerror(code));
}

/* ---- owner, mode, time ---- */

static void no_metadata(struct extract *x, const char *path)
{
    char shown[512];

    if (x->bare)
        return;
    x->bare = true;
    ui_warn("owners, modes or times cannot be kept in %s, of '%s' first: %s", x->stage.target,
            hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path)), strerror(errno));
}

/* Set-user-ID and set-group-ID bits are left out: the image may come from anywhere. */
static void set_metadata(struct extract *x, int fd, const struct hfs_inode *ino, const char *path)
{
    mode_t mode = ino->mode & (S_ISDIR(ino->mode) ? 01777 : 0777);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                {.tv_sec = ino->mtime, .tv_nsec = ino->mtime_nsec}};

    if (geteuid() == 0 && fchown(fd, ino->uid, ino->gid) < 0)
        no_metadata(x, path);
    if (fchmod(fd, mode) < 0 || futimens(fd, times) < 0)
        no_metadata(x, path);
}

/* ---- files ---- */

static int write_all(int fd, const uint8_t *data, size_t len, uint64_t offset)
{
    while (len > 0) {
        ssize_t n = pwrite(fd, data, len, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static bool all_zero(const uint8_t *data, size_t len)
{
    return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

/* A damaged block stays a hole, as a block of zeros does. */
static int on_block(void *ctx, const struct fsck_block *b)
{
    struct extract *x = ctx;

    fsck_count(x->f, b);
    if (b->status < 0)
        return x->f->opt.keep_going ? 0 : -EBADMSG;
    if (all_zero(b->data, b->len))
        return 0;
    return write_all(x->file, b->data, b->len, b->file_offset);
}

static int fill_file(struct extract *x, const struct hfs_inode *ino, const char *path)
{
    struct fsck_range range = {.first = ino->first, .count = ino->count, .bytes = ino->size};
    char shown[512];
    int r;

    if (ino->size > INT64_MAX)
        return fail(x, EFBIG, path, "written");
    if (ftruncate(x->file, (off_t)ino->size) < 0)
        return fail(x, errno, path, "written");
    r = fsck_pool_run(x->f->pool, &range, on_block, x);
    if (r == -EBADMSG)
        return hfs_fail(x->err, EBADMSG,
                        "%s: nothing was extracted, since '%s' is damaged; --keep-going saves what "
                        "is readable",
                        x->f->opt.image,
                        hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path)));
    if (r < 0)
        return fail(x, -r, path, "written");
    set_metadata(x, x->file, ino, path);
    return 0;
}

static int write_file(struct extract *x, int dir, const char *name, const struct hfs_inode *ino,
                      const char *path)
{
    int r;

    x->file = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (x->file < 0)
        return fail(x, errno, path, "created");
    r = fill_file(x, ino, path);
    if (close(x->file) < 0 && r == 0)
        r = fail(x, errno, path, "written");
    x->files++;
    return r;
}

/* A file with several names is written once, under its number among the links. */
static int put_file(struct extract *x, const struct hfs_walk_item *item)
{
    char number[16], shown[512];
    int r;

    ui_verbose("%s", hfs_printable(shown, sizeof shown, item->path, (unsigned)strlen(item->path)));
    if (item->ino.nlink < 2 && !item->again)
        return write_file(x, x->dir, item->name, &item->ino, item->path);
    snprintf(number, sizeof number, "%" PRIu32, item->ino.number);
    if (!item->again) {
        r = write_file(x, x->stage.links_fd, number, &item->ino, item->path);
        if (r < 0)
            return r;
    }
    if (linkat(x->stage.links_fd, number, x->dir, item->name, 0) < 0)
        return fail(x, errno, item->path, "linked");
    return 0;
}

/* ---- directories ---- */

/* Goes down into fd, which the walk owns from here on. */
static int go_down(struct extract *x, int fd, const struct hfs_walk_item *item)
{
    struct stat st;

    if (fd < 0)
        return fail(x, errno, item->path, "opened");
    if (fstat(x->dir, &st) < 0) {
        close(fd);
        return fail(x, errno, item->path, "examined");
    }
    x->parents[item->depth] = (struct id){st.st_dev, st.st_ino};
    close(x->dir);
    x->dir = fd;
    return 0;
}

/* Goes up by "..", and makes sure that it leads where the walk came from. Returns the directory
 * that it left, to be closed. */
static int go_up(struct extract *x, const struct hfs_walk_item *item)
{
    int left = x->dir, fd = openat(left, "..", DIR_FLAGS);
    struct stat st;

    if (fd < 0)
        return fail(x, errno, item->path, "left");
    if (fstat(fd, &st) < 0 || st.st_dev != x->parents[item->depth].dev ||
        st.st_ino != x->parents[item->depth].ino) {
        close(fd);
        return fail(x, EXDEV, item->path, "left, it was moved away");
    }
    x->dir = fd;
    return left;
}

/* ---- the first pass: directories and files ---- */

static int first_enter(void *ctx, const struct hfs_walk_item *item)
{
    struct extract *x = ctx;

    if (item->depth == 0 || S_ISLNK(item->ino.mode))
        return 0;
    if (S_ISREG(item->ino.mode))
        return put_file(x, item);
    if (fsck_stop)
        return -EINTR;
    x->dirs++;
    if (mkdirat(x->dir, item->name, 0700) < 0)
        return fail(x, errno, item->path, "created");
    return go_down(x, openat(x->dir, item->name, DIR_FLAGS), item);
}

static int first_leave(void *ctx, const struct hfs_walk_item *item)
{
    int left = item->depth > 0 ? go_up(ctx, item) : 0;

    if (item->depth > 0 && left >= 0)
        close(left);
    return left < 0 ? left : 0;
}

/* ---- the second pass: symbolic links, then what is known of directories ---- */

static int put_link(struct extract *x, const struct hfs_walk_item *item)
{
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                {.tv_sec = item->ino.mtime, .tv_nsec = item->ino.mtime_nsec}};
    char target[4097];
    size_t len = item->ino.size;

    if (len >= sizeof target)
        return fail(x, ENAMETOOLONG, item->path, "created");
    memcpy(target, hfs_image_target(x->f->img, &item->ino), len);
    target[len] = 0;
    x->links++;
    if (symlinkat(target, x->dir, item->name) < 0)
        return fail(x, errno, item->path, "created");
    if (geteuid() == 0 &&
        fchownat(x->dir, item->name, item->ino.uid, item->ino.gid, AT_SYMLINK_NOFOLLOW) < 0)
        no_metadata(x, item->path);
    if (utimensat(x->dir, item->name, times, AT_SYMLINK_NOFOLLOW) < 0)
        no_metadata(x, item->path);
    return 0;
}

static int second_enter(void *ctx, const struct hfs_walk_item *item)
{
    struct extract *x = ctx;

    if (item->depth == 0 || S_ISREG(item->ino.mode))
        return 0;
    if (S_ISLNK(item->ino.mode))
        return put_link(x, item);
    return go_down(x, openat(x->dir, item->name, DIR_FLAGS), item);
}

/* The directories of the first level must stay writable until they are moved to their place. */
static int second_leave(void *ctx, const struct hfs_walk_item *item)
{
    struct extract *x = ctx;
    int left;

    if (item->depth == 0)
        return 0;
    left = go_up(x, item);
    if (left < 0)
        return left;
    if (item->depth > 1)
        set_metadata(x, left, &item->ino, item->path);
    close(left);
    return 0;
}

/* Those are set here. The tree stands in its place, so nothing may fail any more. */
static void finish_directories(struct extract *x)
{
    struct hfs_inode root, ino;
    struct hfs_dirent de;
    char name[256];

    hfs_image_inode(x->f->img, 0, &root);
    for (uint64_t i = 0; i < root.count; i++) {
        hfs_image_dirent(x->f->img, root.first + i, &de);
        hfs_image_inode(x->f->img, de.inode, &ino);
        if (!S_ISDIR(ino.mode))
            continue;
        memcpy(name, de.name, de.name_len);
        name[de.name_len] = 0;
        int fd = openat(x->stage.tree_fd, name, DIR_FLAGS);
        if (fd < 0) {
            no_metadata(x, name);
            continue;
        }
        set_metadata(x, fd, &ino, name);
        close(fd);
    }
    set_metadata(x, x->stage.tree_fd, &root, ".");
}

static int walk(struct extract *x, const struct hfs_walk_ops *ops)
{
    int r;

    x->dir = openat(x->stage.tree_fd, ".", DIR_FLAGS);
    if (x->dir < 0)
        return fail(x, errno, "", "opened");
    r = hfs_walk(x->f->img, ops, x);
    close(x->dir);
    if (r == -ENOMEM)
        hfs_fail(x->err, ENOMEM, "not enough memory for the tree of %s", x->f->opt.image);
    return r;
}

static int build(struct extract *x)
{
    static const struct hfs_walk_ops first = {first_enter, first_leave};
    static const struct hfs_walk_ops second = {second_enter, second_leave};
    int r = walk(x, &first);

    if (r == 0)
        r = walk(x, &second);
    if (r == 0)
        r = fsck_stage_publish(&x->stage, x->err);
    if (r == 0)
        finish_directories(x);
    return r;
}

static void say(const struct extract *x)
{
    struct hfs_json *j = &x->f->json;
    char bytes[16];

    if (x->f->opt.json) {
        hfs_json_object(j, "extracted");
        hfs_json_text(j, "directory", x->stage.target);
        hfs_json_uint(j, "files", x->files);
        hfs_json_uint(j, "directories", x->dirs);
        hfs_json_uint(j, "symlinks", x->links);
        hfs_json_uint(j, "bytes_decoded", x->f->content);
        hfs_json_close(j);
    } else if (ui_level() >= UI_NORMAL) {
        ui_print("%s: extracted %" PRIu64 " %s, %" PRIu64 " %s, %" PRIu64 " symbolic %s, %s",
                 x->stage.target, x->files, x->files == 1 ? "file" : "files", x->dirs,
                 x->dirs == 1 ? "directory" : "directories", x->links,
                 x->links == 1 ? "link" : "links", ui_bytes(bytes, x->f->content));
    }
    if (x->f->ndamaged > 0)
        ui_warn("%s: damaged blocks became zero bytes; the blocks and the files are named below",
                x->stage.target);
}

int fsck_extract(struct fsck *f, struct hfs_error *err)
{
    struct extract x = {.f = f, .err = err};
    int r;

    if (f->problems > 0 && !f->opt.keep_going)
        return hfs_fail(err, EBADMSG,
                        "%s: nothing was extracted, since the tables are damaged; --keep-going "
                        "saves what is readable",
                        f->opt.image);
    x.parents = calloc(HFS_MAX_DEPTH + 1, sizeof *x.parents);
    if (x.parents == NULL)
        return hfs_fail(err, ENOMEM, "not enough memory");
    r = fsck_stage_open(&x.stage, f->opt.extract, err);
    if (r == 0) {
        ui_progress_start("extracting", f->info.content_bytes);
        r = build(&x);
        ui_progress_end();
    }
    fsck_stage_close(&x.stage);
    if (r == 0)
        say(&x);
    free(x.parents);
    return r;
}
