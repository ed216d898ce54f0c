/* dump.hyperfs --plot: the tensors as a picture (fs/dump_svg.h), put where the user wants it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec/dtype.h"
#include "fs/dump.h"
#include "fs/dump_svg.h"

/* ---- order ---- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Numbers in names compare as numbers: layer 2 comes before layer 10. */
static int compare_names(const char *a, size_t na, const char *b, size_t nb)
{
    size_t i = 0, j = 0;

    while (i < na && j < nb) {
        if (is_digit(a[i]) && is_digit(b[j])) {
            size_t di, dj;
            int order;

            while (i < na && a[i] == '0')
                i++;
            while (j < nb && b[j] == '0')
                j++;
            for (di = i; di < na && is_digit(a[di]); di++)
                ;
            for (dj = j; dj < nb && is_digit(b[dj]); dj++)
                ;
            if (di - i != dj - j)
                return di - i < dj - j ? -1 : 1;
            order = memcmp(a + i, b + j, di - i);
            if (order != 0)
                return order;
            i = di;
            j = dj;
        } else if (a[i] != b[j]) {
            return (unsigned char)a[i] < (unsigned char)b[j] ? -1 : 1;
        } else {
            i++;
            j++;
        }
    }
    return (na - i > nb - j) - (na - i < nb - j);
}

static int compare_bars(const void *a, const void *b)
{
    const struct dump_bar *x = a, *y = b;
    int order = compare_names(x->name, x->name_len, y->name, y->name_len);

    return order != 0 ? order : (x->number > y->number) - (x->number < y->number);
}

static int collect(struct dump *d, struct dump_bar **bars, uint64_t *count, struct hfs_error *err)
{
    int r = hfs_image_tensors(d->img, count, err);

    if (r < 0)
        return r;
    *bars = calloc(*count + 1, sizeof **bars);
    if (*bars == NULL)
        return hfs_fail(err, ENOMEM, "not enough memory for the tensors");
    for (uint64_t i = 0; i < *count; i++) {
        const struct hc_code *code;
        struct hfs_tensor t;

        hfs_image_tensor(d->img, i, &t);
        code = dump_code(d, &t);
        (*bars)[i] = (struct dump_bar){
            .name = t.name,
            .name_len = t.name_len,
            .lossy = code != NULL && code->type == HC_CODE_TRAJECTORY,
            .number = i,
            .size = (double)t.elements * hc_dtype_bits(t.dtype) / 8,
            .stored = (double)t.stored,
            .sqnr = t.sqnr_db,
        };
    }
    if (*count > 0)
        qsort(*bars, *count, sizeof **bars, compare_bars);
    return 0;
}

/* ---- the file ---- */

struct target {
    const char *path;
    char *temp; /* beside the path; NULL: the stream is the path itself */
    FILE *out;
};

static int cannot_write(struct hfs_error *err, const char *path, int code)
{
    return hfs_fail(err, code, "%s cannot be written: %s", path, strerror(code));
}

/* The picture gets its name when it is whole, so an old one is not lost to a full disk. */
static int open_temp(struct target *t, mode_t mode, struct hfs_error *err)
{
    int fd, code;

    if (asprintf(&t->temp, "%s.XXXXXX", t->path) < 0) {
        t->temp = NULL;
        return hfs_fail(err, ENOMEM, "not enough memory for a path");
    }
    fd = mkostemp(t->temp, O_CLOEXEC);
    if (fd < 0) {
        code = errno;
        free(t->temp);
        t->temp = NULL;
        return cannot_write(err, t->path, code);
    }
    t->out = fchmod(fd, mode) == 0 ? fdopen(fd, "w") : NULL;
    if (t->out == NULL) {
        code = errno;
        close(fd);
        return cannot_write(err, t->path, code);
    }
    return 0;
}

static int open_target(struct target *t, const struct hfs_image *img, struct hfs_error *err)
{
    struct stat st, image;
    mode_t mask = umask(022);

    umask(mask);
    if (fstat(hfs_image_fd(img), &image) < 0)
        return hfs_fail(err, errno, "%s: %s", hfs_image_path(img), strerror(errno));
    if (stat(t->path, &st) < 0)
        return open_temp(t, 0666 & ~mask, err);
    if (st.st_dev == image.st_dev && st.st_ino == image.st_ino)
        return hfs_fail(err, EINVAL, "%s is the image itself: give the picture another name",
                        t->path);
    if (S_ISREG(st.st_mode))
        return open_temp(t, st.st_mode & 0777, err);
    t->out = fopen(t->path, "we"); /* a device or a pipe: nothing may take its place */
    return t->out != NULL ? 0 : cannot_write(err, t->path, errno);
}

static int close_target(struct target *t, struct hfs_error *err)
{
    int code = ferror(t->out) ? EIO : 0;

    if (fclose(t->out) != 0)
        code = errno;
    if (code == 0 && t->temp != NULL && rename(t->temp, t->path) < 0)
        code = errno;
    t->out = NULL;
    if (code == 0) {
        free(t->temp);
        t->temp = NULL;
    }
    return code != 0 ? cannot_write(err, t->path, code) : 0;
}

int dump_plot(struct dump *d, const char *path, struct hfs_error *err)
{
    struct target t = {.path = path};
    struct dump_bar *bars = NULL;
    char *real = NULL;
    uint64_t count;
    int r = collect(d, &bars, &count, err);

    if (r == 0 && strcmp(path, "-") == 0) {
        dump_svg(stdout, hfs_image_path(d->img), bars, count);
    } else if (r == 0) {
        real = realpath(path, NULL); /* what a link names is replaced, not the link */
        if (real != NULL)
            t.path = real;
        r = open_target(&t, d->img, err);
        if (r == 0) {
            dump_svg(t.out, hfs_image_path(d->img), bars, count);
            r = close_target(&t, err);
        }
        if (t.temp != NULL)
            unlink(t.temp);
    }
    free(t.temp);
    free(real);
    free(bars);
    return r;
}
