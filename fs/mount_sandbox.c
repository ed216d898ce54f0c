#include "fs/mount_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* By name, as not every processor has all of them. */
static const char *const allowed[] = {
    /* the image and the connection */
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "preadv",
    "close",
    "lseek",
    "fcntl",
    "ioctl",
    "fstat",
    "newfstatat",
    "statx",
    "fstatfs",
    "statfs",
    "readlink",
    "readlinkat",
    "fadvise64",
    "readahead",
    "poll",
    "ppoll",
    "splice",
    "vmsplice",
    "tee",
    "pipe2",
    "dup",
    "dup2",
    "dup3",
    "eventfd2",
    /* memory */
    "mmap",
    "munmap",
    "mprotect",
    "mremap",
    "madvise",
    "brk",
    "membarrier",
    "mincore",
    /* threads */
    "futex",
    "set_robust_list",
    "get_robust_list",
    "rseq",
    "exit",
    "exit_group",
    "gettid",
    "getpid",
    "getppid",
    "tgkill",
    "sched_yield",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "sched_setscheduler",
    "setpriority",
    "getpriority",
    "getrusage",
    "prlimit64",
    "getcpu",
    "sysinfo",
    "uname",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "wait4",
    "waitid",
    /* signals and time */
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigsuspend",
    "sigaltstack",
    "restart_syscall",
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "time",
    "getrandom",
    /* syslog */
    "connect",
    "sendto",
    "sendmsg",
    "getpeername",
    "getsockname",
    /* the end; looking whether the mount is still there */
    "umount2",
    "access",
    "faccessat",
    "faccessat2",
    "lstat",
    "stat",
    "prctl",
};

/* Calls of which only some forms are allowed. */
static int allow_forms(scmp_filter_ctx filter, bool clone_fd)
{
    const unsigned long writing = O_CREAT | O_TRUNC | (clone_fd ? 0 : O_ACCMODE);
    int r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1,
                             SCMP_A2(SCMP_CMP_MASKED_EQ, writing, 0));
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1,
                             SCMP_A0(SCMP_CMP_EQ, AF_UNIX, 0));
    /* Threads, but no processes. The flags of clone3 lie in memory, where a filter cannot look:
     * without it the C library uses clone. */
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                             SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    return r == 0 ? seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0) : r;
}

static int allow_all(scmp_filter_ctx filter)
{
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
        int call = seccomp_syscall_resolve_name(allowed[i]);
        int r = call == __NR_SCMP_ERROR ? 0 : seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0);
        if (r < 0 && r != -EDOM) /* a call that this processor does not have */
            return r;
    }
    return 0;
}

void mount_close_inherited(int keep)
{
    if (keep < 3) {
        close_range(3, ~0U, 0);
        return;
    }
    if (keep > 3)
        close_range(3, (unsigned)keep - 1, 0);
    close_range((unsigned)keep + 1, ~0U, 0);
}

/* What root keeps, to unmount: the call itself, and the way to a mount point in a directory that
 * is closed to others. */
static void drop_capabilities(void)
{
    const unsigned keep = 1u << CAP_SYS_ADMIN | 1u << CAP_DAC_READ_SEARCH;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (syscall(SYS_capget, &header, sets) < 0)
        return;
    struct __user_cap_data_struct kept[_LINUX_CAPABILITY_U32S_3] = {
        {.effective = sets[0].effective & keep, .permitted = sets[0].permitted & keep}};
    syscall(SYS_capset, &header, kept);
}

bool mount_sandbox(bool clone_fd)
{
    drop_capabilities();
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (SANITIZED)
        return false;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return false;
    bool loaded =
        allow_all(filter) == 0 && allow_forms(filter, clone_fd) == 0 && seccomp_load(filter) == 0;
    seccomp_release(filter);
    return loaded;
}
