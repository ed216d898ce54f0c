/* The reader of images. What a user loses when one of these fails: a damaged or hostile image is
 * mounted as if it were whole, or takes the daemon down; or a good one is not read back. */
#include "tests/unit/image_fixture.h"

#include <pthread.h>

#include "codec/lattice.h"

#define INODE(n, field) (n) * sizeof(struct hfs_disk_inode) + offsetof(struct hfs_disk_inode, field)
#define ENTRY(n, field)                                                                            \
    (n) * sizeof(struct hfs_disk_dirent) + offsetof(struct hfs_disk_dirent, field)
#define SEGMENT(n, field)                                                                          \
    (n) * sizeof(struct hfs_disk_segment) + offsetof(struct hfs_disk_segment, field)

static void save_number(uint8_t *p, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        p[i] = (uint8_t)(value >> (8 * i));
}

/* ---- a good image ---- */

static struct hfs_image *open_good(const char *path)
{
    struct hfs_image *img = NULL;
    struct hfs_error err = {{0}};
    if (hfs_image_open(path, &img, &err) < 0)
        fail_msg("%s", err.text);
    return img;
}

static void reads_back_what_was_written(void **state)
{
    (void)state;
    build_small(in_dir("good"));
    struct hfs_image *img = open_good(in_dir("good"));
    struct hfs_info info;
    struct hfs_inode ino;
    struct hfs_dirent e;
    hfs_image_info(img, &info);
    assert_int_equal(info.inodes, 6);
    assert_int_equal(info.dirents, 6);
    assert_int_equal(info.segments, 3);
    assert_int_equal(info.codes, 2);
    assert_int_equal(info.block_count, 3);
    assert_int_equal(info.content_bytes, 2 * A_SIZE);
    assert_false(info.used_copy);

    hfs_image_inode(img, 0, &ino);
    assert_int_equal(ino.nlink, 3);
    assert_int_equal(ino.mtime_nsec, 999999999);
    const char *names[] = {"a.bin", "c", "empty", "link", "sub"};
    for (unsigned i = 0; i < 5; i++) {
        hfs_image_dirent(img, ino.first + i, &e);
        assert_int_equal(e.name_len, strlen(names[i]));
        assert_memory_equal(e.name, names[i], e.name_len);
        assert_int_equal(hfs_image_lookup(img, &ino, names[i], strlen(names[i]), &e), 0);
        assert_memory_equal(e.name, names[i], e.name_len);
    }
    assert_int_equal(hfs_image_lookup(img, &ino, "cc", 2, &e), -ENOENT);
    assert_int_equal(hfs_image_lookup(img, &ino, "", 0, &e), -ENOENT);
    assert_int_equal(hfs_image_lookup(img, &ino, "zzz", 3, &e), -ENOENT);

    hfs_image_inode(img, 2, &ino);
    assert_int_equal(ino.nlink, 2);
    assert_int_equal(ino.mtime, -3);
    assert_int_equal(hfs_image_find_segment(img, &ino, 0), 0);
    assert_int_equal(hfs_image_find_segment(img, &ino, PLAIN - 1), 0);
    assert_int_equal(hfs_image_find_segment(img, &ino, PLAIN), 1);
    assert_int_equal(hfs_image_find_segment(img, &ino, PLAIN + ZEROS), 2);
    assert_int_equal(hfs_image_find_segment(img, &ino, A_SIZE - 1), 2);
    hfs_image_inode(img, 1, &ino);
    assert_true(ino.mode == (S_IFDIR | 01777) && ino.uid == 5 && ino.gid == 6 && ino.nlink == 2);
    hfs_image_inode(img, 4, &ino);
    assert_int_equal(ino.size, 5);
    assert_memory_equal(hfs_image_target(img, &ino), "a.bin", 5);

    char *path = hfs_image_path_of(img, 5);
    assert_string_equal(path, "sub/b");
    free(path);
    path = hfs_image_path_of(img, 0);
    assert_string_equal(path, "");
    free(path);
    hfs_image_close(img);
    expect_clean(in_dir("good"));
}

static void reads_tensors_and_meta(void **state)
{
    (void)state;
    struct hfs_image *img = open_good(in_dir("good"));
    struct hfs_error err = {{0}};
    struct hfs_tensor t;
    const char *text;
    uint64_t n;
    for (int again = 0; again < 2; again++) {
        assert_int_equal(hfs_image_meta(img, &text, &err), 0);
        assert_string_equal(text, "writer=test\noptions=\n");
        assert_int_equal(hfs_image_tensors(img, &n, &err), 0);
        assert_int_equal(n, 3);
    }
    hfs_image_tensor(img, 1, &t);
    assert_true(t.inode == 2 && t.segment == 2 && t.elements == 5000 && t.exact == 0);
    assert_true(t.dtype == HC_F32 && t.rank == 2 && isinf(t.sqnr_db) && t.max_error == 0);
    assert_int_equal(load64(t.dims + 8), 100);
    assert_int_equal(t.name_len, 3);
    assert_memory_equal(t.name, "f32", 3);
    hfs_image_tensor(img, 2, &t);
    assert_true(t.segment == UINT64_MAX && t.elements == 0);
    hfs_image_close(img);
}

struct reading {
    struct hfs_image *img;
    int result;
};

/* Reads one segment of a.bin and compares. */
static int read_segment(struct hfs_image *img, uint64_t number, struct hc_work *w, uint8_t *coded,
                        uint8_t *raw)
{
    struct hfs_segment seg;
    hfs_image_segment(img, number, &seg);
    uint64_t at = seg.file_offset;
    uint64_t blocks = seg.kind == HFS_SEG_CODED ? hfs_image_segment_blocks(img, &seg) : 0;
    for (uint64_t b = 0; b < blocks; b++) {
        size_t n = 0;
        int r = hfs_image_read_block(img, w, &seg, b, coded, raw, &n, true);
        if (r < 0)
            return r;
        for (size_t i = 0; i < n; i++)
            if (raw[i] != a_byte(at + i))
                return -EILSEQ;
        at += n;
    }
    return blocks && at != seg.file_offset + seg.length ? -EILSEQ : 0;
}

static int read_every_block(struct hfs_image *img)
{
    struct hc_work *w = hc_work_new(HC_ISA_PORTABLE);
    uint8_t *coded = malloc(HFS_MAX_STORED), *raw = malloc(HC_MAX_BLOCK_BYTES);
    int r = 0;
    for (uint64_t s = 0; r == 0 && s < 3; s++)
        r = read_segment(img, s, w, coded, raw);
    hc_work_free(w);
    free(coded);
    free(raw);
    return r;
}

static void *read_again_and_again(void *arg)
{
    struct reading *r = arg;
    for (unsigned round = 0; r->result == 0 && round < 20; round++)
        r->result = read_every_block(r->img);
    return NULL;
}

