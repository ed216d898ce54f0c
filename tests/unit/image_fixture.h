/* A small image for the tests of fs/, and the means to take one apart, change it and put it
 * together again with good checksums: so a test reaches the check behind the checksum. */
#ifndef HYPERFS_TESTS_IMAGE_FIXTURE_H
#define HYPERFS_TESTS_IMAGE_FIXTURE_H

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>

#include "codec/bytes.h"
#include "fs/image.h"
#include "fs/writer.h"

/* ---- a directory of its own ---- */

static char test_dir[256];

static inline int make_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");
    (void)state;
    snprintf(test_dir, sizeof test_dir, "%s/hyperfs-test-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(test_dir) ? 0 : -1;
}

static inline int remove_dir(void **state)
{
    char command[300];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", test_dir);
    return system(command);
}

static inline const char *in_dir(const char *name)
{
    static char path[4][600];
    static unsigned turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", test_dir, name);
    return p;
}

static inline uint8_t *read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *len = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(*len + 1);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, *len, f), *len);
    fclose(f);
    return p;
}

static inline void write_file(const char *path, const void *data, size_t len)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* ---- the image ---- */

/* Inodes: 0 "", 1 "sub", 2 "a.bin" and "c", 3 "empty", 4 "link", 5 "sub/b" (segments of 2).
 * Segments of 2: 300,000 plain bytes (two blocks), 1,000 zeros, 5,000 F32 (one block). */
enum { PLAIN = 300000, ZEROS = 1000, FLOATS = 20000, A_SIZE = PLAIN + ZEROS + FLOATS };

static inline uint8_t a_byte(size_t i)
{
    if (i >= PLAIN && i < PLAIN + ZEROS)
        return 0;
    if (i >= PLAIN + ZEROS)
        return (uint8_t)(i % 4 == 3 ? 0x3f : i % 5);
    return (uint8_t)(i % 251);
}

static inline void write_blocks(struct hfs_writer *w, const struct hc_code *code, size_t start,
                                size_t len)
{
    struct hc_work *work = hc_work_new(HC_ISA_PORTABLE);
    struct hc_encoder *e;
    struct hfs_error err = {{0}};
    size_t full = hc_code_block_bytes(code);
    uint8_t *raw = malloc(full), *coded = malloc(hc_code_bound(code, full));
    assert_true(work && raw && coded);
    assert_int_equal(hc_encoder_new(code, &e), 0);
    for (size_t at = 0; at < len; at += full) {
        size_t n = len - at < full ? len - at : full, size;
        for (size_t i = 0; i < n; i++)
            raw[i] = a_byte(start + at + i);
        assert_int_equal(hc_encode(e, work, raw, n, coded, &size, NULL, NULL), 0);
        assert_int_equal(hfs_writer_block(w, coded, (uint32_t)size, XXH3_64bits(raw, n), &err), 0);
    }
    hc_encoder_free(e);
    hc_work_free(work);
    free(raw);
    free(coded);
}

static inline void write_segments(struct hfs_writer *w)
{
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3), floats = hc_lossless(HC_F32, 3);
    struct hfs_error err = {{0}};
    uint64_t number;
    uint32_t code;
    assert_int_equal(hfs_writer_code(w, &plain, &code, &err), 0);
    struct hfs_segment s = {.length = PLAIN, .code = code, .kind = HFS_SEG_CODED};
    write_blocks(w, &plain, 0, PLAIN);
    assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
    s = (struct hfs_segment){.file_offset = PLAIN, .length = ZEROS, .kind = HFS_SEG_ZERO};
    assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
    assert_int_equal(hfs_writer_code(w, &floats, &code, &err), 0);
    s = (struct hfs_segment){.file_offset = PLAIN + ZEROS,
                             .length = FLOATS,
                             .first_block = hfs_writer_blocks(w),
                             .code = code,
                             .kind = HFS_SEG_CODED};
    write_blocks(w, &floats, PLAIN + ZEROS, FLOATS);
    assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
    assert_int_equal(number, 2);
}

