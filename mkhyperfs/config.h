/* The config.json beside a model's weights, as transformers writes it: what tools need of it.
 *
 * A file comes from anywhere: at most MK_MAX_CONFIG bytes of a regular file are read, and whatever
 * is missing, of another type or out of range is as if it were not there. Any thread.
 */
#ifndef HYPERFS_MKHYPERFS_CONFIG_H
#define HYPERFS_MKHYPERFS_CONFIG_H

#include <jansson.h>
#include <stdbool.h>

enum { MK_MAX_CONFIG = 16 << 20, MK_MAX_LAYERS = 100000 };

struct mk_config {
    int tied;             /* tie_word_embeddings: 1, 0, -1 not said */
    bool predicts_tokens; /* by its architecture, or none is named */
    int layers;           /* 1 .. MK_MAX_LAYERS; 0 not said */
};

/* A small file's JSON; NULL if it is none, or cannot be read. The caller frees it by json_decref.
 */
json_t *mk_config_load(const char *path);

/* Of root/DIRECTORY/config.json, where path is DIRECTORY/FILE. -ENOMEM. */
int mk_config_read(const char *root, const char *path, struct mk_config *out);

#endif
