#include "mkhyperfs/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/image.h"
#include "fs/ui.h"
#include "mkhyperfs/pipeline.h"

enum { SLOTS_PER_JOB = 4 };

struct slot {
    struct hfs_segment segment;
    uint64_t block;
    size_t raw_len;
    int status;
};

static void read_block(void *ctx, void *arg, struct mk_worker *worker)
{
    struct hfs_image *img = ctx;
    struct slot *s = arg;
    if (!worker->buf)
        worker->buf = malloc(HFS_MAX_STORED);
    if (!worker->buf2)
        worker->buf2 = malloc(HC_MAX_BLOCK_BYTES);
    s->status = -ENOMEM;
    if (worker->buf && worker->buf2)
        s->status = hfs_image_read_block(img, worker->work, &s->segment, s->block, worker->buf,
                                         worker->buf2, &s->raw_len, true);
}

/* The next block of the image's segments; false after the last. */
static bool next_block(struct hfs_image *img, uint64_t segments, uint64_t *segment, uint64_t *block,
                       struct slot *s)
{
    for (; *segment < segments; ++*segment, *block = 0) {
        hfs_image_segment(img, *segment, &s->segment);
        if (s->segment.kind == HFS_SEG_CODED &&
            *block < hfs_image_segment_blocks(img, &s->segment)) {
            s->block = (*block)++;
            return true;
        }
    }
    return false;
}

static int read_all(const struct mk_options *opt, struct hfs_image *img,
                    const struct hfs_info *info, struct hfs_error *err)
{
    struct mk_pipeline *p;
    struct slot *s;
    uint64_t segment = 0, block = 0, done = 0;
    bool more = true;
    int r = mk_pipeline_new(opt->jobs, SLOTS_PER_JOB * opt->jobs, sizeof *s, opt->isa, read_block,
                            img, &p);
    if (r < 0)
        return hfs_fail(err, -r, "cannot start %u threads: %s", opt->jobs, strerror(-r));
    ui_progress_start("verifying", info->content_bytes);
    while (r == 0) {
        while (more && (s = mk_pipeline_free_slot(p))) {
            more = next_block(img, info->segments, &segment, &block, s);
            if (more)
                mk_pipeline_put(p);
        }
        s = mk_pipeline_take(p);
        if (!s)
            break;
        r = s->status;
        if (r == -ENOMEM)
            hfs_fail(err, ENOMEM, "out of memory to check the new image; nothing is kept of it");
        else if (r < 0)
            hfs_fail(err, -r,
                     "the new image is wrong at block %llu (%s); nothing is kept of it. "
                     "Check the disk and the memory of this machine",
                     (unsigned long long)(s->segment.first_block + s->block), strerror(-r));
        done += s->raw_len;
        ui_progress(done);
        mk_pipeline_done(p);
    }
    mk_pipeline_free(p, NULL);
    ui_progress_end();
    return r;
}

static void note_problem(void *ctx, const char *sentence)
{
    hfs_fail(ctx, EBADMSG, "the new image is wrong: %s; nothing is kept of it", sentence);
}

int mk_verify(const struct mk_options *opt, const char *path, struct hfs_error *err)
{
    struct hfs_image *img;
    struct hfs_info info;
    int r = hfs_image_open(path, &img, err);
    if (r < 0)
        return r;
    hfs_image_info(img, &info);
    r = hfs_image_trust(img, err);
    if (r == 0)
        r = read_all(opt, img, &info, err);
    if (r == 0) {
        struct hfs_error found = {0};
        r = hfs_image_check_tables(img, note_problem, &found);
        if (r == 0 && found.text[0])
            r = -EBADMSG;
        if (r < 0)
            hfs_fail(err, -r, "%s%s",
                     found.text[0] ? found.text : "the new image cannot be checked: ",
                     found.text[0] ? "" : strerror(-r));
    }
    hfs_image_close(img);
    return r;
}
