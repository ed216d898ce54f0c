/* Opens an image and asks for all that a mount, fsck or dump would: the tree by name and by walk,
 * attributes, tensors, META, the check of the tables, and every block with either instruction set,
 * with and without the check of its content. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/image.h"
#include "fs/image_private.h"
#include "fs/mount_xattr.h"
#include "fs/walk.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image_mutate.h"

/* So that an input takes milliseconds. */
enum { MOST_RAW = 512 << 10, MOST_POINTS = 1024, MOST_PATHS = 32, MOST_ATTRIBUTES = 16 };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    return fz_mutate_image(data, size, room, seed);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t room, unsigned seed)
{
    return fz_cross_images(a, a_size, b, b_size, out, room, seed);
}

/* A directory's entries, each found again by its name. */
static void look_up(struct hfs_image *img, const struct hfs_inode *dir)
{
    struct hfs_dirent e, found;
    for (uint64_t i = dir->first; i < dir->first + dir->count; i++) {
        hfs_image_dirent(img, i, &e);
        FUZZ_CHECK(e.name_len > 0 && e.name_len < 256);
        FUZZ_CHECK(!memchr(e.name, '/', e.name_len) && !memchr(e.name, 0, e.name_len));
        FUZZ_CHECK(e.name[0] != '.' || (e.name_len > 1 && (e.name[1] != '.' || e.name_len > 2)));
        FUZZ_CHECK(hfs_image_lookup(img, dir, e.name, e.name_len, &found) == 0);
        FUZZ_CHECK(found.name == e.name && found.inode == e.inode);
    }
    FUZZ_CHECK(hfs_image_lookup(img, dir, "/", 1, &found) == -ENOENT);
}

/* The path of an inode leads to it. */
static void follow_path(struct hfs_image *img, uint32_t number)
{
    struct hfs_inode ino;
    struct hfs_dirent e = {0};
    char *path = hfs_image_path_of(img, number);
    FUZZ_CHECK(path != NULL);
    for (char *at = path; *at;) {
        size_t n = strcspn(at, "/");
        hfs_image_inode(img, e.inode, &ino);
        FUZZ_CHECK(hfs_image_lookup(img, &ino, at, n, &e) == 0);
        at += n + (at[n] == '/');
    }
    FUZZ_CHECK(e.inode == number);
    free(path);
}

static void look_at_file(struct hfs_image *img, const struct hfs_inode *ino)
{
    const uint64_t places[] = {0, ino->size / 3, ino->size / 2, ino->size - 1};
    for (size_t i = 0; ino->size && i < sizeof places / sizeof *places; i++) {
        struct hfs_segment seg;
        uint64_t n = hfs_image_find_segment(img, ino, places[i]);
        FUZZ_CHECK(n >= ino->first && n - ino->first < ino->count);
        hfs_image_segment(img, n, &seg);
        FUZZ_CHECK(places[i] >= seg.file_offset && places[i] - seg.file_offset < seg.length);
    }
}

/* Names in a walk are single components, and the path ends with them. */
static int enter(void *ctx, const struct hfs_walk_item *item)
{
    uint64_t *steps = ctx;
    size_t path = strlen(item->path);
    FUZZ_CHECK(strlen(item->name) == item->name_len && path >= item->name_len);
    FUZZ_CHECK(memcmp(item->path + path - item->name_len, item->name, item->name_len) == 0);
    *steps += 1;
    return 0;
}

static int leave(void *ctx, const struct hfs_walk_item *item)
{
    (void)ctx;
    FUZZ_CHECK(S_ISDIR(item->ino.mode));
    return 0;
}

static void look_at_attributes(struct hfs_image *img, const struct hfs_info *info)
{
    struct hfs_reader *reader;
    FUZZ_CHECK(hfs_reader_new(img, 1 << 20, 1, &reader) == 0);
    struct hfs_xattrs *x = hfs_xattrs_new(img, reader);
    FUZZ_CHECK(x != NULL);
    for (uint32_t n = 0; n < info->inodes && n < MOST_ATTRIBUTES; n++) {
        struct hfs_inode ino;
        char value[HFS_XATTR_VALUE];
        size_t len;
        hfs_image_inode(img, n, &ino);
        const char *names = hfs_xattrs_list(&ino, &len);
        for (const char *name = names; name < names + len; name += strlen(name) + 1)
            if (hfs_xattrs_get(x, n, name, value) == 0)
                FUZZ_CHECK(memchr(value, 0, sizeof value) != NULL);
        FUZZ_CHECK(hfs_xattrs_get(x, n, "user.hyperfs.none", value) == -ENODATA);
        FUZZ_CHECK(hfs_xattrs_get(x, n, "security.x", value) == -ENODATA);
    }
    hfs_xattrs_free(x);
    hfs_reader_free(reader);
}

