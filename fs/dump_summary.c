/* dump.hyperfs: the image in 20 lines. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/dump.h"
#include "fs/ui.h"

struct summary {
    struct dump *d;
    uint64_t files, directories, links;
    uint64_t tensors, lossy; /* numbers of them */
    uint64_t lossy_elements, lossy_exact, lossless_elements;
    uint64_t lossy_stored, lossless_stored; /* bytes of blocks */
    uint64_t lossy_bytes;                   /* with what the tables say of them: see tensor_cost */
    double *sqnr;                           /* of the lossy ones */
    double worst, median, max_error;
    uint64_t worst_tensor;
};

/* Bytes that a tensor takes in the image: blocks, their index, its segment, code and record. */
static uint64_t tensor_cost(struct dump *d, const struct hfs_tensor *t,
                            const struct hfs_segment *seg)
{
    uint64_t blocks = hfs_image_segment_blocks(d->img, seg);
    uint8_t body[HC_CODE_RECORD_MAX];
    uint64_t index = blocks * sizeof(struct hfs_disk_block) + (blocks + HFS_LEAF_BLOCKS - 1) /
                                                                  HFS_LEAF_BLOCKS *
                                                                  sizeof(struct hfs_disk_leaf);

    return t->stored + index + sizeof(struct hfs_disk_segment) + sizeof(struct hfs_disk_record) +
           hc_code_store(hfs_image_code(d->img, seg->code), body) + sizeof(struct hfs_disk_tensor) +
           8 * (uint64_t)t->rank + t->name_len;
}

