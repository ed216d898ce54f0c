/* The read path of a mount: pieces of a file, however they are cut, are those of the file decoded
 * block by block, or an error where a block of theirs has one. */
#include <errno.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fs/mount_read.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image_mutate.h"

/* So that an input takes milliseconds. */
enum { MOST_FILE = 512 << 10, MOST_FILES = 8, MOST_POINTS = 1024, READS = 12 };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    return fz_mutate_image(data, size, room, seed);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t room, unsigned seed)
{
    return fz_cross_images(a, a_size, b, b_size, out, room, seed);
}

/* A file decoded block by block; bad[i] marks bytes of blocks that cannot be read. */
struct whole {
    uint8_t bytes[MOST_FILE], bad[MOST_FILE];
};

static void decode_segment(struct hfs_image *img, const struct hfs_segment *seg, struct whole *out)
{
    static struct hc_work *work;
    static uint8_t coded[HFS_MAX_STORED], raw[HC_MAX_BLOCK_BYTES];
    size_t full = hc_code_block_bytes(hfs_image_code(img, seg->code));
    work = work ? work : hc_work_new(HC_ISA_PORTABLE);
    FUZZ_CHECK(work != NULL);
    for (uint64_t at = 0, b = 0; at < seg->length; at += full, b++) {
        size_t want = seg->length - at < full ? (size_t)(seg->length - at) : full, len;
        if (hfs_image_read_block(img, work, seg, b, coded, raw, &len, true) < 0) {
            memset(out->bad + seg->file_offset + at, 1, want);
            continue;
        }
        FUZZ_CHECK(len == want);
        memcpy(out->bytes + seg->file_offset + at, raw, want);
    }
}

/* False if the file is too large or too slow to be decoded here. */
static bool decode_file(struct hfs_image *img, const struct hfs_inode *ino, struct whole *out)
{
    if (ino->size > MOST_FILE)
        return false;
    memset(out->bytes, 0, (size_t)ino->size);
    memset(out->bad, 0, (size_t)ino->size);
    for (uint64_t i = ino->first; i < ino->first + ino->count; i++) {
        struct hfs_segment seg;
        hfs_image_segment(img, i, &seg);
        if (seg.kind != HFS_SEG_CODED)
            continue;
        const struct hc_code *code = hfs_image_code(img, seg.code);
        if (code->type == HC_CODE_TRAJECTORY && code->t.npoints > MOST_POINTS)
            return false;
        decode_segment(img, &seg, out);
    }
    return true;
}

static bool read_piece(struct hfs_reader *reader, const struct hfs_inode *ino,
                       const struct whole *whole, uint64_t offset, size_t size)
{
    struct hfs_read read;
    uint64_t left = offset < ino->size ? ino->size - offset : 0, at = offset;
    size_t want = size < left ? size : (size_t)left;
    bool bad = want && memchr(whole->bad + offset, 1, want);
    int r = hfs_reader_read(reader, ino, offset, size, &read);
    FUZZ_CHECK(r == 0 || r == -EBADMSG || r == -EINVAL);
    FUZZ_CHECK((r < 0) == bad);
    if (r < 0)
        return false;
    FUZZ_CHECK(read.count <= HFS_READ_PIECES);
    for (int i = 0; i < read.count; i++) {
        FUZZ_CHECK(read.iov[i].iov_len <= offset + want - at);
        FUZZ_CHECK(memcmp(read.iov[i].iov_base, whole->bytes + at, read.iov[i].iov_len) == 0);
        at += read.iov[i].iov_len;
    }
    FUZZ_CHECK(at == offset + want);
    hfs_reader_done(reader, &read);
    return true;
}

/* Blocks decoded before they are asked for. */
static void read_ahead(struct hfs_reader *reader, const struct hfs_inode *ino,
                       const struct whole *whole, struct fuzz_random *r)
{
    struct hfs_cache_key key;
    uint64_t at = ino->size ? fuzz_below(r, ino->size) : 0, end;
    for (int i = 0; i < READS && at < ino->size; i++, at = end) {
        size_t len;
        end = hfs_reader_block(reader, ino, at, &key, &len);
        FUZZ_CHECK(end > at && end <= ino->size && len <= HC_MAX_BLOCK_BYTES);
        if (fuzz_below(r, 2))
            hfs_reader_fetch(reader, ino, at, end);
        if (len == 0 || fuzz_below(r, 2))
            continue;
        int e = hfs_reader_ahead(reader, &key, len);
        FUZZ_CHECK(e == 0 || e == -EAGAIN || whole->bad[at]);
    }
}

static bool read_file(struct hfs_image *img, struct hfs_reader *reader, uint32_t number,
                      struct fuzz_random *r)
{
    static struct whole whole;
    struct hfs_inode ino;
    hfs_image_inode(img, number, &ino);
    if (!S_ISREG(ino.mode) || !decode_file(img, &ino, &whole))
        return true;
    bool good = true;
    for (int i = 0; i < READS; i++) {
        uint64_t offset = fuzz_below(r, ino.size + 2);
        size_t size = fuzz_below(r, i % 2 ? 100 : HFS_READ_MAX + 1);
        good = read_piece(reader, &ino, &whole, i ? offset : 0, size) && good;
        if (i % 4 == 0)
            read_ahead(reader, &ino, &whole, r);
    }
    struct hfs_read read;
    FUZZ_CHECK(hfs_reader_read(reader, &ino, 0, HFS_READ_MAX + 1, &read) == -EINVAL);
    return read_piece(reader, &ino, &whole, 0, HFS_READ_MAX) && good;
}

enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size)
{
    struct fuzz_random r = {XXH3_64bits(data, size)};
    struct hfs_image *img = NULL;
    struct hfs_reader *reader;
    struct hfs_error err = {{0}};
    struct hfs_info info;
    const char *path;
    bool good = true;
    fuzz_file(data, size, &path);
    if (hfs_image_open(path, &img, &err) < 0)
        return FUZZ_REFUSE;
    hfs_image_info(img, &info);
    FUZZ_CHECK(hfs_reader_new(img, fuzz_below(&r, 4 << 20), 1 + (unsigned)fuzz_below(&r, 2),
                              &reader) == 0);
    for (uint32_t n = 0, files = 0; n < info.inodes && files < MOST_FILES; n++, files++)
        good = read_file(img, reader, n, &r) && good;
    hfs_reader_free(reader);
    hfs_image_close(img);
    return good ? FUZZ_ACCEPT : FUZZ_DAMAGE;
}
