#include "mkhyperfs/importance.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec/weight.h"
#include "fs/ui.h"
#include "mkhyperfs/plan.h"

/* Of a tensor's weights so many pieces are read for their mean square, of one expert of many. */
enum { PIECES = 16, EXPERT_PIECES = 2, PIECE = 32768 };
enum { LISTED = 5 }; /* names in a warning, without -v */

/* A matrix that writes into the residual stream, or the embedding (layer -1). */
struct writer {
    size_t model;
    int layer;
    enum llama_branch kind;
    const struct imatrix_entry *entry; /* NULL for the embedding */
    bool expert;
    double input;  /* squared length of a typical input; 1 for the embedding */
    double square; /* mean square of its weights */
};

struct mk_importance {
    struct imatrix matrix;
    bool *used;         /* for each entry: a tensor has its name and width */
    bool *misfits;      /* a tensor has its name, but another width */
    char **directories; /* of models */
    bool *normalised;   /* for each model */
    size_t models;
    struct writer *writers;
    size_t nwriters, room;
    struct mk_branch *branches; /* sorted as compare_branches does */
    size_t nbranches;
};

static int no_memory(struct hfs_error *err)
{
    return hfs_fail(err, ENOMEM, "out of memory");
}

/* ---- models ---- */

static size_t directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

/* The number of the model in the directory of path, or imp->models. */
static size_t find_model(const struct mk_importance *imp, const char *path)
{
    size_t len = directory_of(path), i;
    for (i = 0; i < imp->models; i++)
        if (strlen(imp->directories[i]) == len && memcmp(imp->directories[i], path, len) == 0)
            break;
    return i;
}

static int add_model(struct mk_importance *imp, const char *path)
{
    size_t n = imp->models;
    if (find_model(imp, path) < n)
        return 0;
    char **directories = realloc(imp->directories, (n + 1) * sizeof *directories);
    if (directories)
        imp->directories = directories;
    bool *normalised = realloc(imp->normalised, (n + 1) * sizeof *normalised);
    if (normalised)
        imp->normalised = normalised;
    char *directory = strndup(path, directory_of(path));
    if (!directories || !normalised || !directory) {
        free(directory);
        return -ENOMEM;
    }
    directories[n] = directory;
    normalised[n] = false;
    imp->models++;
    return 0;
}

/* ---- weights ---- */

/* Mean square of the finite ones among some pieces of the tensor, spread evenly. */
static int mean_square(const struct mk_file *f, const struct st_tensor *t, unsigned pieces,
                       double *out, struct hfs_error *err)
{
    const size_t elem = hc_dtype_bits(t->dtype) / 8;
    uint8_t raw[PIECE];
    double v[PIECE / 2], sum = 0;
    uint64_t all = (t->elements * elem - 1) / PIECE + 1, finite = 0;
    uint64_t wanted = all < pieces ? all : pieces;
    int fd;
    int r = mk_file_open(f, &fd, err);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < wanted && r == 0; i++) {
        uint64_t at = (wanted == 1 ? 0 : i * (all - 1) / (wanted - 1)) * PIECE;
        uint64_t left = t->elements * elem - at;
        size_t n = left < PIECE ? (size_t)left / elem : PIECE / elem;
        r = mk_file_read(f, fd, raw, n * elem, t->begin + at, err);
        if (r < 0)
            break;
        hc_weights_load(v, raw, n, t->dtype);
        for (size_t k = 0; k < n; k++) {
            sum += isfinite(v[k]) ? v[k] * v[k] : 0;
            finite += isfinite(v[k]);
        }
    }
    close(fd);
    *out = finite ? sum / (double)finite : 0;
    return r;
}

static int add_writer(struct mk_importance *imp, const struct mk_file *f, const struct st_tensor *t,
                      struct writer w, struct hfs_error *err)
{
    if (!hc_dtype_is_weight(t->dtype))
        return 0;
    int r = mean_square(f, t, w.expert && t->rank == 2 ? EXPERT_PIECES : PIECES, &w.square, err);
    if (r < 0)
        return r;
    if (imp->nwriters == imp->room) {
        imp->room = imp->room ? 2 * imp->room : 64;
        struct writer *more = realloc(imp->writers, imp->room * sizeof *more);
        if (!more)
            return no_memory(err);
        imp->writers = more;
    }
    imp->writers[imp->nwriters++] = w;
    return 0;
}