static void several_threads_read_blocks(void **state)
{
    (void)state;
    struct hfs_image *img = open_good(in_dir("good"));
    struct reading r[4];
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        r[i] = (struct reading){.img = img};
        assert_int_equal(pthread_create(&thread[i], NULL, read_again_and_again, &r[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(r[i].result, 0);
    }
    hfs_image_close(img);
}

/* ---- damage that a checksum finds ---- */

/* Every bit of superblock, tables and copy: open refuses, or the check reports it. */
static void finds_every_flipped_bit(void **state)
{
    (void)state;
    size_t len;
    uint8_t *image = read_file(in_dir("good"), &len);
    uint64_t data_end = load64(((struct hfs_disk_super *)image)->data_end);
    const char *path = in_dir("flipped");
    for (size_t at = 0; at < len; at++) {
        if (at == sizeof(struct hfs_disk_super))
            at = data_end; /* blocks: see below */
        for (unsigned bit = 0; bit < 8; bit++) {
            struct hfs_image *img = NULL;
            struct hfs_error err = {{0}};
            struct findings f = {{0}, 0};
            image[at] ^= (uint8_t)(1u << bit);
            write_file(path, image, len);
            image[at] ^= (uint8_t)(1u << bit);
            int r = hfs_image_open(path, &img, &err);
            if (r < 0) {
                assert_true(strlen(err.text) > 0);
                continue;
            }
            r = hfs_image_check_tables(img, add_finding, &f);
            hfs_image_close(img);
            if (r != -EBADMSG || f.count == 0)
                fail_msg("bit %u of byte %zu may be flipped", bit, at);
        }
    }
    for (size_t at = sizeof(struct hfs_disk_super); at < data_end; at++) {
        image[at] ^= 4;
        write_file(path, image, len);
        image[at] ^= 4;
        struct hfs_image *img = open_good(path);
        assert_int_equal(read_every_block(img), -EBADMSG);
        hfs_image_close(img);
    }
    free(image);
}

static void finds_truncation_and_trailing_bytes(void **state)
{
    (void)state;
    size_t len;
    uint8_t *image = read_file(in_dir("good"), &len);
    const char *path = in_dir("cut");
    image[len] = 0;
    write_file(path, image, len + 1);
    expect_refused(path, "one byte more", EBADMSG, "1 bytes follow its end");
    for (size_t n = len; n-- > 0;) {
        assert_int_equal(truncate(path, (off_t)n), 0);
        expect_refused(path, "cut", n < 8 ? EINVAL : EBADMSG, n < 8 ? "is not a" : "truncated");
    }
    free(image);
}

static void falls_back_to_the_copy(void **state)
{
    (void)state;
    struct hfs_info info;
    size_t len;
    uint8_t *image = read_file(in_dir("good"), &len);
    const char *path = in_dir("copy");
    memset(image, 0, sizeof(struct hfs_disk_super));
    write_file(path, image, len);
    struct hfs_image *img = open_good(path);
    hfs_image_info(img, &info);
    assert_true(info.used_copy);
    assert_int_equal(read_every_block(img), 0);
    hfs_image_close(img);
    expect_problem(path, "zeroed superblock", "the superblock at its start differs");
    memset(image + len - 1, 0xff, 1);
    write_file(path, image, len);
    expect_refused(path, "both", EINVAL, "is not a hyperfs image");
    free(image);
}

/* The file shrinks after it was opened: an error, not a crash. */
static void file_that_shrinks(void **state)
{
    (void)state;
    const char *path = in_dir("shrinking");
    struct findings f = {{0}, 0};
    build_small(path);
    struct hfs_image *img = open_good(path);
    assert_int_equal(truncate(path, 200), 0);
    assert_int_equal(read_every_block(img), -EIO);
    assert_int_equal(hfs_image_check_tables(img, add_finding, &f), -EIO);
    assert_true(f.count > 0);
    hfs_image_close(img);
}

static void files_that_are_no_images(void **state)
{
    (void)state;
    const char *path = in_dir("other");
    expect_refused(in_dir("missing"), "missing", ENOENT, "cannot open");
    expect_refused(test_dir, "directory", EINVAL, "is a directory");
    expect_refused("/dev/null", "device", EINVAL, "is no regular file");
    write_file(path, "", 0);
    expect_refused(path, "empty", EINVAL, "is not a hyperfs image");
    write_file(path, "{\"format\": \"pt\"}", 16);
    expect_refused(path, "text", EINVAL, "is not a hyperfs image");
    assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
    expect_refused(in_dir("fifo"), "fifo", EINVAL, "is no regular file");
}

/* ---- damage with good checksums: superblock and directory ---- */

static uint64_t edit_value;
static size_t edit_at;
static unsigned edit_width;

static void edit_super(struct hfs_disk_super *s)
{
    save_number((uint8_t *)s + edit_at, edit_width, edit_value);
}

static void edit_entries(struct hfs_disk_section *e)
{
    save_number((uint8_t *)e + edit_at, edit_width, edit_value);
}

struct edit {
    const char *what;
    size_t at;
    unsigned width;
    uint64_t value;
    int code;
    const char *words;
};

#define SUPER(field) offsetof(struct hfs_disk_super, field)

static void refuses_superblocks(void **state)
{
    static const struct edit edits[] = {
        {"future", SUPER(version), 4, 2, ENOTSUP, "version 2"},
        {"version 0", SUPER(version), 4, 0, EBADMSG, "version"},
        {"size", SUPER(size), 4, 256, EBADMSG, "size"},
        {"incompat", SUPER(incompat), 8, 1, ENOTSUP, "features"},
        {"last incompat", SUPER(incompat), 8, UINT64_C(1) << 63, ENOTSUP, "features"},
        {"reserved0", SUPER(reserved0), 4, 1, EBADMSG, "reserved"},
        {"reserved1", SUPER(reserved1), 4, 1, EBADMSG, "reserved"},
        {"digest", SUPER(digest) + 31, 1, 1, EBADMSG, "reserved"},
        {"digest kind", SUPER(digest_kind), 4, 1, EBADMSG, "reserved"},
        {"larger", SUPER(image_size), 8, UINT64_MAX, EBADMSG, "truncated"},
        {"smaller", SUPER(image_size), 8, 1000, EBADMSG, "bytes follow its end at 1000"},
        {"data_end 0", SUPER(data_end), 8, 0, EBADMSG, "offsets"},
        {"data_end", SUPER(data_end), 8, UINT64_MAX, EBADMSG, "offsets"},
        {"data_end 128", SUPER(data_end), 8, 128, EBADMSG, "3 blocks cannot be in 0 bytes"},
        {"dir_offset", SUPER(dir_offset), 8, UINT64_MAX, EBADMSG, "offsets"},
        {"dir_offset 0", SUPER(dir_offset), 8, 0, EBADMSG, "offsets"},
        {"no sections", SUPER(dir_count), 4, 0, EBADMSG, "offsets"},
        {"sections", SUPER(dir_count), 4, 257, EBADMSG, "offsets"},
        {"many sections", SUPER(dir_count), 4, UINT32_MAX, EBADMSG, "offsets"},
        {"dir checksum", SUPER(dir_checksum), 8, 1, EBADMSG, "section directory"},
        {"no blocks", SUPER(block_count), 8, 0, EBADMSG, "0 blocks"},
        {"blocks", SUPER(block_count), 8, UINT64_MAX, EBADMSG, "blocks"},
        {"fewer blocks", SUPER(block_count), 8, 2, EBADMSG, "section 1 is not where"},
        {"more blocks", SUPER(block_count), 8, 4, EBADMSG, "section 1 is not where"},
    };
    (void)state;
    struct parts p;
    take_apart(in_dir("good"), &p);
    const char *path = in_dir("super");
    p.edit_super = edit_super;
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        edit_at = edits[i].at;
        edit_width = edits[i].width;
        edit_value = edits[i].value;
        put_together(&p, path);
        expect_refused(path, edits[i].what, edits[i].code, edits[i].words);
    }
    free_parts(&p);
}

/* Superblocks around `middle` bytes of zeros, both with a good checksum. */
static void bare_image(const char *path, uint64_t middle, uint64_t data, uint64_t blocks,
                       uint64_t dir_offset, uint32_t dir_count)
{
    struct hfs_disk_super s = {0};
    uint64_t size = middle + 2 * sizeof s;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    memcpy(s.magic, HFS_MAGIC, sizeof s.magic);
    store32(s.version, HFS_VERSION);
    store32(s.size, sizeof s);
    store64(s.image_size, size);
    store64(s.data_end, sizeof s + data);
    store64(s.dir_offset, dir_offset);
    store32(s.dir_count, dir_count);
    store64(s.block_count, blocks);
    store64(s.checksum, XXH3_64bits(&s, offsetof(struct hfs_disk_super, checksum)));
    assert_int_equal(pwrite(fd, &s, sizeof s, 0), sizeof s);
    assert_int_equal(pwrite(fd, &s, sizeof s, (off_t)(size - sizeof s)), sizeof s);
    close(fd);
}

/* Sizes that contradict each other only together. */
static void refuses_impossible_sizes(void **state)
{
    (void)state;
    const char *path = in_dir("bare");
    uint64_t entry = sizeof(struct hfs_disk_section);
    bare_image(path, 0, 0, 0, 128, 0);
    expect_refused(path, "no sections", EBADMSG, "offsets");
    bare_image(path, 257 * entry, 0, 0, 128, 257);
    expect_refused(path, "257 sections", EBADMSG, "offsets");
    bare_image(path, 256 * entry, 0, 0, 128, 256);
    expect_refused(path, "256 sections", EBADMSG, "checksum of its section directory");
    bare_image(path, 0, 0, 0, UINT64_C(0) - 4 * entry + 128, 4);
    expect_refused(path, "directory before the start", EBADMSG, "offsets");
    bare_image(path, entry + 50, 10, 11, 178, 1);
    expect_refused(path, "11 blocks in 10 bytes", EBADMSG, "11 blocks cannot be in 10 bytes");
    bare_image(path, entry + 4000000, 3900000, 2, 128 + 4000000, 1);
    expect_refused(path, "2 blocks in 3.9 MB", EBADMSG, "2 blocks cannot be in 3900000 bytes");
    bare_image(path, entry + 37, 10, 1, 128 + 37, 1);
    expect_refused(path, "28 bytes of leaf in 27", EBADMSG, "its index does not fit");
    bare_image(path, entry + 38, 10, 1, 128 + 38, 1);
    expect_refused(path, "28 bytes of leaf in 28", EBADMSG, "checksum of its section directory");
}

/* A newer version may have a superblock of another size: its checksum cannot be found. */
static void newer_versions_are_named(void **state)
{
    (void)state;
    size_t len;
    uint8_t *image = read_file(in_dir("good"), &len);
    const char *path = in_dir("newer");
    store32(image + SUPER(version), 7);
    memset(image + len - sizeof(struct hfs_disk_super), 0, 8);
    write_file(path, image, len);
    expect_refused(path, "newer", ENOTSUP, "version 7");
    free(image);
}

/* An unknown compatible feature may use fields that are reserved now. */
static void compat_features_are_ignored(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("compat");
    take_apart(in_dir("good"), &p);
    store64(p.super.compat, 2);
    store32(p.super.digest_kind, 1);
    put_together(&p, path);
    expect_clean(path);
    free_parts(&p);
}

#define SECTION(n, field)                                                                          \
    (n) * sizeof(struct hfs_disk_section) + offsetof(struct hfs_disk_section, field)

static void refuses_section_directories(void **state)
{
    static const struct edit edits[] = {
        {"type 0", SECTION(0, type), 4, 0, EBADMSG, "not where"},
        {"same type", SECTION(1, type), 4, 1, EBADMSG, "not where"},
        {"overlap", SECTION(3, offset), 8, 300, EBADMSG, "section 4 is not where"},
        {"beyond", SECTION(0, stored_size), 8, UINT64_MAX, EBADMSG, "section 1 is not where"},
        {"gap", SECTION(7, stored_size), 8, 1, EBADMSG, "section 8"},
        {"bomb", SECTION(1, raw_size), 8, UINT64_MAX, EFBIG, "larger than the limit"},
        {"256 MiB + 1", SECTION(1, raw_size), 8, (1 << 28) + 1, EFBIG, "larger than the limit"},
        {"raw size", SECTION(1, raw_size), 8, 1 << 28, EBADMSG, "impossible size"},
        {"flags", SECTION(1, flags), 2, 3, ENOTSUP, "does not know"},
        {"packing", SECTION(1, packing), 2, 2, ENOTSUP, "does not know"},
        {"packed names", SECTION(3, packing), 2, 1, EBADMSG, "section 4 has an impossible"},
        {"checksum", SECTION(2, checksum), 8, 5, EBADMSG, "checksum of section 3"},
        {"missing", SECTION(7, type), 4, 77, EBADMSG, NULL},
    };
    (void)state;
    struct parts p;
    take_apart(in_dir("good"), &p);
    const char *path = in_dir("directory");
    p.edit_entries = edit_entries;
    for (size_t i = 0; edits[i].words; i++) {
        edit_at = edits[i].at;
        edit_width = edits[i].width;
        edit_value = edits[i].value;
        put_together(&p, path);
        expect_refused(path, edits[i].what, edits[i].code, edits[i].words);
    }
    struct part *unknown = part_of(&p, HFS_SEC_TENSORS);
    unknown->type = 77;
    unknown->packing = 9;
    edit_at = SECTION(7, stored_size);
    edit_value = unknown->len - 1;
    put_together(&p, path);
    expect_refused(path, "gap before the directory", EBADMSG, "their directory is at");
    unknown->type = HFS_SEC_TENSORS;
    unknown->packing = HFS_PACK_NONE;
    p.edit_entries = NULL;
    struct part *codes = part_of(&p, HFS_SEC_CODES), *last = part_of(&p, HFS_SEC_TENSORS);
    last->type = 77; /* unknown and optional: ignored */
    put_together(&p, path);
    expect_clean(path);
    last->flags = HFS_SECTION_REQUIRED;
    put_together(&p, path);
    expect_refused(path, "required", ENOTSUP, "type 77");
    last->flags = 0;
    uint8_t *gone = codes->bytes;
    memmove(codes, codes + 1, 2 * sizeof *codes);
    p.nparts--;
    put_together(&p, path);
    expect_refused(path, "missing", EBADMSG, "section 6 is missing");
    free(gone);
    free_parts(&p);
}

/* Packs the section and says that it unpacks to raw_size. */
static void pack(struct part *x, const void *raw, size_t len, uint64_t raw_size)
{
    x->packing = HFS_PACK_ZSTD;
    x->raw_size = raw_size;
    x->len = ZSTD_compress(x->bytes, PART_ROOM, raw, len, 3);
    assert_false(ZSTD_isError(x->len));
}

static void pack_without_size(struct part *x, const void *raw, size_t len)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 0);
    x->packing = HFS_PACK_ZSTD;
    x->raw_size = len;
    x->len = ZSTD_compress2(c, x->bytes, PART_ROOM, raw, len);
    ZSTD_freeCCtx(c);
}

