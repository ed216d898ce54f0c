/* Writes the inputs of tests/corpus that are made by rule: good ones with the writer and the
 * encoders, and from each of them bad ones, one fault each, named for it.
 *
 *     seeds FOLDER
 */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codec/bytes.h"
#include "codec/lattice.h"
#include "codec/weight.h"
#include "fs/writer.h"
#include "tests/fuzz/codecs.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image_parts.h"
#include "tests/fuzz/seeds.h"

static const char *folder;

static const char *path_of(const char *target, const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, target);
    FUZZ_CHECK(mkdir(path, 0777) == 0 || errno == EEXIST);
    snprintf(path, sizeof path, "%s/%s/%s", folder, target, name);
    return path;
}

static void save(const char *target, const char *name, const void *data, size_t size)
{
    FILE *f = fopen(path_of(target, name), "wb");
    FUZZ_CHECK(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

static uint8_t *load(const char *target, const char *name, size_t *size)
{
    FILE *f = fopen(path_of(target, name), "rb");
    struct stat st;
    FUZZ_CHECK(f && fstat(fileno(f), &st) == 0);
    *size = (size_t)st.st_size;
    uint8_t *data = fuzz_alloc(*size);
    FUZZ_CHECK(fread(data, 1, *size, f) == *size);
    fclose(f);
    return data;
}

/* ---- weights ---- */

/* About Gaussian, one in 64 far outside and one in `zeros` zero. */
static void make_weights(uint8_t *dst, size_t n, enum hc_dtype dtype, unsigned zeros)
{
    struct fuzz_random r = {n};
    size_t elem = hc_dtype_bits(dtype) / 8;
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < 12; k++)
            sum += (double)fuzz_below(&r, 1000) / 1000 - 0.5;
        sum *= fuzz_below(&r, 64) == 0 ? 4 : 0.02;
        if (zeros && fuzz_below(&r, zeros) == 0)
            sum = 0;
        FUZZ_CHECK(hc_weight_store(dst + i * elem, sum, dtype));
    }
}

static struct hc_code trajectory(enum hc_dtype dtype, unsigned nu, bool zero_map)
{
    struct hc_code code = {.type = HC_CODE_TRAJECTORY, .dtype = dtype};
    FUZZ_CHECK(hc_lattice_for(256, &code.t) == 0);
    code.t.nu = (uint8_t)nu;
    code.t.split = 3;
    code.t.g0 = nu ? (uint16_t)(5u % (1u << nu)) : 0;
    code.t.g1 = nu ? (uint16_t)((1u << nu) - 1) : 0;
    code.t.step = hc_step_from(0.0002);
    code.t.zero_map = zero_map;
    return code;
}

static size_t encode(const struct hc_code *code, const uint8_t *raw, size_t len, uint8_t *dst)
{
    struct hc_encoder *e;
    struct hc_work *w = hc_work_new(HC_ISA_PORTABLE);
    size_t size;
    FUZZ_CHECK(w && hc_encoder_new(code, &e) == 0);
    FUZZ_CHECK(hc_encode(e, w, raw, len, dst, &size, NULL, NULL) == 0);
    hc_encoder_free(e);
    hc_work_free(w);
    return size;
}

/* ---- images ---- */

static struct hfs_error err;
#define GOOD(call) FUZZ_CHECK((call) == 0)

struct file {
    struct hfs_writer *w;
    struct hfs_inode ino;
    uint32_t number;
};