static inline void write_tensors(struct hfs_writer *w)
{
    struct hfs_error err = {{0}};
    uint8_t dims[24];
    store64(dims, 3);
    store64(dims + 8, 100000);
    struct hfs_tensor t = {.inode = 2,
                           .elements = PLAIN,
                           .sqnr_db = INFINITY,
                           .dtype = HC_U8,
                           .rank = 2,
                           .dims = dims,
                           .name = "u8.weight",
                           .name_len = 9};
    t.stored = hfs_writer_range_bytes(w, 0, 2);
    assert_int_equal(hfs_writer_tensor(w, &t, &err), 0);
    store64(dims, 50);
    store64(dims + 8, 100);
    t = (struct hfs_tensor){.inode = 2,
                            .segment = 2,
                            .elements = 5000,
                            .sqnr_db = INFINITY,
                            .dtype = HC_F32,
                            .rank = 2,
                            .dims = dims,
                            .name = "f32",
                            .name_len = 3};
    t.stored = hfs_writer_range_bytes(w, 2, 1);
    assert_int_equal(hfs_writer_tensor(w, &t, &err), 0);
    /* Empty, whatever the product of the others would be. */
    store64(dims, UINT64_MAX);
    store64(dims + 16, 0);
    t = (struct hfs_tensor){.inode = 5,
                            .segment = UINT64_MAX,
                            .sqnr_db = INFINITY,
                            .dtype = HC_F16,
                            .rank = 3,
                            .dims = dims,
                            .name = "none",
                            .name_len = 4};
    assert_int_equal(hfs_writer_tensor(w, &t, &err), 0);
}

static inline void write_tree(struct hfs_writer *w)
{
    const struct hfs_inode inodes[] = {
        {.mode = S_IFDIR | 0755, .mtime = 1, .mtime_nsec = 999999999},
        {.mode = S_IFDIR | 01777, .uid = 5, .gid = 6},
        {.mode = S_IFREG | 0644, .size = A_SIZE, .count = 3, .mtime = -3},
        {.mode = S_IFREG | 04711},
        {.mode = S_IFLNK | 0777, .size = 5},
        {.mode = S_IFREG | 0600, .size = A_SIZE, .count = 3},
    };
    const struct hfs_dirent root[] = {
        {"sub", 3, 1}, {"link", 4, 4}, {"c", 1, 2}, {"a.bin", 5, 2}, {"empty", 5, 3}};
    const struct hfs_dirent sub[] = {{"b", 1, 5}};
    struct hfs_error err = {{0}};
    uint32_t number;
    for (unsigned i = 0; i < sizeof inodes / sizeof inodes[0]; i++) {
        assert_int_equal(hfs_writer_inode(w, &inodes[i], "a.bin", &number, &err), 0);
        assert_int_equal(number, i);
    }
    assert_int_equal(hfs_writer_entries(w, 1, sub, 1, &err), 0); /* not in table order */
    assert_int_equal(hfs_writer_entries(w, 0, root, 5, &err), 0);
}

static inline struct hfs_writer *start(const char *path, bool replace)
{
    struct hfs_error err = {{0}};
    struct hfs_writer *w;
    if (hfs_writer_create(path, replace, NULL, NULL, &w, &err) < 0)
        fail_msg("%s", err.text);
    return w;
}

static inline void finish(struct hfs_writer *w)
{
    struct hfs_error err = {{0}};
    if (hfs_writer_finish(w, NULL, &err) < 0 || hfs_writer_commit(w, &err) < 0)
        fail_msg("%s", err.text);
}

static inline void build_small(const char *path)
{
    struct hfs_writer *w = start(path, true);
    struct hfs_error err = {{0}};
    write_segments(w);
    write_tree(w);
    write_tensors(w);
    assert_int_equal(hfs_writer_meta(w, "writer", "test", &err), 0);
    assert_int_equal(hfs_writer_meta(w, "options", "", &err), 0);
    finish(w);
}

