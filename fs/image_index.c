/* Where the blocks of an image lie: leaves of the index, read on first use. */
#include <errno.h>
#include <stdlib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codec/bytes.h"
#include "fs/image_private.h"

/* A leaf from its bytes; every block lies in the data area. */
static int leaf_parse(const struct hfs_image *img, const uint8_t *bytes, struct hfs_leaf *out)
{
    const struct hfs_disk_block *block =
        (const struct hfs_disk_block *)(bytes + sizeof(struct hfs_disk_leaf));
    out->offset = load64(((const struct hfs_disk_leaf *)bytes)->offset);
    if (out->offset < sizeof(struct hfs_disk_super) || out->offset > img->data_end)
        return -EBADMSG;
    uint64_t room = img->data_end - out->offset;
    uint32_t end = 0;
    for (unsigned i = 0; i < out->count; i++) {
        uint32_t size = load32(block[i].size);
        if (size < 1 || size > HFS_MAX_STORED || size > room - end)
            return -EBADMSG;
        out->end[i] = end += size;
        out->checksum[i] = load64(block[i].checksum);
        out->content[i] = load64(block[i].content);
    }
    return 0;
}

int hfs_leaf_load(const struct hfs_image *img, uint64_t number, struct hfs_leaf *out)
{
    uint8_t bytes[HFS_LEAF_BYTES];
    uint64_t rest = img->tables.nblocks - number * HFS_LEAF_BLOCKS;
    out->number = number;
    out->count = rest < HFS_LEAF_BLOCKS ? (unsigned)rest : HFS_LEAF_BLOCKS;
    size_t len = sizeof(struct hfs_disk_leaf) + out->count * sizeof(struct hfs_disk_block);
    int r = hfs_read_at(img->fd, bytes, len, img->data_end + number * HFS_LEAF_BYTES);
    if (r < 0)
        return r;
    if (XXH3_64bits(bytes, len) != load64(img->raw[HFS_SEC_INDEX] + 8 * number))
        return -EBADMSG;
    r = hfs_trust_leaf(img, bytes, len, out);
    return r < 0 ? r : leaf_parse(img, bytes, out);
}

static void leaf_block(const struct hfs_image *img, const struct hfs_leaf *leaf, unsigned i,
                       struct hfs_block *out)
{
    uint32_t start = i ? leaf->end[i - 1] : 0;
    *out = (struct hfs_block){
        .offset = leaf->offset + start,
        .size = leaf->end[i] - start,
        .checksum = leaf->checksum[i],
        .content = leaf->content[i],
    };
    if (img->trust)
        out->hash = leaf->hash[i];
}

int hfs_image_block(struct hfs_image *img, uint64_t number, struct hfs_block *out)
{
    uint64_t want = number / HFS_LEAF_BLOCKS;
    unsigned i = (unsigned)(number % HFS_LEAF_BLOCKS);
    if (number >= img->tables.nblocks)
        return -EINVAL;
    struct hfs_leaf **slot = &img->leaves[want % img->leaf_slots];
    pthread_mutex_lock(&img->leaf_lock);
    bool hit = *slot && (*slot)->number == want;
    if (hit)
        leaf_block(img, *slot, i, out);
    pthread_mutex_unlock(&img->leaf_lock);
    if (hit)
        return 0;

    /* Read without the lock; if another thread reads the same leaf, one of the two is dropped. */
    struct hfs_leaf *leaf = hfs_leaf_new(img);
    if (!leaf)
        return -ENOMEM;
    int r = hfs_leaf_load(img, want, leaf);
    if (r == 0) {
        leaf_block(img, leaf, i, out);
        pthread_mutex_lock(&img->leaf_lock);
        struct hfs_leaf *old = *slot;
        *slot = leaf;
        leaf = old;
        pthread_mutex_unlock(&img->leaf_lock);
    }
    free(leaf);
    return r;
}
