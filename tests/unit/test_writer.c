/* The writer of images. What a user loses when one of these fails: the old image, or the certainty
 * that a file of that name is a whole image. */
#include "tests/unit/image_fixture.h"

#include "codec/lattice.h"

#include <dirent.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Files in the test's directory whose name begins with prefix. */
static unsigned files_with(const char *prefix)
{
    unsigned n = 0;
    DIR *d = opendir(test_dir);
    for (struct dirent *e; (e = readdir(d));)
        n += strncmp(e->d_name, prefix, strlen(prefix)) == 0;
    closedir(d);
    return n;
}

static void expect_content(const char *path, const char *text)
{
    size_t len;
    uint8_t *p = read_file(path, &len);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(p, text, len);
    free(p);
}

static void expect_no_writer(const char *path, bool replace, int code, const char *words)
{
    struct hfs_writer *w = NULL;
    struct hfs_error err = {{0}};
    assert_int_equal(hfs_writer_create(path, replace, NULL, NULL, &w, &err), -code);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
}

/* The smallest image there is. */
static void build_empty(struct hfs_writer *w)
{
    struct hfs_error err = {{0}};
    struct hfs_inode root = {.mode = S_IFDIR | 0755};
    uint32_t n;
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    finish(w);
}

static void refuses_targets(void **state)
{
    (void)state;
    write_file(in_dir("old"), "old", 3);
    expect_no_writer(in_dir("old"), false, EEXIST, "exists");
    expect_content(in_dir("old"), "old");
    expect_no_writer(test_dir, true, EISDIR, "is a directory");
    expect_no_writer(in_dir(""), true, EISDIR, "directory");
    expect_no_writer(in_dir(".."), true, EISDIR, "directory");
    expect_no_writer(in_dir("none/image"), true, ENOENT, "none/image: its directory");
    assert_int_equal(symlink("old", in_dir("link")), 0);
    expect_no_writer(in_dir("link"), true, EEXIST, "is a symbolic link");
    assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
    expect_no_writer(in_dir("fifo"), true, EEXIST, "is a special file");
    assert_int_equal(files_with(".old"), 0);
}