/* Appends a segment of one block to the file; returns the segment's number. */
static uint64_t add_segment(struct file *f, const struct hc_code *code, const uint8_t *raw,
                            size_t len)
{
    struct hfs_segment s = {
        .file_offset = f->ino.size, .length = len, .kind = code ? HFS_SEG_CODED : HFS_SEG_ZERO};
    uint64_t number;
    if (code) {
        size_t full = hc_code_block_bytes(code);
        uint8_t *coded = fuzz_alloc(hc_code_bound(code, full));
        uint8_t *decoded = fuzz_alloc(full);
        struct hc_work *w = hc_work_new(HC_ISA_PORTABLE);
        const struct hc_decoder *d;
        int error;
        GOOD(hfs_writer_code(f->w, code, &s.code, &err));
        s.first_block = hfs_writer_blocks(f->w);
        d = fz_decoder(code, &error);
        for (size_t at = 0; at < len; at += full) {
            size_t n = len - at < full ? len - at : full;
            size_t size = encode(code, raw + at, n, coded);
            FUZZ_CHECK(d && w && hc_decode(d, w, coded, size, decoded, n) == 0);
            GOOD(hfs_writer_block(f->w, coded, (uint32_t)size, XXH3_64bits(decoded, n), &err));
        }
        hc_work_free(w);
        free(coded);
        free(decoded);
    }
    GOOD(hfs_writer_segment(f->w, &s, &number, &err));
    f->ino.size += len;
    f->ino.count++;
    return number;
}

static void add_tensor(struct file *f, uint64_t segment, const char *name, enum hc_dtype dtype,
                       uint64_t rows, uint64_t columns)
{
    uint8_t dims[16];
    store64(dims, rows);
    store64(dims + 8, columns);
    bool empty = rows * columns == 0;
    struct hfs_tensor t = {
        .inode = f->number,
        .segment = empty ? UINT64_MAX : segment,
        .elements = rows * columns,
        .stored = empty ? 0 : hfs_writer_range_bytes(f->w, hfs_writer_blocks(f->w) - 1, 1),
        .sqnr_db = INFINITY,
        .dtype = dtype,
        .rank = 2,
        .dims = dims,
        .name = name,
        .name_len = (unsigned)strlen(name)};
    GOOD(hfs_writer_tensor(f->w, &t, &err));
}

static struct hfs_writer *start(const char *name)
{
    struct hfs_writer *w;
    if (hfs_writer_create(path_of("image", name), true, NULL, NULL, &w, &err) < 0) {
        fprintf(stderr, "seeds: %s\n", err.text);
        exit(1);
    }
    GOOD(hfs_writer_meta(w, "writer", "seeds", &err));
    return w;
}

static uint32_t add_inode(struct hfs_writer *w, uint32_t mode)
{
    uint32_t number;
    struct hfs_inode ino = {.mode = mode, .mtime = 1, .size = S_ISLNK(mode) ? 5 : 0};
    GOOD(hfs_writer_inode(w, &ino, S_ISLNK(mode) ? "a.bin" : NULL, &number, &err));
    return number;
}

static struct file add_file(struct hfs_writer *w)
{
    struct file f = {.w = w, .ino = {.mode = S_IFREG | 0644, .mtime = -3}};
    f.ino.first = hfs_writer_segments(w);
    GOOD(hfs_writer_inode(w, &f.ino, NULL, &f.number, &err));
    f.ino.number = f.number;
    return f;
}

static void finish(struct hfs_writer *w)
{
    if (hfs_writer_finish(w, NULL, &err) < 0 || hfs_writer_commit(w, &err) < 0) {
        fprintf(stderr, "seeds: %s\n", err.text);
        exit(1);
    }
}

/* Inodes: 0 "", 1 "sub", 2 "a.bin" and "c", 3 "empty", 4 "link", 5 "sub/b", as long as 2.
 * Segments of 2: 0 plain, 1 zeros, 2 F32 planes, 3 BF16 and 4 F16 trajectories (with a map). */
