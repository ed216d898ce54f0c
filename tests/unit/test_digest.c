/* The digest of an image: who changes anything, and mends every checksum, is found out. */
#include "fs/image_private.h"
#include "tests/unit/image_fixture.h"

static struct hfs_hash digest_of(const char *path)
{
    struct hfs_image *img;
    struct hfs_error err = {{0}};
    struct hfs_info info;
    assert_int_equal(hfs_image_open(path, &img, &err), 0);
    hfs_image_info(img, &info);
    assert_true(info.has_digest);
    hfs_image_close(img);
    return info.digest;
}

static int open_as(const char *path, const struct hfs_hash *digest, struct hfs_image **img,
                   struct hfs_error *err)
{
    err->text[0] = 0;
    *img = NULL;
    return hfs_image_open_digest(path, digest, img, err);
}

/* Reads all blocks of all segments; the worst result. */
static int read_all(struct hfs_image *img)
{
    struct hc_work *work = hc_work_new(HC_ISA_PORTABLE);
    uint8_t *coded = malloc(HFS_MAX_STORED), *raw = malloc(HC_MAX_BLOCK_BYTES);
    struct hfs_info info;
    int worst = 0;
    assert_true(work && coded && raw);
    hfs_image_info(img, &info);
    for (uint64_t i = 0; i < info.segments; i++) {
        struct hfs_segment seg;
        size_t len;
        hfs_image_segment(img, i, &seg);
        if (seg.kind != HFS_SEG_CODED)
            continue;
        for (uint64_t b = 0; b < hfs_image_segment_blocks(img, &seg); b++) {
            int r = hfs_image_read_block(img, work, &seg, b, coded, raw, &len, true);
            worst = r < worst ? r : worst;
        }
    }
    free(raw);
    free(coded);
    hc_work_free(work);
    return worst;
}

static void text_form(void **state)
{
    (void)state;
    static const char digits[] = "00ff0123456789abcdefABCDEF0000000000000000000000000000000000abcd";
    struct hfs_hash h;
    char text[HFS_HASH_TEXT], prefixed[80];
    assert_true(hfs_hash_parse(digits, &h));
    assert_int_equal(h.byte[1], 0xff);
    assert_int_equal(h.byte[31], 0xcd);
    assert_string_equal(hfs_hash_print(text, &h),
                        "00ff0123456789abcdefabcdef0000000000000000000000000000000000abcd");
    snprintf(prefixed, sizeof prefixed, "sha256:%s", digits);
    assert_true(hfs_hash_parse(prefixed, &h));
    assert_false(hfs_hash_parse("", &h));
    assert_false(hfs_hash_parse(digits + 1, &h));
    assert_false(hfs_hash_parse(prefixed + 6, &h));
    snprintf(prefixed, sizeof prefixed, "%sg", digits + 1);
    assert_false(hfs_hash_parse(prefixed, &h));
}

static void accepts_its_own(void **state)
{
    (void)state;
    struct hfs_image *img;
    struct hfs_error err;
    struct hfs_hash digest = digest_of(in_dir("good"));
    uint64_t tensors;
    assert_int_equal(open_as(in_dir("good"), &digest, &img, &err), 0);
    assert_int_equal(read_all(img), 0);
    assert_int_equal(hfs_image_tensors(img, &tensors, &err), 0);
    hfs_image_close(img);
    expect_clean(in_dir("good"));
}

static void refuses_another(void **state)
{
    (void)state;
    struct hfs_image *img;
    struct hfs_error err;
    struct hfs_hash digest = digest_of(in_dir("good"));
    digest.byte[31] ^= 1;
    assert_int_equal(open_as(in_dir("good"), &digest, &img, &err), -EKEYREJECTED);
    assert_non_null(strstr(err.text, "not the digest asked for"));

    struct parts p;
    take_apart(in_dir("good"), &p);
    put_together(&p, in_dir("none"));
    free_parts(&p);
    assert_int_equal(open_as(in_dir("none"), &digest, &img, &err), -EKEYREJECTED);
    assert_non_null(strstr(err.text, "no digest"));
    expect_clean(in_dir("none"));
}