/* ---- names ---- */

/* The entry for a tensor and the energy of its inputs, or NULL; notes what fits and what not. */
static const struct imatrix_entry *entry_of(struct mk_importance *imp, const struct llama_tensor *l,
                                            double *energy)
{
    for (int i = 0; i < LLAMA_NAMES && l->names[i][0]; i++) {
        const struct imatrix_entry *e = imatrix_find(&imp->matrix, l->names[i]);
        if (!e)
            continue;
        size_t n = (size_t)(e - imp->matrix.entries);
        if (imatrix_energy(e, l->inputs, energy)) {
            imp->used[n] = true;
            return e;
        }
        imp->misfits[n] = true;
    }
    return NULL;
}

static bool is_post_norm(const char *name)
{
    return strstr(name, ".post_feedforward_layernorm") || strstr(name, ".post_mlp_layernorm");
}

static int note_tensor(struct mk_importance *imp, const struct mk_file *f,
                       const struct st_tensor *t, size_t model, struct hfs_error *err)
{
    struct llama_tensor l;
    struct writer w = {.model = model, .layer = -1, .input = 1};
    imp->normalised[model] |= is_post_norm(t->name);
    if (!llama_tensor_of(t, &l))
        return 0;
    w.entry = entry_of(imp, &l, &w.input);
    if (l.embedding) {
        w.entry = NULL;
        w.input = 1;
        return add_writer(imp, f, t, w, err);
    }
    if (!w.entry || !l.writes)
        return 0;
    w.layer = l.layer;
    w.kind = l.branch;
    w.expert = l.expert;
    return add_writer(imp, f, t, w, err);
}

static int note_file(struct mk_importance *imp, const struct mk_file *f, struct hfs_error *err)
{
    const struct st_header *h = &f->plan->header;
    if (add_model(imp, f->names[0]) < 0)
        return no_memory(err);
    size_t model = find_model(imp, f->names[0]);
    int r = 0;
    for (size_t i = 0; i < h->count && r == 0; i++)
        r = note_tensor(imp, f, &h->tensors[i], model, err);
    return r;
}

/* ---- branches ---- */

static int compare_places(size_t m1, int l1, int k1, size_t m2, int l2, int k2)
{
    if (m1 != m2)
        return m1 < m2 ? -1 : 1;
    if (l1 != l2)
        return l1 < l2 ? -1 : 1;
    return k1 < k2 ? -1 : k1 > k2;
}

static int compare_branches(const void *a, const void *b)
{
    const struct mk_branch *x = a, *y = b;
    return compare_places(x->model, x->layer, (int)x->kind, y->model, y->layer, (int)y->kind);
}

/* Those of one matrix, and of experts of one layer, stand together. */
static int compare_writers(const void *a, const void *b)
{
    const struct writer *x = a, *y = b;
    int order = compare_places(x->model, x->layer, (int)x->kind, y->model, y->layer, (int)y->kind);
    if (order == 0 && x->entry != y->entry)
        order = x->entry < y->entry ? -1 : 1;
    return order ? order : x->square < y->square ? -1 : x->square > y->square;
}

/* Experts that work on each token, by their counts and those of the layer's attention; at least 1.
 * Their outputs are averaged, so the energy shrinks by that number. */
static double experts_at_work(const struct mk_importance *imp, const struct writer *w)
{
    char name[LLAMA_NAME];
    snprintf(name, sizeof name, "blk.%d.attn_output.weight", w->layer);
    const struct imatrix_entry *all = imatrix_find(&imp->matrix, name);
    if (!w->expert || w->entry->counts == 1 || !all || !(all->tokens > 0))
        return 1;
    double at_work = w->entry->tokens / (all->tokens / (double)all->counts);
    return at_work > 1 ? at_work : 1;
}