static void appears_whole_or_not_at_all(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_writer *w = start(in_dir("one"), false);
    assert_int_equal(access(in_dir("one"), F_OK), -1);
    assert_int_equal(access(hfs_writer_temp_path(w), F_OK), 0);
    assert_int_equal(files_with(".one."), 1);
    assert_int_equal(hfs_writer_block(w, (const uint8_t *)"x", 1, 0, &err), 0);
    hfs_writer_abort(w);
    assert_int_equal(files_with(".one."), 0);
    assert_int_equal(access(in_dir("one"), F_OK), -1);
    hfs_writer_abort(NULL);

    w = start(in_dir("one"), false);
    assert_int_equal(hfs_writer_commit(w, &err), -EINVAL); /* not finished */
    assert_int_equal(files_with(".one."), 0);
    assert_int_equal(access(in_dir("one"), F_OK), -1);

    write_file(in_dir("one"), "old", 3);
    assert_int_equal(chmod(in_dir("one"), 0600), 0);
    w = start(in_dir("one"), true);
    hfs_writer_abort(w);
    expect_content(in_dir("one"), "old");
    build_empty(start(in_dir("one"), true));
    expect_clean(in_dir("one"));
    assert_int_equal(files_with(".one."), 0);
    struct stat st;
    assert_int_equal(stat(in_dir("one"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600); /* a private image stays private */
}

/* Somebody else creates the target while the image is being written. */
static void does_not_replace_unasked(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_inode root = {.mode = S_IFDIR | 0755};
    uint32_t n;
    struct hfs_writer *w = start(in_dir("race"), false);
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_finish(w, NULL, &err), 0);
    write_file(in_dir("race"), "other", 5);
    assert_int_equal(hfs_writer_commit(w, &err), -EEXIST);
    expect_content(in_dir("race"), "other");
    assert_int_equal(files_with(".race."), 0);
}

static void count_stale(void *ctx, const char *path)
{
    char *seen = ctx;
    strcat(strcat(seen, strrchr(path, '/') + 1), " ");
    assert_int_equal(access(path, F_OK), -1);
}

static void removes_what_killed_writers_left(void **state)
{
    (void)state;
    char seen[512] = "";
    struct hfs_error err = {{0}};
    struct hfs_writer *live = start(in_dir("m"), false), *w;
    const char *kept[] = {".m.abcdef.hyperfs-tmp2", ".m.abcde.hyperfs-tmp", ".n.abcdef.hyperfs-tmp",
                          "m.abcdef.hyperfs-tmp", ".m.abcdef.hyperfs-tmq"};
    for (unsigned i = 0; i < 5; i++)
        write_file(in_dir(kept[i]), "x", 1);
    assert_int_equal(symlink("m.abcdef.hyperfs-tmp", in_dir(".m.lllllk.hyperfs-tmp")), 0);
    write_file(in_dir(".m.abcdef.hyperfs-tmp"), "x", 1);
    assert_int_equal(hfs_writer_create(in_dir("m"), false, count_stale, seen, &w, &err), 0);
    assert_string_equal(seen, ".m.abcdef.hyperfs-tmp ");
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(access(in_dir(kept[i]), F_OK), 0);
    assert_int_equal(access(in_dir(".m.lllllk.hyperfs-tmp"), F_OK), 0);
    build_empty(live); /* both writers are alive; the first to commit wins */
    hfs_writer_abort(w);

    pid_t child = fork();
    if (child == 0) {
        w = start(in_dir("killed"), false);
        hfs_writer_block(w, (const uint8_t *)"x", 1, 0, &err);
        raise(SIGKILL);
    }
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(files_with(".killed."), 1);
    seen[0] = 0;
    assert_int_equal(hfs_writer_create(in_dir("killed"), false, count_stale, seen, &w, &err), 0);
    assert_int_equal(strncmp(seen, ".killed.", 8), 0);
    assert_int_equal(files_with(".killed."), 1);
    hfs_writer_abort(w);
    assert_int_equal(files_with(".killed."), 0);
}

static void names_of_any_length(void **state)
{
    (void)state;
    char name[260];
    memset(name, 'n', sizeof name);
    name[255] = 0;
    build_empty(start(in_dir(name), false));
    expect_clean(in_dir(name));
}

static void same_calls_same_bytes(void **state)
{
    (void)state;
    size_t a_len, b_len;
    build_small(in_dir("a"));
    build_small(in_dir("b"));
    uint8_t *a = read_file(in_dir("a"), &a_len), *b = read_file(in_dir("b"), &b_len);
    assert_int_equal(a_len, b_len);
    assert_memory_equal(a, b, a_len);
    free(a);
    free(b);
}

/* Blocks that were taken back leave no trace, within the buffer (1 MiB) and beyond it. */
static void rewind_leaves_no_trace(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    size_t len, want_len;
    static uint8_t block[1 << 20];
    for (unsigned i = 0; i < sizeof block; i++)
        block[i] = (uint8_t)(i * 2654435761u >> 24);
    build_small(in_dir("a"));
    uint8_t *want = read_file(in_dir("a"), &want_len);
    for (unsigned n = 0; n < 5; n++) {
        struct hfs_writer *w = start(in_dir("rewound"), true);
        for (unsigned i = 0; i < n; i++)
            assert_int_equal(hfs_writer_block(w, block, sizeof block - 1000 * n, i, &err), 0);
        assert_int_equal(hfs_writer_data_bytes(w), n * (sizeof block - 1000 * n));
        assert_int_equal(hfs_writer_rewind(w, 0, &err), 0);
        assert_int_equal(hfs_writer_blocks(w), 0);
        assert_int_equal(hfs_writer_data_bytes(w), 0);
        write_segments(w);
        for (unsigned i = 0; i < n; i++)
            assert_int_equal(hfs_writer_block(w, block, sizeof block, i, &err), 0);
        assert_int_equal(hfs_writer_rewind(w, 3, &err), 0);
        write_tree(w);
        write_tensors(w);
        assert_int_equal(hfs_writer_meta(w, "writer", "test", &err), 0);
        assert_int_equal(hfs_writer_meta(w, "options", "", &err), 0);
        finish(w);
        uint8_t *got = read_file(in_dir("rewound"), &len);
        assert_int_equal(len, want_len);
        assert_memory_equal(got, want, len);
        free(got);
    }
    free(want);
    struct hfs_writer *w = start(in_dir("rewound"), true);
    write_segments(w);
    assert_int_equal(hfs_writer_rewind(w, 2, &err), -EINVAL); /* a segment has block 2 */
    hfs_writer_abort(w);
}

/* A finished image that is opened again and finished once more is the same as one made at once. */
static void reopening_leaves_no_trace(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    size_t len, want_len;
    build_small(in_dir("a"));
    uint8_t *want = read_file(in_dir("a"), &want_len);
    for (unsigned round = 0; round < 2; round++) {
        struct hfs_writer *w = start(in_dir("again"), true);
        assert_int_equal(hfs_writer_reopen(w, 0, &err), -EINVAL);
        write_segments(w);
        write_tree(w);
        write_tensors(w);
        assert_int_equal(hfs_writer_meta(w, "writer", "somebody else, at length", &err), 0);
        assert_int_equal(hfs_writer_finish(w, NULL, &err), 0);
        assert_int_equal(hfs_writer_reopen(w, round ? 1 : 0, &err), 0);
        assert_int_equal(hfs_writer_blocks(w), round ? 1 : 0);
        assert_int_equal(hfs_writer_rewind(w, 0, &err), 0);
        write_segments(w);
        write_tree(w);
        write_tensors(w);
        assert_int_equal(hfs_writer_meta(w, "writer", "test", &err), 0);
        assert_int_equal(hfs_writer_meta(w, "options", "", &err), 0);
        assert_int_equal(hfs_writer_finish(w, NULL, &err), 0);
        assert_int_equal(hfs_writer_commit(w, &err), 0);
        uint8_t *got = read_file(in_dir("again"), &len);
        assert_int_equal(len, want_len);
        assert_memory_equal(got, want, len);
        free(got);
    }
    free(want);
}

static void equal_codes_are_one(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_writer *w = start(in_dir("codes"), true);
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3), other = hc_lossless(HC_DTYPE_NONE, 9);
    struct hc_code f32 = hc_lossless(HC_F32, 3), f64 = hc_lossless(HC_F64, 3);
    uint32_t n[5];
    assert_int_equal(hfs_writer_code(w, &f32, &n[0], &err), 0);
    assert_int_equal(hfs_writer_code(w, &plain, &n[1], &err), 0);
    assert_int_equal(hfs_writer_code(w, &f64, &n[2], &err), 0);
    assert_int_equal(hfs_writer_code(w, &f32, &n[3], &err), 0);
    assert_int_equal(hfs_writer_code(w, &other, &n[4], &err), 0); /* level is not stored */
    assert_true(n[0] == 0 && n[1] == 1 && n[2] == 2 && n[3] == 0 && n[4] == 1);
    hfs_writer_abort(w);
}