static void make_small(void)
{
    struct hfs_writer *w = start("accept-small");
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3), planes = hc_lossless(HC_F32, 3);
    struct hc_code bf16 = trajectory(HC_BF16, 4, false), f16 = trajectory(HC_F16, 0, true);
    uint8_t raw[3000];
    add_inode(w, S_IFDIR | 0755);
    add_inode(w, S_IFDIR | 01777);
    struct file f = add_file(w);
    memset(raw, 'p', sizeof raw);
    memcpy(raw, "plain bytes", 11);
    add_segment(&f, &plain, raw, 3000);
    add_segment(&f, NULL, NULL, 500);
    make_weights(raw, 200, HC_F32, 0);
    add_tensor(&f, add_segment(&f, &planes, raw, 800), "f32", HC_F32, 10, 20);
    make_weights(raw, 300, HC_BF16, 0);
    add_tensor(&f, add_segment(&f, &bf16, raw, 600), "bf16.weight", HC_BF16, 20, 15);
    make_weights(raw, 301, HC_F16, 3);
    add_tensor(&f, add_segment(&f, &f16, raw, 602), "f16.weight", HC_F16, 7, 43);
    add_tensor(&f, 0, "none", HC_F32, 0, 3);
    hfs_writer_set_inode(w, &f.ino);
    struct hfs_inode same = f.ino;
    add_inode(w, S_IFREG | 04711);
    add_inode(w, S_IFLNK | 0777);
    GOOD(hfs_writer_inode(w, &same, NULL, &same.number, &err));
    const struct hfs_dirent root[] = {
        {"sub", 3, 1}, {"link", 4, 4}, {"c", 1, 2}, {"a.bin", 5, 2}, {"empty", 5, 3}};
    GOOD(hfs_writer_entries(w, 0, root, 5, &err));
    GOOD(hfs_writer_entries(w, 1, &(struct hfs_dirent){"b", 1, 5}, 1, &err));
    finish(w);
}

static void make_blocks(void)
{
    struct hfs_writer *w = start("accept-two-blocks");
    struct hc_code plain = hc_lossless(HC_DTYPE_NONE, 3);
    size_t len = HC_BYTES_BLOCK + 5000;
    uint8_t *raw = fuzz_alloc(len);
    for (size_t i = 0; i < len; i++)
        raw[i] = (uint8_t)(i % 7);
    add_inode(w, S_IFDIR | 0755);
    struct file f = add_file(w);
    add_segment(&f, &plain, raw, len);
    hfs_writer_set_inode(w, &f.ino);
    GOOD(hfs_writer_entries(w, 0, &(struct hfs_dirent){"f", 1, 1}, 1, &err));
    finish(w);
    w = start("accept-two-leaves");
    add_inode(w, S_IFDIR | 0755);
    f = add_file(w);
    for (int i = 0; i < 260; i++)
        add_segment(&f, &plain, raw, 8);
    hfs_writer_set_inode(w, &f.ino);
    GOOD(hfs_writer_entries(w, 0, &(struct hfs_dirent){"f", 1, 1}, 1, &err));
    finish(w);
    free(raw);
    w = start("accept-no-files");
    add_inode(w, S_IFDIR | 0755);
    GOOD(hfs_writer_entries(w, 0, NULL, 0, &err));
    finish(w);
    w = start("accept-file-before-directory");
    add_inode(w, S_IFDIR | 0755);
    add_inode(w, S_IFREG | 0644);
    add_inode(w, S_IFDIR | 0755);
    const struct hfs_dirent entries[] = {{"f", 1, 1}, {"g", 1, 2}};
    GOOD(hfs_writer_entries(w, 0, entries, 2, &err));
    GOOD(hfs_writer_entries(w, 2, NULL, 0, &err));
    finish(w);
}

/* Names that Linux allows, however odd, and that are kept as they are. */
static void make_names(void)
{
    static char longest[256];
    static const char *const names[] = {
        longest, "\xff\xfe", "\xc3\x28", "\xed\xa0\x80", "...",  ".a",          "..b",
        " ",     "\n",       "\x1b[2J",  "-rf",          "a\\b", "caf\xc3\xa9", "CON"};
    enum { COUNT = sizeof names / sizeof *names };
    struct hfs_dirent entries[COUNT];
    struct hfs_writer *w = start("accept-names");
    memset(longest, 'n', 255);
    add_inode(w, S_IFDIR | 0755);
    for (unsigned i = 0; i < COUNT; i++)
        entries[i] =
            (struct hfs_dirent){names[i], (unsigned)strlen(names[i]), add_inode(w, S_IFREG | 0644)};
    GOOD(hfs_writer_entries(w, 0, entries, COUNT, &err));
    finish(w);
}

