/* Records, their fields, and the words that change them. */
#include <string.h>

#include "codec/bytes.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image_parts.h"

/* ---- fields ---- */

#define F(type, field)                                                                             \
    {                                                                                              \
#field, offsetof(struct hfs_disk_##type, field),                                           \
            sizeof(((struct hfs_disk_##type *)0)->field)                                           \
    }

static const struct fz_field super_fields[] = {
    F(super, magic),       F(super, version),
    F(super, size),        F(super, incompat),
    F(super, compat),      F(super, image_size),
    F(super, data_end),    F(super, dir_offset),
    F(super, dir_count),   F(super, reserved0),
    F(super, block_count), F(super, digest_kind),
    F(super, reserved1),   {"digest", offsetof(struct hfs_disk_super, digest), 8},
};
static const struct fz_field section_fields[] = {
    F(section, type),        F(section, flags),    F(section, packing),  F(section, offset),
    F(section, stored_size), F(section, raw_size), F(section, checksum),
};
static const struct fz_field leaf_fields[] = {F(leaf, offset)};
static const struct fz_field block_fields[] = {F(block, size), F(block, content)};
static const struct fz_field inode_fields[] = {
    F(inode, mode),  F(inode, uid),    F(inode, gid),        F(inode, nlink),
    F(inode, size),  F(inode, mtime),  F(inode, mtime_nsec), F(inode, count),
    F(inode, first), F(inode, parent), F(inode, reserved),
};
static const struct fz_field dirent_fields[] = {F(dirent, name), F(dirent, name_len),
                                                F(dirent, reserved), F(dirent, inode)};
static const struct fz_field segment_fields[] = {
    F(segment, file_offset), F(segment, length),    F(segment, first_block), F(segment, code),
    F(segment, kind),        F(segment, reserved0), F(segment, reserved1),
};
static const struct fz_field tensor_fields[] = {
    F(tensor, length), F(tensor, inode),  F(tensor, segment),  F(tensor, elements),
    F(tensor, exact),  F(tensor, stored), F(tensor, sqnr),     F(tensor, max_error),
    F(tensor, dtype),  F(tensor, rank),   F(tensor, name_len), {"dim", 64, 8},
    {"dim1", 72, 8},
};
/* The record's header, then the body that codec/code.c reads. */
static const struct fz_field code_fields[] = {
    F(record, type),     F(record, reserved), F(record, length),  {"dtype", 8, 2},
    {"nu", 10, 1},       {"split", 11, 1},    {"g0", 12, 2},      {"g1", 14, 2},
    {"points", 16, 4},   {"winding", 20, 4},  {"b1x", 24, 4},     {"b1y", 28, 4},
    {"b2x", 32, 4},      {"b2y", 36, 4},      {"npoints", 40, 4}, {"mantissa", 44, 2},
    {"exponent", 46, 2}, {"order", 48, 2},    {"classes", 50, 2}, {"zero_map", 52, 1},
    {"pad", 53, 1},
};
static const struct fz_field index_fields[] = {{"checksum", 0, 8}};

#define KIND(name, place, type, size, f)                                                           \
    {                                                                                              \
        name, place, type, size, f, sizeof f / sizeof *f                                           \
    }
const struct fz_kind fz_kinds[] = {
    KIND("inodes", FZ_SECTION, HFS_SEC_INODES, sizeof(struct hfs_disk_inode), inode_fields),
    KIND("dirents", FZ_SECTION, HFS_SEC_DIRENTS, sizeof(struct hfs_disk_dirent), dirent_fields),
    KIND("segments", FZ_SECTION, HFS_SEC_SEGMENTS, sizeof(struct hfs_disk_segment), segment_fields),
    KIND("codes", FZ_SECTION, HFS_SEC_CODES, 0, code_fields),
    KIND("tensors", FZ_SECTION, HFS_SEC_TENSORS, 0, tensor_fields),
    KIND("index", FZ_SECTION, HFS_SEC_INDEX, 8, index_fields),
    KIND("leaf", FZ_LEAF, 0, sizeof(struct hfs_disk_leaf), leaf_fields),
    KIND("block", FZ_BLOCK, 0, sizeof(struct hfs_disk_block), block_fields),
    KIND("super", FZ_SUPER, 0, sizeof(struct hfs_disk_super), super_fields),
    KIND("directory", FZ_DIRECTORY, 0, sizeof(struct hfs_disk_section), section_fields),
};
const unsigned fz_nkinds = sizeof fz_kinds / sizeof *fz_kinds;

uint64_t fz_load(const uint8_t *p, unsigned width)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < width; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

void fz_store(uint8_t *p, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

/* ---- records ---- */

struct fz_part *fz_part_of(struct fz_image *img, const struct fz_kind *kind)
{
    switch (kind->place) {
    case FZ_LEAF:
    case FZ_BLOCK:
        return &img->leaves;
    case FZ_SECTION:
        return fz_section(img, kind->type);
    default:
        return NULL;
    }
}

/* Codes and tensor records tell their length. */
static size_t told_length(const struct fz_kind *kind, const uint8_t *p, size_t left)
{
    if (left < 8)
        return 0;
    uint64_t n = kind->type == HFS_SEC_CODES ? 8 + (uint64_t)load32(p + 4) : load32(p);
    return n < 8 || n > left ? 0 : (size_t)n;
}

bool fz_record(struct fz_image *img, const struct fz_kind *kind, size_t n, size_t *at, size_t *len)
{
    const struct fz_part *part = fz_part_of(img, kind);
    size_t full = sizeof(struct hfs_disk_leaf) + HFS_LEAF_BLOCKS * sizeof(struct hfs_disk_block);
    *len = kind->size;
    *at = n * kind->size;
    if (kind->place == FZ_SUPER || kind->place == FZ_DIRECTORY)
        return n < (kind->place == FZ_SUPER ? 1 : img->nsections);
    if (!part)
        return false;
    if (kind->place == FZ_LEAF)
        *at = n * full;
    else if (kind->place == FZ_BLOCK)
        *at = n / HFS_LEAF_BLOCKS * full + sizeof(struct hfs_disk_leaf) +
              n % HFS_LEAF_BLOCKS * kind->size;
    else if (kind->size == 0)
        for (size_t i = 0; i <= n; i++) {
            *at = i ? *at + *len : 0;
            *len = told_length(kind, part->bytes + *at, part->len - *at);
            if (*len == 0)
                return false;
        }
    return *at <= part->len && *len <= part->len - *at;
}

size_t fz_records(struct fz_image *img, const struct fz_kind *kind)
{
    size_t n = 0, at, len;
    while (fz_record(img, kind, n, &at, &len))
        n++;
    return n;
}

bool fz_set(struct fz_image *img, const struct fz_kind *kind, size_t n, const struct fz_field *f,
            uint64_t value)
{
    struct fz_part *part = fz_part_of(img, kind);
    size_t at, len;
    if (!fz_record(img, kind, n, &at, &len) || f->at + f->width > len)
        return false;
    if (part) {
        fz_store(part->bytes + at + f->at, f->width, value);
        return true;
    }
    if (img->nlate == FZ_LATE)
        return false;
    img->late[img->nlate++] =
        (struct fz_late){kind->place == FZ_DIRECTORY, at + f->at, f->width, value};
    return true;
}

/* ---- words ---- */

static const struct {
    const char *name;
    unsigned type;
} byte_parts[] = {
    {"meta", HFS_SEC_META},   {"inodes", HFS_SEC_INODES},     {"dirents", HFS_SEC_DIRENTS},
    {"names", HFS_SEC_NAMES}, {"segments", HFS_SEC_SEGMENTS}, {"codes", HFS_SEC_CODES},
    {"index", HFS_SEC_INDEX}, {"tensors", HFS_SEC_TENSORS},   {"digest", HFS_SEC_DIGEST},
};

static bool is_word(const char *word, const char *end, const char *name)
{
    return strlen(name) == (size_t)(end - word) && memcmp(word, name, strlen(name)) == 0;
}

static struct fz_part *part_named(struct fz_image *img, const char *word, const char *end)
{
    if (is_word(word, end, "blocks"))
        return &img->blocks;
    if (is_word(word, end, "leaves"))
        return &img->leaves;
    for (size_t i = 0; i < sizeof byte_parts / sizeof *byte_parts; i++)
        if (is_word(word, end, byte_parts[i].name))
            return fz_section(img, byte_parts[i].type);
    return NULL;
}

/* Bytes from hexadecimal digits; false if it is none. *bytes is malloc'd. */
static bool hex(const char *text, uint8_t **bytes, size_t *len)
{
    size_t n = strlen(text);
    *len = n / 2;
    *bytes = fuzz_alloc(*len);
    bool good = n % 2 == 0 && strspn(text, "0123456789abcdefABCDEF") == n;
    for (size_t i = 0; good && i < *len; i++) {
        char two[3] = {text[2 * i], text[2 * i + 1], 0};
        (*bytes)[i] = (uint8_t)strtoul(two, NULL, 16);
    }
    if (!good)
        free(*bytes);
    return good;
}

/* at@OFFSET=HEX, +=HEX and -=N on one part; `rest` begins with the sign. */
static const char *edit_bytes(struct fz_part *part, const char *rest)
{
    uint8_t *bytes;
    size_t len;
    char *end;
    if (strncmp(rest, "-=", 2) == 0) {
        size_t n = strtoull(rest + 2, &end, 0);
        if (*end || n > part->len)
            return "cannot be cut by that much";
        fz_resize(part, part->len - n);
        return NULL;
    }
    if (strncmp(rest, "+=", 2) == 0) {
        if (!hex(rest + 2, &bytes, &len))
            return "has no bytes in hexadecimal";
        fz_replace(part, part->len, 0, bytes, len);
        free(bytes);
        return NULL;
    }
    long long at = strtoll(rest + 1, &end, 0);
    size_t from = at < 0 ? part->len + (size_t)at : (size_t)at;
    if (*end != '=' || !hex(end + 1, &bytes, &len))
        return "has no bytes in hexadecimal";
    bool inside = from <= part->len && len <= part->len - from;
    if (inside && len)
        memcpy(part->bytes + from, bytes, len);
    free(bytes);
    return inside ? NULL : "is outside of its part";
}

static const char *set_name(struct fz_image *img, size_t entry, const char *digits)
{
    struct fz_part *names = fz_section(img, HFS_SEC_NAMES);
    struct fz_part *dirents = fz_section(img, HFS_SEC_DIRENTS);
    uint8_t *bytes;
    size_t len;
    if (!names || !dirents || entry >= dirents->len / sizeof(struct hfs_disk_dirent))
        return "names no entry";
    if (!hex(digits, &bytes, &len))
        return "has no bytes in hexadecimal";
    struct hfs_disk_dirent *d = (struct hfs_disk_dirent *)dirents->bytes + entry;
    store64(d->name, names->len);
    store16(d->name_len, (uint16_t)len);
    fz_replace(names, names->len, 0, bytes, len);
    free(bytes);
    return NULL;
}

static const char *set_section(struct fz_image *img, const char *what, const char *name)
{
    struct fz_part *part = part_named(img, name, name + strlen(name));
    if (!part || part == &img->blocks || part == &img->leaves)
        return "names no section";
    if (strncmp(what, "pack:", 5) == 0)
        part->packing = HFS_PACK_ZSTD;
    else if (strncmp(what, "plain:", 6) == 0)
        part->packing = HFS_PACK_NONE;
    else {
        free(part->bytes);
        memmove(part, part + 1, sizeof *part * (size_t)(&img->section[--img->nsections] - part));
    }
    return NULL;
}

static const char *set_field(struct fz_image *img, const struct fz_kind *kind, const char *rest)
{
    char *end = (char *)rest;
    size_t n = 0;
    if (*rest == '[')
        n = strtoull(rest + 1, &end, 0), end += *end == ']';
    const char *field = end + 1, *equals = strchr(end, '=');
    if (*end != '.' || !equals)
        return "has no field and value";
    for (unsigned i = 0; i < kind->nfields; i++)
        if (is_word(field, equals, kind->fields[i].name)) {
            uint64_t value = strtoull(equals + 1, &end, 0); /* -1 is UINT64_MAX */
            if (*end || end == equals + 1)
                return "has no number";
            return fz_set(img, kind, n, &kind->fields[i], value) ? NULL : "names no record";
        }
    return "names no field";
}

const char *fz_edit(struct fz_image *img, const char *word)
{
    const char *end = word + strcspn(word, "[.@+-:");
    if (*end == ':')
        return set_section(img, word, end + 1);
    if (*end == '@' || *end == '+' || *end == '-') {
        struct fz_part *part = part_named(img, word, end);
        img->keep_digest = img->keep_digest || (part && part->type == HFS_SEC_DIGEST);
        return part ? edit_bytes(part, end) : "names no part";
    }
    if (is_word(word, end, "name") && *end == '[') {
        char *rest;
        size_t entry = strtoull(end + 1, &rest, 0);
        return strncmp(rest, "]=", 2) == 0 ? set_name(img, entry, rest + 2) : "has no name";
    }
    for (unsigned i = 0; i < fz_nkinds; i++)
        if (is_word(word, end, fz_kinds[i].name))
            return set_field(img, &fz_kinds[i], end);
    return "names no part";
}

bool fz_edit_bytes(uint8_t **data, size_t *size, const char *word)
{
    struct fz_part whole = {.bytes = *data, .len = *size};
    if (strncmp(word, "image", 5) != 0 || edit_bytes(&whole, word + 5))
        return false;
    *data = whole.bytes;
    *size = whole.len;
    return true;
}