/* A small image cannot ask for much memory, whatever its tables unpack to. */
static void refuses_tables_beyond_its_size(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("bomb");
    size_t room = 20 << 20;
    char *text = malloc(room);
    memset(text, 'x', room);
    text[3] = '=';
    text[room - 1] = '\n';
    take_apart(in_dir("good"), &p);
    struct part *meta = part_of(&p, HFS_SEC_META);
    pack(meta, text, room, room);
    put_together(&p, path);
    expect_refused(path, "20 MiB", EFBIG, "more than the limit of ");
    text[(15 << 20) - 1] = '\n';
    pack(meta, text, 15 << 20, 15 << 20);
    put_together(&p, path);
    expect_clean(path);
    struct part *unknown = part_of(&p, HFS_SEC_TENSORS);
    unknown->type = 77;
    unknown->packing = HFS_PACK_ZSTD;
    unknown->raw_size = 1 << 28; /* is not loaded, and does not count */
    put_together(&p, path);
    expect_clean(path);
    free(text);
    free_parts(&p);
}

static void refuses_bad_packing(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("packing");
    take_apart(in_dir("good"), &p);
    struct part *x = part_of(&p, HFS_SEC_INODES);
    size_t len = x->len, room = 20 << 20;
    uint8_t *raw = calloc(1, room);
    memcpy(raw, x->bytes, len);
    pack(x, raw, len, len);
    put_together(&p, path);
    expect_clean(path);
    pack(x, raw, room, len); /* a bomb that says it is small */
    x->raw_size = x->len + 1;
    put_together(&p, path);
    expect_refused(path, "bomb", EBADMSG, "section 2 does not unpack");
    pack(x, raw, len, len + 56);
    put_together(&p, path);
    expect_refused(path, "short", EBADMSG, "section 2 does not unpack");
    pack(x, raw, len, 1 << 24);
    put_together(&p, path);
    expect_refused(path, "short of much", EBADMSG, "section 2 does not unpack");
    pack(x, raw, len, len);
    x->len += ZSTD_compress(x->bytes + x->len, 1000, raw, 3, 3);
    put_together(&p, path);
    expect_refused(path, "two frames", EBADMSG, "section 2 does not unpack");
    pack(x, raw, len, len);
    store32(x->bytes + x->len, 0x184d2a50); /* a frame of 4 bytes to be skipped */
    store32(x->bytes + x->len + 4, 4);
    x->len += 12;
    put_together(&p, path);
    expect_refused(path, "skipped frame", EBADMSG, "section 2 does not unpack");
    pack_without_size(x, raw, len);
    put_together(&p, path);
    expect_refused(path, "no content size", EBADMSG, "section 2 does not unpack");
    pack(x, raw, len, len);
    x->bytes[x->len / 2] ^= 0x55;
    put_together(&p, path);
    expect_refused(path, "damaged frame", EBADMSG, "is damaged");
    x->len = 0;
    put_together(&p, path);
    expect_refused(path, "no frame", EBADMSG, "section 2 does not unpack");
    free(raw);
    free_parts(&p);
}

