/* An image of a model of 70 GB for `make bench-read`, made in seconds: synth IMAGE
 *
 * One file model.safetensors of TENSORS BF16 matrices, each with a trajectory code of its own (its
 * step differs), as in an image of a real model. The first block of each tensor is of Gaussian
 * weights at about 4 bits a weight; all others are one block of zeros, coded once and written again
 * and again (the same code's zero map makes it tens of bytes). So the tables and the index are as
 * long as those of a real image of that size, and reading the beginning of a tensor costs what
 * it does there; only the data are short. Prints the offset of the last tensor's data.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codec/bytes.h"
#include "fs/writer.h"

enum { TENSORS = 1000, ROWS = 4096, COLUMNS = 8544, HEADER_ROOM = 256 << 10 }; /* 70 MB each */
static const uint64_t TENSOR_BYTES = (uint64_t)ROWS * COLUMNS * 2;

struct synth {
    struct hfs_writer *w;
    struct hc_work *work;
    uint8_t *weights, *zeros, *coded;
    size_t block;
};

static struct hfs_error problem;

static void check(int result)
{
    if (result >= 0)
        return;
    fprintf(stderr, "synth: %s\n", problem.text[0] ? problem.text : strerror(-result));
    exit(1);
}

/* A Gaussian number by the sum of twelve uniform ones. */
static float gaussian(uint64_t *state)
{
    float sum = -6;
    for (int i = 0; i < 12; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) * 0x1p-24f;
    }
    return sum;
}

static void make_weights(uint8_t *raw, size_t len)
{
    uint64_t state = 1;
    for (size_t i = 0; i < len; i += 2) {
        float value = 0.02f * gaussian(&state);
        uint32_t bits;
        memcpy(&bits, &value, 4);
        store16(raw + i, (uint16_t)(bits >> 16));
    }
}

/* The code that mkhyperfs would choose at 23.7 dB (4 bits) for weights of which some are zero. */
static struct hc_code choose(const struct synth *s)
{
    const struct hc_target target = {23.7, HC_DEFAULT_NU, HC_DEFAULT_NU_SMALL};
    const uint8_t *sample[2] = {s->weights, s->zeros};
    const size_t len[2] = {s->block, s->block};
    struct hc_code code;
    struct hc_scan *scan = hc_scan_new(HC_BF16);
    if (!scan) {
        fprintf(stderr, "synth: out of memory\n");
        exit(1);
    }
    hc_scan_block(scan, s->weights, s->block);
    hc_scan_block(scan, s->zeros, s->block);
    check(hc_choose(scan, &target, s->work, sample, len, 2, &code));
    hc_scan_free(scan);
    if (code.type != HC_CODE_TRAJECTORY || !code.t.zero_map) {
        fprintf(stderr, "synth: no trajectory code with a zero map was chosen\n");
        exit(1);
    }
    return code;
}

static void write_block(struct synth *s, const struct hc_encoder *e, const uint8_t *raw, size_t len,
                        uint64_t times)
{
    size_t size;
    uint8_t *decoded = malloc(len);
    if (!decoded)
        check(-ENOMEM);
    check(hc_encode(e, s->work, raw, len, s->coded, &size, decoded, NULL));
    uint64_t content = XXH3_64bits(decoded, len);
    for (; times > 0; times--)
        check(hfs_writer_block(s->w, s->coded, (uint32_t)size, content, &problem));
    free(decoded);
}

