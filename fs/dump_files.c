/* dump.hyperfs --files: the tree. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "fs/dump.h"
#include "fs/walk.h"

struct listing {
    struct dump *d;
    int owner, size, stored; /* widths of columns */
};

static uint64_t stored_bytes(struct dump *d, const struct hfs_inode *ino)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; S_ISREG(ino->mode) && i < ino->count; i++) {
        struct hfs_segment seg;

        hfs_image_segment(d->img, ino->first + i, &seg);
        sum += dump_stored(d, &seg);
    }
    return sum;
}

static void mode_text(char text[11], uint32_t mode)
{
    static const char letters[] = "rwxrwxrwx";

    text[0] = S_ISDIR(mode) ? 'd' : S_ISLNK(mode) ? 'l' : '-';
    for (unsigned i = 0; i < 9; i++)
        text[1 + i] = mode & (0400u >> i) ? letters[i] : '-';
    if (mode & S_ISUID)
        text[3] = mode & S_IXUSR ? 's' : 'S';
    if (mode & S_ISGID)
        text[6] = mode & S_IXGRP ? 's' : 'S';
    if (mode & S_ISVTX)
        text[9] = mode & S_IXOTH ? 't' : 'T';
    text[10] = 0;
}

static void time_text(char text[32], int64_t seconds)
{
    time_t t = (time_t)seconds;
    struct tm tm;

    if (localtime_r(&t, &tm) == NULL || tm.tm_year < -1900 || tm.tm_year > 8099 ||
        strftime(text, 32, "%Y-%m-%d %H:%M", &tm) == 0)
        snprintf(text, 32, "%16s", "?");
}

/* ---- text ---- */

/* Six characters at most, whatever a sparse file does. */
static void ratio_text(char text[24], uint64_t size, uint64_t stored)
{
    double ratio = stored > 0 ? (double)size / (double)stored : 0;

    if (stored == 0)
        strcpy(text, "-");
    else if (ratio < 1e6)
        snprintf(text, 24, "%.*f", ratio < 999 ? 2 : 0, ratio);
    else
        strcpy(text, ">1e6");
}

static void widen(int *width, int n)
{
    if (n > *width)
        *width = n;
}

static int measure(void *ctx, const struct hfs_walk_item *item)
{
    struct listing *l = ctx;
    char buf[32];

    widen(&l->owner, snprintf(NULL, 0, "%" PRIu32 "/%" PRIu32, item->ino.uid, item->ino.gid));
    if (S_ISREG(item->ino.mode)) {
        widen(&l->size, (int)strlen(dump_thousands(buf, item->ino.size)));
        widen(&l->stored, (int)strlen(dump_thousands(buf, stored_bytes(l->d, &item->ino))));
    }
    return 0;
}

static int print_line(void *ctx, const struct hfs_walk_item *item)
{
    static char shown[DUMP_SHOWN];
    struct listing *l = ctx;
    const struct hfs_inode *ino = &item->ino;
    char mode[11], owner[32], size[32] = "-", stored[32] = "-", ratio[24] = "-", when[32];

    mode_text(mode, ino->mode);
    time_text(when, ino->mtime);
    snprintf(owner, sizeof owner, "%" PRIu32 "/%" PRIu32, ino->uid, ino->gid);
    if (S_ISREG(ino->mode)) {
        uint64_t bytes = stored_bytes(l->d, ino);

        dump_thousands(size, ino->size);
        dump_thousands(stored, bytes);
        ratio_text(ratio, ino->size, bytes);
    }
    hfs_printable(shown, sizeof shown, item->path, (unsigned)strlen(item->path));
    printf("%s  %-*s  %*s  %*s  %6s  %s  %s", mode, l->owner, owner, l->size, size, l->stored,
           stored, ratio, when, item->depth > 0 ? shown : ".");
    if (S_ISLNK(ino->mode))
        printf(" -> %s", hfs_printable(shown, sizeof shown, hfs_image_target(l->d->img, ino),
                                       (unsigned)ino->size));
    putchar('\n');
    return 0;
}

static int list_text(struct listing *l)
{
    static const struct hfs_walk_ops measuring = {measure, NULL}, printing = {print_line, NULL};
    int r = hfs_walk(l->d->img, &measuring, l);

    if (r < 0)
        return r;
    printf("%-10s  %-*s  %*s  %*s  %6s  %-16s  %s\n", "mode", l->owner, "owner", l->size, "size",
           l->stored, "stored", "ratio", "modified", "name");
    return hfs_walk(l->d->img, &printing, l);
}

/* ---- JSON ---- */

static int json_item(void *ctx, const struct hfs_walk_item *item)
{
    struct listing *l = ctx;
    struct hfs_json *j = l->d->doc;
    const struct hfs_inode *ino = &item->ino;

    hfs_json_object(j, NULL);
    hfs_json_text(j, "path", item->path);
    hfs_json_text(j, "type",
                  S_ISDIR(ino->mode)   ? "directory"
                  : S_ISLNK(ino->mode) ? "symlink"
                                       : "file");
    hfs_json_uint(j, "inode", ino->number);
    hfs_json_uint(j, "mode", ino->mode & 07777);
    hfs_json_uint(j, "uid", ino->uid);
    hfs_json_uint(j, "gid", ino->gid);
    hfs_json_uint(j, "links", ino->nlink);
    hfs_json_int(j, "mtime", ino->mtime);
    hfs_json_uint(j, "mtime_nsec", ino->mtime_nsec);
    hfs_json_uint(j, "size", ino->size);
    if (S_ISREG(ino->mode))
        hfs_json_uint(j, "stored", stored_bytes(l->d, ino));
    if (S_ISLNK(ino->mode))
        hfs_json_bytes(j, "target", hfs_image_target(l->d->img, ino), ino->size);
    hfs_json_close(j);
    return 0;
}

int dump_files(struct dump *d, struct hfs_error *err)
{
    static const struct hfs_walk_ops items = {json_item, NULL};
    struct listing l = {.d = d, .owner = 5, .size = 4, .stored = 6};
    int r;

    if (d->doc != NULL) {
        hfs_json_array(d->doc, "files");
        r = hfs_walk(d->img, &items, &l);
        hfs_json_close(d->doc);
    } else {
        r = list_text(&l);
    }
    return r < 0 ? hfs_fail(err, -r, "the tree cannot be listed: %s", strerror(-r)) : 0;
}