/* ---- damage with good checksums: the tree ---- */

struct patch {
    const char *what;
    unsigned section;
    size_t at;
    unsigned width;
    uint64_t value;
    int code;
    const char *words;
};

/* Applies one patch at a time to the small image. */
static void try_patches(const struct patch *patches, size_t n, bool at_open)
{
    struct parts p;
    const char *path = in_dir("patched");
    take_apart(in_dir("good"), &p);
    for (size_t i = 0; i < n; i++) {
        const struct patch *x = &patches[i];
        struct part *part = part_of(&p, x->section);
        uint8_t before[8];
        assert_true(x->at + x->width <= part->len);
        memcpy(before, part->bytes + x->at, x->width);
        save_number(part->bytes + x->at, x->width, x->value);
        put_together(&p, path);
        if (at_open)
            expect_refused(path, x->what, x->code, x->words);
        else
            expect_problem(path, x->what, x->words);
        memcpy(part->bytes + x->at, before, x->width);
    }
    put_together(&p, path);
    expect_clean(path);
    free_parts(&p);
}

static void refuses_inodes(void **state)
{
    enum { S = HFS_SEC_INODES };
    static const struct patch patches[] = {
        {"fifo", S, INODE(3, mode), 4, S_IFIFO | 0644, EBADMSG, "inode 3 has mode"},
        {"device", S, INODE(3, mode), 4, S_IFBLK | 0644, EBADMSG, "inode 3 has mode"},
        {"no type", S, INODE(3, mode), 4, 0644, EBADMSG, "inode 3 has mode"},
        {"high bits", S, INODE(3, mode), 4, S_IFREG | 0x10000, EBADMSG, "inode 3 has mode"},
        {"root is a file", S, INODE(0, mode), 4, S_IFREG, EBADMSG, "inode 0 has mode"},
        {"reserved", S, INODE(5, reserved), 4, 1, EBADMSG, "inode 5 has a reserved"},
        {"parent of a file", S, INODE(5, parent), 4, 1, EBADMSG, "inode 5 has a reserved"},
        {"nanoseconds", S, INODE(5, mtime_nsec), 4, 1000000000, EBADMSG, "time"},
        {"longer", S, INODE(2, size), 8, A_SIZE + 1, EBADMSG, "inode 2 is 321001 bytes"},
        {"shorter", S, INODE(2, size), 8, 1, EBADMSG, "inode 2 is 1 bytes"},
        {"empty", S, INODE(3, size), 8, 1, EBADMSG, "inode 3 is 1 bytes"},
        {"all segments", S, INODE(2, count), 4, 4, EBADMSG, "segments outside"},
        {"many segments", S, INODE(2, count), 4, UINT32_MAX, EBADMSG, "segments outside"},
        {"far segment", S, INODE(2, first), 8, UINT64_MAX, EBADMSG, "segments outside"},
        {"not the first", S, INODE(2, first), 8, 1, EBADMSG, "segments outside"},
        {"fewer", S, INODE(2, count), 4, 2, EBADMSG, "inode 2 is 321000 bytes long, its segments"},
        {"links", S, INODE(2, nlink), 4, 1, EBADMSG, "inode 2 says 1 links, there are 2"},
        {"directory's links", S, INODE(0, nlink), 4, 2, EBADMSG, "inode 0 says 2 links"},
        {"target's length", S, INODE(4, size), 8, 0, EBADMSG, "impossible target"},
        {"long target", S, INODE(4, size), 8, 4096, EBADMSG, "impossible target"},
        {"target outside", S, INODE(4, first), 8, UINT64_MAX - 2, EBADMSG, "impossible target"},
        {"target beyond", S, INODE(4, first), 8, 20, EBADMSG, "impossible target"},
        {"segments of a link", S, INODE(4, count), 4, 1, EBADMSG, "impossible target"},
        {"size of a directory", S, INODE(1, size), 8, 1, EBADMSG, "entries that are not next"},
        {"shared entries", S, INODE(1, first), 8, 4, EBADMSG, "entries that are not next"},
        {"entries beyond", S, INODE(1, count), 4, 2, EBADMSG, "entries that are not next"},
        {"entries of nobody", S, INODE(1, count), 4, 0, EBADMSG, "belong to no directory"},
        {"parent of root", S, INODE(0, parent), 4, 1, EBADMSG, "root directory has a parent"},
        {"own parent", S, INODE(1, parent), 4, 1, EBADMSG, "stands before its parent"},
        {"parent after", S, INODE(1, parent), 4, UINT32_MAX, EBADMSG, "stands before its parent"},
    };
    (void)state;
    try_patches(patches, sizeof patches / sizeof patches[0], true);
}

static void refuses_entries(void **state)
{
    enum { S = HFS_SEC_DIRENTS };
    /* 0 a.bin, 1 c, 2 empty, 3 link, 4 sub; 5 b. NAMES: a.bin (target), b, a.bin, c, empty ... */
    static const struct patch patches[] = {
        {"name outside", S, ENTRY(0, name), 8, UINT64_MAX, EBADMSG, "entry 0 has an impossible"},
        {"name beyond", S, ENTRY(0, name), 8, 24, EBADMSG, "entry 0 has an impossible name"},
        {"long name", S, ENTRY(0, name_len), 2, UINT16_MAX, EBADMSG, "entry 0 has an impossible"},
        {"no name", S, ENTRY(0, name_len), 2, 0, EBADMSG, "entry 0 has a name that no file"},
        {"reserved", S, ENTRY(5, reserved), 2, 1, EBADMSG, "entry 5 has an impossible"},
        {"order", S, ENTRY(1, name), 8, 13, EBADMSG, "inode 0 are not in ascending order"},
        {"no inode", S, ENTRY(2, inode), 4, 6, EBADMSG, "names inode 6"},
        {"cycle", S, ENTRY(5, inode), 4, 1, EBADMSG, "directory inode 1 names inode 1"},
        {"root inside", S, ENTRY(5, inode), 4, 0, EBADMSG, "directory inode 1 names inode 0"},
        {"directory twice", S, ENTRY(3, inode), 4, 1, EBADMSG, "inode 1 is no regular file"},
        {"link twice", S, ENTRY(5, inode), 4, 4, EBADMSG, "inode 4 is no regular file"},
        {"file without name", S, ENTRY(2, inode), 4, 5, EBADMSG, "inode 3 has no name"},
        {"directory without name", S, ENTRY(4, inode), 4, 3, EBADMSG,
         "inode 0 says 3 links, there are 2"},
    };
    static const struct patch names[] = {
        {"slash", HFS_SEC_NAMES, 5, 1, '/', EBADMSG, "entry 5 has a name that no file"},
        {"dot", HFS_SEC_NAMES, 5, 1, '.', EBADMSG, "entry 5 has a name that no file"},
        {"zero", HFS_SEC_NAMES, 8, 1, 0, EBADMSG, "entry 0 has a name that no file"},
        {"zero in a target", HFS_SEC_NAMES, 0, 1, 0, EBADMSG, "impossible target"},
        {"same name", HFS_SEC_NAMES, 11, 1, 'a', EBADMSG, "ascending order"},
    };
    static const struct patch dots[] = {
        {"dot dot", HFS_SEC_NAMES, 6, 2, '.' | '.' << 8, EBADMSG, "entry 0 has a name that no"},
    };
    (void)state;
    try_patches(patches, sizeof patches / sizeof patches[0], true);
    try_patches(names, sizeof names / sizeof names[0], true);
    struct parts p;
    take_apart(in_dir("good"), &p);
    store16(part_of(&p, HFS_SEC_DIRENTS)->bytes + ENTRY(0, name_len), 2);
    memcpy(part_of(&p, HFS_SEC_NAMES)->bytes + 6, "..", 2);
    put_together(&p, in_dir("dots"));
    expect_refused(in_dir("dots"), dots[0].what, EBADMSG, dots[0].words);
    free_parts(&p);
}

