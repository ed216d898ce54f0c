#include "fs/digest.h"

#include <string.h>

void hfs_hash_of(const void *data, size_t len, struct hfs_hash *out)
{
    struct sha256_ctx sha;
    sha256_init(&sha);
    sha256_update(&sha, len, data);
    sha256_digest(&sha, sizeof out->byte, out->byte);
}

bool hfs_hash_equal(const struct hfs_hash *a, const struct hfs_hash *b)
{
    return memcmp(a->byte, b->byte, sizeof a->byte) == 0;
}

static int digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

bool hfs_hash_parse(const char *text, struct hfs_hash *out)
{
    static const char prefix[] = "sha256:";
    if (strncmp(text, prefix, sizeof prefix - 1) == 0)
        text += sizeof prefix - 1;
    if (strlen(text) != HFS_HASH_TEXT - 1)
        return false;
    for (size_t i = 0; i < sizeof out->byte; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out->byte[i] = (uint8_t)(16 * high + low);
    }
    return true;
}

const char *hfs_hash_print(char text[HFS_HASH_TEXT], const struct hfs_hash *h)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof h->byte; i++) {
        text[2 * i] = digits[h->byte[i] >> 4];
        text[2 * i + 1] = digits[h->byte[i] & 15];
    }
    text[HFS_HASH_TEXT - 1] = 0;
    return text;
}

void hfs_digest_leaf(const uint8_t *leaf, size_t len, const struct hfs_hash *blocks, size_t count,
                     struct hfs_hash *out)
{
    struct sha256_ctx sha;
    sha256_init(&sha);
    sha256_update(&sha, len, leaf);
    sha256_update(&sha, count * sizeof *blocks, (const uint8_t *)blocks);
    sha256_digest(&sha, sizeof out->byte, out->byte);
}

void hfs_digest_root_begin(struct hfs_digest_root *r, const struct hfs_disk_super *super)
{
    struct hfs_disk_super s = *super;
    memset(s.digest, 0, sizeof s.digest);
    memset(s.checksum, 0, sizeof s.checksum);
    sha256_init(&r->sha);
    hfs_digest_root_add(r, HFS_DIGEST_TAG, sizeof HFS_DIGEST_TAG - 1);
    hfs_digest_root_add(r, &s, sizeof s);
}

void hfs_digest_root_add(struct hfs_digest_root *r, const void *data, size_t len)
{
    sha256_update(&r->sha, len, data);
}

void hfs_digest_root_end(struct hfs_digest_root *r, struct hfs_hash *out)
{
    sha256_digest(&r->sha, sizeof out->byte, out->byte);
}
