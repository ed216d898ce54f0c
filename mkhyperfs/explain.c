#include "mkhyperfs/explain.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "fs/ui.h"
#include "mkhyperfs/sensitivity.h"

/* ---- the rules ---- */

void mk_explain_rules(FILE *out)
{
    char tensors[MK_RULE_TEXT];
    const char *name;
    double low, db;
    fputs("common levels of the presets, SQNR in dB:", out);
    for (size_t i = 0; (name = mk_preset(i, &db)); i++)
        fprintf(out, "%s %s %g", i ? "," : "", name, db);
    fputs("\nrules, dB to be added to the common level; a tensor gets all that match, less their "
          "mean:\n",
          out);
    for (size_t i = 0; mk_sensitivity_rule(i, tensors, &low, &db); i++)
        if (low < db)
            fprintf(out, "  %g..%+-5g %s\n", low, db, tensors);
        else
            fprintf(out, "  %+-8g %s\n", db, tensors);
    fputs("tensors that no rule names have the common level; --rule stands above all this\n", out);
}

void mk_explain_rules_json(FILE *out)
{
    char tensors[MK_RULE_TEXT];
    const char *name;
    double low, db;
    fputs("  \"presets\": {", out);
    for (size_t i = 0; (name = mk_preset(i, &db)); i++)
        fprintf(out, "%s\"%s\": %.10g", i ? ", " : "", name, db);
    fputs("},\n  \"rules\": [", out);
    for (size_t i = 0; mk_sensitivity_rule(i, tensors, &low, &db); i++)
        fprintf(out, "%s\n    {\"tensors\": \"%s\", \"least_db\": %.10g, \"most_db\": %.10g}",
                i ? "," : "", tensors, low, db);
    fputs("\n  ],\n", out);
}

/* ---- tensors ---- */

/* What decided the quality of an item, or "". */
static const char *reason(const struct mk_options *opt, const struct mk_item *it, char *buf,
                          size_t size)
{
    char rules[MK_RULE_TEXT] = "", glob[120];
    const struct mk_rule *user = it->decision.rule;
    if (!opt->flat && !it->decision.fixed)
        mk_offset(&it->decision.role, it->decision.evidence.what ? &it->decision.evidence : NULL,
                  rules);
    if (user)
        hfs_printable(glob, sizeof glob, user->text, (unsigned)strlen(user->text));
    snprintf(buf, size, "%s%s%s%s", rules, user && *rules ? "; " : "", user ? "--rule " : "",
             user ? glob : "");
    return buf;
}

static double bits_of(const struct mk_options *opt, const struct mk_item *it)
{
    uint64_t bytes = opt->dry_run ? it->estimate : it->stored;
    return 8 * (double)bytes / (double)it->tensor->elements;
}

static const char *code_name(const struct mk_item *it)
{
    static const char *const names[] = {[HC_CODE_BYTES] = "bytes",
                                        [HC_CODE_PLANES] = "planes",
                                        [HC_CODE_TRAJECTORY] = "trajectory"};
    return names[it->code.type];
}

typedef void (*tensor_fn)(const struct mk_options *opt, const struct mk_item *it, bool first,
                          FILE *out);

static void for_each(const struct mk_options *opt, const struct mk_source *src, FILE *out,
                     tensor_fn print)
{
    bool first = true;
    for (size_t i = 0; i < src->nfiles; i++) {
        const struct mk_plan *plan = src->files[i]->plan;
        for (size_t k = 0; k < plan->nitems && !plan->same; k++)
            if (plan->items[k].tensor) {
                print(opt, &plan->items[k], first, out);
                first = false;
            }
    }
}

static void print_line(const struct mk_options *opt, const struct mk_item *it, bool first,
                       FILE *out)
{
    char wanted[16] = "exact", got[16] = "", error[16] = "", name[200], why[400];
    (void)first;
    if (mk_item_is_lossy(it))
        snprintf(wanted, sizeof wanted, "%.2f", it->decision.db);
    if (mk_item_is_lossy(it) && !opt->dry_run) {
        snprintf(got, sizeof got, "%.2f", it->sqnr_db);
        snprintf(error, sizeof error, "%.3g", it->stats.max_error);
    }
    fprintf(out, "%6s %6s %9s %6.2f  %s  [%s]", wanted, got, error, bits_of(opt, it),
            hfs_printable(name, sizeof name, it->tensor->name, (unsigned)strlen(it->tensor->name)),
            mk_kind_name(it->decision.role.kind));
    if (!mk_item_is_lossy(it))
        fprintf(out, " %s", it->decision.why);
    else if (*reason(opt, it, why, sizeof why))
        fprintf(out, " %s", why);
    fputc('\n', out);
}

void mk_explain_tensors(const struct mk_options *opt, const struct mk_source *src, FILE *out)
{
    if (!opt->flat)
        fprintf(out, "\nmean of the rules over all weights, taken off: %+.2f dB\n",
                src->mean_offset);
    fprintf(out, "\n%6s %6s %9s %6s  tensor [kind] rules, or why it is kept exactly\n", "wanted",
            opt->dry_run ? "" : "SQNR", opt->dry_run ? "" : "error", "bits");
    for_each(opt, src, out, print_line);
    fputc('\n', out);
}

static void print_text(FILE *out, const char *key, const char *text)
{
    fprintf(out, ", \"%s\": ", key);
    if (text)
        ui_json_string(out, text, strlen(text));
    else
        fputs("null", out);
}

static void print_number(FILE *out, const char *key, double value)
{
    if (isfinite(value))
        fprintf(out, ", \"%s\": %.10g", key, value);
    else
        fprintf(out, ", \"%s\": null", key);
}

static void print_object(const struct mk_options *opt, const struct mk_item *it, bool first,
                         FILE *out)
{
    const struct mk_role *role = &it->decision.role;
    bool lossy = mk_item_is_lossy(it), measured = lossy && !opt->dry_run;
    bool known = !opt->dry_run || it->estimate;
    char why[400];
    fputs(first ? "\n    {\"name\": " : ",\n    {\"name\": ", out);
    ui_json_string(out, it->tensor->name, strlen(it->tensor->name));
    print_text(out, "file", it->file->names[0]);
    fprintf(out, ", \"elements\": %" PRIu64, it->tensor->elements);
    print_text(out, "kind", mk_kind_name(role->kind));
    print_number(out, "layer", role->layer < 0 ? (double)NAN : (double)role->layer);
    print_text(out, "rule", lossy ? reason(opt, it, why, sizeof why) : NULL);
    print_text(out, "kept", lossy ? NULL : it->decision.why);
    print_text(out, "code", code_name(it));
    print_number(out, "wanted_db", lossy ? it->decision.db : NAN);
    print_number(out, "sqnr_db", measured ? it->sqnr_db : NAN);
    print_number(out, "max_error", measured ? it->stats.max_error : NAN);
    print_number(out, "bits", known ? bits_of(opt, it) : NAN);
    print_number(out, "predicted_bits",
                 it->estimate ? 8 * (double)it->estimate / (double)it->tensor->elements : NAN);
    fputc('}', out);
}

void mk_explain_tensors_json(const struct mk_options *opt, const struct mk_source *src, FILE *out)
{
    fprintf(out, "  \"mean_offset_db\": %.10g,\n", src->mean_offset);
    fputs("  \"per_tensor\": [", out);
    for_each(opt, src, out, print_object);
    fputs("\n  ],\n", out);
}
