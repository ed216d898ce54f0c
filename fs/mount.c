/* hyperfs: mounts an image.
 *
 * In the background a child does everything: it opens the image, mounts, answers the kernel's
 * first request, and only then says so through a pipe and leaves the terminal. The parent
 * waits for that, so that errors are shown and the exit status tells. Threads begin after the
 * last fork.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "fs/mount_log.h"
#include "fs/mount_loop.h"
#include "fs/mount_ops.h"
#include "fs/mount_options.h"
#include "fs/mount_sandbox.h"
#include "fs/mount_unmounter.h"
#include "fs/ui.h"

enum { DEFAULT_READ_AHEAD_KB = 1024 };

/* A running mount: what is set up in this order and taken down in the other. */
struct mount {
    struct mount_options *o;
    char *mountpoint; /* absolute */
    struct hfs_mount fs;
    struct fuse_session *session;
    bool handles_signals, mounted, has_unmounter;
    struct unmounter unmounter;
};

/* mount.fuse3's drop_privileges mounts by itself and passes the open connection. */
static bool is_connection(const char *mountpoint)
{
    return strncmp(mountpoint, "/dev/fd/", 8) == 0;
}

static int check_empty(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir) {
        ui_error("%s: cannot be opened: %s", path, strerror(errno));
        return -1;
    }
    struct dirent *entry;
    while ((entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            break;
    closedir(dir);
    if (!entry)
        return 0;
    ui_error("%s: the directory is not empty; mount elsewhere, or over it with -o nonempty", path);
    return -1;
}

/* The absolute path of the mount point, malloc'd, or NULL after a sentence. */
static char *check_mountpoint(const struct mount_options *o)
{
    struct stat st;
    const char *path = o->mountpoint;
    if (is_connection(path))
        return strdup(path);
    if (stat(path, &st) < 0) {
        if (errno == ENOTCONN)
            ui_error("%s: a mount whose program has ended is still there; "
                     "remove it with 'fusermount3 -u %s'",
                     path, path);
        else if (errno == ENOENT)
            ui_error("%s: no such directory; make one with mkdir", path);
        else
            ui_error("%s: %s", path, strerror(errno));
        return NULL;
    }
    if (!S_ISDIR(st.st_mode)) {
        ui_error("%s: not a directory", path);
        return NULL;
    }
    if (!o->nonempty && check_empty(path) < 0)
        return NULL;
    char *absolute = realpath(path, NULL);
    if (!absolute)
        ui_error("%s: %s", path, strerror(errno));
    return absolute;
}

/* Decoding ahead is for idle processors: one is left to the reader. */
static unsigned ahead_threads(void)
{
    enum { MOST = 8 };
    long others = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    return others < 1 ? 1 : others > MOST ? MOST : (unsigned)others;
}

static int open_image(struct mount *m)
{
    struct hfs_error error = {.text = ""};
    const struct hfs_hash *digest = m->o->has_digest ? &m->o->digest : NULL;
    if (hfs_image_open_digest(m->o->image, digest, &m->fs.img, &error) < 0) {
        ui_error("%s", error.text);
        return 1;
    }
    hfs_image_info(m->fs.img, &m->fs.info);
    if (m->fs.info.used_copy)
        ui_warn("%s: the first superblock is damaged, its copy at the end is used; "
                "check the image with fsck.hyperfs",
                m->o->image);
    m->fs.max_read = m->o->max_read;
    if (hfs_reader_new(m->fs.img, m->o->memory, m->o->threads + ahead_threads(), &m->fs.reader) <
            0 ||
        !(m->fs.xattrs = hfs_xattrs_new(m->fs.img, m->fs.reader))) {
        ui_error("not enough memory");
        return 1;
    }
    return 0;
}

/* Adds our own options to those that the user gave for libfuse. */
static int add_options(struct mount *m, struct fuse_args *args)
{
    char max_read[32];
    char *options = NULL, *source = realpath(m->o->image, NULL), *named = NULL;
    int failed = !source || asprintf(&named, "fsname=%s", source) < 0;
    snprintf(max_read, sizeof max_read, "max_read=%u", m->o->max_read);
    failed = failed || fuse_opt_add_opt(&options, "ro,nosuid,nodev,subtype=hyperfs") ||
             fuse_opt_add_opt(&options, max_read);
    if (!failed && !m->o->named)
        failed = fuse_opt_add_opt_escaped(&options, named);
    if (!failed && m->o->allow_other)
        failed = fuse_opt_add_opt(&options, "allow_other");
    /* Others get what the modes allow; the owner of a private mount owns the image too. */
    if (!failed && (m->o->allow_other || m->o->default_permissions))
        failed = fuse_opt_add_opt(&options, "default_permissions");
    failed = failed || fuse_opt_add_arg(args, "-o") || fuse_opt_add_arg(args, options) ||
             (m->o->debug && fuse_opt_add_arg(args, "-d"));
    free(options);
    free(named);
    free(source);
    return failed ? -ENOMEM : 0;
}

/* Answers the kernel's first request, so that the mount is known to work and the kernel has set
 * its read-ahead, which it would otherwise set over ours. Where that request cannot be answered,
 * for want of memory perhaps, no other one ever comes. */
static bool first_request(struct mount *m)
{
    struct fuse_buf buf = {.mem = NULL};
    int n;
    do {
        n = fuse_session_receive_buf(m->session, &buf);
    } while (n == -EINTR && !fuse_session_exited(m->session));
    if (n > 0)
        fuse_session_process_buf(m->session, &buf);
    free(buf.mem);
    return m->fs.started;
}

/* The kernel's default of 128 KiB costs up to half of the speed. Only root may change it. */
static void raise_read_ahead(const struct mount *m)
{
    int kb = m->o->read_ahead_kb < 0 ? DEFAULT_READ_AHEAD_KB : m->o->read_ahead_kb;
    struct statx st;
    char path[64], text[16];
    if (kb == 0 || is_connection(m->mountpoint))
        return;
    /* The mount answers no request yet: ask for its device number only, which takes none. */
    if (statx(AT_FDCWD, m->mountpoint, AT_STATX_DONT_SYNC, 0, &st) < 0) {
        mount_log(LOG_DEBUG, "%s: %s", m->mountpoint, strerror(errno));
        return;
    }
    snprintf(path, sizeof path, "/sys/class/bdi/%u:%u/read_ahead_kb", st.stx_dev_major,
             st.stx_dev_minor);
    int len = snprintf(text, sizeof text, "%d", kb);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, (size_t)len) != len)
        mount_log(LOG_DEBUG, "%s: cannot be set to %d: %s", path, kb, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static int mount_image(struct mount *m)
{
    if (add_options(m, &m->o->args) < 0) {
        ui_error("not enough memory");
        return 1;
    }
    errno = 0;
    m->session = fuse_session_new(&m->o->args, &hfs_mount_ops, sizeof hfs_mount_ops, &m->fs);
    if (!m->session && errno == ENOMEM) {
        ui_error("not enough memory");
        return 1;
    }
    if (!m->session)
        return ui_usage_error("hyperfs(1) lists the options for -o%s", mount_log_reason());
    if (fuse_set_signal_handlers(m->session) < 0) {
        ui_error("no handlers for signals");
        return 1;
    }
    m->handles_signals = true;
    if (fuse_session_mount(m->session, m->mountpoint) < 0) {
        ui_error("%s: mounting failed%s", m->mountpoint, mount_log_reason());
        return 1;
    }
    m->mounted = true;
    if (!first_request(m)) {
        ui_error("%s: the new mount does not work%s", m->mountpoint, mount_log_reason());
        return 1;
    }
    raise_read_ahead(m);
    return 0;
}

/* Root unmounts by itself; for others, who cannot from inside of the sandbox, a process is left
 * behind that may still use fusermount3. */
static int start_unmounter(struct mount *m, int ready)
{
    if (geteuid() != 0 && !is_connection(m->mountpoint)) {
        int fds[3] = {fuse_session_fd(m->session), hfs_image_fd(m->fs.img), ready};
        int error = unmounter_start(&m->unmounter, m->mountpoint, fds, ready < 0 ? 2 : 3,
                                    !m->o->foreground);
        if (error < 0) {
            ui_error("no process for unmounting: %s", strerror(-error));
            return 1;
        }
        m->has_unmounter = true;
    }
    return 0;
}

/* Leaves the terminal and tells the waiting parent. */
static int detach(int ready)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || chdir("/") < 0) {
        ui_error("%s: %s", null < 0 ? "/dev/null" : "/", strerror(errno));
        return 1;
    }
    mount_log_to_syslog();
    setsid();
    fflush(NULL);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
    while (write(ready, "", 1) < 0 && errno == EINTR)
        ;
    close(ready);
    return 0;
}

