#include "fs/fsck_against.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/fsck_weights.h"
#include "fs/ui.h"
#include "fs/walk.h"

/* dB below the stated SQNR that are forgiven: sums of squares taken in another order, and the
 * digits that are shown. */
#define TOLERANCE_DB 0.05

enum { SHOWN = 1024, MAX_TARGET = 4096 };

struct against {
    struct fsck *f;
    struct hfs_error *err;
    int source;       /* the directory, or the one that the single file lies in */
    const char *only; /* the name of a single file */
    uint64_t files, equal, within, differing; /* files of the image; and names that are not there */
    uint64_t tensors;
    const char *meta;  /* of the image */
    uint64_t excluded; /* names that mkhyperfs was told to leave out */

    /* the file being compared, under f->lock while threads run */
    const char *path;
    int fd;
    enum hc_dtype dtype; /* of the lossy segment being measured, else HC_DTYPE_NONE */
    double limit;
    struct fsck_measure measure;
    uint64_t unlike;       /* blocks that differ */
    uint64_t first_unlike; /* byte */
    bool unread;           /* a block of the image is damaged */
    int error;             /* of reading the source */
    bool lossy, failed, array_open;
};

/* Names a difference; path is below the source. */
__attribute__((format(printf, 3, 4))) static void difference(struct against *x, const char *path,
                                                             const char *format, ...)
{
    char shown[SHOWN], what[512];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    x->differing++;
    if (!x->f->opt.json) {
        hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path));
        ui_error("%s: %s", shown[0] ? shown : ".", what);
        return;
    }
    hfs_json_object(&x->f->json, NULL);
    hfs_json_text(&x->f->json, "path", path);
    hfs_json_text(&x->f->json, "result", "different");
    hfs_json_text(&x->f->json, "what", what);
    hfs_json_close(&x->f->json);
}

/* ---- the source ---- */

/* SOURCE as a directory, or as the one file of its own directory. */
static int open_source(struct against *x)
{
    const char *path = x->f->opt.against, *slash = strrchr(path, '/');
    char parent[4096];
    size_t len = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    struct stat st;

    if (stat(path, &st) < 0)
        return hfs_fail(x->err, errno, "%s: %s", path, strerror(errno));
    if (S_ISREG(st.st_mode)) {
        x->only = path + len;
        if (len >= sizeof parent)
            return hfs_fail(x->err, ENAMETOOLONG, "%s: the path is too long", path);
        snprintf(parent, sizeof parent, "%.*s", (int)len, path);
        path = len > 0 ? parent : ".";
    }
    x->source = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (x->source < 0)
        return hfs_fail(x->err, errno, "%s: %s", path, strerror(errno));
    return 0;
}