/* Directories as deep as they may be. */
static void make_deep(void)
{
    struct hfs_writer *w = start("accept-deepest");
    for (uint32_t i = 0; i <= HFS_MAX_DEPTH; i++)
        add_inode(w, S_IFDIR | 0755);
    for (uint32_t i = 0; i <= HFS_MAX_DEPTH; i++)
        GOOD(
            hfs_writer_entries(w, i, &(struct hfs_dirent){"d", 1, i + 1}, i < HFS_MAX_DEPTH, &err));
    finish(w);
}

/* Two files of zeros, as long as files can be, and an empty one. */
static void make_holes(void)
{
    struct hfs_writer *w = start("accept-holes");
    const struct hfs_dirent entries[] = {{"f", 1, 1}, {"g", 1, 2}, {"h", 1, 3}};
    add_inode(w, S_IFDIR | 0755);
    for (int i = 0; i < 2; i++) {
        struct file f = add_file(w);
        add_segment(&f, NULL, NULL, INT64_MAX);
        hfs_writer_set_inode(w, &f.ino);
    }
    add_inode(w, S_IFREG | 0644);
    GOOD(hfs_writer_entries(w, 0, entries, 3, &err));
    finish(w);
}

/* Segments that all claim all blocks: work that grows with their product must be bounded. */
static void make_overlap(void)
{
    enum { SEGMENTS = 40, BLOCKS = 260 };
    struct fz_image img;
    size_t size;
    uint8_t *data = load("image", "accept-two-leaves", &size);
    FUZZ_CHECK(fz_take_apart(data, size, &img));
    free(data);
    struct fz_part *part = fz_section(&img, HFS_SEC_SEGMENTS);
    fz_resize(part, SEGMENTS * sizeof(struct hfs_disk_segment));
    for (uint64_t i = 0; i < SEGMENTS; i++) {
        struct hfs_disk_segment *s = (struct hfs_disk_segment *)part->bytes + i;
        store64(s->file_offset, i * BLOCKS * HC_BYTES_BLOCK);
        store64(s->length, (uint64_t)BLOCKS * HC_BYTES_BLOCK);
        store64(s->first_block, 0);
    }
    struct hfs_disk_inode *f = (struct hfs_disk_inode *)fz_section(&img, HFS_SEC_INODES)->bytes + 1;
    store32(f->count, SEGMENTS);
    store64(f->size, (uint64_t)SEGMENTS * BLOCKS * HC_BYTES_BLOCK);
    data = fz_put_together(&img, &size);
    save("image", "damage-segments-overlap", data, size);
    free(data);
    fz_free(&img);
}

/* Applies a seed's words to the image it is made from. */
static void make_faulty(const struct seed *s)
{
    struct fz_image img;
    size_t size;
    char words[1024], *word, *rest = words;
    uint8_t *data = load("image", s->from, &size);
    FUZZ_CHECK(fz_take_apart(data, size, &img));
    free(data);
    snprintf(words, sizeof words, "%s", s->words);
    while ((word = strtok_r(rest, " ", &rest))) {
        const char *wrong = strncmp(word, "image", 5) ? fz_edit(&img, word) : NULL;
        if (wrong) {
            fprintf(stderr, "seeds: %s: '%s' %s\n", s->name, word, wrong);
            exit(1);
        }
    }
    data = fz_put_together(&img, &size);
    snprintf(words, sizeof words, "%s", s->words);
    rest = words;
    while ((word = strtok_r(rest, " ", &rest)))
        FUZZ_CHECK(strncmp(word, "image", 5) != 0 || fz_edit_bytes(&data, &size, word));
    save("image", s->name, data, size);
    free(data);
    fz_free(&img);
}

/* ---- the codec ---- */

