#include "mkhyperfs/tables.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "codec/bytes.h"

struct tables {
    const struct mk_options *opt;
    struct mk_source *src;
    struct hfs_writer *writer;
    struct hfs_error *err;
};

/* ---- inodes ---- */

static struct hfs_inode inode_of(const struct mk_options *opt, const struct stat *st)
{
    struct hfs_inode ino = {
        .mode = st->st_mode & (S_IFMT | 07777),
        .uid = st->st_uid,
        .gid = st->st_gid,
        .mtime = st->st_mtim.tv_sec,
        .mtime_nsec = (uint32_t)st->st_mtim.tv_nsec,
    };
    if (opt->set_mtime || (opt->clamp_mtime && ino.mtime >= opt->mtime)) {
        ino.mtime = opt->mtime;
        ino.mtime_nsec = 0;
    }
    return ino;
}

/* Directories stand before all files in the table: a file may have its second name in a
 * directory that the walk meets later, and no entry may name an inode before its own directory. */
static int add_directories(struct tables *t, struct mk_node *node)
{
    struct hfs_inode ino = inode_of(t->opt, &node->st);
    int r = hfs_writer_inode(t->writer, &ino, NULL, &node->inode, t->err);
    for (size_t i = 0; i < node->nchildren && r == 0; i++)
        if (node->children[i]->type == MK_DIR)
            r = add_directories(t, node->children[i]);
    return r;
}

static int add_links(struct tables *t, struct mk_node *node)
{
    int r = 0;
    if (node->type == MK_LINK) {
        struct hfs_inode ino = inode_of(t->opt, &node->st);
        ino.mode = S_IFLNK | 0777;
        ino.size = strlen(node->target);
        r = hfs_writer_inode(t->writer, &ino, node->target, &node->inode, t->err);
    }
    for (size_t i = 0; i < node->nchildren && r == 0; i++)
        r = add_links(t, node->children[i]);
    return r;
}

static int add_files(struct tables *t)
{
    int r = 0;
    for (size_t i = 0; i < t->src->nfiles && r == 0; i++) {
        struct mk_file *f = t->src->files[i];
        const struct mk_plan *plan = f->plan->same ? f->plan->same->plan : f->plan;
        struct hfs_inode ino = inode_of(t->opt, &f->st);
        ino.size = (uint64_t)f->st.st_size;
        ino.count = (uint32_t)plan->nitems;
        ino.first = plan->nitems ? plan->items[0].segment : 0;
        r = hfs_writer_inode(t->writer, &ino, NULL, &f->inode, t->err);
    }
    return r;
}

static int add_entries(struct tables *t, const struct mk_node *dir)
{
    struct hfs_dirent *entries = calloc(dir->nchildren + 1, sizeof *entries);
    if (!entries)
        return hfs_fail(t->err, ENOMEM, "out of memory");
    for (size_t i = 0; i < dir->nchildren; i++) {
        const struct mk_node *child = dir->children[i];
        entries[i].name = child->name;
        entries[i].name_len = (unsigned)strlen(child->name);
        entries[i].inode = child->type == MK_FILE ? child->file->inode : child->inode;
    }
    int r = hfs_writer_entries(t->writer, dir->inode, entries, (uint32_t)dir->nchildren, t->err);
    free(entries);
    for (size_t i = 0; i < dir->nchildren && r == 0; i++)
        if (dir->children[i]->type == MK_DIR)
            r = add_entries(t, dir->children[i]);
    return r;
}

/* ---- tensors ---- */

static int add_tensor(struct tables *t, const struct mk_file *f, const struct st_tensor *tensor,
                      const struct mk_item *it)
{
    struct hfs_tensor rec = {
        .inode = f->inode,
        .segment = it ? it->segment : UINT64_MAX,
        .elements = tensor->elements,
        .stored = it ? it->stored : 0,
        .sqnr_db = INFINITY,
        .dtype = tensor->dtype,
        .rank = tensor->rank,
        .name = tensor->name,
        .name_len = (unsigned)strlen(tensor->name),
    };
    if (it && mk_item_is_lossy(it)) {
        rec.exact = it->stats.exact;
        rec.sqnr_db = it->sqnr_db;
        rec.max_error = it->stats.max_error;
    }
    uint8_t *dims = malloc(8 * (size_t)tensor->rank + 1);
    if (!dims)
        return hfs_fail(t->err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < tensor->rank; i++)
        store64(dims + 8 * (size_t)i, tensor->dims[i]);
    rec.dims = dims;
    int r = hfs_writer_tensor(t->writer, &rec, t->err);
    free(dims);
    return r;
}