/* ---- what callers must not write ---- */

enum { DIR_A, DIR_B, FILE_C, INODES };

/* Two directories and a file; the caller names them. */
static struct hfs_writer *three_inodes(void)
{
    struct hfs_writer *w = start(in_dir("bad"), true);
    struct hfs_error err = {{0}};
    uint32_t n;
    for (unsigned i = 0; i < INODES; i++) {
        struct hfs_inode ino = {.mode = i == FILE_C ? S_IFREG | 0644 : S_IFDIR | 0755};
        assert_int_equal(hfs_writer_inode(w, &ino, NULL, &n, &err), 0);
    }
    return w;
}

static void expect_name_refused(const char *name, unsigned len, int code)
{
    struct hfs_writer *w = three_inodes();
    struct hfs_error err = {{0}};
    struct hfs_dirent e[2] = {{"b", 1, DIR_B}, {name, len, FILE_C}};
    if (hfs_writer_entries(w, DIR_A, e, 2, &err) != -code)
        fail_msg("the name \"%s\" gives %s", name, err.text);
    assert_int_equal(hfs_writer_finish(w, NULL, &err), -EINVAL);
    hfs_writer_abort(w);
}

static void refuses_names(void **state)
{
    (void)state;
    char longest[256];
    memset(longest, 'x', sizeof longest);
    expect_name_refused("", 0, EINVAL);
    expect_name_refused(".", 1, EINVAL);
    expect_name_refused("..", 2, EINVAL);
    expect_name_refused("a/b", 3, EINVAL);
    expect_name_refused("a\0b", 3, EINVAL);
    expect_name_refused(longest, 256, EINVAL);
    expect_name_refused("b", 1, EEXIST);
}