static void add_tensor(struct summary *s, uint64_t number)
{
    struct dump *d = s->d;
    struct hfs_segment seg = {.kind = HFS_SEG_ZERO};
    struct hfs_tensor t;

    hfs_image_tensor(d->img, number, &t);
    if (t.segment != UINT64_MAX)
        hfs_image_segment(d->img, t.segment, &seg);
    if (seg.kind != HFS_SEG_CODED || hfs_image_code(d->img, seg.code)->type != HC_CODE_TRAJECTORY) {
        s->lossless_elements += t.elements;
        s->lossless_stored += t.stored;
        return;
    }
    if (s->lossy == 0 || t.sqnr_db < s->worst) {
        s->worst = t.sqnr_db;
        s->worst_tensor = number;
    }
    if (t.max_error > s->max_error)
        s->max_error = t.max_error;
    s->sqnr[s->lossy++] = t.sqnr_db;
    s->lossy_elements += t.elements;
    s->lossy_exact += t.exact;
    s->lossy_stored += t.stored;
    s->lossy_bytes += tensor_cost(d, &t, &seg);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static int collect(struct summary *s, struct hfs_error *err)
{
    int r = hfs_image_tensors(s->d->img, &s->tensors, err);

    if (r < 0)
        return r;
    s->sqnr = malloc((s->tensors + 1) * sizeof *s->sqnr);
    if (s->sqnr == NULL)
        return hfs_fail(err, ENOMEM, "not enough memory for the tensors");
    for (uint64_t i = 0; i < s->tensors; i++)
        add_tensor(s, i);
    if (s->lossy > 0) {
        qsort(s->sqnr, s->lossy, sizeof *s->sqnr, compare_doubles);
        s->median = (s->sqnr[(s->lossy - 1) / 2] + s->sqnr[s->lossy / 2]) / 2;
    }
    for (uint64_t i = 0; i < s->d->info.inodes; i++) {
        struct hfs_inode ino;

        hfs_image_inode(s->d->img, (uint32_t)i, &ino);
        s->files += S_ISREG(ino.mode);
        s->directories += S_ISDIR(ino.mode);
        s->links += S_ISLNK(ino.mode);
    }
    return 0;
}

static double ratio(const struct summary *s)
{
    return (double)s->d->info.content_bytes / (double)s->d->info.image_size;
}

static double bits_a_weight(const struct summary *s)
{
    return s->lossy_elements ? 8 * (double)s->lossy_bytes / (double)s->lossy_elements : NAN;
}

/* ---- text ---- */

static void print_sizes(const struct summary *s)
{
    const struct hfs_info *info = &s->d->info;
    char human[16], exact[32], blocks[32], hash[HFS_HASH_TEXT];

    printf("  image        %9s  %s bytes\n", ui_bytes(human, info->image_size),
           dump_thousands(exact, info->image_size));
    printf("  data         %9s  %s bytes in %s blocks\n", ui_bytes(human, info->data_bytes),
           dump_thousands(exact, info->data_bytes), dump_thousands(blocks, info->block_count));
    printf("  tables       %9s  %s bytes", ui_bytes(human, info->image_size - info->data_bytes),
           dump_thousands(exact, info->image_size - info->data_bytes));
    printf(", %s of them the block index\n", dump_thousands(exact, info->leaf_bytes));
    printf("  content      %9s  %s bytes", ui_bytes(human, info->content_bytes),
           dump_thousands(exact, info->content_bytes));
    printf(" in %" PRIu64 " %s", s->files, s->files == 1 ? "file" : "files");
    printf(", %" PRIu64 " %s", s->directories, s->directories == 1 ? "directory" : "directories");
    if (s->links > 0)
        printf(", %" PRIu64 " symbolic %s", s->links, s->links == 1 ? "link" : "links");
    printf("\n  ratio        %9.2f  content to image\n", ratio(s));
    if (info->has_digest)
        printf("  digest       sha256:%s\n", hfs_hash_print(hash, &info->digest));
}

static void print_tensors(const struct summary *s)
{
    char name[DUMP_SHOWN], human[16], elements[32], exact[32];
    struct hfs_tensor t;

    printf("\n  tensors      %9" PRIu64 "\n", s->tensors);
    printf("  lossless     %9" PRIu64 "  %s elements in %s\n", s->tensors - s->lossy,
           dump_thousands(elements, s->lossless_elements), ui_bytes(human, s->lossless_stored));
    printf("  with loss    %9" PRIu64 "  ", s->lossy);
    if (s->lossy == 0) {
        puts("every bit is kept");
        return;
    }
    hfs_image_tensor(s->d->img, s->worst_tensor, &t);
    hfs_printable(name, sizeof name, t.name, t.name_len);
    printf("%s weights in %s, %s of them exact\n", dump_thousands(elements, s->lossy_elements),
           ui_bytes(human, s->lossy_stored), dump_thousands(exact, s->lossy_exact));
    printf("  bits         %9.2f  a weight with loss, index and records included\n",
           bits_a_weight(s));
    printf("  SQNR median  %9.2f  dB\n", s->median);
    printf("  SQNR worst   %9.2f  dB, %s\n", s->worst, name);
    printf("  max error    %9.2g\n", s->max_error);
}

static void print_meta(const char *text)
{
    char shown[1024];

    if (text[0])
        putchar('\n');
    while (*text) {
        size_t len = strcspn(text, "\n"), key = strcspn(text, "=");

        if (key > len)
            key = len;
        printf("  %-12s ", hfs_printable(shown, sizeof shown, text, (unsigned)key));
        if (key < len)
            key++;
        puts(hfs_printable(shown, sizeof shown, text + key, (unsigned)(len - key)));
        text += len + (text[len] == '\n');
    }
}

static void print_text(const struct summary *s, const char *meta)
{
    const struct hfs_info *info = &s->d->info;

    printf("%s: hyperfs image, format version %" PRIu32, hfs_image_path(s->d->img), info->version);
    if (info->incompat || (info->compat & ~HFS_COMPAT_KNOWN))
        printf(", features %#" PRIx64 " (%#" PRIx64 ")", info->incompat, info->compat);
    puts("");
    if (info->used_copy)
        puts("  the first superblock is damaged; its copy at the end was used");
    print_sizes(s);
    print_tensors(s);
    print_meta(meta);
}

/* ---- JSON ---- */

static void json_meta(struct hfs_json *j, const char *text)
{
    hfs_json_array(j, "meta");
    while (*text) {
        size_t len = strcspn(text, "\n");

        hfs_json_bytes(j, NULL, text, len);
        text += len + (text[len] == '\n');
    }
    hfs_json_close(j);
}

static void json_tensors(const struct summary *s)
{
    struct hfs_json *j = s->d->doc;
    struct hfs_tensor t;

    hfs_json_uint(j, "tensor_count", s->tensors);
    hfs_json_uint(j, "lossy_tensors", s->lossy);
    hfs_json_uint(j, "lossy_weights", s->lossy_elements);
    hfs_json_uint(j, "lossy_exact", s->lossy_exact);
    hfs_json_uint(j, "lossy_stored", s->lossy_stored);
    hfs_json_uint(j, "lossless_elements", s->lossless_elements);
    hfs_json_uint(j, "lossless_stored", s->lossless_stored);
    hfs_json_double(j, "bits_a_weight", bits_a_weight(s));
    hfs_json_double(j, "sqnr_worst_db", s->lossy ? s->worst : NAN);
    hfs_json_double(j, "sqnr_median_db", s->lossy ? s->median : NAN);
    hfs_json_double(j, "max_error", s->max_error);
    if (s->lossy > 0) {
        hfs_image_tensor(s->d->img, s->worst_tensor, &t);
        hfs_json_bytes(j, "worst_tensor", t.name, t.name_len);
    }
}

static void print_json(const struct summary *s, const char *meta)
{
    const struct hfs_info *info = &s->d->info;
    struct hfs_json *j = s->d->doc;
    char hash[HFS_HASH_TEXT];

    hfs_json_uint(j, "version", info->version);
    hfs_json_uint(j, "incompat", info->incompat);
    hfs_json_uint(j, "compat", info->compat);
    hfs_json_bool(j, "used_copy", info->used_copy);
    hfs_json_uint(j, "image_bytes", info->image_size);
    hfs_json_uint(j, "data_bytes", info->data_bytes);
    hfs_json_uint(j, "index_bytes", info->leaf_bytes);
    hfs_json_uint(j, "blocks", info->block_count);
    hfs_json_uint(j, "content_bytes", info->content_bytes);
    hfs_json_double(j, "ratio", ratio(s));
    hfs_json_uint(j, "regular_files", s->files);
    hfs_json_uint(j, "directories", s->directories);
    hfs_json_uint(j, "symlinks", s->links);
    hfs_json_text(j, "sha256", info->has_digest ? hfs_hash_print(hash, &info->digest) : "");
    json_tensors(s);
    json_meta(j, meta);
}

int dump_summary(struct dump *d, struct hfs_error *err)
{
    struct summary s = {.d = d};
    const char *meta;
    int r = hfs_image_meta(d->img, &meta, err);

    if (r == 0)
        r = collect(&s, err);
    if (r == 0 && d->doc != NULL)
        print_json(&s, meta);
    else if (r == 0)
        print_text(&s, meta);
    free(s.sqnr);
    return r;
}
