#include "mkhyperfs/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mkhyperfs/json.h"

/* There is no such file: nothing of that name, a link that leads nowhere, or a socket. */
static bool is_missing(int code)
{
    return code == ENOENT || code == ENOTDIR || code == ELOOP || code == ENXIO;
}

static int unreadable(const char *path, int code, struct hfs_error *err)
{
    char shown[400];
    if (code == ENOMEM)
        return hfs_fail(err, ENOMEM, "out of memory");
    return hfs_fail(
        err, code,
        "%s: cannot be read: %s; make it readable, it may say how the weights are to be stored",
        hfs_printable(shown, sizeof shown, path, (unsigned)strlen(path)), strerror(code));
}

struct text {
    int fd, code; /* errno of a failed read */
    size_t left;  /* until MK_MAX_CONFIG */
};

static size_t give(void *buffer, size_t size, void *ctx)
{
    struct text *t = ctx;
    ssize_t n;
    do
        n = read(t->fd, buffer, size < t->left ? size : t->left);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        t->code = errno;
    t->left -= n > 0 ? (size_t)n : 0;
    return n > 0 ? (size_t)n : 0;
}

int mk_config_load(const char *path, json_t **out, struct hfs_error *err)
{
    *out = NULL;
    struct text t = {.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY),
                     .left = MK_MAX_CONFIG};
    if (t.fd < 0)
        return is_missing(errno) ? 0 : unreadable(path, errno, err);
    struct stat st;
    json_error_t ignored;
    int r = 0;
    if (fstat(t.fd, &st) < 0)
        t.code = errno;
    else if (S_ISREG(st.st_mode) && st.st_size <= MK_MAX_CONFIG)
        r = mk_json_load(give, &t, 0, out, &ignored);
    close(t.fd);
    if (t.code == 0 && r != -ENOMEM)
        return 0;
    json_decref(*out);
    *out = NULL;
    return unreadable(path, t.code ? t.code : ENOMEM, err);
}

int mk_config_exists(const char *path, bool *exists, struct hfs_error *err)
{
    *exists = access(path, F_OK) == 0;
    return *exists || is_missing(errno) ? 0 : unreadable(path, errno, err);
}

char *mk_config_path(const char *root, const char *path)
{
    const char *slash = strrchr(path, '/');
    char *full;
    int dir = slash ? (int)(slash + 1 - path) : 0;
    return asprintf(&full, "%s/%.*sconfig.json", root, dir, path) < 0 ? NULL : full;
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

int mk_config_read(const char *root, const char *path, struct mk_config *out, struct hfs_error *err)
{
    char *full = mk_config_path(root, path);
    if (!full)
        return hfs_fail(err, ENOMEM, "out of memory");
    json_t *top;
    int r = mk_config_load(full, &top, err);
    if (r == 0) {
        const json_t *tied = get(top, "tie_word_embeddings");
        *out = (struct mk_config){
            .tied = json_is_boolean(tied) ? json_is_true(tied) : -1,
            .predicts_tokens = predicts_tokens(top),
            .layers = layers_of(top),
        };
    }
    json_decref(top);
    free(full);
    return r;
}
