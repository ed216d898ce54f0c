#include "fs/walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct frame {
    uint32_t dir;
    uint64_t next, end; /* entries */
    size_t path_len;    /* of this directory */
    unsigned name_len;
};

struct walk {
    const struct hfs_image *img;
    const struct hfs_walk_ops *ops;
    void *ctx;
    struct frame *frames; /* the root's and HFS_MAX_DEPTH more */
    unsigned depth;       /* frames in use */
    char *path;           /* room for as many names */
    uint8_t *seen;        /* a bit for each inode */
};

static bool seen_before(struct walk *w, uint32_t inode)
{
    uint8_t bit = (uint8_t)(1u << (inode % 8));
    bool before = (w->seen[inode / 8] & bit) != 0;

    w->seen[inode / 8] |= bit;
    return before;
}

static int enter(struct walk *w, const struct hfs_walk_item *item, size_t path_len)
{
    int r = w->ops->enter(w->ctx, item);

    if (r == 0 && S_ISDIR(item->ino.mode))
        w->frames[w->depth++] = (struct frame){.dir = item->ino.number,
                                               .next = item->ino.first,
                                               .end = item->ino.first + item->ino.count,
                                               .path_len = path_len,
                                               .name_len = item->name_len};
    return r == HFS_WALK_SKIP ? 0 : r;
}

/* The next entry of the innermost directory. */
static int visit(struct walk *w)
{
    struct frame *f = &w->frames[w->depth - 1];
    struct hfs_walk_item item = {.depth = w->depth, .path = w->path};
    size_t len = f->path_len;
    struct hfs_dirent de;

    hfs_image_dirent(w->img, f->next++, &de);
    hfs_image_inode(w->img, de.inode, &item.ino);
    item.again = seen_before(w, de.inode);
    item.name_len = de.name_len;
    memcpy(item.name, de.name, de.name_len);
    if (len > 0)
        w->path[len++] = '/';
    memcpy(w->path + len, de.name, de.name_len);
    w->path[len + de.name_len] = 0;
    return enter(w, &item, len + de.name_len);
}

/* All entries of the innermost directory were visited. */
static int leave(struct walk *w)
{
    const struct frame *f = &w->frames[--w->depth];
    struct hfs_walk_item item = {.depth = w->depth, .path = w->path, .name_len = f->name_len};

    if (w->ops->leave == NULL)
        return 0;
    w->path[f->path_len] = 0;
    memcpy(item.name, w->path + f->path_len - f->name_len, f->name_len);
    hfs_image_inode(w->img, f->dir, &item.ino);
    return w->ops->leave(w->ctx, &item);
}

int hfs_walk(const struct hfs_image *img, const struct hfs_walk_ops *ops, void *ctx)
{
    struct walk w = {.img = img, .ops = ops, .ctx = ctx};
    struct hfs_walk_item root = {.again = false};
    struct hfs_info info;
    int r = -ENOMEM;

    hfs_image_info(img, &info);
    hfs_image_inode(img, 0, &root.ino);
    w.frames = malloc((HFS_MAX_DEPTH + 1) * sizeof *w.frames);
    w.path = calloc(HFS_MAX_DEPTH + 2, sizeof root.name);
    w.seen = calloc(info.inodes / 8 + 1, 1);
    if (w.frames != NULL && w.path != NULL && w.seen != NULL) {
        root.path = w.path;
        r = enter(&w, &root, 0);
        while (r == 0 && w.depth > 0)
            r = w.frames[w.depth - 1].next < w.frames[w.depth - 1].end ? visit(&w) : leave(&w);
    }
    free(w.frames);
    free(w.path);
    free(w.seen);
    return r;
}
