/* mkhyperfs: a directory, or one safetensors file, becomes an image. mkhyperfs(1). */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/ui.h"
#include "fs/writer.h"
#include "mkhyperfs/encode.h"
#include "mkhyperfs/explain.h"
#include "mkhyperfs/report.h"
#include "mkhyperfs/tables.h"
#include "mkhyperfs/target.h"
#include "mkhyperfs/verify.h"

/* ---- signals: the temporary file goes, then the program, by the same signal ---- */

static const int fatal_signals[] = {SIGINT, SIGTERM, SIGHUP};
enum { FATAL_SIGNALS = sizeof fatal_signals / sizeof *fatal_signals };

static char temp_path[PATH_MAX]; /* "": there is none */

static void on_signal(int sig)
{
    static const char text[] = "\nmkhyperfs: interrupted; no image is left behind\n";
    if (temp_path[0])
        unlink(temp_path);
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {
        /* nobody is there to read it */
    }
    signal(sig, SIG_DFL);
    raise(sig);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal}, old;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < FATAL_SIGNALS; i++) {
        sigaddset(&action.sa_mask, fatal_signals[i]);
        if (sigaction(fatal_signals[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN)
            sigdelset(&action.sa_mask, fatal_signals[i]); /* nohup */
    }
    for (int i = 0; i < FATAL_SIGNALS; i++)
        if (sigismember(&action.sa_mask, fatal_signals[i]))
            sigaction(fatal_signals[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a write error, with a sentence, instead */
    signal(SIGXFSZ, SIG_IGN);
}

static void hold_signals(sigset_t *old)
{
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < FATAL_SIGNALS; i++)
        sigaddset(&set, fatal_signals[i]);
    sigprocmask(SIG_BLOCK, &set, old);
}

/* ---- the image ---- */

static void say_stale(void *ctx, const char *path)
{
    char shown[400];
    (void)ctx;
    ui_warn("%s, left behind by an mkhyperfs that was killed, is removed",
            hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path)));
}

/* The file and its name for the signal handler come into being together. */
static int create(const struct mk_options *opt, struct hfs_writer **writer, struct hfs_error *err)
{
    sigset_t old;
    hold_signals(&old);
    int r = hfs_writer_create(opt->image, opt->force, say_stale, NULL, writer, err);
    if (r == 0)
        snprintf(temp_path, sizeof temp_path, "%s", hfs_writer_temp_path(*writer));
    sigprocmask(SIG_SETMASK, &old, NULL);
    return r;
}

/* From here on a signal finds the image either whole in its place, or gone. */
static int settle(struct hfs_writer *writer, bool keep, struct hfs_error *err)
{
    sigset_t old;
    int r = 0;
    hold_signals(&old);
    if (keep)
        r = hfs_writer_commit(writer, err);
    else
        hfs_writer_abort(writer);
    temp_path[0] = 0;
    sigprocmask(SIG_SETMASK, &old, NULL);
    return r;
}

static int check_unchanged(const struct mk_source *src, struct hfs_error *err)
{
    int r = 0;
    for (size_t i = 0; i < src->nfiles && r == 0; i++)
        r = mk_file_check(src->files[i], err);
    return r;
}

/* Everything but the last checks; with a target, from its item number `from` on. */
static int write_once(const struct mk_options *opt, struct mk_source *src, struct mk_target *target,
                      size_t from, struct hfs_writer *writer, struct mk_image *image,
                      struct hfs_error *err)
{
    int r = mk_encode(opt, src, target, from, writer, err);
    if (r == 0)
        r = check_unchanged(src, err);
    if (r == 0)
        r = mk_write_tables(opt, src, writer, err);
    return r == 0 ? hfs_writer_finish(writer, &image->bytes, err) : r;
}

static int write_image(const struct mk_options *opt, struct mk_source *src,
                       struct mk_target *target, struct hfs_writer *writer, struct mk_image *image,
                       struct hfs_error *err)
{
    size_t from = 0;
    int r = write_once(opt, src, target, from, writer, image, err);
    while (r == 0 && target && (r = mk_target_met(target, image->bytes, &from, err)) == 0) {
        size_t count;
        uint64_t block = mk_target_items(target, &count)[from]->first_block;
        r = hfs_writer_reopen(writer, block, err);
        if (r == 0)
            r = write_once(opt, src, target, from, writer, image, err);
    }
    r = r > 0 ? 0 : r;
    if (r == 0 && opt->verify)
        r = mk_verify(opt, hfs_writer_temp_path(writer), err);
    if (r == 0)
        hfs_writer_digest(writer, &image->digest);
    return r;
}

static void warn_excludes(const struct mk_options *opt, const struct mk_source *src)
{
    for (size_t i = 0; i < opt->nexcludes; i++)
        if (!src->exclude_used[i])
            ui_warn("--exclude %s matches nothing", opt->excludes[i]);
}

static int make_image(const struct mk_options *opt, struct mk_source *src, struct mk_image *image,
                      struct hfs_error *err)
{
    struct hfs_writer *writer = NULL;
    struct mk_target *target = NULL;
    int r = opt->dry_run ? 0 : create(opt, &writer, err);
    if (r == -EEXIST && !opt->force) {
        struct hfs_error first = *err;
        err->text[0] = 0;
        hfs_fail(err, EEXIST, "%s (-f)", first.text);
    }
    if (r == 0)
        r = mk_plan_make(opt, src, &target, err);
    if (r == 0 && writer)
        r = write_image(opt, src, target, writer, image, err);
    mk_target_free(target);
    if (writer) {
        int settled = settle(writer, r == 0, err);
        r = r == 0 ? settled : r;
    }
    return r;
}

/* --explain without a source. */
static int explain(const struct mk_options *opt, struct hfs_error *err)
{
    if (opt->json) {
        fputs("{\n", stdout);
        mk_explain_rules_json(stdout);
        fputs("  \"version\": \"" HYPERFS_VERSION "\"\n}\n", stdout);
    } else {
        mk_explain_rules(stdout);
    }
    return fflush(stdout) == 0
               ? 0
               : hfs_fail(err, errno, "the rules cannot be written: %s", strerror(errno));
}

static int run(const struct mk_options *opt, struct hfs_error *err)
{
    double start = ui_now();
    struct mk_source *src = NULL;
    struct mk_image image = {0};
    if (!opt->source)
        return explain(opt, err);
    int r = mk_source_read(opt, &src, err);
    if (r < 0)
        return r;
    warn_excludes(opt, src);
    r = make_image(opt, src, &image, err);
    if (r == 0 && mk_report(opt, src, &image, ui_now() - start, stdout) < 0)
        r = hfs_fail(err, ENOMEM, "the image is written, but there is no memory for the summary");
    if (r == 0 && fflush(stdout) != 0)
        r = hfs_fail(err, errno, "the summary cannot be written: %s", strerror(errno));
    mk_plan_free(src);
    mk_source_free(src);
    return r;
}

int main(int argc, char **argv)
{
    struct mk_options opt;
    struct hfs_error err = {0};
    ui_start("mkhyperfs", UI_NORMAL);
    int r = mk_options_parse(&opt, argc, argv);
    if (r == 0) {
        ui_start("mkhyperfs", opt.quiet ? UI_QUIET : opt.verbose ? UI_VERBOSE : UI_NORMAL);
        catch_signals();
        r = run(&opt, &err);
    } else if (r == -ENOMEM) {
        hfs_fail(&err, ENOMEM, "out of memory");
    }
    mk_options_free(&opt);
    if (err.text[0])
        ui_error("%s", err.text);
    return r == -1 ? 0 : r < 0 ? 1 : r;
}