static void look_at_tree(struct hfs_image *img, const struct hfs_info *info)
{
    static const struct hfs_walk_ops ops = {enter, leave};
    uint64_t steps = 0, total = 0;
    for (uint32_t n = 0; n < info->inodes; n++) {
        struct hfs_inode ino;
        hfs_image_inode(img, n, &ino);
        if (S_ISDIR(ino.mode))
            look_up(img, &ino);
        else if (S_ISREG(ino.mode))
            look_at_file(img, &ino), total += ino.size;
        else
            FUZZ_CHECK(!memchr(hfs_image_target(img, &ino), 0, (size_t)ino.size));
        if (n < MOST_PATHS)
            follow_path(img, n);
    }
    FUZZ_CHECK(total == info->content_bytes);
    FUZZ_CHECK(hfs_walk(img, &ops, &steps) == 0);
    FUZZ_CHECK(steps == info->dirents + 1); /* each entry, and the root */
    FUZZ_CHECK(hfs_walk(img, &(struct hfs_walk_ops){enter, NULL}, &steps) == 0);
}

/* Tensors that the reader passes on are whole. */
static bool look_at_tensors(struct hfs_image *img, const struct hfs_info *info)
{
    struct hfs_error err = {{0}};
    struct hfs_tensor t;
    uint64_t count;
    volatile unsigned sum = 0; /* so that the bytes are read */
    int r = hfs_image_tensors(img, &count, &err);
    FUZZ_CHECK(r == 0 || (err.text[0] && count == 0));
    for (uint64_t i = 0; i < count; i++) {
        hfs_image_tensor(img, i, &t);
        FUZZ_CHECK(t.inode < info->inodes);
        FUZZ_CHECK(t.segment < info->segments || (t.segment == UINT64_MAX && t.elements == 0));
        for (unsigned d = 0; d < t.rank; d++)
            sum += t.dims[8 * d] + t.dims[8 * d + 7];
        for (unsigned k = 0; k < t.name_len; k++)
            sum += (uint8_t)t.name[k];
    }
    (void)sum;
    const char *text;
    err.text[0] = 0;
    int m = hfs_image_meta(img, &text, &err);
    FUZZ_CHECK(m == 0 || (err.text[0] && !text[0]));
    return r == 0 && m == 0;
}

/* ---- blocks ---- */

struct bench {
    struct hc_work *work[2];
    uint8_t *coded, *raw[2];
};

static const struct bench *bench(void)
{
    static struct bench b;
    for (int i = 0; i < 2 && !b.work[i]; i++) {
        b.work[i] = hc_work_new(i ? hc_isa_best() : HC_ISA_PORTABLE);
        FUZZ_CHECK(b.work[i] != NULL);
        b.raw[i] = fuzz_alloc(HC_MAX_BLOCK_BYTES);
    }
    if (!b.coded)
        b.coded = fuzz_alloc(HFS_MAX_STORED);
    return &b;
}

/* One block; false if it cannot be read. */
static bool read_block(struct hfs_image *img, const struct hfs_segment *seg, uint64_t index,
                       size_t *len)
{
    const struct bench *b = bench();
    size_t n[2] = {0, 0};
    int r[2];
    for (int i = 0; i < 2; i++)
        r[i] = hfs_image_read_block(img, b->work[i], seg, index, b->coded, b->raw[i], &n[i], i);
    if (r[0] < 0) {
        FUZZ_CHECK(r[0] == -EBADMSG || r[0] == -EINVAL);
        FUZZ_CHECK(r[1] == r[0]);
        return false;
    }
    FUZZ_CHECK(r[1] == 0 || r[1] == -EBADMSG); /* the content's checksum */
    FUZZ_CHECK(n[0] == n[1] && memcmp(b->raw[0], b->raw[1], n[0]) == 0);
    *len = n[0];
    return r[1] == 0;
}

