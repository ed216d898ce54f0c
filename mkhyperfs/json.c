#include "mkhyperfs/json.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

static _Thread_local bool failed;

static void *watched_malloc(size_t size)
{
    void *p = malloc(size);
    failed |= !p;
    return p;
}

static void watch(void)
{
    json_set_alloc_funcs(watched_malloc, free);
}

int mk_json_load(json_load_callback_t give, void *ctx, size_t flags, json_t **out, json_error_t *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch);
    failed = false;
    *out = json_load_callback(give, ctx, flags, e);
    if (*out && !failed)
        return 0;
    json_decref(*out);
    *out = NULL;
    return failed ? -ENOMEM : -EBADMSG;
}
