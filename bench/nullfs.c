/* A file system that does no work: what FUSE itself allows on this machine, for `make bench-read`.
 *
 *     nullfs SOURCE MOUNTPOINT [-o OPTION[,OPTION...]]
 *
 * stays in the foreground and shows a directory with one file of SOURCE's name and size. Its
 * safetensors header is SOURCE's, so that loaders accept it; all that follows is one MiB of
 * SOURCE's weights again and again. Both lie in memory, the MiB in the processor's cache. Replies
 * are a single writev from there. Besides libfuse's own options there are workers=N (threads,
 * default 4), max_read=BYTES (default 1 MiB), clone_fd and no_async.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fuse_lowlevel.h>

#include "codec/bytes.h"

enum { PATTERN = 1 << 20, FILE_INO = 2, MAX_PIECES = 8, MAX_HEADER = 100 << 20 };
static const double FOR_EVER = 1e9; /* seconds */

static struct {
    const char *name;
    uint8_t *header, *pattern;
    uint64_t header_len, size;
    char *source, *mountpoint;
    unsigned workers, max_read;
    int clone_fd, no_async;
} fs = {.workers = 4, .max_read = 1 << 20};

#define OPTION(text, field)                                                                        \
    {                                                                                              \
        text, offsetof(__typeof__(fs), field), 1                                                   \
    }
static const struct fuse_opt specification[] = {
    OPTION("workers=%u", workers),
    OPTION("max_read=%u", max_read),
    OPTION("clone_fd", clone_fd),
    OPTION("no_async", no_async),
    FUSE_OPT_END,
};

static int take(void *data, const char *arg, int key, struct fuse_args *args)
{
    (void)data, (void)args;
    if (key != FUSE_OPT_KEY_NONOPT)
        return 1;
    char **place = !fs.source ? &fs.source : &fs.mountpoint;
    if (*place || !(*place = strdup(arg)))
        return -1;
    return 0;
}

static void fill_stat(fuse_ino_t ino, struct stat *st)
{
    *st = (struct stat){.st_ino = ino, .st_nlink = 1, .st_uid = getuid(), .st_gid = getgid()};
    st->st_mode = ino == FILE_INO ? S_IFREG | 0444 : S_IFDIR | 0555;
    st->st_size = ino == FILE_INO ? (off_t)fs.size : 0;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->max_read = fs.max_read;
    conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    conn->want |= conn->capable & (FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_ASYNC_READ);
    if (fs.no_async)
        conn->want &= ~(unsigned)FUSE_CAP_ASYNC_READ;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param e = {.entry_timeout = FOR_EVER, .attr_timeout = FOR_EVER};
    if (parent == FUSE_ROOT_ID && strcmp(name, fs.name) == 0) {
        e.ino = FILE_INO;
        fill_stat(FILE_INO, &e.attr);
    }
    fuse_reply_entry(req, &e);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st;
    fill_stat(ino, &st);
    fuse_reply_attr(req, &st, FOR_EVER);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                       struct fuse_file_info *fi)
{
    (void)fi, (void)ino;
    char buf[512];
    struct stat st;
    fill_stat(FILE_INO, &st);
    size_t need = offset > 0 ? 0 : fuse_add_direntry(req, buf, sizeof buf, fs.name, &st, 1);
    fuse_reply_buf(req, buf, need <= size && need <= sizeof buf ? need : 0);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fi->keep_cache = 1;
    fi->noflush = 1;
    fuse_reply_open(req, fi);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    (void)fi, (void)ino;
    struct iovec iov[MAX_PIECES];
    int count = 0;
    uint64_t at = (uint64_t)offset, end = at < fs.size && size < fs.size - at ? at + size : fs.size;
    while (at < end && count < MAX_PIECES) {
        bool header = at < fs.header_len;
        uint64_t in = header ? at : (at - fs.header_len) % PATTERN;
        uint64_t left = (header ? fs.header_len : PATTERN) - in;
        uint64_t len = left < end - at ? left : end - at;
        iov[count++] = (struct iovec){(header ? fs.header : fs.pattern) + in, len};
        at += len;
    }
    fuse_reply_iov(req, iov, count);
}

static const struct fuse_lowlevel_ops operations = {
    .init = op_init,
    .lookup = op_lookup,
    .getattr = op_getattr,
    .readdir = op_readdir,
    .open = op_open,
    .read = op_read,
};

/* What is served. -1 after a sentence. */
static int load(const char *path)
{
    struct stat st;
    uint8_t length[8];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0 || pread(fd, length, 8, 0) != 8) {
        fprintf(stderr, "nullfs: %s: cannot be read as a safetensors file\n", path);
        return -1;
    }
    fs.size = (uint64_t)st.st_size;
    uint64_t json = load64(length);
    if (json > MAX_HEADER || fs.size < json + 8 + PATTERN) {
        fprintf(stderr, "nullfs: %s: no safetensors file of at least one MiB\n", path);
        return -1;
    }
    fs.header_len = json + 8;
    fs.header = malloc(fs.header_len);
    fs.pattern = aligned_alloc(4096, PATTERN);
    if (!fs.header || !fs.pattern ||
        pread(fd, fs.header, fs.header_len, 0) != (ssize_t)fs.header_len ||
        pread(fd, fs.pattern, PATTERN, (off_t)fs.header_len) != PATTERN) {
        fprintf(stderr, "nullfs: %s: %s\n", path, strerror(errno));
        return -1;
    }
    close(fd);
    const char *slash = strrchr(path, '/');
    fs.name = slash ? slash + 1 : path;
    return 0;
}

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
    char options[64];
    if (fuse_opt_parse(&args, &fs, specification, take) < 0 || !fs.mountpoint) {
        fprintf(stderr, "Usage: nullfs SOURCE MOUNTPOINT [-o OPTION[,OPTION...]]\n");
        return 2;
    }
    if (load(fs.source) < 0)
        return 1;
    snprintf(options, sizeof options, "-oro,fsname=nullfs,max_read=%u", fs.max_read);
    fuse_opt_add_arg(&args, options);
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (!session || !config || fuse_set_signal_handlers(session) < 0 ||
        fuse_session_mount(session, fs.mountpoint) < 0)
        return 1;
    fuse_loop_cfg_set_clone_fd(config, (unsigned)fs.clone_fd);
    fuse_loop_cfg_set_max_threads(config, fs.workers);
    fuse_loop_cfg_set_idle_threads(config, fs.workers);
    int result = fuse_session_loop_mt(session, config);
    fuse_session_unmount(session);
    fuse_remove_signal_handlers(session);
    fuse_session_destroy(session);
    fuse_loop_cfg_destroy(config);
    fuse_opt_free_args(&args);
    return result < 0;
}