static void refuses_segments(void **state)
{
    enum { S = HFS_SEC_SEGMENTS };
    static const struct patch patches[] = {
        {"kind", S, SEGMENT(1, kind), 2, 3, ENOTSUP, "segment 1 is of kind 3"},
        {"reserved0", S, SEGMENT(2, reserved0), 2, 1, EBADMSG, "segment 2 has a reserved"},
        {"reserved1", S, SEGMENT(2, reserved1), 4, 1, EBADMSG, "segment 2 has a reserved"},
        {"no length", S, SEGMENT(1, length), 8, 0, EBADMSG, "segment 1 has an impossible length"},
        {"length", S, SEGMENT(2, length), 8, INT64_MAX, EBADMSG, "segment 2 has an impossible"},
        {"long", S, SEGMENT(1, length), 8, UINT64_MAX, EBADMSG, "segment 1 has an impossible"},
        {"offset", S, SEGMENT(2, file_offset), 8, UINT64_MAX, EBADMSG, "segment 2 has an"},
        {"hole", S, SEGMENT(1, length), 8, ZEROS - 1, EBADMSG, "segment 2 does not begin"},
        {"overlap", S, SEGMENT(1, length), 8, ZEROS + 1, EBADMSG, "segment 2 does not begin"},
        {"late start", S, SEGMENT(0, file_offset), 8, 1, EBADMSG, "segment 0 does not begin"},
        {"two files", S, SEGMENT(2, file_offset), 8, 0, EBADMSG, "belong to several files"},
        {"code", S, SEGMENT(0, code), 4, 2, EBADMSG, "segment 0 has code 2 of 2"},
        {"zeros with code", S, SEGMENT(1, code), 4, 1, EBADMSG, "segment 1 of zeros"},
        {"zeros with blocks", S, SEGMENT(1, first_block), 8, 1, EBADMSG, "segment 1 of zeros"},
        {"blocks", S, SEGMENT(2, first_block), 8, 3, EBADMSG, "needs blocks 3 to 3"},
        {"block", S, SEGMENT(2, first_block), 8, UINT64_MAX, EBADMSG, "segment 2 needs blocks"},
        {"more blocks", S, SEGMENT(2, length), 8, 1 << 20, EBADMSG, "needs blocks 2 to 5"},
    };
    static const struct patch codes[] = {
        {"code type", HFS_SEC_CODES, 8, 2, 99, ENOTSUP, "type 99"},
        {"code reserved", HFS_SEC_CODES, 10, 2, 1, EBADMSG, "code record 1 has an impossible"},
        {"code length", HFS_SEC_CODES, 12, 4, 5, EBADMSG, "code record 1 has an impossible"},
        {"code dtype", HFS_SEC_CODES, 16, 2, 999, EBADMSG, "code record 1 has a value out of"},
    };
    (void)state;
    try_patches(patches, sizeof patches / sizeof patches[0], true);
    try_patches(codes, sizeof codes / sizeof codes[0], true);
}

static void refuses_tables_of_wrong_length(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("lengths");
    take_apart(in_dir("good"), &p);
    const unsigned types[] = {HFS_SEC_INODES, HFS_SEC_DIRENTS, HFS_SEC_SEGMENTS, HFS_SEC_INDEX};
    for (unsigned i = 0; i < 4; i++) {
        struct part *x = part_of(&p, types[i]);
        size_t len = x->len;
        x->len = len - 1;
        put_together(&p, path);
        expect_refused(path, "part of a record", EBADMSG, "no whole number of records");
        x->len = 0;
        put_together(&p, path);
        expect_refused(path, "empty table", EBADMSG, "");
        x->len = len;
    }
    size_t inodes = part_of(&p, HFS_SEC_INODES)->len, entries = part_of(&p, HFS_SEC_DIRENTS)->len;
    part_of(&p, HFS_SEC_INODES)->len = part_of(&p, HFS_SEC_DIRENTS)->len = 0;
    put_together(&p, path);
    expect_refused(path, "nothing", EBADMSG, "no root directory");
    part_of(&p, HFS_SEC_INODES)->len = inodes;
    part_of(&p, HFS_SEC_DIRENTS)->len = entries;
    part_of(&p, HFS_SEC_INDEX)->len += 8;
    put_together(&p, path);
    expect_refused(path, "index", EBADMSG, "1 leaves, 2 checksums");
    part_of(&p, HFS_SEC_INDEX)->len -= 8;
    struct part *codes = part_of(&p, HFS_SEC_CODES);
    codes->len -= 13;
    put_together(&p, path);
    expect_refused(path, "part of a code", EBADMSG, "code record 0 has an impossible header");
    codes->len += 13;
    memset(codes->bytes + codes->len, 0, 16);
    store16(codes->bytes + codes->len, HC_CODE_BYTES);
    store16(codes->bytes + codes->len + 8, HC_CODE_BYTES);
    codes->len += 16;
    put_together(&p, path);
    expect_refused(path, "codes", EBADMSG, "more codes than segments");
    free_parts(&p);
}

/* Adds up sizes beyond 2^64: three files of zeros, which cost an image nothing. */
static void refuses_too_much_content(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("huge");
    take_apart(in_dir("good"), &p);
    uint8_t *inodes = part_of(&p, HFS_SEC_INODES)->bytes;
    struct part *x = part_of(&p, HFS_SEC_SEGMENTS);
    struct hfs_disk_segment *s = (struct hfs_disk_segment *)(x->bytes + x->len);
    memset(s, 0, sizeof *s);
    store64(s->length, INT64_MAX);
    store16(s->kind, HFS_SEG_ZERO);
    x->len += sizeof *s;
    for (unsigned i = 2; i < 6; i++) {
        if (i == 4) /* the link */
            continue;
        store64(inodes + INODE(i, size), INT64_MAX);
        store64(inodes + INODE(i, first), 3);
        store32(inodes + INODE(i, count), 1);
    }
    put_together(&p, path);
    expect_refused(path, "content", EBADMSG, "longer than 2^64 bytes");
    free_parts(&p);
}

static void refuses_long_targets(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("target");
    take_apart(in_dir("good"), &p);
    uint8_t *link = part_of(&p, HFS_SEC_INODES)->bytes + INODE(4, mode);
    struct part *names = part_of(&p, HFS_SEC_NAMES);
    memset(names->bytes + names->len, 'x', 4096);
    store64(link + offsetof(struct hfs_disk_inode, first), names->len);
    store64(link + offsetof(struct hfs_disk_inode, size), 4096);
    names->len += 4096;
    put_together(&p, path);
    expect_refused(path, "4096", EBADMSG, "impossible target");
    store64(link + offsetof(struct hfs_disk_inode, size), 4095);
    put_together(&p, path);
    struct hfs_image *img = open_good(path);
    hfs_image_close(img);
    free_parts(&p);
}

