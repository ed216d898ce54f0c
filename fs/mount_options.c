#include "fs/mount_options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/mount_read.h"
#include "fs/ui.h"

#define MIN_MEMORY ((size_t)1 << 20)
#define DEFAULT_MEMORY ((size_t)256 << 20)
enum { MAX_THREADS = 64, MIN_READ = 4096, MAX_READ_AHEAD_KB = 64 << 10 };

enum { KEY_IGNORED, KEY_MEMORY, KEY_THREADS, KEY_READ_AHEAD, KEY_MAX_READ, KEY_DIGEST, KEY_FSNAME };

#define FLAG(text, field)                                                                          \
    {                                                                                              \
        text, offsetof(struct mount_options, field), 1                                             \
    }

/* FUSE_OPT_KEY, with the conversion that clang asks for. */
#define KEY(text, key)                                                                             \
    {                                                                                              \
        text, (unsigned long)-1U, key                                                              \
    }

static const struct fuse_opt specification[] = {
    FLAG("-h", help),
    FLAG("--help", help),
    FLAG("-V", version),
    FLAG("--version", version),
    FLAG("-f", foreground),
    FLAG("-d", debug),
    FLAG("debug", debug),
    FLAG("-s", single),
    FLAG("nonempty", nonempty),
    FLAG("clone_fd", clone_fd),
    FLAG("allow_other", allow_other),
    FLAG("default_permissions", default_permissions),
    KEY("memory=", KEY_MEMORY),
    KEY("max_threads=", KEY_THREADS),
    KEY("read_ahead_kb=", KEY_READ_AHEAD),
    KEY("max_read=", KEY_MAX_READ),
    KEY("digest=", KEY_DIGEST),
    KEY("fsname=", KEY_FSNAME),
    /* Always read-only, without devices and without set-user-ID programs, whatever mount(8)
     * passes: it says rw, suid and dev unless told otherwise. */
    KEY("ro", KEY_IGNORED),
    KEY("rw", KEY_IGNORED),
    KEY("suid", KEY_IGNORED),
    KEY("dev", KEY_IGNORED),
    KEY("nosuid", KEY_IGNORED),
    KEY("nodev", KEY_IGNORED),
    /* We have our own, and there is nothing to do with an fstab's. */
    KEY("subtype=", KEY_IGNORED),
    KEY("defaults", KEY_IGNORED),
    KEY("auto", KEY_IGNORED),
    KEY("noauto", KEY_IGNORED),
    KEY("user", KEY_IGNORED),
    KEY("user=", KEY_IGNORED),
    KEY("nouser", KEY_IGNORED),
    KEY("users", KEY_IGNORED),
    KEY("owner", KEY_IGNORED),
    KEY("group", KEY_IGNORED),
    KEY("_netdev", KEY_IGNORED),
    KEY("nofail", KEY_IGNORED),
    KEY("comment=", KEY_IGNORED),
    KEY("relatime", KEY_IGNORED),
    KEY("norelatime", KEY_IGNORED),
    KEY("strictatime", KEY_IGNORED),
    KEY("lazytime", KEY_IGNORED),
    KEY("nolazytime", KEY_IGNORED),
    FUSE_OPT_END,
};

/* A number of decimal digits, at most max; the rest of the text goes to *rest. */
static bool parse_number(const char *text, size_t max, size_t *out, const char **rest)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || value > max)
        return false;
    *out = (size_t)value;
    *rest = end;
    return true;
}

static bool parse_int(const char *text, size_t min, size_t max, size_t *out)
{
    const char *rest;
    return parse_number(text, max, out, &rest) && *rest == '\0' && *out >= min;
}

static bool parse_size(const char *text, size_t *out)
{
    const char *rest;
    size_t value;
    unsigned shift = 0;
    if (!parse_number(text, SIZE_MAX, &value, &rest))
        return false;
    switch (*rest) {
    case 'k':
    case 'K':
        shift = 10;
        break;
    case 'm':
    case 'M':
        shift = 20;
        break;
    case 'g':
    case 'G':
        shift = 30;
        break;
    }
    if (shift > 0)
        rest++;
    if (*rest != '\0' || value > SIZE_MAX >> shift)
        return false;
    *out = value << shift;
    return true;
}