static void write_tensor(struct synth *s, struct hc_code code, unsigned number, uint64_t offset)
{
    struct hc_encoder *e;
    uint32_t record;
    uint64_t first = hfs_writer_blocks(s->w), segment;
    uint8_t dims[16];
    char name[64];
    code.t.step.mantissa = (uint16_t)(2048 + number);
    check(hc_encoder_new(&code, &e));
    check(hfs_writer_code(s->w, &code, &record, &problem));
    write_block(s, e, s->weights, s->block, 1);
    write_block(s, e, s->zeros, s->block, TENSOR_BYTES / s->block - 1);
    if (TENSOR_BYTES % s->block)
        write_block(s, e, s->zeros, TENSOR_BYTES % s->block, 1);
    hc_encoder_free(e);
    const struct hfs_segment seg = {.file_offset = offset,
                                    .length = TENSOR_BYTES,
                                    .first_block = first,
                                    .code = record,
                                    .kind = HFS_SEG_CODED};
    check(hfs_writer_segment(s->w, &seg, &segment, &problem));
    store64(dims, ROWS);
    store64(dims + 8, COLUMNS);
    snprintf(name, sizeof name, "layers.%u.weight", number);
    const struct hfs_tensor t = {
        .inode = 1,
        .segment = segment,
        .elements = TENSOR_BYTES / 2,
        .stored = hfs_writer_range_bytes(s->w, first, hfs_writer_blocks(s->w) - first),
        .sqnr_db = 23.7,
        .max_error = 0.01,
        .dtype = HC_BF16,
        .rank = 2,
        .dims = dims,
        .name = name,
        .name_len = (uint32_t)strlen(name)};
    check(hfs_writer_tensor(s->w, &t, &problem));
}

/* The safetensors header, as a segment of its own; returns its length. */
static uint64_t write_header(struct synth *s)
{
    char *text = malloc(HEADER_ROOM);
    struct hc_code code = hc_lossless(HC_DTYPE_NONE, 3);
    struct hc_encoder *e;
    uint32_t record;
    uint64_t segment;
    if (!text)
        check(-ENOMEM);
    size_t len = 8;
    for (unsigned i = 0; i < TENSORS; i++)
        len += (size_t)snprintf(text + len, HEADER_ROOM - len,
                                "%c\"layers.%u.weight\":{\"dtype\":\"BF16\",\"shape\":[%d,%d],"
                                "\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                                i == 0 ? '{' : ',', i, ROWS, COLUMNS, i * TENSOR_BYTES,
                                (i + 1) * TENSOR_BYTES);
    text[len++] = '}';
    while (len % 8)
        text[len++] = ' ';
    store64((uint8_t *)text, len - 8);
    check(hfs_writer_code(s->w, &code, &record, &problem));
    check(hc_encoder_new(&code, &e));
    write_block(s, e, (const uint8_t *)text, len, 1);
    hc_encoder_free(e);
    const struct hfs_segment seg = {.length = len, .code = record, .kind = HFS_SEG_CODED};
    check(hfs_writer_segment(s->w, &seg, &segment, &problem));
    free(text);
    return len;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "Usage: synth IMAGE\n");
        return 2;
    }
    struct synth s = {.work = hc_work_new(hc_isa_best()), .block = 4 * HC_TRAJECTORY_PAIRS};
    s.weights = malloc(s.block);
    s.zeros = calloc(1, s.block);
    s.coded = malloc(HC_MAX_BLOCK_BYTES + (64 << 10));
    if (!s.work || !s.weights || !s.zeros || !s.coded)
        check(-ENOMEM);
    make_weights(s.weights, s.block);
    check(hfs_writer_create(argv[1], true, NULL, NULL, &s.w, &problem));
    const struct hc_code code = choose(&s);
    uint64_t header = write_header(&s), offset = header;
    for (unsigned i = 0; i < TENSORS; i++, offset += TENSOR_BYTES)
        write_tensor(&s, code, i, offset);
    const struct hfs_inode root = {.mode = S_IFDIR | 0755};
    const struct hfs_inode file = {.mode = S_IFREG | 0644, .size = offset, .count = TENSORS + 1};
    const struct hfs_dirent entry = {"model.safetensors", 17, 1};
    uint32_t number;
    check(hfs_writer_inode(s.w, &root, NULL, &number, &problem));
    check(hfs_writer_inode(s.w, &file, NULL, &number, &problem));
    check(hfs_writer_entries(s.w, 0, &entry, 1, &problem));
    check(hfs_writer_meta(s.w, "writer", "bench/synth.c", &problem));
    check(hfs_writer_meta(s.w, "options", "", &problem));
    check(hfs_writer_finish(s.w, NULL, &problem));
    check(hfs_writer_commit(s.w, &problem));
    printf("%" PRIu64 "\n", offset - TENSOR_BYTES);
    hc_work_free(s.work);
    free(s.weights);
    free(s.zeros);
    free(s.coded);
    return 0;
}
