#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/ui.h"
#include "mkhyperfs/link.h"
#include "mkhyperfs/source.h"

/* An element that uthash could not add for want of memory is left with file = NULL. */
#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(element) ((element)->file = NULL)
#include <uthash.h>

/* Names that one image takes, so that links to directories within each other end. */
enum { MAX_NODES = 4000000 };

struct inode_key {
    dev_t dev;
    ino_t ino;
};

struct seen_inode {
    struct inode_key key;
    struct mk_file *file;
    UT_hash_handle hh;
};

/* A link that is kept: its name is one more for the file it leads to. */
struct alias {
    struct inode_key key;
    char *rel;
};

struct walk {
    const struct mk_options *opt;
    struct mk_source *src;
    struct hfs_error *err;
    struct stat image_dir, image; /* st_ino 0: there is none */
    struct seen_inode *inodes;
    struct alias *aliases;
    size_t naliases;
};

static int out_of_memory(struct walk *w)
{
    return hfs_fail(w->err, ENOMEM, "out of memory");
}

/* A sentence about a path: `what`, and the errno's text where code says more. */
static int fail_at(struct walk *w, const char *path, int code, const char *what, bool explain)
{
    char shown[400];
    hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path));
    return hfs_fail(w->err, code, "%s: %s%s%s", shown, what, explain ? ": " : "",
                    explain ? strerror(code) : "");
}

static bool same_inode(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* ---- nodes and files ---- */

static struct mk_node *add_node(struct walk *w, struct mk_node *parent, enum mk_node_type type,
                                const char *name, const struct stat *st)
{
    struct mk_node *node = calloc(1, sizeof *node);
    if (!node)
        return NULL;
    node->name = strdup(name);
    if (!node->name) {
        free(node);
        return NULL;
    }
    node->type = type;
    node->parent = parent;
    node->st = *st;
    if (parent)
        parent->children[parent->nchildren++] = node; /* room was made for all its names */
    else
        w->src->top = node;
    w->src->nnodes++;
    return node;
}

static bool named_safetensors(const char *name)
{
    static const char suffix[] = ".safetensors";
    size_t len = strlen(name);
    return len >= sizeof suffix - 1 && strcmp(name + len - (sizeof suffix - 1), suffix) == 0;
}

static int add_name(struct walk *w, struct mk_file *f, const char *rel)
{
    char **more = realloc(f->names, (f->nnames + 1) * sizeof *more);
    if (!more)
        return out_of_memory(w);
    f->names = more;
    more[f->nnames] = strdup(rel);
    if (!more[f->nnames])
        return out_of_memory(w);
    f->nnames++;
    f->safetensors |= named_safetensors(rel);
    return 0;
}

static void free_file(struct mk_file *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->nnames; i++)
        free(f->names[i]);
    free(f->names);
    free(f->path);
    free(f->shown);
    free(f);
}

static struct mk_file *new_file(struct walk *w, const char *path, const struct stat *st)
{
    struct mk_source *src = w->src;
    if ((src->nfiles & (src->nfiles - 1)) == 0) { /* doubled at each power of two */
        size_t room = src->nfiles ? 2 * src->nfiles : 1;
        struct mk_file **more = realloc(src->files, room * sizeof *more);
        if (!more)
            return NULL;
        src->files = more;
    }
    size_t len = strlen(path);
    struct mk_file *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->st = *st;
    f->path = strdup(path);
    f->shown = malloc(4 * len + 1); /* \xNN at the most for each byte */
    if (!f->path || !f->shown) {
        free_file(f);
        return NULL;
    }
    hfs_printable(f->shown, (unsigned)(4 * len + 1), path, (unsigned)len);
    src->bytes += (uint64_t)st->st_size;
    src->files[src->nfiles++] = f;
    return f;
}

/* The file of this inode: the one that is known by another name, or a new one. */
static int find_file(struct walk *w, const char *path, const struct stat *st, struct mk_file **out)
{
    struct seen_inode *seen;
    struct inode_key key;
    memset(&key, 0, sizeof key); /* padding is hashed too */
    key.dev = st->st_dev;
    key.ino = st->st_ino;
    HASH_FIND(hh, w->inodes, &key, sizeof key, seen);
    if (seen) {
        *out = seen->file;
        return 0;
    }
    seen = calloc(1, sizeof *seen);
    if (!seen)
        return out_of_memory(w);
    seen->key = key;
    struct mk_file *f = seen->file = new_file(w, path, st);
    if (f)
        HASH_ADD(hh, w->inodes, key, sizeof key, seen);
    if (!seen->file) {
        free(seen);
        return out_of_memory(w);
    }
    *out = f;
    return 0;
}

static int add_file(struct walk *w, struct mk_node *parent, const char *path, const char *rel,
                    const char *name, const struct stat *st)
{
    if (w->image.st_ino && same_inode(st, &w->image))
        return fail_at(w, path, EINVAL, "is the image that is to be written; choose another place",
                       false);
    if (faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) != 0)
        return fail_at(w, path, errno, "cannot be read", true);
    struct mk_file *f = NULL;
    int r = find_file(w, path, st, &f);
    if (r == 0)
        r = add_name(w, f, rel);
    if (r < 0)
        return r;
    f->nlink++;
    struct mk_node *node = add_node(w, parent, MK_FILE, name, st);
    if (!node)
        return out_of_memory(w);
    node->file = f;
    return 0;
}

