#include "mkhyperfs/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

json_t *mk_config_load(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return NULL;
    struct stat st;
    json_t *top = NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= MK_MAX_CONFIG)
        top = json_loadfd(fd, 0, NULL);
    close(fd);
    return top;
}

/* A key of the top object; or of the part of a model for text and images that writes text. */
static const json_t *get(const json_t *top, const char *key)
{
    static const char *const parts[] = {"text_config", "llm_config", "language_config"};
    const json_t *value = json_object_get(top, key);
    for (size_t i = 0; i < sizeof parts / sizeof *parts && !value; i++)
        value = json_object_get(json_object_get(top, parts[i]), key);
    return value;
}

static int layers_of(const json_t *top)
{
    static const char *const keys[] = {"num_hidden_layers", "n_layer", "num_layers", "n_layers"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *value = get(top, keys[i]);
        json_int_t n = json_integer_value(value);
        if (n >= 1 && n <= MK_MAX_LAYERS)
            return (int)n;
    }
    return 0;
}

/* "LlamaForCausalLM" and "GPT2LMHeadModel" have a head on the tokens; "BertModel" has none. */
static bool predicts_tokens(const json_t *top)
{
    static const char *const marks[] = {"CausalLM", "LMHead", "ConditionalGeneration", "MaskedLM",
                                        "PreTraining"};
    const json_t *list = json_object_get(top, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name)
        return true;
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (strstr(name, marks[i]))
            return true;
    return false;
}

int mk_config_read(const char *root, const char *path, struct mk_config *out)
{
    const char *slash = strrchr(path, '/');
    char *full;
    if (asprintf(&full, "%s/%.*sconfig.json", root, slash ? (int)(slash + 1 - path) : 0, path) < 0)
        return -ENOMEM;
    json_t *top = mk_config_load(full);
    const json_t *tied = get(top, "tie_word_embeddings");
    *out = (struct mk_config){
        .tied = json_is_boolean(tied) ? json_is_true(tied) : -1,
        .predicts_tokens = predicts_tokens(top),
        .layers = layers_of(top),
    };
    json_decref(top);
    free(full);
    return 0;
}