/* A directory whose parent is not the one that names it. */
static void refuses_a_foreign_parent(void **state)
{
    (void)state;
    struct parts p;
    struct hfs_error err = {{0}};
    const char *path = in_dir("foreign");
    struct hfs_inode dir = {.mode = S_IFDIR | 0755};
    struct hfs_dirent outer = {"outer", 5, 1}, inner = {"inner", 5, 2};
    struct hfs_writer *w = start(path, true);
    uint32_t n;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(hfs_writer_inode(w, &dir, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_entries(w, 0, &outer, 1, &err), 0);
    assert_int_equal(hfs_writer_entries(w, 1, &inner, 1, &err), 0);
    finish(w);
    take_apart(path, &p);
    store32(part_of(&p, HFS_SEC_INODES)->bytes + INODE(2, parent), 0);
    put_together(&p, path);
    expect_refused(path, "parent", EBADMSG, "directory inode 1 names 2, whose parent is 0");
    free_parts(&p);
}

/* A chain of directories, one in the other. */
static void build_chain(const char *path, unsigned depth)
{
    struct hfs_writer *w = start(path, true);
    struct hfs_error err = {{0}};
    struct hfs_inode dir = {.mode = S_IFDIR | 0755};
    uint32_t number;
    for (unsigned i = 0; i <= depth; i++)
        assert_int_equal(hfs_writer_inode(w, &dir, NULL, &number, &err), 0);
    for (unsigned i = 0; i < depth; i++) {
        struct hfs_dirent e = {"d", 1, i + 1};
        assert_int_equal(hfs_writer_entries(w, i, &e, 1, &err), 0);
    }
    int r = hfs_writer_finish(w, NULL, &err);
    if (depth > HFS_MAX_DEPTH) {
        assert_int_equal(r, -EBADMSG);
        assert_non_null(strstr(err.text, "nest deeper than 2048"));
        hfs_writer_abort(w);
    } else {
        assert_int_equal(r, 0);
        assert_int_equal(hfs_writer_commit(w, &err), 0);
    }
}

static void limits_the_depth(void **state)
{
    (void)state;
    const char *path = in_dir("chain");
    struct stat st;
    build_chain(path, HFS_MAX_DEPTH);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size < 20 * HFS_MAX_DEPTH); /* packed: 73 bytes a directory otherwise */
    struct hfs_image *img = open_good(path);
    char *deepest = hfs_image_path_of(img, HFS_MAX_DEPTH);
    assert_int_equal(strlen(deepest), 2 * HFS_MAX_DEPTH - 1);
    free(deepest);
    hfs_image_close(img);
    expect_clean(path);
    build_chain(in_dir("chain2"), HFS_MAX_DEPTH + 1);
    assert_int_equal(access(in_dir("chain2"), F_OK), -1);
}

/* ---- damage with good checksums: leaves, and what only the check sees ---- */

#define BLOCK(n, field)                                                                            \
    sizeof(struct hfs_disk_leaf) + (n) * sizeof(struct hfs_disk_block) +                           \
        offsetof(struct hfs_disk_block, field)

static void refuses_leaves(void **state)
{
    static const struct {
        const char *what;
        size_t at;
        unsigned width;
        uint64_t value;
    } outside[] = {
        {"offset 0", 0, 8, 0},
        {"offset 127", 0, 8, 127},
        {"offset beyond", 0, 8, UINT64_MAX - 5},
        {"no size", BLOCK(1, size), 4, 0},
        {"size", BLOCK(1, size), 4, HFS_MAX_STORED + 1},
        {"large size", BLOCK(0, size), 4, UINT32_MAX},
        {"one more", BLOCK(2, size), 4, 0}, /* set below: one byte beyond data_end */
    };
    (void)state;
    struct parts p;
    struct hfs_block b;
    const char *path = in_dir("leaves");
    take_apart(in_dir("good"), &p);
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        uint8_t before[8], *at = leaf_of(&p) + outside[i].at;
        memcpy(before, at, 8);
        save_number(at, outside[i].width, outside[i].value);
        if (strcmp(outside[i].what, "one more") == 0)
            store32(at, load32(before) + 1);
        put_together(&p, path);
        struct hfs_image *img = open_good(path);
        assert_int_equal(hfs_image_block(img, 0, &b), -EBADMSG);
        assert_int_equal(hfs_image_block(img, 3, &b), -EINVAL);
        assert_int_equal(read_every_block(img), -EBADMSG);
        hfs_image_close(img);
        expect_problem(path, outside[i].what, "index leaf 0 at");
        memcpy(at, before, 8);
    }
    uint32_t size = load32(leaf_of(&p) + BLOCK(2, size));
    store32(leaf_of(&p) + BLOCK(2, size), size - 1);
    put_together(&p, path);
    expect_problem(path, "gap at the end", "its blocks end at");
    store32(leaf_of(&p) + BLOCK(2, size), size);
    store32(leaf_of(&p) + BLOCK(0, size), load32(leaf_of(&p) + BLOCK(0, size)) - 1);
    store64(leaf_of(&p), 129);
    put_together(&p, path);
    expect_problem(path, "gap at the start", "block 0 is at 129");
    /* Stored bytes that the caller's buffer has no room for. */
    size_t data = HFS_MAX_STORED + 101;
    memmove(p.body + data, leaf_of(&p), p.leaves_len);
    p.data_len = data;
    store64(p.super.data_end, sizeof(struct hfs_disk_super) + data);
    store64(leaf_of(&p), sizeof(struct hfs_disk_super));
    store32(leaf_of(&p) + BLOCK(1, size), 50);
    store32(leaf_of(&p) + BLOCK(2, size), 50);
    for (unsigned more = 0; more < 2; more++) {
        store32(leaf_of(&p) + BLOCK(0, size), HFS_MAX_STORED + more);
        put_together(&p, path);
        struct hfs_image *img = open_good(path);
        assert_int_equal(hfs_image_block(img, 0, &b), more ? -EBADMSG : 0);
        hfs_image_close(img);
    }
    free_parts(&p);
}

/* The decoded bytes have a checksum of their own. */
static void wrong_content_is_noticed(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("content");
    take_apart(in_dir("good"), &p);
    leaf_of(&p)[BLOCK(1, content)] ^= 1;
    put_together(&p, path);
    expect_clean(path);
    struct hfs_image *img = open_good(path);
    struct hc_work *w = hc_work_new(HC_ISA_PORTABLE);
    uint8_t *coded = malloc(HFS_MAX_STORED), *raw = malloc(HC_MAX_BLOCK_BYTES);
    struct hfs_segment seg;
    size_t n;
    hfs_image_segment(img, 0, &seg);
    assert_int_equal(hfs_image_read_block(img, w, &seg, 1, coded, raw, &n, false), 0);
    assert_int_equal(n, PLAIN - HC_BYTES_BLOCK);
    assert_int_equal(hfs_image_read_block(img, w, &seg, 1, coded, raw, &n, true), -EBADMSG);
    assert_int_equal(hfs_image_read_block(img, w, &seg, 2, coded, raw, &n, true), -EINVAL);
    hfs_image_segment(img, 1, &seg);
    assert_int_equal(hfs_image_read_block(img, w, &seg, 0, coded, raw, &n, true), -EINVAL);
    hc_work_free(w);
    free(coded);
    free(raw);
    hfs_image_close(img);
    free_parts(&p);
}

#define TENSOR(field) offsetof(struct hfs_disk_tensor, field)