static void make_block(const char *name, const struct hc_code *code, size_t elements,
                       unsigned zeros)
{
    size_t elem = hc_dtype_bits(code->dtype) / 8, len = elements * elem;
    bool lossy = code->type == HC_CODE_TRAJECTORY;
    uint8_t *raw = fuzz_alloc(len), *input = fuzz_alloc(FZ_INPUT + hc_code_bound(code, len));
    if (hc_dtype_is_weight(code->dtype))
        make_weights(raw, elements, code->dtype, zeros);
    else
        for (size_t i = 0; i < len; i++)
            raw[i] = (uint8_t)(i % 3 * (i % 17));
    fz_input_store(input, code, len);
    size_t size = encode(code, raw, len, input + FZ_INPUT);
    save(lossy ? "trajectory" : "lossless", name, input, FZ_INPUT + size);
    memcpy(input + FZ_INPUT, raw, len);
    if (code->t.npoints <= 256) /* more take too long to encode */
        save("encode", name, input, FZ_INPUT + len);
    free(raw);
    free(input);
}

static void make_codes(void)
{
    static const enum hc_dtype dtypes[] = {HC_F16, HC_BF16, HC_F32, HC_F64};
    char name[64];
    for (int i = 0; i < 4; i++)
        for (unsigned k = 0; k < 3; k++) {
            struct hc_code code = trajectory(dtypes[i], 5 * k, k == 1);
            snprintf(name, sizeof name, "accept-%s-nu%u%s", hc_dtype_name(dtypes[i]), 5 * k,
                     k == 1 ? "-zeros" : "");
            make_block(name, &code, k == 2 ? 64 : 333, k == 1 ? 3 : 0);
        }
    struct hc_code most = trajectory(HC_F32, 2, false);
    FUZZ_CHECK(hc_lattice_for(65536, &most.t) == 0);
    most.t.split = HC_MAX_SPLIT;
    make_block("accept-most-points", &most, 100, 0);
    static const enum hc_dtype exact[] = {HC_DTYPE_NONE, HC_I16, HC_BF16, HC_I32,
                                          HC_F32,        HC_C64, HC_F64,  HC_U64};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        struct hc_code code = hc_lossless(exact[i], 3);
        snprintf(name, sizeof name, "accept-exact-%s", hc_dtype_name(exact[i]));
        make_block(name, &code, 150, 0);
    }
}

/* Bytes of a good block's input replaced. */
static void make_bad_block(const struct bad_block *b)
{
    size_t size;
    uint8_t *data = load(b->target, b->from, &size);
    long at = b->at < 0 ? (long)size + b->at : b->at;
    FUZZ_CHECK(at >= 0 && (size_t)at + b->len <= size && b->cut < (long)size);
    memcpy(data + at, b->bytes, b->len);
    struct fz_part input = {.bytes = data, .len = size};
    fz_resize(&input, (size_t)((long)size - b->cut));
    save(b->target, b->name, input.bytes, input.len);
    free(input.bytes);
}

/* ---- safetensors ---- */

static void make_safetensors(const struct header *h)
{
    size_t len = strlen(h->text), data = h->data;
    uint8_t *file = fuzz_alloc(8 + len + data);
    store64(file, h->length ? h->length : len);
    memcpy(file + 8, h->text, len);
    memset(file + 8 + len, 0, data);
    save("safetensors", h->name, file, 8 + len + data);
    free(file);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: seeds FOLDER\n");
        return 2;
    }
    folder = argv[1];
    make_small();
    make_blocks();
    make_names();
    make_deep();
    make_holes();
    make_overlap();
    for (const struct seed *s = seed_images; s->name; s++)
        make_faulty(s);
    make_codes();
    for (const struct bad_block *b = seed_blocks; b->name; b++)
        make_bad_block(b);
    for (const struct header *h = seed_headers; h->name; h++)
        make_safetensors(h);
    save("safetensors", "refuse-empty-file", "", 0);
    save("safetensors", "refuse-seven-bytes", "\x02\0\0\0\0\0\0", 7);
    save("safetensors", "refuse-git-lfs", "version https://git-lfs.github.com/spec/v1\n", 43);
    save("image", "refuse-empty-file", "", 0);
    save("image", "refuse-text", "not an image", 12);
    return 0;
}
