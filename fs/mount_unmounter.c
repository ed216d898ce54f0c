/* Contract: fs/mount_unmounter.h. */
#include "fs/mount_unmounter.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void serve(int pipe, const char *mountpoint, bool quiet)
{
    char word = 'u'; /* what to do when the other side dies without a word */
    ssize_t n;
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    prctl(PR_SET_NAME, "hyperfs-unmount");
    setsid();
    if (chdir("/") < 0)
        _exit(1);
    int null = quiet ? open("/dev/null", O_RDWR) : -1;
    for (int fd = 0; null >= 0 && fd < 3; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
    do {
        n = read(pipe, &word, 1);
    } while (n < 0 && errno == EINTR);
    if (word == 'u')
        execlp("fusermount3", "fusermount3", "-u", "-q", "-z", "--", mountpoint, (char *)NULL);
    _exit(word == 'u');
}

int unmounter_start(struct unmounter *u, const char *mountpoint, const int *close_fds, unsigned n,
                    bool quiet)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    u->pid = fork();
    if (u->pid < 0) {
        int error = -errno;
        close(ends[0]);
        close(ends[1]);
        return error;
    }
    if (u->pid == 0) {
        close(ends[1]);
        for (unsigned i = 0; i < n; i++)
            close(close_fds[i]);
        serve(ends[0], mountpoint, quiet);
    }
    close(ends[0]);
    u->pipe = ends[1];
    return 0;
}

void unmounter_end(struct unmounter *u, bool mounted)
{
    void (*before)(int) = signal(SIGPIPE, SIG_IGN);
    while (write(u->pipe, mounted ? "u" : "q", 1) < 0 && errno == EINTR)
        ;
    signal(SIGPIPE, before);
    close(u->pipe);
    while (waitpid(u->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}