/* What is forged with all its checksums is found at once, for the tables cover all hashes. */
static void finds_every_forgery(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        unsigned section; /* 0: in the body */
        bool in_leaf;
        size_t at;
    } forgeries[] = {
        {"a block", 0, false, 2},
        {"a leaf", 0, true, 8 + 12}, /* a content checksum */
        {"an owner", HFS_SEC_INODES, false, 56 + 4},
        {"a name", HFS_SEC_NAMES, false, 0},
        {"a note", HFS_SEC_META, false, 7},
        {"a record", HFS_SEC_TENSORS, false, 48},
        {"a leaf's hash", HFS_SEC_DIGEST, false, 0},
        {"a block's hash", HFS_SEC_DIGEST, false, 32},
    };
    struct hfs_hash digest = digest_of(in_dir("good"));
    for (size_t i = 0; i < sizeof forgeries / sizeof *forgeries; i++) {
        struct hfs_image *img;
        struct hfs_error err;
        struct parts p;
        take_apart_whole(in_dir("good"), &p);
        uint8_t *bytes = forgeries[i].section   ? part_of(&p, forgeries[i].section)->bytes
                         : forgeries[i].in_leaf ? leaf_of(&p)
                                                : p.body;
        bytes[forgeries[i].at] ^= 1;
        if (!forgeries[i].section && !forgeries[i].in_leaf) /* mend the block's checksum */
            store64(leaf_of(&p) + 8 + 4, XXH3_64bits(p.body, load32(leaf_of(&p) + 8)));
        put_together(&p, in_dir("forged"));
        free_parts(&p);
        if (open_as(in_dir("forged"), &digest, &img, &err) != -EBADMSG)
            fail_msg("%s: not found", forgeries[i].what);
        assert_non_null(strstr(err.text, "not what its digest says"));
    }
}

static void add_feature(struct hfs_disk_super *s)
{
    store64(s->compat, load64(s->compat) | 2);
}

static void covers_the_superblock(void **state)
{
    (void)state;
    struct hfs_image *img;
    struct hfs_error err;
    struct hfs_hash digest = digest_of(in_dir("good"));
    struct parts p;
    take_apart_whole(in_dir("good"), &p);
    p.edit_super = add_feature;
    put_together(&p, in_dir("forged"));
    assert_int_equal(open_as(in_dir("forged"), &digest, &img, &err), -EBADMSG);

    p.edit_super = NULL;
    part_of(&p, HFS_SEC_DIGEST)->len -= 32;
    put_together(&p, in_dir("forged"));
    assert_int_equal(open_as(in_dir("forged"), &digest, &img, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "not as long"));
    expect_problem(in_dir("forged"), "short", "not as long");
    free(p.part[--p.nparts].bytes);
    put_together(&p, in_dir("forged"));
    assert_int_equal(open_as(in_dir("forged"), &digest, &img, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "missing"));
    free_parts(&p);
}

static void flip(const char *path, uint64_t at)
{
    int fd = open(path, O_RDWR);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

/* The file changes after it has been opened, and so that the checksums stay right, which is
 * possible with XXH3: here they are changed in memory. */
static void compares_what_it_uses(void **state)
{
    (void)state;
    struct hfs_image *img;
    struct hfs_error err;
    struct hfs_hash digest = digest_of(in_dir("good"));
    struct hfs_block b;
    uint64_t tensors;
    size_t len;
    uint8_t *bytes = read_file(in_dir("good"), &len);
    write_file(in_dir("changing"), bytes, len);
    free(bytes);
    assert_int_equal(open_as(in_dir("changing"), &digest, &img, &err), 0);
    flip(in_dir("changing"), img->trust->blocks_at);
    assert_int_equal(hfs_image_block(img, 0, &b), -EBADMSG); /* a hash in its leaf */
    flip(in_dir("changing"), img->trust->blocks_at);
    assert_int_equal(read_all(img), 0);

    assert_int_equal(hfs_image_block(img, 0, &b), 0);
    struct hfs_section_entry *sec = &img->sections[HFS_SEC_TENSORS - 1];
    assert_int_equal(sec->type, HFS_SEC_TENSORS);
    flip(in_dir("changing"), b.offset + 2);
    flip(in_dir("changing"), sec->offset + 20);
    bytes = read_file(in_dir("changing"), &len);
    img->leaves[0]->checksum[0] = XXH3_64bits(bytes + b.offset, b.size);
    sec->checksum = XXH3_64bits(bytes + sec->offset, (size_t)sec->stored_size);
    free(bytes);

    assert_int_equal(read_all(img), -EBADMSG);
    assert_int_equal(hfs_image_tensors(img, &tensors, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "not what the digest says"));
    hfs_image_close(img);
}

static int set_up(void **state)
{
    if (make_dir(state) < 0)
        return -1;
    build_small(in_dir("good"));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_form),
        cmocka_unit_test(accepts_its_own),
        cmocka_unit_test(refuses_another),
        cmocka_unit_test(finds_every_forgery),
        cmocka_unit_test(covers_the_superblock),
        cmocka_unit_test(compares_what_it_uses),
    };
    return cmocka_run_group_tests_name("digest", tests, set_up, remove_dir);
}