/* ---- links ---- */

static int add_link(struct walk *w, struct mk_node *parent, const char *rel, const char *name,
                    const struct stat *st, const struct stat *leads_to, char *target)
{
    struct mk_node *node = add_node(w, parent, MK_LINK, name, st);
    if (!node) {
        free(target);
        return out_of_memory(w);
    }
    node->target = target;
    w->src->nlinks++;
    if (!S_ISREG(leads_to->st_mode))
        return 0;

    struct alias *more = realloc(w->aliases, (w->naliases + 1) * sizeof *more);
    if (!more)
        return out_of_memory(w);
    w->aliases = more;
    struct alias *a = &more[w->naliases];
    memset(a, 0, sizeof *a);
    a->key.dev = leads_to->st_dev;
    a->key.ino = leads_to->st_ino;
    a->rel = strdup(rel);
    if (!a->rel)
        return out_of_memory(w);
    w->naliases++;
    return 0;
}

/* In a Hugging Face cache stored as a whole only the link says what a blob is. */
static int name_by_links(struct walk *w)
{
    for (size_t i = 0; i < w->naliases; i++) {
        struct seen_inode *seen;
        HASH_FIND(hh, w->inodes, &w->aliases[i].key, sizeof(struct inode_key), seen);
        if (seen) {
            int r = add_name(w, seen->file, w->aliases[i].rel);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

static int fail_link(struct walk *w, const char *path, int code)
{
    if (code == ELOOP)
        return fail_at(w, path, code, "is a symbolic link that leads back to itself", false);
    if (code == ENOENT || code == ENOTDIR)
        return fail_at(w, path, code,
                       "is a symbolic link that leads nowhere; remove it, or use --exclude", false);
    return fail_at(w, path, code, "where this symbolic link leads cannot be examined", true);
}

/* ---- directories ---- */

static int walk_dir(struct walk *w, struct mk_node *dir, const char *path);

static int add_special(struct walk *w, const char *path, mode_t mode)
{
    const char *kind = S_ISSOCK(mode)   ? "is a socket"
                       : S_ISFIFO(mode) ? "is a named pipe"
                                        : "is a device";
    char what[100];
    if (w->opt->skip_special) {
        char shown[400];
        hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path));
        ui_info("%s: %s; left out", shown, kind);
        w->src->skipped++;
        return 0;
    }
    snprintf(what, sizeof what, "%s, which an image cannot hold; --skip-special leaves it out",
             kind);
    return fail_at(w, path, EINVAL, what, false);
}

/* Stores path, or leaves it out. */
static int add_entry(struct walk *w, struct mk_node *dir, const char *path, const char *name)
{
    const char *rel = path + strlen(w->src->root) + 1;
    if (mk_excluded(w->opt, rel, w->src->exclude_used))
        return 0;
    if (w->src->nnodes >= MAX_NODES)
        return fail_at(w, path, EFBIG, "an image holds four million names; use --exclude", false);
    struct stat own, st;
    if (lstat(path, &own) != 0)
        return fail_at(w, path, errno, "cannot be examined", true);
    st = own;
    if (S_ISLNK(own.st_mode)) {
        if (stat(path, &st) != 0)
            return fail_link(w, path, errno);
        char *target = NULL;
        int r = mk_link_target(w->opt, w->src->root, rel, &st, &target, w->err);
        if (r < 0)
            return r;
        if (target)
            return add_link(w, dir, rel, name, &own, &st, target);
    }
    if (S_ISREG(st.st_mode))
        return add_file(w, dir, path, rel, name, &st);
    if (!S_ISDIR(st.st_mode))
        return add_special(w, path, st.st_mode);
    for (const struct mk_node *up = dir; up; up = up->parent)
        if (same_inode(&up->st, &st))
            return fail_at(w, path, ELOOP,
                           "leads back to a directory that contains it; use --exclude", false);
    struct mk_node *node = add_node(w, dir, MK_DIR, name, &st);
    return node ? walk_dir(w, node, path) : out_of_memory(w);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_names(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* All names of a directory but "." and "..", sorted. The directory is closed again, so that a
 * deep tree does not use up the descriptors. */
static int list(struct walk *w, const char *path, char ***out, size_t *out_count)
{
    DIR *d = opendir(path);
    if (!d)
        return fail_at(w, path, errno, "the directory cannot be read", true);
    char **names = NULL;
    size_t count = 0, room = 0;
    int r = 0;
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e) {
            if (errno)
                r = fail_at(w, path, errno, "the directory cannot be read", true);
            break;
        }
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (count == room) {
            room = room ? 2 * room : 16;
            char **more = room <= MAX_NODES * 2 ? realloc(names, room * sizeof *more) : NULL;
            if (!more) {
                r = out_of_memory(w);
                break;
            }
            names = more;
        }
        names[count] = strdup(e->d_name);
        if (!names[count]) {
            r = out_of_memory(w);
            break;
        }
        count++;
    }
    closedir(d);
    if (r < 0) {
        free_names(names, count);
        return r;
    }
    if (count)
        qsort(names, count, sizeof *names, by_name);
    *out = names;
    *out_count = count;
    return 0;
}

/* Recurses a level a directory; the length of a path (PATH_MAX) bounds the depth. */
static int walk_dir(struct walk *w, struct mk_node *dir, const char *path)
{
    if (w->image_dir.st_ino && same_inode(&dir->st, &w->image_dir))
        return fail_at(w, path, EINVAL,
                       "the image would lie in this directory, which it is to hold; "
                       "choose another place",
                       false);
    char **names = NULL;
    size_t count = 0;
    int r = list(w, path, &names, &count);
    if (r < 0)
        return r;
    dir->children = calloc(count ? count : 1, sizeof *dir->children);
    if (!dir->children)
        r = out_of_memory(w);
    for (size_t i = 0; i < count && r == 0; i++) {
        char *child;
        if (asprintf(&child, "%s/%s", path, names[i]) < 0) {
            r = out_of_memory(w);
            break;
        }
        r = add_entry(w, dir, child, names[i]);
        free(child);
    }
    free_names(names, count);
    return r;
}

/* ---- SOURCE and IMAGE ---- */

static void find_image(struct walk *w)
{
    const char *image = w->opt->image;
    memset(&w->image_dir, 0, sizeof w->image_dir);
    memset(&w->image, 0, sizeof w->image);
    if (!image)
        return;
    if (stat(image, &w->image) != 0)
        w->image.st_ino = 0;
    const char *slash = strrchr(image, '/');
    char *dir = slash ? strndup(image, slash == image ? 1 : (size_t)(slash - image)) : strdup(".");
    if (!dir || stat(dir, &w->image_dir) != 0)
        w->image_dir.st_ino = 0; /* the writer will say that the directory is missing */
    free(dir);
}

/* The directory that a lone file stands in as seen in the image: readable for all, of the
 * file's owner and age. */
static int single_file(struct walk *w, const char *path, const struct stat *st)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (!named_safetensors(name))
        return fail_at(w, path, EINVAL, "is neither a directory nor a .safetensors file", false);
    struct stat dir = *st;
    dir.st_mode = S_IFDIR | 0755;
    dir.st_ino = 0;
    struct mk_node *top = add_node(w, NULL, MK_DIR, "", &dir);
    if (!top || !(top->children = calloc(1, sizeof *top->children)))
        return out_of_memory(w);
    return add_file(w, top, path, name, name, st);
}

