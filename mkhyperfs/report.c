#include "mkhyperfs/report.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fs/format.h"
#include "fs/ui.h"
#include "mkhyperfs/explain.h"
#include "mkhyperfs/target.h"

struct summary {
    uint64_t image_bytes;  /* of a dry run: estimated */
    size_t tensors;        /* of files that are stored, each once */
    size_t lossy;          /* of these, with the trajectory code */
    size_t shared;         /* files that are the same as another */
    size_t wanted;         /* tensors that were to lose something */
    uint64_t weights;      /* their elements */
    uint64_t weight_bytes; /* their raw bytes */
    uint64_t stored;       /* what they take of the image, tables included */
    double *sqnr;          /* of the lossy ones, ascending after sort */
    double median;
    char digest[HFS_HASH_TEXT]; /* "" in a dry run */
    const struct mk_item *worst;
};

/* Bytes of the image that a tensor is the cause of. */
static uint64_t share(const struct mk_options *opt, const struct mk_item *it)
{
    return (opt->dry_run ? it->estimate : it->stored) + mk_item_overhead(it);
}

static void count_item(const struct mk_options *opt, const struct mk_item *it, struct summary *s)
{
    if (opt->dry_run)
        s->image_bytes += it->estimate;
    if (!it->tensor)
        return;
    if (it->decision.lossy) {
        s->wanted++;
        s->weights += it->tensor->elements;
        s->weight_bytes += it->length;
        s->stored += share(opt, it);
    }
    if (!mk_item_is_lossy(it))
        return;
    if (!s->worst || it->sqnr_db < s->worst->sqnr_db)
        s->worst = it;
    s->sqnr[s->lossy++] = it->sqnr_db;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int sum_up(const struct mk_options *opt, const struct mk_source *src, struct summary *s)
{
    size_t items = 0;
    for (size_t i = 0; i < src->nfiles; i++)
        items += src->files[i]->plan->nitems;
    s->sqnr = malloc((items + 1) * sizeof *s->sqnr);
    if (!s->sqnr)
        return -ENOMEM;
    for (size_t i = 0; i < src->nfiles; i++) {
        const struct mk_plan *plan = src->files[i]->plan;
        s->shared += plan->same != NULL;
        if (plan->same)
            continue;
        s->tensors += plan->header.count;
        for (size_t k = 0; k < plan->nitems; k++)
            count_item(opt, &plan->items[k], s);
    }
    qsort(s->sqnr, s->lossy, sizeof *s->sqnr, ascending);
    if (s->lossy)
        s->median = (s->sqnr[(s->lossy - 1) / 2] + s->sqnr[s->lossy / 2]) / 2;
    return 0;
}

/* Of the index, for a dry run. */
static uint64_t overhead_of_blocks(const struct mk_source *src)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < src->nfiles; i++) {
        const struct mk_plan *plan = src->files[i]->plan;
        for (size_t k = 0; k < plan->nitems && !plan->same; k++)
            blocks += mk_item_blocks(&plan->items[k]);
    }
    return blocks * MK_BLOCK_OVERHEAD;
}

static double bits_a_weight(const struct summary *s)
{
    return s->weights ? 8 * (double)s->stored / (double)s->weights : 0;
}

/* ---- in words ---- */

static const char *weights(char buf[32], uint64_t n)
{
    if (n < 10000)
        snprintf(buf, 32, "%u", (unsigned)n);
    else if (n < 1000000)
        snprintf(buf, 32, "%.1f thousand", (double)n / 1e3);
    else if (n < 1000000000)
        snprintf(buf, 32, "%.1f million", (double)n / 1e6);
    else
        snprintf(buf, 32, "%.2f billion", (double)n / 1e9);
    return buf;
}

static void print_meaning(const struct mk_options *opt, const struct summary *s, FILE *out)
{
    const char *will = opt->dry_run ? "would be" : "are";
    if (s->lossy)
        fprintf(out,
                "Weights of %zu tensors %s stored with loss: checksums of their files differ from "
                "the\noriginal's. Keep the original if you need it. Everything else is kept bit "
                "for bit.\n",
                s->lossy, will);
    else
        fprintf(out, "Every bit %s kept: checksums of all files are the original's.\n",
                opt->dry_run ? "would be" : "is");
}

