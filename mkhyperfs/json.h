/* Reading JSON by jansson, where memory may be short.
 *
 * jansson (2.14) goes on when its buffer of a string cannot grow, with a character less: a key is
 * then another key. So its allocations are watched, and a text during which one failed is no
 * text at all. Any thread.
 */
#ifndef HYPERFS_MKHYPERFS_JSON_H
#define HYPERFS_MKHYPERFS_JSON_H

#include <jansson.h>

/* json_load_callback. -EBADMSG: it is no JSON, *e says why; -ENOMEM. The caller frees *out, NULL on
 * error, by json_decref. */
int mk_json_load(json_load_callback_t give, void *ctx, size_t flags, json_t **out, json_error_t *e);

#endif