/* Names entries of A and B, finishes, and expects these words. */
static void expect_tree_refused(const struct hfs_dirent *a, uint32_t a_count,
                                const struct hfs_dirent *b, uint32_t b_count, const char *words)
{
    struct hfs_writer *w = three_inodes();
    struct hfs_error err = {{0}};
    assert_int_equal(hfs_writer_entries(w, DIR_A, a, a_count, &err), 0);
    assert_int_equal(hfs_writer_entries(w, DIR_B, b, b_count, &err), 0);
    assert_true(hfs_writer_finish(w, NULL, &err) < 0);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    hfs_writer_abort(w);
    assert_int_equal(access(in_dir("bad"), F_OK), -1);
}

static void refuses_trees(void **state)
{
    (void)state;
    const struct hfs_dirent b = {"b", 1, DIR_B}, c = {"c", 1, FILE_C};
    const struct hfs_dirent self = {"self", 4, DIR_B}, up = {"up", 2, DIR_A}, far = {"far", 3, 9};
    const struct hfs_dirent twice[] = {b, {"b2", 2, DIR_B}};
    expect_tree_refused(&b, 1, NULL, 0, "inode 2 has no name");
    expect_tree_refused(&c, 1, NULL, 0, "inode 1 has no name");
    expect_tree_refused(&c, 1, &self, 1, "inode 1 stands before its parent, 1");
    expect_tree_refused(&b, 1, &up, 1, "root directory has a parent");
    expect_tree_refused(&b, 1, &far, 1, "names no inode");
    expect_tree_refused(twice, 2, &c, 1, "inode 1 is no regular file and has two names");
}

/* Every call on a writer that has finished or failed. */
static void expect_closed(struct hfs_writer *w)
{
    struct hfs_error err = {{0}};
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3);
    struct hfs_segment s = {.length = 10, .kind = HFS_SEG_ZERO};
    struct hfs_inode file = {.mode = S_IFREG};
    struct hfs_tensor t = {.segment = UINT64_MAX, .dtype = HC_U8, .name = "", .dims = NULL};
    uint64_t number;
    uint32_t n;
    assert_int_equal(hfs_writer_block(w, (const uint8_t *)"x", 1, 0, &err), -EINVAL);
    assert_int_equal(hfs_writer_rewind(w, 0, &err), -EINVAL);
    assert_int_equal(hfs_writer_code(w, &plain, &n, &err), -EINVAL);
    assert_int_equal(hfs_writer_segment(w, &s, &number, &err), -EINVAL);
    assert_int_equal(hfs_writer_inode(w, &file, NULL, &n, &err), -EINVAL);
    assert_int_equal(hfs_writer_entries(w, 0, NULL, 0, &err), -EINVAL);
    assert_int_equal(hfs_writer_tensor(w, &t, &err), -EINVAL);
    assert_int_equal(hfs_writer_meta(w, "a", "b", &err), -EINVAL);
    assert_int_equal(hfs_writer_finish(w, NULL, &err), -EINVAL);
}