static void check_reports_tables(void **state)
{
    enum { S = HFS_SEC_TENSORS, NAN_BITS = 0x7ff8, FIRST = 64 + 16 + 9, THIRD = FIRST + 83 };
    static const struct patch patches[] = {
        {"block twice", HFS_SEC_SEGMENTS, SEGMENT(2, first_block), 8, 1, 0,
         "block 1 of segment 2 belongs to another one too"},
        {"block of nobody", HFS_SEC_SEGMENTS, SEGMENT(2, first_block), 8, 0, 0,
         "nothing refers to block 2"},
        {"code of nobody", HFS_SEC_SEGMENTS, SEGMENT(2, code), 4, 0, 0, "nothing refers to code 1"},
        {"name of nobody", HFS_SEC_DIRENTS, ENTRY(5, name), 8, 6, 0,
         "nothing refers to byte of its names 5"},
        {"META", HFS_SEC_META, 6, 1, ':', 0, "line 1 of its META"},
        {"META key", HFS_SEC_META, 12, 1, '=', 0, NULL},
        {"META escape", HFS_SEC_META, 8, 1, 27, 0, "line 1 of its META"},
        {"META end", HFS_SEC_META, 20, 1, 'x', 0, "line 2 of its META"},
        {"META zero", HFS_SEC_META, 8, 1, 0, 0, "line 1 of its META"},
        {"length", S, TENSOR(length), 4, 88, 0, "tensor record 0 has an impossible length"},
        {"no length", S, TENSOR(length), 4, 0, 0, "tensor record 0 has an impossible length"},
        {"long", S, TENSOR(name_len), 4, UINT32_MAX, 0, "tensor record 0 has an impossible"},
        {"rank", S, TENSOR(rank), 2, UINT16_MAX, 0, "tensor record 0 has an impossible length"},
        {"dtype", S, TENSOR(dtype), 2, HC_DTYPE_COUNT, 0, "unknown dtype"},
        {"no dtype", S, TENSOR(dtype), 2, 0, 0, "unknown dtype"},
        {"other dtype", S, TENSOR(dtype), 2, HC_I16, 0, "a segment of another length"},
        {"dims", S, 64, 8, 4, 0, "(u8.weight) has a number of elements"},
        {"dims overflow", S, 64, 8, UINT64_MAX, 0, "number of elements"},
        {"elements", S, TENSOR(elements), 8, 1, 0, "number of elements"},
        {"exact", S, TENSOR(exact), 8, PLAIN + 1, 0, "number of elements"},
        {"sqnr", S, TENSOR(sqnr) + 6, 2, NAN_BITS, 0, "impossible error"},
        {"error", S, TENSOR(max_error) + 6, 2, NAN_BITS, 0, "impossible error"},
        {"negative error", S, TENSOR(max_error) + 7, 1, 0xbf, 0, "impossible error"},
        {"inode", S, TENSOR(inode), 4, 6, 0, "an inode that does not exist"},
        {"directory", S, TENSOR(inode), 4, 1, 0, "an inode that is no file"},
        {"segment", S, TENSOR(segment), 8, 3, 0, "a segment of another file"},
        {"no segment", S, TENSOR(segment), 8, UINT64_MAX, 0, "a segment of another file"},
        {"another segment", S, TENSOR(segment), 8, 1, 0, "a segment of another length"},
        {"stored", S, TENSOR(stored), 8, 1, 0, "tensor record 0 says 1 stored bytes"},
        {"empty tensor", S, THIRD + TENSOR(segment), 8, 0, 0, "no elements, yet a segment"},
        {"empty stored", S, THIRD + TENSOR(stored), 8, 1, 0, "no elements, yet a segment"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof patches / sizeof patches[0]; i++)
        if (patches[i].words)
            try_patches(&patches[i], 1, false);
}

static void check_reports_segments_of_nobody(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("nobody");
    take_apart(in_dir("good"), &p);
    struct part *x = part_of(&p, HFS_SEC_SEGMENTS);
    struct hfs_disk_segment *s = (struct hfs_disk_segment *)(x->bytes + x->len);
    memset(s, 0, sizeof *s);
    store64(s->length, 5);
    store16(s->kind, HFS_SEG_ZERO);
    x->len += sizeof *s;
    put_together(&p, path);
    expect_problem(path, "one segment", "nothing refers to segment 3\n");
    memcpy(s + 1, s, sizeof *s);
    x->len += sizeof *s;
    put_together(&p, path);
    expect_problem(path, "two segments", "nothing refers to segment 3 to 4\n");
    free_parts(&p);
}

/* Records that need more than one field to be wrong. */
static void check_reports_tensors(void **state)
{
    (void)state;
    struct parts p;
    const char *path = in_dir("tensors");
    take_apart(in_dir("good"), &p);
    struct part *x = part_of(&p, HFS_SEC_TENSORS);
    x->len -= 30;
    put_together(&p, path);
    expect_problem(path, "cut", "tensor record 2 has an impossible length");
    x->len += 30;
    /* 300,000 bytes and half a byte of 4-bit elements */
    store64(x->bytes + TENSOR(elements), 600001);
    store16(x->bytes + TENSOR(dtype), HC_F4);
    store64(x->bytes + 64, 600001);
    store64(x->bytes + 72, 1);
    put_together(&p, path);
    expect_problem(path, "half a byte", "a segment of another length");
    store64(x->bytes + TENSOR(elements), 600000);
    store64(x->bytes + 64, 600000);
    put_together(&p, path);
    expect_clean(path);
    free_parts(&p);
}

/* The copy at the end is read only by the check. */
static void check_compares_superblocks(void **state)
{
    (void)state;
    size_t len;
    uint8_t *image = read_file(in_dir("good"), &len);
    const char *path = in_dir("two");
    image[len - 1] ^= 1;
    write_file(path, image, len);
    expect_problem(path, "copy", "the superblock at its end differs");
    free(image);
}

/* ---- many blocks ---- */

/* More leaves than are kept, blocks that are not decoded: where each lies is still right. */
static void finds_blocks_of_a_large_image(void **state)
{
    enum { BLOCKS = (HFS_LEAF_BLOCKS * 4097) + 3 };
    (void)state;
    const char *path = in_dir("large");
    struct hfs_writer *w = start(path, true);
    struct hfs_error err = {{0}};
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3);
    struct hfs_inode root = {.mode = S_IFDIR | 0755};
    struct hfs_inode file = {
        .mode = S_IFREG, .size = (uint64_t)BLOCKS * HC_BYTES_BLOCK, .count = 1};
    struct hfs_segment seg = {.length = file.size, .kind = HFS_SEG_CODED};
    struct hfs_dirent e = {"f", 1, 1};
    uint64_t offset = sizeof(struct hfs_disk_super), number;
    uint32_t n;
    for (uint64_t i = 0; i < BLOCKS; i++)
        assert_int_equal(
            hfs_writer_block(w, (const uint8_t *)"xyz", (uint32_t)(1 + i % 3), i, &err), 0);
    assert_int_equal(hfs_writer_code(w, &plain, &seg.code, &err), 0);
    assert_int_equal(hfs_writer_segment(w, &seg, &number, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &file, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_entries(w, 0, &e, 1, &err), 0);
    finish(w);
    struct hfs_image *img = open_good(path);
    struct hfs_block b;
    for (unsigned round = 0; round < 2; round++, offset = sizeof(struct hfs_disk_super))
        for (uint64_t i = 0; i < BLOCKS; i++) {
            assert_int_equal(hfs_image_block(img, i, &b), 0);
            if (b.offset != offset || b.size != 1 + i % 3 || b.content != i)
                fail_msg("block %llu is not where it was written", (unsigned long long)i);
            offset += b.size;
        }
    hfs_image_close(img);
    expect_clean(path);
}

/* ---- decoders ---- */

enum { CODES = 36, WEIGHTS = 2 * HC_TRAJECTORY_PAIRS };

/* BF16 weights, about normal. */
static void make_weights(uint8_t *raw)
{
    uint32_t x = 1;
    for (unsigned i = 0; i < WEIGHTS; i++) {
        float sum = 0;
        uint32_t bits;
        for (unsigned k = 0; k < 6; k++) {
            x = x * 1664525 + 1013904223;
            sum += (float)(x >> 8) / (1 << 24) - 0.5f;
        }
        memcpy(&bits, &sum, sizeof bits);
        store16(raw + 2 * i, (uint16_t)(bits >> 16));
    }
}

/* One block in each of many trajectory codes: their tables are together larger than the cache. */
static void build_codes(const char *path, size_t *tables)
{
    static uint8_t raw[2 * WEIGHTS], decoded[2 * WEIGHTS], coded[HFS_MAX_STORED];
    struct hfs_writer *w = start(path, true);
    struct hfs_error err = {{0}};
    struct hc_work *work = hc_work_new(hc_isa_best());
    struct hc_scan *scan = hc_scan_new(HC_BF16);
    struct hc_target target = {.sqnr_db = 38, .nu = 2};
    const uint8_t *sample[] = {raw};
    size_t len = sizeof raw;
    struct hc_code code;
    struct hfs_inode root = {.mode = S_IFDIR}, file = {.mode = S_IFREG, .count = CODES};
    struct hfs_dirent e = {"f", 1, 1};
    uint64_t number;
    uint32_t n;
    make_weights(raw);
    hc_scan_block(scan, raw, sizeof raw);
    assert_int_equal(hc_choose(scan, &target, work, sample, &len, 1, &code), 0);
    assert_int_equal(code.type, HC_CODE_TRAJECTORY);
    struct hc_encoder *enc;
    assert_int_equal(hc_encoder_new(&code, &enc), 0);
    assert_int_equal(hc_encode(enc, work, raw, sizeof raw, coded, &len, NULL, NULL), 0);
    hc_encoder_free(enc);
    for (unsigned i = 0; i < CODES; i++) {
        struct hc_decoder *dec;
        struct hfs_segment s = {.file_offset = i * sizeof raw,
                                .length = sizeof raw,
                                .first_block = i,
                                .kind = HFS_SEG_CODED};
        /* With another step the same coded bytes are other weights. */
        code.t.step.mantissa = (uint16_t)(2100 + i);
        assert_int_equal(hc_decoder_new(&code, &dec), 0);
        assert_int_equal(hc_decode(dec, work, coded, len, decoded, sizeof raw), 0);
        *tables += hc_decoder_memory(dec);
        hc_decoder_free(dec);
        assert_int_equal(
            hfs_writer_block(w, coded, (uint32_t)len, XXH3_64bits(decoded, sizeof decoded), &err),
            0);
        assert_int_equal(hfs_writer_code(w, &code, &s.code, &err), 0);
        assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
    }
    file.size = CODES * sizeof raw;
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &file, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_entries(w, 0, &e, 1, &err), 0);
    finish(w);
    hc_scan_free(scan);
    hc_work_free(work);
}