/* libfuse's own loop is the only one that can open the device more than once. */
static int loop_with_clones(struct mount *m)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (!config)
        return -ENOMEM;
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, m->o->threads);
    fuse_loop_cfg_set_idle_threads(config, m->o->threads);
    int result = fuse_session_loop_mt(m->session, config);
    fuse_loop_cfg_destroy(config);
    return result;
}

static int loop(struct mount *m)
{
    sigset_t before;
    mount_loop_hold_signals(&before);
    int result = hfs_ahead_new(m->fs.reader, ahead_threads(), &m->fs.ahead);
    if (result < 0) /* slower, and no less right */
        mount_log(LOG_WARNING, "%s: nothing is decoded ahead of readers: %s", m->mountpoint,
                  strerror(-result));
    if (!m->o->clone_fd || m->o->single)
        return mount_loop(m->session, m->o->single ? 1 : m->o->threads, &before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return loop_with_clones(m);
}

/* False if the mount has been removed by somebody else. */
static bool still_mounted(const struct mount *m)
{
    struct pollfd fd = {.fd = fuse_session_fd(m->session)};
    return !(poll(&fd, 1, 0) == 1 && fd.revents & POLLERR);
}

static void take_down(struct mount *m)
{
    /* As an ordinary user libfuse could not unmount any more. It finds the work done and only
     * closes the connection. */
    if (m->has_unmounter)
        unmounter_end(&m->unmounter, still_mounted(m));
    if (m->mounted)
        fuse_session_unmount(m->session);
    if (m->handles_signals)
        fuse_remove_signal_handlers(m->session);
    if (m->session)
        fuse_session_destroy(m->session);
    hfs_ahead_free(m->fs.ahead);
    hfs_xattrs_free(m->fs.xattrs);
    hfs_reader_free(m->fs.reader);
    hfs_image_close(m->fs.img);
    free(m->mountpoint);
}

/* Mounts and serves until it is unmounted; the exit status. ready: where to say that the mount
 * works, -1 in the foreground. */
static int run(struct mount_options *o, int ready)
{
    struct mount m = {.o = o, .mountpoint = check_mountpoint(o)};
    int status = m.mountpoint ? open_image(&m) : 1;
    if (status == 0)
        status = mount_image(&m);
    if (status == 0)
        status = start_unmounter(&m, ready);
    if (status == 0 && ready >= 0)
        status = detach(ready);
    if (status == 0) {
        if (!mount_sandbox(o->clone_fd))
            mount_log(LOG_DEBUG, "no filter of system calls");
        mount_log_serving();
        int result = loop(&m);
        if (result < 0) {
            mount_log(LOG_ERR, "%s: serving ended: %s", m.mountpoint, strerror(-result));
            status = 1;
        }
    }
    take_down(&m);
    return status;
}

/* Runs in a child; returns in both processes: in the parent once the child has mounted or
 * failed. */
static int run_in_background(struct mount_options *o)
{
    int ends[2], status = 0;
    if (pipe2(ends, O_CLOEXEC) < 0) {
        ui_error("no pipe: %s", strerror(errno));
        return 1;
    }
    pid_t child = fork();
    if (child < 0) {
        ui_error("no process: %s", strerror(errno));
        return 1;
    }
    if (child == 0) {
        close(ends[0]);
        return run(o, ends[1]);
    }
    close(ends[1]);
    char byte;
    ssize_t n;
    do {
        n = read(ends[0], &byte, 1);
    } while (n < 0 && errno == EINTR);
    if (n == 1)
        return 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFEXITED(status))
        ui_error("the mount ended by signal %d", WTERMSIG(status));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(int argc, char **argv)
{
    struct mount_options o;
    ui_start("hyperfs", UI_NORMAL);
    mount_log_start();
    int status = mount_options_parse(&o, argc, argv);
    if (o.debug)
        ui_start("hyperfs", UI_VERBOSE);
    if (status == 0 && o.help)
        mount_options_help();
    else if (status == 0 && o.version)
        puts("hyperfs (hyperfs) " HYPERFS_VERSION);
    else if (status == 0) {
        const char *mnt = o.mountpoint;
        mount_close_inherited(is_connection(mnt) ? atoi(mnt + strlen("/dev/fd/")) : -1);
        status = o.foreground ? run(&o, -1) : run_in_background(&o);
    }
    mount_options_free(&o);
    return status;
}