static void closed_writers_stay_closed(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_inode root = {.mode = S_IFDIR};
    struct stat st;
    uint64_t size;
    uint32_t n;
    struct hfs_writer *w = start(in_dir("closed"), true);
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_finish(w, &size, &err), 0);
    expect_closed(w);
    assert_int_equal(hfs_writer_commit(w, &err), 0);
    assert_int_equal(stat(in_dir("closed"), &st), 0);
    assert_int_equal(st.st_size, size);
    expect_clean(in_dir("closed"));

    w = start(in_dir("closed"), true);
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_meta(w, "", "", &err), -EINVAL);
    expect_closed(w);
    assert_int_equal(hfs_writer_commit(w, &err), -EINVAL);
}

enum wrong {
    DIR_BEYOND,
    DIR_IS_FILE,
    DIR_TWICE,
    INODE_BEYOND,
    RANK,
    REWIND,
    NO_LENGTH,
    BLOCK_BEYOND
};

static int make_mistake(struct hfs_writer *w, enum wrong wrong)
{
    struct hfs_error err = {{0}};
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3);
    struct hfs_dirent e = {"x", 1, FILE_C};
    struct hfs_inode far = {.number = INODES, .mode = S_IFREG};
    struct hfs_tensor t = {.segment = UINT64_MAX, .dtype = HC_U8, .rank = 65536, .name = ""};
    struct hfs_segment zero = {.kind = HFS_SEG_ZERO};
    struct hfs_segment beyond = {.length = 1, .first_block = 1, .kind = HFS_SEG_CODED};
    uint64_t n;
    switch (wrong) {
    case DIR_BEYOND:
        return hfs_writer_entries(w, INODES, &e, 1, &err);
    case DIR_IS_FILE:
        return hfs_writer_entries(w, FILE_C, &e, 1, &err);
    case DIR_TWICE:
        assert_int_equal(hfs_writer_entries(w, DIR_A, &e, 1, &err), 0);
        return hfs_writer_entries(w, DIR_A, &e, 1, &err);
    case INODE_BEYOND:
        hfs_writer_set_inode(w, &far);
        return hfs_writer_finish(w, NULL, &err);
    case RANK:
        return hfs_writer_tensor(w, &t, &err);
    case REWIND:
        return hfs_writer_rewind(w, 1, &err);
    case NO_LENGTH:
        return hfs_writer_segment(w, &zero, &n, &err);
    case BLOCK_BEYOND:
        assert_int_equal(hfs_writer_code(w, &plain, &beyond.code, &err), 0);
        return hfs_writer_segment(w, &beyond, &n, &err);
    }
    return 0;
}

static void refuses_mistakes(void **state)
{
    (void)state;
    for (unsigned wrong = DIR_BEYOND; wrong <= BLOCK_BEYOND; wrong++) {
        struct hfs_writer *w = three_inodes();
        if (make_mistake(w, (enum wrong)wrong) != -EINVAL)
            fail_msg("mistake %u is not refused", wrong);
        hfs_writer_abort(w);
    }
}