/* The blocks of a segment make it up. */
static bool read_segment(struct hfs_image *img, const struct hfs_segment *seg, size_t *budget)
{
    uint64_t count = hfs_image_segment_blocks(img, seg), at = 0;
    const struct hc_code *code = hfs_image_code(img, seg->code);
    struct hfs_block block;
    bool good = true;
    for (uint64_t i = 0; i < count; i++) {
        size_t len = 0, full = hc_code_block_bytes(code);
        size_t want = seg->length - at < full ? (size_t)(seg->length - at) : full;
        if (want > *budget)
            return good;
        *budget -= want;
        bool whole = read_block(img, seg, i, &len);
        FUZZ_CHECK(!whole || len == want);
        good = good && whole;
        at += want;
    }
    FUZZ_CHECK(at == seg->length);
    FUZZ_CHECK(hfs_image_read_block(img, bench()->work[0], seg, count, bench()->coded,
                                    bench()->raw[0], &(size_t){0}, true) == -EINVAL);
    return hfs_image_block(img, seg->first_block, &block) == 0 && good;
}

static bool read_blocks(struct hfs_image *img, const struct hfs_info *info)
{
    size_t budget = MOST_RAW;
    bool good = true;
    struct hfs_block b;
    for (uint64_t i = 0; i < info->segments; i++) {
        struct hfs_segment seg;
        hfs_image_segment(img, i, &seg);
        if (seg.kind != HFS_SEG_CODED)
            continue;
        const struct hc_code *code = hfs_image_code(img, seg.code);
        if (code->type != HC_CODE_TRAJECTORY || code->t.npoints <= MOST_POINTS)
            good = read_segment(img, &seg, &budget) && good;
    }
    FUZZ_CHECK(hfs_image_block(img, info->block_count, &b) == -EINVAL);
    return good;
}

/* ---- the whole ---- */

static void count_finding(void *ctx, const char *sentence)
{
    FUZZ_CHECK(sentence[0] != 0);
    *(uint64_t *)ctx += 1;
}

/* The same image, held to the digest that it states: what it vouches for can be read, and the
 * rest cannot. */
static void open_trusted(const char *path, const struct hfs_info *info)
{
    struct hfs_hash other;
    char text[HFS_HASH_TEXT];
    FUZZ_CHECK(hfs_hash_parse(hfs_hash_print(text, &info->digest), &other));
    FUZZ_CHECK(hfs_hash_equal(&info->digest, &other));
    struct hfs_image *img = NULL;
    struct hfs_error err = {{0}};
    other.byte[0] ^= 1;
    FUZZ_CHECK(hfs_image_open_digest(path, &other, &img, &err) == -EKEYREJECTED && err.text[0]);
    err.text[0] = 0;
    int r = hfs_image_open_digest(path, &info->digest, &img, &err);
    if (r < 0) {
        FUZZ_CHECK((r == -EBADMSG || (r == -EKEYREJECTED && !info->has_digest)) && err.text[0]);
        return;
    }
    FUZZ_CHECK(info->has_digest);
    look_at_tensors(img, info);
    read_blocks(img, info);
    hfs_image_close(img);
}

enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size)
{
    struct hfs_image *img = NULL;
    struct hfs_error err = {{0}};
    struct hfs_info info;
    uint64_t findings = 0;
    const char *path;
    fuzz_file(data, size, &path);
    int r = hfs_image_open(path, &img, &err);
    if (r < 0) {
        FUZZ_CHECK(r == -EINVAL || r == -EBADMSG || r == -ENOTSUP || r == -EFBIG);
        FUZZ_CHECK(strstr(err.text, path) != NULL);
        return FUZZ_REFUSE;
    }
    hfs_image_info(img, &info);
    FUZZ_CHECK(strcmp(hfs_image_path(img), path) == 0 && hfs_image_fd(img) >= 0);
    look_at_tree(img, &info);
    look_at_attributes(img, &info);
    bool good = look_at_tensors(img, &info);
    good = read_blocks(img, &info) && good;
    r = hfs_image_check_tables(img, count_finding, &findings);
    FUZZ_CHECK(r == (findings ? -EBADMSG : 0));
    if (good && r == 0) /* now held to the digest */
        FUZZ_CHECK(look_at_tensors(img, &info) && read_blocks(img, &info));
    hfs_image_close(img);
    open_trusted(path, &info);
    return good && r == 0 ? FUZZ_ACCEPT : FUZZ_DAMAGE;
}
