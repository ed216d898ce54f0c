#include "fs/json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "fs/ui.h"

/* Values down to this depth get a line of their own, and so does every object of an array. */
enum { LINE_DEPTH = 2 };

static void separate(struct hfs_json *j, bool own_line)
{
    unsigned level = j->depth - 1;

    if (j->filled[level])
        fputc(',', j->stream);
    if (j->depth <= LINE_DEPTH || own_line)
        fprintf(j->stream, "\n%*s", 2 * (int)j->depth, "");
    else if (j->filled[level])
        fputc(' ', j->stream);
    j->filled[level] = true;
}

static void key_of(struct hfs_json *j, const char *key, bool object)
{
    separate(j, object && key == NULL);
    if (key != NULL) {
        ui_json_string(j->stream, key, strlen(key));
        fputs(": ", j->stream);
    }
}

static void push(struct hfs_json *j, char open, char close)
{
    assert(j->depth < HFS_JSON_DEPTH);
    fputc(open, j->stream);
    j->bracket[j->depth] = close;
    j->filled[j->depth] = false;
    j->depth++;
}

void hfs_json_start(struct hfs_json *j, FILE *stream)
{
    j->stream = stream;
    j->depth = 0;
    push(j, '{', '}');
}

void hfs_json_unwind(struct hfs_json *j)
{
    while (j->depth > 1)
        hfs_json_close(j);
}

void hfs_json_end(struct hfs_json *j)
{
    hfs_json_unwind(j);
    hfs_json_close(j);
    fputc('\n', j->stream);
}

void hfs_json_object(struct hfs_json *j, const char *key)
{
    key_of(j, key, true);
    push(j, '{', '}');
}

void hfs_json_array(struct hfs_json *j, const char *key)
{
    key_of(j, key, false);
    push(j, '[', ']');
}

void hfs_json_close(struct hfs_json *j)
{
    j->depth--;
    if (j->filled[j->depth] && j->depth < LINE_DEPTH)
        fprintf(j->stream, "\n%*s", 2 * (int)j->depth, "");
    fputc(j->bracket[j->depth], j->stream);
}

void hfs_json_uint(struct hfs_json *j, const char *key, uint64_t value)
{
    key_of(j, key, false);
    fprintf(j->stream, "%" PRIu64, value);
}

void hfs_json_int(struct hfs_json *j, const char *key, int64_t value)
{
    key_of(j, key, false);
    fprintf(j->stream, "%" PRId64, value);
}

void hfs_json_double(struct hfs_json *j, const char *key, double value)
{
    key_of(j, key, false);
    if (isfinite(value))
        fprintf(j->stream, "%.10g", value);
    else
        fputs("null", j->stream);
}

void hfs_json_bool(struct hfs_json *j, const char *key, bool value)
{
    key_of(j, key, false);
    fputs(value ? "true" : "false", j->stream);
}

void hfs_json_text(struct hfs_json *j, const char *key, const char *value)
{
    hfs_json_bytes(j, key, value, strlen(value));
}

void hfs_json_bytes(struct hfs_json *j, const char *key, const char *value, size_t len)
{
    key_of(j, key, false);
    ui_json_string(j->stream, value, len);
}