static void refuses_segments_and_blocks(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3);
    struct hfs_segment s = {.length = 10, .kind = HFS_SEG_CODED};
    static uint8_t data[HFS_MAX_STORED + 1];
    uint64_t n;
    struct hfs_writer *w = start(in_dir("bad"), true);
    assert_int_equal(hfs_writer_segment(w, &s, &n, &err), -EINVAL); /* no such code */
    hfs_writer_abort(w);
    w = start(in_dir("bad"), true);
    assert_int_equal(hfs_writer_code(w, &plain, &s.code, &err), 0);
    assert_int_equal(hfs_writer_segment(w, &s, &n, &err), -EINVAL);   /* no such block */
    assert_int_equal(hfs_writer_block(w, data, 1, 0, &err), -EINVAL); /* failed before */
    hfs_writer_abort(w);
    w = start(in_dir("bad"), true);
    assert_int_equal(hfs_writer_block(w, data, 0, 0, &err), -EINVAL);
    hfs_writer_abort(w);
    w = start(in_dir("bad"), true);
    assert_int_equal(hfs_writer_block(w, data, sizeof data, 0, &err), -EINVAL);
    hfs_writer_abort(w);
    assert_int_equal(files_with(".bad."), 0);
}

/* A tensor whose code is one of another dtype. */
static void refuses_tensors(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_inode root = {.mode = S_IFDIR}, file = {.mode = S_IFREG, .size = 400, .count = 1};
    struct hfs_dirent e = {"f", 1, 1};
    struct hfs_segment s = {.length = 400, .kind = HFS_SEG_CODED};
    struct hc_code code = {.type = HC_CODE_TRAJECTORY, .dtype = HC_BF16};
    uint8_t dims[8];
    struct hfs_tensor t = {.inode = 1,
                           .elements = 200,
                           .stored = 1,
                           .sqnr_db = 20,
                           .dtype = HC_F16,
                           .rank = 1,
                           .dims = dims,
                           .name = "t",
                           .name_len = 1};
    uint64_t number;
    uint32_t n;
    store64(dims, 200);
    assert_int_equal(hc_lattice_for(256, &code.t), 0);
    code.t.step = hc_step_from(0.01);
    code.t.split = 1;
    for (unsigned good = 0; good < 2; good++) {
        struct hfs_writer *w = start(in_dir("tensors"), true);
        t.dtype = good ? HC_BF16 : HC_F16;
        assert_int_equal(hfs_writer_block(w, (const uint8_t *)"x", 1, 0, &err), 0);
        assert_int_equal(hfs_writer_code(w, &code, &s.code, &err), 0);
        assert_int_equal(hfs_writer_segment(w, &s, &number, &err), 0);
        assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
        assert_int_equal(hfs_writer_inode(w, &file, NULL, &n, &err), 0);
        assert_int_equal(hfs_writer_entries(w, 0, &e, 1, &err), 0);
        assert_int_equal(hfs_writer_tensor(w, &t, &err), 0);
        assert_int_equal(hfs_writer_finish(w, NULL, &err), good ? 0 : -EBADMSG);
        if (!good)
            assert_non_null(strstr(err.text, "tensor record 0 (t) has a code of another dtype"));
        hfs_writer_abort(w);
    }
}

static void refuses_meta(void **state)
{
    static const char *const lines[][2] = {{"", "x"}, {"a=b", "x"}, {"a", "b\nc"}, {"a\x1b", "b"}};
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct hfs_error err = {{0}};
        struct hfs_inode root = {.mode = S_IFDIR | 0755};
        uint32_t n;
        struct hfs_writer *w = start(in_dir("bad"), true);
        assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
        int r = hfs_writer_meta(w, lines[i][0], lines[i][1], &err);
        if (r == 0)
            r = hfs_writer_finish(w, NULL, &err);
        assert_true(r < 0);
        hfs_writer_abort(w);
    }
}