/* Of the writers from w on, which have the same matrix: the energy of their output. */
static double writer_energy(const struct mk_importance *imp, const struct writer *w, size_t count)
{
    double square = 0;
    for (size_t i = 0; i < count; i++)
        square += w[i].square;
    double energy = w->input * square / (double)count;
    return w->entry ? energy / experts_at_work(imp, w) : energy;
}

/* Adds what one matrix contributes to its branch. */
static void add_energy(struct mk_branch *b, const struct writer *w, double energy)
{
    b->energy += energy;
    b->peak += energy * imatrix_peak(w->entry);
}

static double decibels(double of, double to)
{
    return 10 * (log10(of) - log10(to));
}

void mk_importance_offsets(struct mk_branch *branch, size_t count, double embedding)
{
    double stream = embedding;
    struct {
        double share, peak; /* sums over branches */
        size_t known;
    } sum[LLAMA_FEED_FORWARD + 1] = {0};
    for (size_t i = 0; i < count; i++) {
        struct mk_branch *b = &branch[i];
        b->known = b->energy > 0 && isfinite(stream + b->energy) && isfinite(b->peak);
        if (!b->known)
            continue;
        b->db = decibels(b->energy, stream + b->energy);
        b->peak = decibels(b->peak, b->energy);
        stream += b->energy;
        sum[b->kind].share += b->db;
        sum[b->kind].peak += b->peak;
        sum[b->kind].known++;
    }
    for (size_t i = 0; i < count; i++) {
        struct mk_branch *b = &branch[i];
        if (!b->known)
            continue;
        double known = (double)sum[b->kind].known;
        double db = MK_IMPORTANCE_K * (b->db - sum[b->kind].share / known);
        if (b->kind == LLAMA_FEED_FORWARD)
            db += MK_IMPORTANCE_P * fmax(0, b->peak - sum[b->kind].peak / known);
        b->db = fmax(-MK_IMPORTANCE_LIMIT, fmin(MK_IMPORTANCE_LIMIT, db));
    }
}

/* Sums the writers, which are sorted, to branches, model by model. */
static int make_branches(struct mk_importance *imp, struct hfs_error *err)
{
    imp->branches = calloc(imp->nwriters + 1, sizeof *imp->branches);
    if (!imp->branches)
        return no_memory(err);
    if (imp->nwriters)
        qsort(imp->writers, imp->nwriters, sizeof *imp->writers, compare_writers);
    for (size_t i = 0, same; i < imp->nwriters;) {
        size_t model = imp->writers[i].model, first = imp->nbranches;
        double embedding = 0;
        for (; i < imp->nwriters && imp->writers[i].model == model; i += same) {
            const struct writer *w = &imp->writers[i];
            for (same = 1; i + same < imp->nwriters && w[same].entry == w->entry &&
                           compare_places(model, w->layer, (int)w->kind, w[same].model,
                                          w[same].layer, (int)w[same].kind) == 0;)
                same++;
            double energy = writer_energy(imp, w, same);
            struct mk_branch next = {.model = model, .layer = w->layer, .kind = w->kind};
            struct mk_branch *last = &imp->branches[imp->nbranches];
            *last = next;
            if (w->layer < 0)
                embedding = energy;
            else if (imp->nbranches > first && compare_branches(&last[-1], &next) == 0)
                add_energy(&last[-1], w, energy);
            else
                add_energy(&imp->branches[imp->nbranches++], w, energy);
        }
        if (!imp->normalised[model])
            mk_importance_offsets(imp->branches + first, imp->nbranches - first, embedding);
    }
    return 0;
}

/* ---- what is said ---- */

static const char *show(char buf[200], const char *name)
{
    return hfs_printable(buf, 200, name, (unsigned)strlen(name));
}

/* Lists the entries that are marked so and have no tensor: a few of them, or all with -v. */
static void list_entries(const struct mk_importance *imp, const char *shown, bool misfits,
                         const char *what)
{
    char name[200], text[500] = "";
    size_t count = 0, len = 0;
    for (size_t i = 0; i < imp->matrix.count; i++) {
        if (imp->used[i] || imp->misfits[i] != misfits)
            continue;
        show(name, imp->matrix.entries[i].name);
        if (ui_level() == UI_VERBOSE)
            ui_verbose("%s: %s %s", shown, name, what);
        else if (count < LISTED && len < sizeof text)
            len += (size_t)snprintf(text + len, sizeof text - len, "%s%s", count ? ", " : "", name);
        count++;
    }
    if (count && ui_level() != UI_VERBOSE)
        ui_warn("%s: %zu of %zu entries are not used, as each %s: %s%s", shown, count,
                imp->matrix.count, what, text, count > LISTED ? ", ... (-v lists all)" : "");
}

