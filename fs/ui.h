/* What the four tools share on the terminal: messages, numbers and a progress bar.
 *
 * Messages go to stderr as "program: sentence". Functions may be called from several threads;
 * ui_start once, first. A progress bar is drawn on a terminal; in a log a plain line appears
 * every 10 seconds at most; nothing with ui_quiet. A message erases the bar before it is printed.
 */
#ifndef HYPERFS_FS_UI_H
#define HYPERFS_FS_UI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum ui_level { UI_QUIET = -1, UI_NORMAL = 0, UI_VERBOSE = 1 };

void ui_start(const char *program, enum ui_level level);
enum ui_level ui_level(void);

void ui_error(const char *format, ...) __attribute__((format(printf, 1, 2)));   /* always */
void ui_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));    /* always */
void ui_info(const char *format, ...) __attribute__((format(printf, 1, 2)));    /* not if quiet */
void ui_verbose(const char *format, ...) __attribute__((format(printf, 1, 2))); /* only verbose */

/* A line of the result, to stdout as it is; erases the bar as messages do. */
void ui_print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "Try 'PROGRAM --help' for more information." after a usage error; returns 2, the exit status. */
int ui_usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Decimal units: "512 B", "7.0 MB", "13.5 GB". Returns buf. */
char *ui_bytes(char buf[16], uint64_t bytes);
/* "0.4 s", "12 s", "3 min 20 s", "2 h 5 min". */
char *ui_seconds(char buf[24], double seconds);
/* Monotonic clock, seconds. */
double ui_now(void);

/* One bar at a time. label: "encoding"; total in bytes, 0 if not known. */
void ui_progress_start(const char *label, uint64_t total);
void ui_progress(uint64_t done); /* cheap: may be called for every block */
void ui_progress_end(void);

/* Prints a JSON string literal of len bytes that need not be valid UTF-8: invalid bytes
 * become U+DC80..U+DCFF escapes, as Python's surrogateescape does. */
void ui_json_string(FILE *f, const char *s, size_t len);

#endif
