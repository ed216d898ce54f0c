#include "tests/fuzz/image_mutate.h"

#include <string.h>

#include "codec/bytes.h"
#include "tests/fuzz/codecs.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image_parts.h"

enum { KNOWN = 12, MOST_RECORDS = 4096, MOST_SECTION = 64 << 10 };

/* Counts and sizes of the image: what its numbers are compared with. */
static size_t known_numbers(struct fz_image *img, uint64_t known[KNOWN])
{
    size_t n = 0;
    for (unsigned i = 0; i < fz_nkinds && n < KNOWN - 4; i++)
        known[n++] = fz_records(img, &fz_kinds[i]);
    const struct fz_part *names = fz_section(img, HFS_SEC_NAMES);
    known[n++] = names ? names->len : 0;
    known[n++] = load64(img->super.data_end);
    known[n++] = load64(img->super.image_size);
    known[n++] = img->blocks.len;
    return n;
}

static void change_field(struct fz_image *img, struct fuzz_random *r)
{
    uint64_t known[KNOWN], old = 0;
    const struct fz_kind *kind = &fz_kinds[fuzz_below(r, fz_nkinds)];
    const struct fz_field *f = &kind->fields[fuzz_below(r, kind->nfields)];
    struct fz_part *part = fz_part_of(img, kind);
    size_t count = fz_records(img, kind), at, len;
    if (count == 0)
        return;
    size_t n = fuzz_below(r, count), other = fuzz_below(r, count);
    if (part && fz_record(img, kind, n, &at, &len) && f->at + f->width <= len)
        old = fz_load(part->bytes + at + f->at, f->width);
    size_t known_count = known_numbers(img, known);
    uint64_t value = fuzz_value(r, old, f->width, known, known_count);
    if (part && fuzz_below(r, 6) == 0 && fz_record(img, kind, other, &at, &len) &&
        f->at + f->width <= len)
        value = fz_load(part->bytes + at + f->at, f->width);
    fz_set(img, kind, n, f, value);
}

/* Doubles, removes or swaps records. */
static void change_records(struct fz_image *img, struct fuzz_random *r)
{
    const struct fz_kind *kind = &fz_kinds[fuzz_below(r, fz_nkinds)];
    struct fz_part *part = fz_part_of(img, kind);
    size_t count = fz_records(img, kind), a_at, a_len, b_at, b_len;
    uint8_t a[512];
    if (!part || count == 0 || kind->place == FZ_LEAF ||
        !fz_record(img, kind, fuzz_below(r, count), &a_at, &a_len) ||
        !fz_record(img, kind, fuzz_below(r, count), &b_at, &b_len) || a_len > sizeof a)
        return;
    memcpy(a, part->bytes + a_at, a_len);
    switch (fuzz_below(r, 3)) {
    case 0:
        if (count < MOST_RECORDS)
            fz_replace(part, b_at, 0, a, a_len);
        break;
    case 1:
        fz_replace(part, a_at, a_len, NULL, 0);
        break;
    default:
        if (a_len == b_len) {
            memcpy(part->bytes + a_at, part->bytes + b_at, a_len);
            memcpy(part->bytes + b_at, a, a_len);
        }
    }
}

static struct fz_part *any_section(struct fz_image *img, struct fuzz_random *r)
{
    return img->nsections ? &img->section[fuzz_below(r, img->nsections)] : NULL;
}

static void mutate_bytes(struct fz_part *part, size_t most)
{
    size_t len = part->len;
    fz_resize(part, most > len ? most : len);
    part->len = LLVMFuzzerMutate(part->bytes, len, most > len ? most : len);
}

static void change_section(struct fz_image *img, struct fuzz_random *r)
{
    struct fz_part *x = any_section(img, r), *y = any_section(img, r);
    if (!x)
        return;
    switch (fuzz_below(r, 6)) {
    case 0:
        x->packing ^= HFS_PACK_ZSTD;
        break;
    case 1: {
        uint8_t *bytes = x->bytes;
        size_t len = x->len;
        x->bytes = y->bytes, x->len = y->len;
        y->bytes = bytes, y->len = len;
        break;
    }
    case 2:
        if (img->nsections > 1 && fuzz_below(r, 4) == 0) {
            free(x->bytes);
            memmove(x, x + 1, sizeof *x * (size_t)(&img->section[--img->nsections] - x));
        }
        break;
    case 3:
        if (img->nsections < FZ_SECTIONS) { /* a type that readers may not know */
            struct fz_part *last = &img->section[img->nsections++];
            *last = (struct fz_part){.type = HFS_SEC_DIGEST + (uint32_t)fuzz_below(r, 3),
                                     .flags = (uint16_t)fuzz_below(r, 3),
                                     .packing = (uint16_t)fuzz_below(r, 3)};
            fz_resize(last, fuzz_below(r, 40));
        }
        break;
    default:
        mutate_bytes(x, x->len + 64 < MOST_SECTION ? x->len + 64 : x->len);
    }
}