/* ---- taking it apart ---- */

enum { MAX_PARTS = 16, PART_ROOM = 2 << 20 };

struct part {
    uint32_t type;
    uint16_t flags, packing;
    uint64_t raw_size; /* what the directory says for a packed one */
    uint8_t *bytes;    /* stored bytes, with room for PART_ROOM */
    size_t len;
};

struct parts {
    struct hfs_disk_super super;
    uint8_t *body; /* blocks and leaves */
    size_t data_len, leaves_len;
    struct part part[MAX_PARTS];
    unsigned nparts;
    void (*edit_entries)(struct hfs_disk_section *entries); /* before their checksum */
    void (*edit_super)(struct hfs_disk_super *super);       /* before its checksum */
};

/* With its digest, which put_together does not mend. */
static inline void take_apart_whole(const char *path, struct parts *p)
{
    size_t len;
    uint8_t *image = read_file(path, &len);
    memset(p, 0, sizeof *p);
    memcpy(&p->super, image, sizeof p->super);
    p->nparts = load32(p->super.dir_count);
    assert_true(p->nparts > 0 && p->nparts <= MAX_PARTS);
    const struct hfs_disk_section *e =
        (const struct hfs_disk_section *)(image + load64(p->super.dir_offset));
    p->data_len = load64(p->super.data_end) - sizeof p->super;
    p->leaves_len = load64(e[0].offset) - load64(p->super.data_end);
    p->body = malloc(PART_ROOM);
    assert_true(p->body && p->data_len + p->leaves_len < PART_ROOM);
    memcpy(p->body, image + sizeof p->super, p->data_len + p->leaves_len);
    for (unsigned i = 0; i < p->nparts; i++) {
        struct part *x = &p->part[i];
        const uint8_t *stored = image + load64(e[i].offset);
        x->type = load32(e[i].type);
        x->flags = load16(e[i].flags);
        x->len = load64(e[i].raw_size);
        x->bytes = calloc(1, PART_ROOM);
        assert_true(x->bytes && x->len < PART_ROOM);
        if (load16(e[i].packing) == HFS_PACK_ZSTD)
            assert_int_equal(ZSTD_decompress(x->bytes, PART_ROOM, stored, load64(e[i].stored_size)),
                             x->len);
        else
            memcpy(x->bytes, stored, x->len);
    }
    free(image);
}

/* Without its digest, which an image need not have. */
static inline void take_apart(const char *path, struct parts *p)
{
    take_apart_whole(path, p);
    store64(p->super.compat, 0);
    store32(p->super.digest_kind, 0);
    memset(p->super.digest, 0, sizeof p->super.digest);
    assert_int_equal(p->part[p->nparts - 1].type, HFS_SEC_DIGEST);
    free(p->part[--p->nparts].bytes);
}

static inline void free_parts(struct parts *p)
{
    for (unsigned i = 0; i < p->nparts; i++)
        free(p->part[i].bytes);
    free(p->body);
}

static inline struct part *part_of(struct parts *p, unsigned type)
{
    for (unsigned i = 0; i < p->nparts; i++)
        if (p->part[i].type == type)
            return &p->part[i];
    fail_msg("no section %u", type);
    return NULL;
}

static inline uint8_t *leaf_of(struct parts *p)
{
    return p->body + p->data_len;
}

/* Checksums of leaves into INDEX. */
static inline void mend_index(struct parts *p)
{
    struct part *index = part_of(p, HFS_SEC_INDEX);
    size_t full = 8 + 20 * (size_t)HFS_LEAF_BLOCKS;
    for (size_t at = 0, i = 0; at < p->leaves_len; at += full, i++) {
        size_t n = p->leaves_len - at < full ? p->leaves_len - at : full;
        if (8 * i < index->len)
            store64(index->bytes + 8 * i, XXH3_64bits(leaf_of(p) + at, n));
    }
}

