/* Writing one JSON document to a stream, value by value: nothing is held in memory.
 *
 * The caller opens objects and arrays and closes them again; commas, indentation and
 * escapes are made here. A key is given inside an object and NULL inside an array. Numbers
 * that JSON cannot say (NaN, infinities) become null. Strings need not be valid UTF-8 (see
 * ui_json_string). Write errors stay in the stream, for ferror at the end. One thread only.
 */
#ifndef HYPERFS_FS_JSON_H
#define HYPERFS_FS_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { HFS_JSON_DEPTH = 16 };

struct hfs_json {
    FILE *stream;
    unsigned depth;
    char bracket[HFS_JSON_DEPTH]; /* what closes each open level */
    bool filled[HFS_JSON_DEPTH];  /* the level has a value already */
};

void hfs_json_start(struct hfs_json *j, FILE *stream); /* opens the document's object */
void hfs_json_end(struct hfs_json *j);                 /* closes all that is open */
void hfs_json_unwind(struct hfs_json *j);              /* all but the document's object */

void hfs_json_object(struct hfs_json *j, const char *key);
void hfs_json_array(struct hfs_json *j, const char *key);
void hfs_json_close(struct hfs_json *j); /* the innermost object or array */

void hfs_json_uint(struct hfs_json *j, const char *key, uint64_t value);
void hfs_json_int(struct hfs_json *j, const char *key, int64_t value);
void hfs_json_double(struct hfs_json *j, const char *key, double value);
void hfs_json_bool(struct hfs_json *j, const char *key, bool value);
void hfs_json_text(struct hfs_json *j, const char *key, const char *value);
void hfs_json_bytes(struct hfs_json *j, const char *key, const char *value, size_t len);

#endif
