/* The config.json beside a model's weights, as transformers writes it: what tools need of it.
 *
 * A file comes from anywhere: at most MK_MAX_CONFIG bytes of a regular file are read, and whatever
 * is missing, of another type or out of range is as if it were not there. Any thread.
 */
#ifndef HYPERFS_MKHYPERFS_CONFIG_H
#define HYPERFS_MKHYPERFS_CONFIG_H

#include <jansson.h>
#include <stdbool.h>

#include "fs/error.h"

enum { MK_MAX_CONFIG = 16 << 20, MK_MAX_LAYERS = 100000 };

struct mk_config {
    int tied;             /* tie_word_embeddings: 1, 0, -1 not said */
    bool predicts_tokens; /* by its architecture, or none is named */
    int layers;           /* 1 .. MK_MAX_LAYERS; 0 not said */
};

/* A small file's JSON: NULL if there is no such file or it is none. A file that is there and cannot
 * be read, or no memory, is an error: it might say how the weights must be stored. The caller frees
 * *out by json_decref. */
int mk_config_load(const char *path, json_t **out, struct hfs_error *err);

/* Whether there is such a file; an error as above where that cannot be told. */
int mk_config_exists(const char *path, bool *exists, struct hfs_error *err);

/* Of the config.json beside root/path. */
int mk_config_read(const char *root, const char *path, struct mk_config *out,
                   struct hfs_error *err);

/* root/DIRECTORY/config.json, where path is DIRECTORY/FILE; the caller frees it. NULL: no memory.
 */
char *mk_config_path(const char *root, const char *path);

#endif