static void print_text(const struct mk_options *opt, const struct mk_source *src,
                       const struct summary *s, double seconds, FILE *out)
{
    char a[16], b[16], n[32], t[24], name[200];
    fprintf(out, "source   %s in %zu file%s\n", ui_bytes(a, src->bytes), src->nfiles,
            src->nfiles == 1 ? "" : "s");
    fprintf(out, "image    %s%s", opt->dry_run ? "about " : "", ui_bytes(b, s->image_bytes));
    if (src->bytes && s->image_bytes)
        fprintf(out, ", %.1f %% of the source (%.2f : 1)",
                100 * (double)s->image_bytes / (double)src->bytes,
                (double)src->bytes / (double)s->image_bytes);
    fputc('\n', out);
    if (s->wanted)
        fprintf(out,
                "weights  %s in %zu of %zu tensors, %.2f bits a weight, all side information "
                "counted\n",
                weights(n, s->weights), s->wanted, s->tensors, bits_a_weight(s));
    if (s->lossy && !opt->dry_run)
        fprintf(out, "SQNR     %.2f dB in the median, worst %.2f dB: %s\n", s->median,
                s->worst->sqnr_db,
                hfs_printable(name, sizeof name, s->worst->tensor->name,
                              (unsigned)strlen(s->worst->tensor->name)));
    if (s->shared)
        fprintf(out, "shared   %zu file%s equal to another, stored once\n", s->shared,
                s->shared == 1 ? "" : "s");
    if (!opt->dry_run)
        fprintf(out, "time     %s, %s/s\n", ui_seconds(t, seconds),
                ui_bytes(a, seconds > 0 ? (uint64_t)((double)src->bytes / seconds) : 0));
    if (!opt->dry_run)
        fprintf(out, "digest   sha256:%s\n", s->digest);
    print_meaning(opt, s, out);
}

/* ---- for programs ---- */

static void json_number(FILE *out, const char *key, double value)
{
    if (isfinite(value))
        fprintf(out, "  \"%s\": %.10g,\n", key, value);
    else
        fprintf(out, "  \"%s\": null,\n", key);
}

static void json_text(FILE *out, const char *key, const char *value)
{
    fprintf(out, "  \"%s\": ", key);
    if (value)
        ui_json_string(out, value, strlen(value));
    else
        fputs("null", out);
    fputs(",\n", out);
}

static void print_json(const struct mk_options *opt, const struct mk_source *src,
                       const struct summary *s, double seconds, FILE *out)
{
    double none = NAN;
    fputs("{\n", out);
    json_text(out, "source", opt->source);
    json_text(out, "image", opt->image);
    json_text(out, "sha256", opt->dry_run ? NULL : s->digest);
    fprintf(out, "  \"dry_run\": %s,\n", opt->dry_run ? "true" : "false");
    fprintf(out, "  \"source_bytes\": %" PRIu64 ",\n", src->bytes);
    fprintf(out, "  \"image_bytes\": %" PRIu64 ",\n", s->image_bytes);
    json_number(out, "ratio", s->image_bytes ? (double)src->bytes / (double)s->image_bytes : none);
    fprintf(out, "  \"files\": %zu,\n  \"shared_files\": %zu,\n  \"skipped_files\": %zu,\n",
            src->nfiles, s->shared, src->skipped);
    fprintf(out, "  \"tensors\": %zu,\n  \"lossy_tensors\": %zu,\n", s->tensors, s->lossy);
    fprintf(out, "  \"weights\": %" PRIu64 ",\n", s->weights);
    fprintf(out, "  \"weight_bytes\": %" PRIu64 ",\n", s->weight_bytes);
    fprintf(out, "  \"weight_bytes_stored\": %" PRIu64 ",\n", s->stored);
    json_number(out, "bits_per_weight", s->weights ? bits_a_weight(s) : none);
    if (opt->explain)
        mk_explain_rules_json(out);
    mk_explain_tensors_json(opt, src, out);
    bool measured = s->lossy && !opt->dry_run;
    json_number(out, "sqnr_median_db", measured ? s->median : none);
    json_number(out, "sqnr_worst_db", measured ? s->worst->sqnr_db : none);
    json_text(out, "sqnr_worst_tensor", measured ? s->worst->tensor->name : NULL);
    json_text(out, "sqnr_worst_file", measured ? s->worst->file->names[0] : NULL);
    fprintf(out, "  \"seconds\": %.3f,\n", seconds);
    fprintf(out, "  \"every_bit_kept\": %s\n}\n", s->lossy ? "false" : "true");
}

int mk_report(const struct mk_options *opt, const struct mk_source *src,
              const struct mk_image *image, double seconds, FILE *out)
{
    struct summary s = {.image_bytes = opt->dry_run
                                           ? mk_target_tables(src) + overhead_of_blocks(src)
                                           : image->bytes};
    if (!opt->dry_run)
        hfs_hash_print(s.digest, &image->digest);
    int r = sum_up(opt, src, &s);
    if (r == 0 && opt->json)
        print_json(opt, src, &s, seconds, out);
    if (r == 0 && !opt->json && opt->explain) {
        mk_explain_rules(out);
        mk_explain_tensors(opt, src, out);
    }
    if (r == 0 && !opt->json && !opt->quiet)
        print_text(opt, src, &s, seconds, out);
    free(s.sqnr);
    return r;
}