/* Whether mkhyperfs left the name out by an --exclude, which the image records. */
static bool is_excluded(const struct against *x, const char *path, const char *name)
{
    static const char key[] = "exclude=";
    char glob[1024];

    for (const char *line = x->meta; *line;) {
        size_t len = strcspn(line, "\n");

        if (strncmp(line, key, sizeof key - 1) == 0 && len - (sizeof key - 1) < sizeof glob) {
            snprintf(glob, sizeof glob, "%.*s", (int)(len - (sizeof key - 1)),
                     line + sizeof key - 1);
            if (fnmatch(glob, path, 0) == 0 || fnmatch(glob, name, 0) == 0)
                return true;
        }
        line += len + (line[len] == '\n');
    }
    return false;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int keep_name(char ***names, size_t *count, const char *name)
{
    char **list = *names;

    if ((*count & (*count - 1)) == 0) {
        list = realloc(list, (*count ? 2 * *count : 1) * sizeof *list);
        if (list == NULL)
            return -ENOMEM;
        *names = list;
    }
    list[*count] = strdup(name);
    if (list[*count] == NULL)
        return -ENOMEM;
    ++*count;
    return 0;
}

/* A socket, pipe or device, which no image can hold. */
static bool is_special(int dir, const char *name)
{
    struct stat st;

    return fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(st.st_mode) &&
           !S_ISDIR(st.st_mode) && !S_ISLNK(st.st_mode);
}

/* Names in a directory of the source that the image's does not have, sorted. */
static int missing_names(struct against *x, const struct hfs_walk_item *item, int fd)
{
    DIR *dir = fdopendir(fd);
    struct hfs_dirent found;
    struct dirent *de;
    char **names = NULL;
    size_t count = 0;
    int r = 0;

    if (dir == NULL) {
        close(fd);
        return -ENOMEM;
    }
    while (r == 0 && (errno = 0, de = readdir(dir)) != NULL) {
        if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
            continue;
        if (!is_special(fd, de->d_name) &&
            hfs_image_lookup(x->f->img, &item->ino, de->d_name, strlen(de->d_name), &found) < 0)
            r = keep_name(&names, &count, de->d_name);
    }
    if (r == 0 && errno != 0)
        difference(x, item->path, "cannot be read in the source: %s", strerror(errno));
    closedir(dir);
    if (count > 0)
        qsort(names, count, sizeof *names, compare_names);
    for (size_t i = 0; i < count; i++) {
        char path[8192];

        snprintf(path, sizeof path, "%s%s%s", item->path, item->path[0] ? "/" : "", names[i]);
        if (r == 0 && is_excluded(x, path, names[i]))
            x->excluded++;
        else if (r == 0)
            difference(x, path, "is not in the image");
        free(names[i]);
    }
    free(names);
    return r;
}

static int compare_directory(struct against *x, const struct hfs_walk_item *item)
{
    struct hfs_dirent found;
    int fd;

    if (x->only != NULL) {
        if (item->depth > 0) {
            difference(x, item->path, "is a directory in the image; the source is a single file");
            return HFS_WALK_SKIP;
        }
        if (hfs_image_lookup(x->f->img, &item->ino, x->only, strlen(x->only), &found) < 0)
            difference(x, x->only, "is not in the image");
        return 0;
    }
    fd = openat(x->source, item->depth > 0 ? item->path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        difference(x, item->path,
                   errno == ENOENT    ? "is only in the image"
                   : errno == ENOTDIR ? "is a directory in the image, not in the source"
                                      : "cannot be opened in the source: %s",
                   strerror(errno));
        return HFS_WALK_SKIP;
    }
    return missing_names(x, item, fd);
}

/* Whether the link leads to where the same text leads that the image has: mkhyperfs makes links
 * relative that are absolute and stay inside the source. */
static bool leads_there(struct against *x, const struct hfs_walk_item *item, const char *target)
{
    char path[2 * MAX_TARGET];
    size_t parent = strlen(item->path) - item->name_len;
    struct stat there, here;

    if (parent + strlen(target) >= sizeof path)
        return false;
    memcpy(path, item->path, parent);
    strcpy(path + parent, target);
    return fstatat(x->source, item->path, &there, 0) == 0 &&
           fstatat(x->source, target[0] == '/' ? target : path, &here, 0) == 0 &&
           there.st_dev == here.st_dev && there.st_ino == here.st_ino;
}

static int compare_link(struct against *x, const struct hfs_walk_item *item)
{
    char is[MAX_TARGET + 1], stored[MAX_TARGET + 1];
    ssize_t n = readlinkat(x->source, item->path, is, MAX_TARGET);

    if (x->only != NULL || (n < 0 && errno == ENOENT)) {
        difference(x, item->path, "is only in the image");
        return 0;
    }
    if (n < 0) {
        difference(x, item->path, "is a symbolic link in the image, not in the source");
        return 0;
    }
    is[n] = 0;
    snprintf(stored, sizeof stored, "%.*s", (int)item->ino.size,
             hfs_image_target(x->f->img, &item->ino));
    if (strcmp(is, stored) != 0 && !leads_there(x, item, stored))
        difference(x, item->path, "leads elsewhere than in the source");
    return 0;
}

/* ---- the content of a file ---- */

static int read_source(int fd, uint8_t *buf, size_t len, uint64_t offset)
{
    while (len > 0) {
        ssize_t n = pread(fd, buf, len, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        buf += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

/* Place of the first byte that differs; there is one. */
static uint64_t first_difference(const uint8_t *a, const uint8_t *b)
{
    uint64_t i = 0;

    while (a[i] == b[i])
        i++;
    return i;
}

static int on_block(void *ctx, const struct fsck_block *b)
{
    struct against *x = ctx;
    struct fsck_measure m = {0};
    bool unlike = false;
    int r = 0;

    fsck_count(x->f, b);
    if (b->status == 0)
        r = read_source(x->fd, b->spare, b->len, b->file_offset);
    if (b->status == 0 && r == 0 && x->dtype != HC_DTYPE_NONE)
        fsck_measure_block(&m, x->dtype, x->limit, b->spare, b->data, b->len);
    else if (b->status == 0 && r == 0)
        unlike = memcmp(b->spare, b->data, b->len) != 0;

    pthread_mutex_lock(&x->f->lock);
    x->unread |= b->status < 0;
    if (r < 0)
        x->error = -r;
    fsck_measure_add(&x->measure, &m);
    if (unlike) {
        uint64_t at = b->file_offset + first_difference(b->spare, b->data);

        if (x->unlike++ == 0 || at < x->first_unlike)
            x->first_unlike = at;
    }
    pthread_mutex_unlock(&x->f->lock);
    return 0;
}

static int run_range(struct against *x, uint64_t first, uint64_t count, uint64_t bytes)
{
    struct fsck_range range = {.first = first, .count = count, .bytes = bytes, .zeros = true};
    int r = fsck_pool_run(x->f->pool, &range, on_block, x);

    if (r == -ENOMEM)
        hfs_fail(x->err, ENOMEM, "not enough memory to compare '%s'", x->path);
    return r;
}

static void json_tensor(struct against *x, const struct hfs_tensor *t, double measured, bool good)
{
    struct hfs_json *j = &x->f->json;

    if (!x->array_open)
        hfs_json_array(j, "tensors");
    x->array_open = true;
    hfs_json_object(j, NULL);
    hfs_json_bytes(j, "name", t->name, t->name_len);
    hfs_json_double(j, "stated_db", t->sqnr_db);
    hfs_json_double(j, "measured_db", measured);
    hfs_json_double(j, "stated_max_error", t->max_error);
    hfs_json_double(j, "measured_max_error", x->measure.max_error);
    hfs_json_uint(j, "elements", x->measure.elements);
    hfs_json_uint(j, "equal_elements", x->measure.exact);
    hfs_json_uint(j, "broken_elements", x->measure.broken);
    hfs_json_bool(j, "good", good);
    hfs_json_close(j);
}

static void say_tensor(const struct against *x, const struct hfs_tensor *t, double measured,
                       bool good)
{
    char file[SHOWN], name[SHOWN], stated[24] = "exact", got[24] = "exact";

    hfs_printable(file, sizeof file, x->path, (unsigned)strlen(x->path));
    hfs_printable(name, sizeof name, t->name, t->name_len);
    if (isfinite(t->sqnr_db))
        snprintf(stated, sizeof stated, "%.2f dB", t->sqnr_db);
    if (isfinite(measured))
        snprintf(got, sizeof got, "%.2f dB", measured);
    if (x->measure.broken > 0)
        ui_error("%s: %s: %" PRIu64 " NaNs or infinities did not come back as they were", file,
                 name, x->measure.broken);
    else if (!good)
        ui_error("%s: %s: stated %s, measured only %s, largest error %.3g (stated %.3g)", file,
                 name, stated, got, x->measure.max_error, t->max_error);
    else if (ui_level() >= UI_NORMAL)
        ui_print("%s: %s: stated %s, measured %s", file, name, stated, got);
}

/* A tensor of the trajectory code. */
static int measure_segment(struct against *x, uint64_t number, const struct hfs_segment *seg)
{
    const struct hc_code *code = hfs_image_code(x->f->img, seg->code);
    uint64_t record = fsck_tensor_of(x->f, number);
    struct hfs_tensor t = {.name = "(no tensor record)", .name_len = 18, .sqnr_db = INFINITY};
    double measured;
    bool good;
    int r;

    x->dtype = code->dtype;
    x->limit = fsck_weight_limit(code);
    x->measure = (struct fsck_measure){0};
    r = run_range(x, number, 1, seg->length);
    x->dtype = HC_DTYPE_NONE;
    if (r < 0 || x->unread || x->error)
        return r;
    if (record != UINT64_MAX)
        hfs_image_tensor(x->f->img, record, &t);
    measured = fsck_measure_sqnr(&x->measure);
    good = record != UINT64_MAX && x->measure.broken == 0 && measured >= t.sqnr_db - TOLERANCE_DB &&
           x->measure.max_error <= t.max_error * (1 + 1e-9);
    x->tensors++;
    x->lossy = true;
    x->failed |= !good;
    if (x->f->opt.json)
        json_tensor(x, &t, measured, good);
    else
        say_tensor(x, &t, measured, good);
    return 0;
}

static bool is_lossy(const struct against *x, const struct hfs_segment *seg)
{
    return seg->kind == HFS_SEG_CODED &&
           hfs_image_code(x->f->img, seg->code)->type == HC_CODE_TRAJECTORY;
}

/* Lossless neighbours in one run of the threads, lossy segments one by one. */
static int compare_content(struct against *x, const struct hfs_inode *ino)
{
    uint64_t end = ino->first + ino->count, from = ino->first, bytes = 0;
    int r = 0;

    for (uint64_t i = from; r == 0 && i < end; i++) {
        struct hfs_segment seg;

        hfs_image_segment(x->f->img, i, &seg);
        if (!is_lossy(x, &seg)) {
            bytes += seg.length;
            continue;
        }
        if (from < i)
            r = run_range(x, from, i - from, bytes);
        if (r == 0)
            r = measure_segment(x, i, &seg);
        from = i + 1;
        bytes = 0;
    }
    if (r == 0 && from < end)
        r = run_range(x, from, end - from, bytes);
    return r;
}

/* The sentence for a file that is not as it should be, or "" for one that is. */
static void judge(const struct against *x, char *what, size_t size)
{
    what[0] = 0;
    if (x->error)
        snprintf(what, size, "cannot be read in the source: %s",
                 x->error == ENODATA ? "it became shorter meanwhile" : strerror(x->error));
    else if (x->unlike)
        snprintf(what, size, "differs from byte %" PRIu64 " on, in %" PRIu64 " %s", x->first_unlike,
                 x->unlike, x->unlike == 1 ? "block" : "blocks");
    else if (x->unread)
        snprintf(what, size, "is damaged in the image");
    else if (x->failed)
        snprintf(what, size, "holds tensors that are further from the source than stated");
}

static void conclude_file(struct against *x)
{
    char what[256], shown[SHOWN];
    struct hfs_json *j = &x->f->json;

    judge(x, what, sizeof what);
    if (what[0])
        x->differing++;
    else if (x->lossy)
        x->within++;
    else
        x->equal++;
    if (x->f->opt.json) {
        if (x->array_open)
            hfs_json_close(j);
        hfs_json_text(j, "result", what[0] ? "different" : x->lossy ? "as stated" : "equal");
        if (what[0])
            hfs_json_text(j, "what", what);
        hfs_json_close(j);
        return;
    }
    hfs_printable(shown, sizeof shown, x->path, (unsigned)strlen(x->path));
    if (what[0])
        ui_error("%s: %s", shown, what);
    else
        ui_verbose("%s: %s", shown, x->lossy ? "as stated" : "equal");
}

/* Opens the file of the source; -1 where there is none like it, which has been said. */
static int open_counterpart(struct against *x, const struct hfs_walk_item *item)
{
    int fd = -1;
    struct stat st;

    errno = ENOENT;
    if (x->only == NULL || strcmp(x->only, item->path) == 0)
        fd = openat(x->source, item->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        if (errno == ENOENT)
            difference(x, item->path, "is only in the image");
        else
            difference(x, item->path, "cannot be opened in the source: %s", strerror(errno));
        return -1;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        difference(x, item->path, "is a regular file in the image, not in the source");
    } else if ((uint64_t)st.st_size != item->ino.size) {
        difference(x, item->path, "has %" PRIu64 " bytes in the image, %" PRIu64 " in the source",
                   item->ino.size, (uint64_t)st.st_size);
    } else {
        return fd;
    }
    close(fd);
    return -1;
}

static int compare_file(struct against *x, const struct hfs_walk_item *item)
{
    int r;

    x->files++;
    x->fd = open_counterpart(x, item);
    if (x->fd < 0)
        return 0;
    x->path = item->path;
    x->unlike = 0;
    x->error = 0;
    x->unread = x->lossy = x->failed = x->array_open = false;
    if (x->f->opt.json) {
        hfs_json_object(&x->f->json, NULL);
        hfs_json_text(&x->f->json, "path", item->path);
    }
    r = compare_content(x, &item->ino);
    close(x->fd);
    if (r == 0)
        conclude_file(x);
    return r;
}

static int on_enter(void *ctx, const struct hfs_walk_item *item)
{
    if (S_ISDIR(item->ino.mode))
        return compare_directory(ctx, item);
    return S_ISLNK(item->ino.mode) ? compare_link(ctx, item) : compare_file(ctx, item);
}

static void say_counts(const struct against *x)
{
    struct hfs_json *j = &x->f->json;

    if (x->f->opt.json) {
        hfs_json_object(j, "against");
        hfs_json_text(j, "source", x->f->opt.against);
        hfs_json_uint(j, "files", x->files);
        hfs_json_uint(j, "equal", x->equal);
        hfs_json_uint(j, "as_stated", x->within);
        hfs_json_uint(j, "different", x->differing);
        hfs_json_uint(j, "excluded", x->excluded);
        hfs_json_uint(j, "tensors_measured", x->tensors);
        hfs_json_close(j);
    } else if (ui_level() >= UI_NORMAL) {
        if (x->excluded > 0)
            ui_print("%s: %" PRIu64 " %s not in the image because of --exclude", x->f->opt.against,
                     x->excluded, x->excluded == 1 ? "name is" : "names are");
        ui_print("%s: %" PRIu64 " %s equal, %" PRIu64 " as exact as stated, %" PRIu64 " %s",
                 x->f->opt.against, x->equal, x->equal == 1 ? "file" : "files", x->within,
                 x->differing, x->differing == 1 ? "difference" : "differences");
    }
}

int fsck_against(struct fsck *f, bool *differs, struct hfs_error *err)
{
    static const struct hfs_walk_ops ops = {on_enter, NULL};
    struct against x = {.f = f, .err = err, .source = -1};
    int r = hfs_image_meta(f->img, &x.meta, err);

    /* What a tensor states is in its record: without memory for these, all would be beyond it. */
    if (r == 0 && fsck_load_tensors(f) < 0)
        r = hfs_fail(err, ENOMEM, "not enough memory for the tensors of %s", f->opt.image);
    if (r == 0)
        r = open_source(&x);
    if (r < 0)
        return r;
    if (f->opt.json)
        hfs_json_array(&f->json, "files");
    ui_progress_start("comparing", f->info.content_bytes);
    r = hfs_walk(f->img, &ops, &x);
    ui_progress_end();
    if (r == -ENOMEM)
        hfs_fail(err, ENOMEM, "not enough memory for the tree of %s", f->opt.image);
    close(x.source);
    if (r == 0) {
        if (f->opt.json)
            hfs_json_close(&f->json);
        say_counts(&x);
        *differs = x.differing > 0;
    }
    return r;
}