/* Items and tensors stand in the same order; the first item is the header, and empty tensors have
 * none. */
static int add_tensors(struct tables *t, const struct mk_file *f)
{
    const struct mk_plan *own = f->plan, *plan = own->same ? own->same->plan : own;
    size_t item = 1;
    int r = 0;
    for (size_t i = 0; i < own->header.count && r == 0; i++) {
        const struct st_tensor *tensor = &own->header.tensors[i];
        bool empty = tensor->begin == tensor->end;
        r = add_tensor(t, f, tensor, empty ? NULL : &plan->items[item]);
        item += !empty;
    }
    return r;
}

/* ---- META ---- */

static int meta(struct tables *t, const char *key, const char *value)
{
    char text[1000];
    return hfs_writer_meta(
        t->writer, key, hfs_printable(text, sizeof text, value, (unsigned)strlen(value)), t->err);
}

/* Without the directory, which tells of the machine and not of the matrix. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* What the image's bytes depend on besides the source. */
static int add_meta(struct tables *t)
{
    static const char *const goals[] = {
        [MK_GOAL_BITS] = "bits", [MK_GOAL_RATIO] = "ratio", [MK_GOAL_SIZE] = "target_size"};
    const struct mk_options *opt = t->opt;
    char number[32];
    int r = meta(t, "writer", "hyperfs " HYPERFS_VERSION);
    if (r == 0)
        r = meta(t, "zstd", ZSTD_versionString());
    if (r == 0 && opt->goal == MK_GOAL_LEVEL)
        r = meta(t, "quality", opt->lossless ? "lossless" : opt->quality);
    else if (r == 0)
        r = meta(t, goals[opt->goal], opt->goal_text);
    snprintf(number, sizeof number, "%g", opt->db);
    if (r == 0 && opt->goal == MK_GOAL_LEVEL && !opt->lossless)
        r = meta(t, "sqnr", number);
    if (r == 0 && !opt->lossless)
        r = meta(t, "allocation", opt->flat ? "flat" : "rules");
    snprintf(number, sizeof number, "%u %u", opt->nu, opt->nu_small);
    if (r == 0 && !opt->lossless)
        r = meta(t, "nu", number);
    if (opt->imatrix && r == 0)
        r = meta(t, "imatrix", base_name(opt->imatrix));
    if (opt->imatrix && r == 0)
        r = meta(t, "imatrix_xxh128", t->src->imatrix_hash);
    for (size_t i = 0; i < opt->nrules && r == 0; i++)
        r = meta(t, "rule", opt->rules[i].text);
    for (size_t i = 0; i < opt->nexcludes && r == 0; i++)
        r = meta(t, "exclude", opt->excludes[i]);
    snprintf(number, sizeof number, "%" PRId64, opt->mtime);
    if (r == 0 && (opt->set_mtime || opt->clamp_mtime))
        r = meta(t, opt->set_mtime ? "mtime" : "source_date_epoch", number);
    if (r == 0 && opt->keep_broken)
        r = meta(t, "keep_broken", "yes");
    if (r == 0 && opt->skip_special)
        r = meta(t, "skip_special", "yes");
    return r;
}

int mk_write_tables(const struct mk_options *opt, struct mk_source *src, struct hfs_writer *writer,
                    struct hfs_error *err)
{
    struct tables t = {opt, src, writer, err};
    int r = add_directories(&t, src->top);
    if (r == 0)
        r = add_links(&t, src->top);
    if (r == 0)
        r = add_files(&t);
    if (r == 0)
        r = add_entries(&t, src->top);
    for (size_t i = 0; i < src->nfiles && r == 0; i++)
        r = add_tensors(&t, src->files[i]);
    return r == 0 ? add_meta(&t) : r;
}