/* Lays the parts out and computes every checksum, from the leaves up to the superblock. */
static inline void put_together(struct parts *p, const char *path)
{
    struct hfs_disk_section entries[MAX_PARTS] = {0};
    struct hfs_disk_super s = p->super;
    FILE *f = fopen(path, "wb");
    size_t body = p->data_len + p->leaves_len;
    uint64_t offset = sizeof s + body;
    assert_non_null(f);
    mend_index(p);
    fwrite(&s, 1, sizeof s, f);
    fwrite(p->body, 1, body, f);
    for (unsigned i = 0; i < p->nparts; i++) {
        const struct part *x = &p->part[i];
        store32(entries[i].type, x->type);
        store16(entries[i].flags, x->flags);
        store16(entries[i].packing, x->packing);
        store64(entries[i].offset, offset);
        store64(entries[i].stored_size, x->len);
        store64(entries[i].raw_size, x->packing ? x->raw_size : x->len);
        store64(entries[i].checksum, XXH3_64bits(x->bytes, x->len));
        fwrite(x->bytes, 1, x->len, f);
        offset += x->len;
    }
    if (p->edit_entries)
        p->edit_entries(entries);
    fwrite(entries, sizeof entries[0], p->nparts, f);
    store64(s.dir_offset, offset);
    store32(s.dir_count, p->nparts);
    store64(s.dir_checksum, XXH3_64bits(entries, p->nparts * sizeof entries[0]));
    store64(s.image_size, offset + p->nparts * sizeof entries[0] + sizeof s);
    if (p->edit_super)
        p->edit_super(&s);
    store64(s.checksum, XXH3_64bits(&s, offsetof(struct hfs_disk_super, checksum)));
    fwrite(&s, 1, sizeof s, f);
    rewind(f);
    fwrite(&s, 1, sizeof s, f);
    assert_int_equal(fclose(f), 0);
}

/* ---- what the reader says ---- */

/* Opens and expects -code and a sentence with the path and these words. */
static inline void expect_refused(const char *path, const char *what, int code, const char *words)
{
    struct hfs_image *img = NULL;
    struct hfs_error err = {{0}};
    int r = hfs_image_open(path, &img, &err);
    if (r >= 0)
        hfs_image_close(img);
    if (r != -code || !strstr(err.text, words) || !strstr(err.text, path))
        fail_msg("%s: opened with %d (%s), expected %d and \"%s\"", what, r, err.text, -code,
                 words);
}

struct findings {
    char text[4096];
    unsigned count;
};

static inline void add_finding(void *ctx, const char *sentence)
{
    struct findings *f = ctx;
    size_t n = strlen(f->text);
    f->count++;
    snprintf(f->text + n, sizeof f->text - n, "%s\n", sentence);
}

/* Opens, which must succeed, and checks the tables. */
static inline int check_file_tables(const char *path, struct findings *f)
{
    struct hfs_image *img = NULL;
    struct hfs_error err = {{0}};
    memset(f, 0, sizeof *f);
    if (hfs_image_open(path, &img, &err) < 0)
        fail_msg("%s", err.text);
    int r = hfs_image_check_tables(img, add_finding, f);
    hfs_image_close(img);
    return r;
}

static inline void expect_clean(const char *path)
{
    struct findings f;
    if (check_file_tables(path, &f) != 0 || f.count)
        fail_msg("%s", f.text);
}

static inline void expect_problem(const char *path, const char *what, const char *words)
{
    struct findings f;
    int r = check_file_tables(path, &f);
    if (r != -EBADMSG || f.count == 0 || !strstr(f.text, words))
        fail_msg("%s: check_tables returned %d, \"%s\"; expected \"%s\"", what, r, f.text, words);
}

#endif
