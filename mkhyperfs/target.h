/* Meeting a size: the common level of quality for --bits, --ratio and --target-size.
 *
 * Every tensor's size as a function of its quality is forecast from its histogram
 * (hc_predict_bits) and corrected by what its sample blocks really take, or by what it took when it
 * is coded. The common level is the one at which the sum meets the goal, a little below it. While
 * tensors are coded, the level of those that are still to come is set again at a few fixed places
 * in the list, so that errors of the forecast do not add up; nothing depends on threads. At the end
 * the size is known exactly; if it misses the goal (it is above, or more than MK_NEAR below), the
 * last tensors are coded again.
 *
 * One thread. The plan of the source outlives the target.
 */
#ifndef HYPERFS_MKHYPERFS_TARGET_H
#define HYPERFS_MKHYPERFS_TARGET_H

#include "fs/digest.h"
#include "fs/format.h"
#include "mkhyperfs/plan.h"

#define MK_NEAR 0.01

/* Bytes of the image for each block: its entry in the index, and its hash. */
#define MK_BLOCK_OVERHEAD (sizeof(struct hfs_disk_block) + sizeof(struct hfs_hash))

struct mk_target;

/* Chooses all codes so that the goal is met, if it can be; that it cannot is an error
 * with a sentence, or, where even the best quality is smaller, a message. */
int mk_target_plan(const struct mk_options *opt, struct mk_source *src, struct mk_target **out,
                   struct hfs_error *err);
void mk_target_free(struct mk_target *t); /* NULL is allowed */

/* The items in the order in which they are to be coded: first those that lose nothing, as only the
 * others can make good for what they take. */
struct mk_item **mk_target_items(const struct mk_target *t, size_t *count);

/* Whether the items from number `next` on shall have their level set again, once all before it are
 * coded; and does that. */
bool mk_target_is_stop(const struct mk_target *t, size_t next);
void mk_target_steer(struct mk_target *t, size_t next);

/* Once an image of image_bytes bytes is finished: 1 if the goal is met, or is not going to be met
 * better; 0 if the items from number *from on are to be coded again, for which their codes are
 * set. -ERANGE: it was not met. */
int mk_target_met(struct mk_target *t, uint64_t image_bytes, size_t *from, struct hfs_error *err);

/* Bytes that the image will have besides the items, for --dry-run. */
uint64_t mk_target_tables(const struct mk_source *src);

#endif
