#include "mkhyperfs/plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/format.h"
#include "fs/ui.h"
#include "mkhyperfs/config.h"
#include "mkhyperfs/target.h"

/* ---- headers ---- */

static int read_header(const struct mk_options *opt, struct mk_file *f, struct hfs_error *err)
{
    struct hfs_error why = {0};
    int fd;
    int r = mk_file_open(f, &fd, err);
    if (r < 0)
        return r;
    r = st_read(fd, (uint64_t)f->st.st_size, f->shown, &f->plan->header, &why);
    close(fd);
    if (r == 0) {
        f->plan->safetensors = true;
    } else if (r == -EBADMSG && opt->keep_broken) {
        ui_warn("%s; it is stored as plain bytes", why.text);
        r = 0;
    } else {
        hfs_fail(err, -r, "%s%s", why.text,
                 r == -EBADMSG ? "; --keep-broken stores the file as plain bytes" : "");
    }
    return r;
}

static int read_headers(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err)
{
    for (size_t i = 0; i < src->nfiles; i++) {
        struct mk_file *f = src->files[i];
        f->plan = calloc(1, sizeof *f->plan);
        if (!f->plan)
            return hfs_fail(err, ENOMEM, "out of memory");
        int r = f->safetensors ? read_header(opt, f, err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- items ---- */

static void add_item(struct mk_file *f, uint64_t offset, uint64_t length,
                     const struct st_tensor *tensor)
{
    enum hc_dtype dtype = tensor ? tensor->dtype : HC_DTYPE_NONE;
    if (length > 0)
        f->plan->items[f->plan->nitems++] = (struct mk_item){
            .file = f,
            .offset = offset,
            .length = length,
            .tensor = tensor,
            .code = hc_lossless(dtype, MK_ZSTD_LEVEL),
        };
}

static int make_items(struct mk_file *f, struct hfs_error *err)
{
    const struct st_header *h = &f->plan->header;
    f->plan->items = calloc(h->count + 1, sizeof *f->plan->items);
    if (!f->plan->items)
        return hfs_fail(err, ENOMEM, "out of memory");
    if (!f->plan->safetensors) {
        add_item(f, 0, (uint64_t)f->st.st_size, NULL);
        return 0;
    }
    add_item(f, 0, h->bytes, NULL);
    for (size_t i = 0; i < h->count; i++) {
        const struct st_tensor *t = &h->tensors[i];
        add_item(f, t->begin, t->end - t->begin, t);
    }
    return 0;
}

static int beside_config(const char *root, const char *path, bool *beside, struct hfs_error *err)
{
    char *config = mk_config_path(root, path);
    if (!config)
        return hfs_fail(err, ENOMEM, "out of memory");
    int r = mk_config_exists(config, beside, err);
    free(config);
    return r;
}

/* A file is known by several names in a Hugging Face cache; any of them can tell. */
static int place_of(const struct mk_source *src, const struct mk_file *f, struct mk_place *place,
                    struct hfs_error *err)
{
    int r = 0;
    *place = (struct mk_place){.path = f->names[0]};
    for (size_t i = 0; i < f->nnames && !place->kept && r == 0; i++) {
        bool beside = false;
        r = mk_policy_file(src->root, f->names[i], &place->kept, err);
        if (r == 0 && !place->model)
            r = beside_config(src->root, f->names[i], &beside, err);
        if (beside)
            place->model = f->names[i];
    }
    return r;
}

static int decide(struct mk_policy *policy, const struct mk_source *src, struct mk_file *f,
                  struct hfs_error *err)
{
    struct mk_place place;
    int r = place_of(src, f, &place, err);
    for (size_t i = 0; i < f->plan->nitems && r == 0; i++) {
        struct mk_item *it = &f->plan->items[i];
        if (it->tensor && mk_policy_decide(policy, &place, it->tensor, &it->decision) < 0)
            r = hfs_fail(err, ENOMEM, "out of memory");
    }
    return r;
}

/* Takes the mean offset, over all weights, off the level, so that the level is the mean SQNR, and
 * the size of a preset hardly depends on the model. */
static void balance(const struct mk_options *opt, struct mk_source *src)
{
    double sum = 0, weights = 0;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < src->nfiles; i++)
            for (size_t k = 0; k < src->files[i]->plan->nitems; k++) {
                struct mk_item *it = &src->files[i]->plan->items[k];
                if (!it->decision.lossy || it->decision.fixed)
                    continue;
                if (pass == 0) {
                    weights += (double)it->tensor->elements;
                    sum += (double)it->tensor->elements * it->decision.allocated;
                } else {
                    it->decision.offset -= sum / weights;
                    mk_decision_level(&it->decision, opt->db);
                }
            }
    src->mean_offset = weights > 0 ? sum / weights : 0;
}

static int note(struct mk_policy *policy, const struct mk_source *src, const struct mk_file *f,
                struct hfs_error *err)
{
    int r = 0;
    for (size_t i = 0; i < f->nnames && r == 0; i++)
        r = mk_policy_note(policy, f->names[i], &f->plan->header) < 0
                ? hfs_fail(err, ENOMEM, "out of memory")
                : mk_policy_config(policy, src->root, f->names[i], err);
    return r;
}

/* Reads --imatrix for the policy. */
static int weigh(const struct mk_options *opt, struct mk_source *src, struct mk_policy *policy,
                 struct mk_importance **importance, struct hfs_error *err)
{
    int r = mk_importance_new(opt, src, importance, err);
    if (r < 0)
        return r;
    memcpy(src->imatrix_hash, mk_importance_hash(*importance), sizeof src->imatrix_hash);
    mk_policy_importance(policy, *importance);
    return 0;
}

static int decide_all(const struct mk_options *opt, struct mk_source *src, struct hfs_error *err)
{
    struct mk_policy *policy;
    struct mk_importance *importance = NULL;
    if (mk_policy_new(opt, &policy) < 0)
        return hfs_fail(err, ENOMEM, "out of memory");
    int r = 0;
    for (size_t i = 0; i < src->nfiles && r == 0; i++) {
        const struct mk_file *f = src->files[i];
        if (f->plan->safetensors)
            r = note(policy, src, f, err);
    }
    if (r == 0 && opt->imatrix)
        r = weigh(opt, src, policy, &importance, err);
    for (size_t i = 0; i < src->nfiles && r == 0; i++) {
        r = make_items(src->files[i], err);
        if (r == 0 && src->files[i]->plan->safetensors)
            r = decide(policy, src, src->files[i], err);
    }
    if (r == 0)
        balance(opt, src);
    if (r == 0)
        mk_policy_report(policy);
    mk_policy_free(policy);
    mk_importance_free(importance);
    return r;
}

static void say_why(const struct mk_item *it)
{
    char name[200];
    if (it->tensor && !mk_item_is_lossy(it))
        ui_verbose(
            "%s: %s: kept exactly: %s", it->file->shown,
            hfs_printable(name, sizeof name, it->tensor->name, (unsigned)strlen(it->tensor->name)),
            it->decision.why);
}

uint64_t mk_item_overhead(const struct mk_item *it)
{
    uint8_t body[HC_CODE_RECORD_MAX];
    return mk_item_blocks(it) * sizeof(struct hfs_disk_block) + sizeof(struct hfs_disk_segment) +
           sizeof(struct hfs_disk_tensor) + 8 * (uint64_t)it->tensor->rank +
           strlen(it->tensor->name) + sizeof(struct hfs_disk_record) +
           hc_code_store(&it->code, body);
}

int mk_plan_make(const struct mk_options *opt, struct mk_source *src, struct mk_target **target,
                 struct hfs_error *err)
{
    int r = read_headers(opt, src, err);
    *target = NULL;
    if (r == 0)
        r = decide_all(opt, src, err);
    if (r == 0)
        r = mk_find_same(src, err);
    if (r == 0)
        r = opt->goal == MK_GOAL_LEVEL ? mk_choose_codes(opt, src, err)
                                       : mk_target_plan(opt, src, target, err);
    for (size_t i = 0; r == 0 && i < src->nfiles; i++) {
        const struct mk_plan *plan = src->files[i]->plan;
        if (plan->same)
            ui_verbose("%s: the same as %s, stored once", src->files[i]->shown, plan->same->shown);
        for (size_t k = 0; k < plan->nitems && !plan->same; k++)
            say_why(&plan->items[k]);
    }
    return r;
}

void mk_plan_free(struct mk_source *src)
{
    for (size_t i = 0; i < src->nfiles; i++) {
        struct mk_plan *plan = src->files[i]->plan;
        if (plan) {
            st_free(&plan->header);
            for (size_t k = 0; k < plan->nitems; k++)
                mk_forecast_free(plan->items[k].forecast);
            free(plan->items);
            free(plan);
        }
        src->files[i]->plan = NULL;
    }
}