struct decoding {
    struct hfs_image *img;
    unsigned seed;
    int result;
};

static void *decode_at_random(void *arg)
{
    struct decoding *d = arg;
    struct hc_work *w = hc_work_new(hc_isa_best());
    uint8_t *coded = malloc(HFS_MAX_STORED), *raw = malloc(HC_MAX_BLOCK_BYTES);
    for (unsigned i = 0; i < 30 && d->result == 0; i++) {
        struct hfs_segment s;
        size_t n;
        /* Half of the reads go to code 0, which all threads then want at once. */
        hfs_image_segment(d->img, i % 2 ? 0 : (i * 7 + d->seed) % CODES, &s);
        d->result = hfs_image_read_block(d->img, w, &s, 0, coded, raw, &n, true);
    }
    hc_work_free(w);
    free(coded);
    free(raw);
    return NULL;
}

static void decoders_come_and_go(void **state)
{
    (void)state;
    size_t tables = 0;
    struct decoding d[4];
    pthread_t thread[4];
    build_codes(in_dir("codes"), &tables);
    assert_true(tables > HFS_DECODER_CACHE);
    struct hfs_image *img = open_good(in_dir("codes"));
    for (unsigned i = 0; i < 4; i++) {
        d[i] = (struct decoding){.img = img, .seed = i * 11};
        assert_int_equal(pthread_create(&thread[i], NULL, decode_at_random, &d[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(d[i].result, 0);
    }
    hfs_image_close(img);
    expect_clean(in_dir("codes"));
}

static void *read_one_block(void *arg)
{
    struct decoding *d = arg;
    struct hc_work *w = hc_work_new(HC_ISA_PORTABLE);
    uint8_t *coded = malloc(HFS_MAX_STORED), *raw = malloc(HC_MAX_BLOCK_BYTES);
    struct hfs_segment s;
    size_t n;
    hfs_image_segment(d->img, 0, &s);
    for (unsigned i = 0; i < 20; i++) {
        int r = hfs_image_read_block(d->img, w, &s, 0, coded, raw, &n, true);
        d->result = r == -EBADMSG ? d->result : -1;
    }
    hc_work_free(w);
    free(coded);
    free(raw);
    return NULL;
}

/* A record in range whose points are too large for their dtype: an error for every reader. */
static void decoders_that_cannot_be_built(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_inode root = {.mode = S_IFDIR}, file = {.mode = S_IFREG, .size = 400, .count = 1};
    struct hfs_dirent e = {"f", 1, 1};
    struct hfs_segment s = {.length = 400, .kind = HFS_SEG_CODED};
    struct hc_code code = {.type = HC_CODE_TRAJECTORY, .dtype = HC_F16};
    struct decoding d[4];
    pthread_t thread[4];
    uint64_t number;
    uint32_t n;
    assert_int_equal(hc_lattice_for(256, &code.t), 0);
    code.t.step = hc_step_from(1e9);
    code.t.split = 1;
    struct hfs_writer *w = start(in_dir("unbuilt"), true);
    assert_int_equal(hfs_writer_block(w, (const uint8_t *)"x", 1, 0, &err), 0);
    assert_int_equal(hfs_writer_code(w, &code, &s.code, &err), 0);
    assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_inode(w, &file, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_entries(w, 0, &e, 1, &err), 0);
    finish(w);
    struct hfs_image *img = open_good(in_dir("unbuilt"));
    for (unsigned i = 0; i < 4; i++) {
        d[i] = (struct decoding){.img = img};
        assert_int_equal(pthread_create(&thread[i], NULL, read_one_block, &d[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(d[i].result, 0);
    }
    hfs_image_close(img);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_back_what_was_written),
        cmocka_unit_test(reads_tensors_and_meta),
        cmocka_unit_test(several_threads_read_blocks),
        cmocka_unit_test(finds_every_flipped_bit),
        cmocka_unit_test(finds_truncation_and_trailing_bytes),
        cmocka_unit_test(falls_back_to_the_copy),
        cmocka_unit_test(file_that_shrinks),
        cmocka_unit_test(files_that_are_no_images),
        cmocka_unit_test(refuses_superblocks),
        cmocka_unit_test(refuses_impossible_sizes),
        cmocka_unit_test(newer_versions_are_named),
        cmocka_unit_test(compat_features_are_ignored),
        cmocka_unit_test(refuses_section_directories),
        cmocka_unit_test(refuses_bad_packing),
        cmocka_unit_test(refuses_tables_beyond_its_size),
        cmocka_unit_test(refuses_inodes),
        cmocka_unit_test(refuses_entries),
        cmocka_unit_test(refuses_segments),
        cmocka_unit_test(refuses_tables_of_wrong_length),
        cmocka_unit_test(refuses_too_much_content),
        cmocka_unit_test(refuses_long_targets),
        cmocka_unit_test(refuses_a_foreign_parent),
        cmocka_unit_test(limits_the_depth),
        cmocka_unit_test(refuses_leaves),
        cmocka_unit_test(wrong_content_is_noticed),
        cmocka_unit_test(check_reports_tables),
        cmocka_unit_test(check_reports_segments_of_nobody),
        cmocka_unit_test(check_reports_tensors),
        cmocka_unit_test(check_compares_superblocks),
        cmocka_unit_test(finds_blocks_of_a_large_image),
        cmocka_unit_test(decoders_come_and_go),
        cmocka_unit_test(decoders_that_cannot_be_built),
    };
    return cmocka_run_group_tests_name("image", tests, make_dir, remove_dir);
}