/* An entry gets a name of its own at the end of the names. */
static void change_name(struct fz_image *img, struct fuzz_random *r)
{
    static const char *const names[] = {".", "..", "a/b", "", "\xff\xfe", "\xc3\x28", " ", "..."};
    struct fz_part *dirents = fz_section(img, HFS_SEC_DIRENTS);
    struct fz_part *all = fz_section(img, HFS_SEC_NAMES);
    uint8_t name[300];
    size_t len = fuzz_below(r, 260);
    if (!dirents || !all || dirents->len < sizeof(struct hfs_disk_dirent) ||
        all->len > MOST_SECTION)
        return;
    size_t n = fuzz_below(r, dirents->len / sizeof(struct hfs_disk_dirent));
    const char *fixed = names[fuzz_below(r, sizeof names / sizeof *names)];
    if (fuzz_below(r, 2)) {
        len = strlen(fixed);
        memcpy(name, fixed, len);
    } else {
        memset(name, 'x', len);
        if (len)
            name[fuzz_below(r, len)] = (uint8_t)fuzz_next(r);
    }
    struct hfs_disk_dirent *d = (struct hfs_disk_dirent *)dirents->bytes + n;
    store64(d->name, all->len);
    store16(d->name_len, (uint16_t)len);
    fz_replace(all, all->len, 0, name, len);
}

/* A block's stored bytes; its size follows them, and what comes behind moves. */
static void change_block(struct fz_image *img, struct fuzz_random *r)
{
    static const struct fz_kind *blocks, *leaves;
    for (unsigned i = 0; i < fz_nkinds; i++) {
        blocks = fz_kinds[i].place == FZ_BLOCK ? &fz_kinds[i] : blocks;
        leaves = fz_kinds[i].place == FZ_LEAF ? &fz_kinds[i] : leaves;
    }
    size_t count = fz_records(img, blocks), at, len, from = 0, size = 0;
    if (count == 0 || fz_records(img, leaves) != 1)
        return;
    size_t n = fuzz_below(r, count);
    for (size_t i = 0; i <= n; i++) {
        from += size;
        fz_record(img, blocks, i, &at, &len);
        size = load32(img->leaves.bytes + at);
        if (from > img->blocks.len || size > img->blocks.len - from)
            return;
    }
    struct fz_part one = {0};
    fz_replace(&one, 0, 0, img->blocks.bytes + from, size);
    mutate_bytes(&one, size + 64);
    fz_replace(&img->blocks, from, size, one.bytes, one.len);
    store32(img->leaves.bytes + at, (uint32_t)one.len);
    free(one.bytes);
}

/* A trajectory code with another lattice that is one, and other numbers that go together. */
static void change_lattice(struct fz_image *img, struct fuzz_random *r)
{
    struct fz_part *codes = fz_section(img, HFS_SEC_CODES);
    const struct fz_kind *kind = NULL;
    struct hc_code code;
    size_t at, len;
    for (unsigned i = 0; i < fz_nkinds; i++)
        kind = fz_kinds[i].type == HFS_SEC_CODES ? &fz_kinds[i] : kind;
    size_t count = fz_records(img, kind);
    if (!codes || count == 0)
        return;
    size_t n = fuzz_below(r, count);
    uint8_t record[8 + HC_CODE_RECORD_MAX] = {0};
    fz_random_trajectory(r, &code);
    size_t body = hc_code_store(&code, record + 8);
    store16(record, HC_CODE_TRAJECTORY);
    store32(record + 4, (uint32_t)body);
    fz_record(img, kind, n, &at, &len);
    fz_replace(codes, at, len, record, 8 + body);
}

static void change(struct fz_image *img, struct fuzz_random *r)
{
    img->keep_digest = img->keep_digest || fuzz_below(r, 16) == 0;
    switch (fuzz_below(r, 16)) {
    case 0:
    case 1:
        change_records(img, r);
        break;
    case 2:
    case 3:
        change_section(img, r);
        break;
    case 4:
        change_name(img, r);
        break;
    case 5:
    case 6:
    case 7:
        change_block(img, r);
        break;
    case 8:
        change_lattice(img, r);
        break;
    case 9:
        mutate_bytes(fuzz_below(r, 2) ? &img->leaves : &img->blocks, img->blocks.len + 32);
        break;
    default:
        change_field(img, r);
    }
}

/* Puts the parts together into data; 0 if there is no room. */
static size_t store(struct fz_image *img, struct fuzz_random *r, uint8_t *data, size_t room)
{
    size_t size;
    uint8_t *out =
        fuzz_below(r, 3) == 0 ? fz_put_together_whole(img, &size) : fz_put_together(img, &size);
    if (size > room)
        size = 0;
    memcpy(data, out, size);
    free(out);
    return size;
}

size_t fz_mutate_image(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct fuzz_random r = {seed};
    struct fz_image img;
    if (fuzz_below(&r, 16) == 0 || !fz_take_apart(data, size, &img))
        return LLVMFuzzerMutate(data, size, room);
    for (uint64_t n = 1 + fuzz_below(&r, 3); n > 0; n--)
        change(&img, &r);
    size_t changed = store(&img, &r, data, room);
    fz_free(&img);
    return changed ? changed : LLVMFuzzerMutate(data, size, room);
}

size_t fz_cross_images(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                       uint8_t *out, size_t room, unsigned seed)
{
    struct fuzz_random r = {seed};
    struct fz_image x, y;
    if (!fz_take_apart(a, a_size, &x))
        return 0;
    if (!fz_take_apart(b, b_size, &y)) {
        fz_free(&x);
        return 0;
    }
    for (unsigned i = 0; i < y.nsections; i++) {
        struct fz_part *from = &y.section[i], *to = fz_section(&x, from->type);
        if (to && fuzz_below(&r, 2))
            fz_replace(to, 0, to->len, from->bytes, from->len);
    }
    if (fuzz_below(&r, 4) == 0) {
        fz_replace(&x.blocks, 0, x.blocks.len, y.blocks.bytes, y.blocks.len);
        fz_replace(&x.leaves, 0, x.leaves.len, y.leaves.bytes, y.leaves.len);
    }
    size_t size = store(&x, &r, out, room);
    fz_free(&x);
    fz_free(&y);
    return size;
}