static int parse_value(struct mount_options *o, const char *arg, int key)
{
    const char *value = strchr(arg, '=') + 1;
    size_t n = 0;
    switch (key) {
    case KEY_MEMORY:
        if (!parse_size(value, &n) || n < MIN_MEMORY)
            return ui_usage_error("%s: not a size of at least 1M, such as 64M or 2G", arg);
        o->memory = n;
        break;
    case KEY_THREADS:
        if (!parse_int(value, 1, MAX_THREADS, &n))
            return ui_usage_error("%s: not a number from 1 to %d", arg, MAX_THREADS);
        o->threads = (unsigned)n;
        break;
    case KEY_READ_AHEAD:
        if (!parse_int(value, 0, MAX_READ_AHEAD_KB, &n))
            return ui_usage_error("%s: not a number from 0 to %d", arg, MAX_READ_AHEAD_KB);
        o->read_ahead_kb = (int)n;
        break;
    case KEY_DIGEST:
        if (!hfs_hash_parse(value, &o->digest))
            return ui_usage_error("%s: not 64 hexadecimal digits", arg);
        o->has_digest = true;
        break;
    default:
        if (!parse_int(value, MIN_READ, SIZE_MAX, &n))
            return ui_usage_error("%s: not a number of bytes from %d up", arg, MIN_READ);
        o->max_read = n < HFS_READ_MAX ? (unsigned)n & ~(MIN_READ - 1u) : HFS_READ_MAX;
        break;
    }
    return 0;
}

/* fuse_opt's convention: 1 keeps the argument for libfuse, 0 drops it, -1 stops. */
static int take(void *data, const char *arg, int key, struct fuse_args *args)
{
    (void)args;
    struct mount_options *o = data;
    switch (key) {
    case FUSE_OPT_KEY_NONOPT: {
        char **place = !o->image ? &o->image : &o->mountpoint;
        if (*place) {
            ui_usage_error("%s: one argument too many", arg);
            return -1;
        }
        *place = strdup(arg);
        return *place ? 0 : -1;
    }
    case KEY_IGNORED:
        return 0;
    case KEY_FSNAME:
        o->named = 1;
        return 1;
    case FUSE_OPT_KEY_OPT:
        if (arg[0] == '-') {
            ui_usage_error("%s: unknown option", arg);
            return -1;
        }
        return strncmp(arg, "x-", 2) != 0; /* x-systemd.automount and others are for others */
    default:
        return parse_value(o, arg, key) == 0 ? 0 : -1;
    }
}

int mount_options_parse(struct mount_options *o, int argc, char **argv)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    *o = (struct mount_options){
        .memory = DEFAULT_MEMORY,
        .threads = cpus < 2   ? 4
                   : cpus > 8 ? 16
                              : 2 * (unsigned)cpus,
        .read_ahead_kb = -1,
        .max_read = HFS_READ_MAX,
        .args = FUSE_ARGS_INIT(argc, argv),
    };
    errno = 0;
    if (fuse_opt_parse(&o->args, o, specification, take) == -1) {
        if (errno != ENOMEM)
            return 2;
        ui_error("not enough memory");
        return 1;
    }
    if (o->help || o->version)
        return 0;
    if (!o->image || !o->mountpoint)
        return ui_usage_error(o->image ? "no mount point given" : "no image given");
    if (o->debug)
        o->foreground = 1;
    return 0;
}

void mount_options_free(struct mount_options *o)
{
    fuse_opt_free_args(&o->args);
    free(o->image);
    free(o->mountpoint);
}

void mount_options_help(void)
{
    puts("Usage: hyperfs [-dfs] [-o OPTION[,OPTION...]] IMAGE MOUNTPOINT\n"
         "Mounts the hyperfs image IMAGE on the directory MOUNTPOINT, read-only.\n"
         "\n"
         "  -f             stay in the foreground, messages to the terminal\n"
         "  -d             the same, and show every request\n"
         "  -s             one thread\n"
         "  -o OPTION      see below and mount.fuse3(8)\n"
         "  -h, --help     show this help\n"
         "  -V, --version  show the version\n"
         "\n"
         "Options for -o:\n"
         "  memory=SIZE         memory for decoded blocks, 1M or more (default 256M)\n"
         "  max_threads=N       threads that answer requests, 1 to 64 (default: twice the\n"
         "                      number of processors, 4 to 16)\n"
         "  read_ahead_kb=N     how far the kernel reads ahead, as root only (default 1024,\n"
         "                      0: leave it as it is)\n"
         "  digest=SHA256       mount only the image that has this digest, and compare all that\n"
         "                      is read with it\n"
         "  allow_other         let other users read the files, as far as the modes allow\n"
         "  nonempty            mount over a directory that is not empty\n"
         "\n"
         "Unmount with fusermount3(1), as root also with umount(8).");
}