/* What a reader would refuse is not written. */
static void refuses_tables_beyond_the_image(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_inode root = {.mode = S_IFDIR | 0755};
    size_t len = 20 << 20;
    char *text = malloc(len + 1);
    uint32_t n;
    memset(text, 'x', len);
    text[len] = 0;
    struct hfs_writer *w = start(in_dir("bad"), true);
    assert_int_equal(hfs_writer_inode(w, &root, NULL, &n, &err), 0);
    assert_int_equal(hfs_writer_meta(w, "key", text, &err), 0);
    assert_int_equal(hfs_writer_finish(w, NULL, &err), -EFBIG);
    assert_non_null(strstr(err.text, "larger than an image can hold"));
    hfs_writer_abort(w);
    free(text);
}

static void inodes_can_be_changed(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    struct hfs_writer *w = three_inodes();
    const struct hfs_dirent e[] = {{"b", 1, DIR_B}, {"c", 1, FILE_C}};
    struct hfs_segment zeros = {.length = 77, .kind = HFS_SEG_ZERO};
    struct hfs_inode file = {.number = FILE_C, .mode = S_IFREG | 0400, .size = 77, .count = 1};
    struct hfs_inode dir = {.number = DIR_A, .mode = S_IFDIR | 0111, .first = 99, .count = 99};
    uint64_t n;
    assert_int_equal(hfs_writer_entries(w, DIR_A, e, 2, &err), 0);
    assert_int_equal(hfs_writer_segment(w, &zeros, &n, &err), 0);
    hfs_writer_set_inode(w, &file);
    hfs_writer_set_inode(w, &dir); /* its entries stay */
    finish(w);
    expect_clean(in_dir("bad"));
    assert_int_equal(unlink(in_dir("bad")), 0);

    w = three_inodes();
    dir.mode = S_IFREG; /* a directory cannot become a file */
    hfs_writer_set_inode(w, &dir);
    assert_int_equal(hfs_writer_finish(w, NULL, &err), -EINVAL);
    hfs_writer_abort(w);
}

/* A write that fails: a sentence, the old image untouched, no temporary file. */
static void failed_writes_keep_the_old_image(void **state)
{
    (void)state;
    static uint8_t block[1 << 20];
    struct rlimit limit = {3 << 20, RLIM_INFINITY};
    struct hfs_error err = {{0}};
    int r = 0;
    signal(SIGXFSZ, SIG_IGN);
    write_file(in_dir("full"), "old", 3);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct hfs_writer *w = start(in_dir("full"), true);
    for (unsigned i = 0; r == 0 && i < 10; i++)
        r = hfs_writer_block(w, block, sizeof block, 0, &err);
    limit.rlim_cur = RLIM_INFINITY;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(r, -EFBIG);
    assert_non_null(strstr(err.text, "full: cannot write the image at byte"));
    assert_int_equal(hfs_writer_finish(w, NULL, &err), -EINVAL);
    assert_int_equal(hfs_writer_commit(w, &err), -EINVAL);
    expect_content(in_dir("full"), "old");
    assert_int_equal(files_with(".full."), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_targets),
        cmocka_unit_test(appears_whole_or_not_at_all),
        cmocka_unit_test(does_not_replace_unasked),
        cmocka_unit_test(removes_what_killed_writers_left),
        cmocka_unit_test(names_of_any_length),
        cmocka_unit_test(same_calls_same_bytes),
        cmocka_unit_test(rewind_leaves_no_trace),
        cmocka_unit_test(reopening_leaves_no_trace),
        cmocka_unit_test(equal_codes_are_one),
        cmocka_unit_test(refuses_names),
        cmocka_unit_test(refuses_trees),
        cmocka_unit_test(closed_writers_stay_closed),
        cmocka_unit_test(refuses_mistakes),
        cmocka_unit_test(refuses_segments_and_blocks),
        cmocka_unit_test(refuses_tensors),
        cmocka_unit_test(refuses_meta),
        cmocka_unit_test(refuses_tables_beyond_the_image),
        cmocka_unit_test(inodes_can_be_changed),
        cmocka_unit_test(failed_writes_keep_the_old_image),
    };
    return cmocka_run_group_tests_name("writer", tests, make_dir, remove_dir);
}