static int walk_source(struct walk *w)
{
    const char *path = w->opt->source;
    struct stat st;
    if (stat(path, &st) != 0)
        return fail_at(w, path, errno, "SOURCE cannot be examined", true);
    size_t len = strlen(path);
    if (S_ISDIR(st.st_mode)) {
        while (len && path[len - 1] == '/')
            len--;
        w->src->root = len ? strndup(path, len) : strdup("/.");
    } else {
        const char *slash = strrchr(path, '/');
        w->src->root = slash == path ? strdup("/.")
                       : slash       ? strndup(path, (size_t)(slash - path))
                                     : strdup(".");
    }
    if (!w->src->root)
        return out_of_memory(w);
    find_image(w);
    if (S_ISREG(st.st_mode))
        return single_file(w, path, &st);
    if (!S_ISDIR(st.st_mode))
        return fail_at(w, path, EINVAL, "is neither a directory nor a .safetensors file", false);
    struct mk_node *top = add_node(w, NULL, MK_DIR, "", &st);
    return top ? walk_dir(w, top, w->src->root) : out_of_memory(w);
}

int mk_source_read(const struct mk_options *opt, struct mk_source **out, struct hfs_error *err)
{
    struct walk w = {.opt = opt, .src = calloc(1, sizeof *w.src), .err = err};
    int r = -ENOMEM;
    if (w.src)
        w.src->exclude_used = calloc(opt->nexcludes + 1, sizeof *w.src->exclude_used);
    if (w.src && w.src->exclude_used)
        r = walk_source(&w);
    else
        out_of_memory(&w);
    if (r == 0)
        r = name_by_links(&w);

    struct seen_inode *seen, *next;
    HASH_ITER(hh, w.inodes, seen, next)
    {
        HASH_DEL(w.inodes, seen);
        free(seen);
    }
    for (size_t i = 0; i < w.naliases; i++)
        free(w.aliases[i].rel);
    free(w.aliases);
    if (r == 0)
        *out = w.src;
    else
        mk_source_free(w.src);
    return r;
}

static void free_node(struct mk_node *node)
{
    if (!node)
        return;
    for (size_t i = 0; i < node->nchildren; i++)
        free_node(node->children[i]);
    free(node->children);
    free(node->name);
    free(node->target);
    free(node);
}

void mk_source_free(struct mk_source *src)
{
    if (!src)
        return;
    free_node(src->top);
    for (size_t i = 0; i < src->nfiles; i++)
        free_file(src->files[i]);
    free(src->files);
    free(src->root);
    free(src->exclude_used);
    free(src);
}
