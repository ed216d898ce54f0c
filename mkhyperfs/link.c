#include "mkhyperfs/link.h"

#include <errno.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool mk_excluded(const struct mk_options *opt, const char *rel, bool *used)
{
    const char *slash = strrchr(rel, '/');
    const char *name = slash ? slash + 1 : rel;
    for (size_t i = 0; i < opt->nexcludes; i++)
        if (fnmatch(opt->excludes[i], rel, 0) == 0 || fnmatch(opt->excludes[i], name, 0) == 0) {
            if (used)
                used[i] = true;
            return true;
        }
    return false;
}

/* Appends the components of `text` to path (size PATH_MAX), which is below the root: "." is
 * dropped, ".." takes one away. False where that leaves the root or is too long. */
static bool append(char *path, const char *text)
{
    size_t len = strlen(path);
    while (*text) {
        size_t n = strcspn(text, "/");
        if (n == 2 && text[0] == '.' && text[1] == '.') {
            if (len == 0)
                return false;
            char *slash = strrchr(path, '/');
            len = slash ? (size_t)(slash - path) : 0;
        } else if (n > 0 && !(n == 1 && text[0] == '.')) {
            if (n + 2 > PATH_MAX - len)
                return false;
            if (len)
                path[len++] = '/';
            memcpy(path + len, text, n);
            len += n;
        }
        path[len] = 0;
        text += n + (text[n] == '/');
    }
    return true;
}

/* Where an absolute target lies below the root, all links of both resolved. 1, 0 if it does not,
 * or a negative errno. */
static int below_root(const char *root, const char *target, char *inside)
{
    char *real_root = realpath(root, NULL);
    char *real = real_root ? realpath(target, NULL) : NULL;
    int below = real ? 0 : -errno;
    if (real) {
        size_t len = strlen(real_root);
        if (len == 1)
            len = 0; /* "/" */
        if (strncmp(real, real_root, len) == 0 && (real[len] == '/' || !real[len])) {
            inside[0] = 0;
            below = append(inside, real + len);
        }
    }
    free(real_root);
    free(real);
    return below;
}

/* Whether the image will hold root/inside, and it is the file that the link leads to. 1, 0 or a
 * negative errno. */
static int is_stored(const struct mk_options *opt, const char *root, char *inside,
                     const struct stat *leads_to)
{
    for (char *slash = strchr(inside, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        bool out = mk_excluded(opt, inside, NULL);
        *slash = '/';
        if (out)
            return 0;
    }
    if (*inside && mk_excluded(opt, inside, NULL))
        return 0;

    char *path;
    struct stat st;
    if (asprintf(&path, "%s/%s", root, inside) < 0)
        return -ENOMEM;
    int error = stat(path, &st) == 0 ? 0 : errno;
    free(path);
    if (error) /* nothing there: another path by way of links led to the file */
        return error == ENOENT || error == ENOTDIR ? 0 : -error;
    return st.st_dev == leads_to->st_dev && st.st_ino == leads_to->st_ino &&
           (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
}

/* The path from the directory `from` to `to`, both below the root and free of "..". */
static char *relative(const char *from, const char *to)
{
    size_t same = 0; /* length of the components that they share */
    for (size_t i = 0; from[i] && from[i] == to[i];) {
        i++;
        if ((!from[i] || from[i] == '/') && (!to[i] || to[i] == '/'))
            same = i;
    }
    from += same + (from[same] == '/');
    to += same + (to[same] == '/');

    char *text = malloc(3 * strlen(from) + strlen(to) + 4);
    if (!text)
        return NULL;
    char *p = text;
    if (*from)
        p = stpcpy(p, "../");
    for (; *from; from++)
        if (*from == '/')
            p = stpcpy(p, "../");
    p = stpcpy(p, to);
    if (p == text)
        stpcpy(p, "."); /* a link to its own directory */
    else if (p[-1] == '/')
        p[-1] = 0;
    return text;
}

/* Reads the text of the link root/rel into text (size PATH_MAX). */
static int read_link(const char *root, const char *rel, char *text, struct hfs_error *err)
{
    char *path, shown[400];
    if (asprintf(&path, "%s/%s", root, rel) < 0)
        return hfs_fail(err, ENOMEM, "out of memory");
    ssize_t n = readlink(path, text, PATH_MAX);
    int code = n < 0 ? errno : n == 0 || n == PATH_MAX ? ENAMETOOLONG : 0;
    if (code)
        hfs_fail(err, code, "%s: the link cannot be read: %s",
                 hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path)), strerror(code));
    else
        text[n] = 0;
    free(path);
    return -code;
}

int mk_link_target(const struct mk_options *opt, const char *root, const char *rel,
                   const struct stat *leads_to, char **target, struct hfs_error *err)
{
    char text[PATH_MAX], inside[PATH_MAX], dir[PATH_MAX], shown[400];
    *target = NULL;
    int r = read_link(root, rel, text, err);
    if (r < 0)
        return r;
    const char *slash = strrchr(rel, '/');
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - rel) : 0, rel);

    int kept;
    if (text[0] == '/') {
        kept = below_root(root, text, inside);
    } else {
        strcpy(inside, dir);
        kept = append(inside, text);
    }
    if (kept > 0)
        kept = is_stored(opt, root, inside, leads_to);
    if (kept < 0)
        return hfs_fail(err, -kept, "%s: where this symbolic link leads cannot be examined: %s",
                        hfs_printable(shown, sizeof shown, rel, (unsigned)strlen(rel)),
                        strerror(-kept));
    if (kept == 0)
        return 0;
    *target = text[0] == '/' ? relative(dir, inside) : strdup(text);
    return *target ? 0 : hfs_fail(err, ENOMEM, "out of memory");
}