static int report(const struct mk_importance *imp, const char *shown, struct hfs_error *err)
{
    char name[200], directory[200];
    size_t used = 0;
    for (size_t i = 0; i < imp->matrix.count; i++)
        used += imp->used[i];
    if (used == 0)
        return hfs_fail(err, EBADMSG,
                        "%s: none of its %zu entries, such as %s, is of a tensor in the source: it "
                        "is of another model, or of one whose names mkhyperfs does not know",
                        shown, imp->matrix.count, show(name, imp->matrix.entries[0].name));
    list_entries(imp, shown, false, "has the name of no tensor");
    list_entries(imp, shown, true, "has no data, or another width than its tensor");
    for (size_t i = 0; i < imp->models; i++)
        if (imp->normalised[i])
            ui_warn("%s: does not change the model in %s: it normalises the outputs of its layers",
                    shown,
                    *imp->directories[i] ? show(directory, imp->directories[i]) : "the source");
    return 0;
}

static void say_offsets(const struct mk_importance *imp)
{
    for (size_t i = 0; i < imp->nbranches; i++) {
        const struct mk_branch *b = &imp->branches[i];
        if (b->known)
            ui_verbose("importance matrix: layer %d, %s: %+.1f dB", b->layer,
                       b->kind == LLAMA_ATTENTION ? "attention" : "feed-forward", b->db);
    }
}

/* ---- the whole ---- */

static int prepare(struct mk_importance *imp, const struct mk_options *opt,
                   const struct mk_source *src, struct hfs_error *err)
{
    char shown[200];
    int r = imatrix_read(opt->imatrix, &imp->matrix, err);
    if (r < 0)
        return r;
    imp->used = calloc(imp->matrix.count, sizeof *imp->used);
    imp->misfits = calloc(imp->matrix.count, sizeof *imp->misfits);
    if (!imp->used || !imp->misfits)
        return no_memory(err);
    for (size_t i = 0; i < src->nfiles && r == 0; i++)
        if (src->files[i]->plan->safetensors)
            r = note_file(imp, src->files[i], err);
    if (r == 0)
        r = report(imp, show(shown, opt->imatrix), err);
    if (r == 0)
        r = make_branches(imp, err);
    if (r == 0)
        say_offsets(imp);
    return r;
}

int mk_importance_new(const struct mk_options *opt, const struct mk_source *src,
                      struct mk_importance **out, struct hfs_error *err)
{
    struct mk_importance *imp = calloc(1, sizeof *imp);
    if (!imp)
        return no_memory(err);
    int r = prepare(imp, opt, src, err);
    if (r < 0) {
        mk_importance_free(imp);
        return r;
    }
    *out = imp;
    return 0;
}

void mk_importance_free(struct mk_importance *imp)
{
    if (!imp)
        return;
    for (size_t i = 0; i < imp->models; i++)
        free(imp->directories[i]);
    free(imp->directories);
    free(imp->normalised);
    free(imp->writers);
    free(imp->branches);
    free(imp->used);
    free(imp->misfits);
    imatrix_free(&imp->matrix);
    free(imp);
}

bool mk_importance_of(const struct mk_importance *imp, const char *path, const struct st_tensor *t,
                      double *db)
{
    struct llama_tensor l;
    if (!llama_tensor_of(t, &l) || l.branch == LLAMA_NO_BRANCH)
        return false;
    struct mk_branch key = {.model = find_model(imp, path), .layer = l.layer, .kind = l.branch};
    const struct mk_branch *b =
        bsearch(&key, imp->branches, imp->nbranches, sizeof key, compare_branches);
    if (b && b->known)
        *db = b->db;
    return b && b->known;
}

const char *mk_importance_hash(const struct mk_importance *imp)
{
    return imp->matrix.hash;
}
