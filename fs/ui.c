#include "fs/ui.h"

#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "fs/error.h"

/* Seconds between two drawings of the bar, and between two lines in a log. */
static const double DRAW_EVERY = 0.1;
static const double LOG_EVERY = 10;

static struct {
    pthread_mutex_t lock;
    const char *program;
    enum ui_level level;
    bool terminal;     /* stderr is one */
    bool drawn;        /* a bar stands on the terminal's last line */
    const char *label; /* NULL: no bar */
    uint64_t total;
    double started, shown;
} ui = {.lock = PTHREAD_MUTEX_INITIALIZER, .program = "hyperfs"};

void ui_start(const char *program, enum ui_level level)
{
    pthread_mutex_lock(&ui.lock);
    ui.program = program;
    ui.level = level;
    ui.terminal = isatty(STDERR_FILENO) == 1;
    pthread_mutex_unlock(&ui.lock);
}

enum ui_level ui_level(void)
{
    return ui.level;
}

static void erase_bar(void)
{
    if (ui.drawn)
        fputs("\r\033[K", stderr);
    ui.drawn = false;
}

static void message(const char *prefix, const char *format, va_list args)
{
    pthread_mutex_lock(&ui.lock);
    erase_bar();
    flockfile(stderr);
    fprintf(stderr, "%s: %s", ui.program, prefix);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    funlockfile(stderr);
    pthread_mutex_unlock(&ui.lock);
}

void ui_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message("", format, args);
    va_end(args);
}

void ui_warn(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message("warning: ", format, args);
    va_end(args);
}

void ui_info(const char *format, ...)
{
    if (ui.level < UI_NORMAL)
        return;
    va_list args;
    va_start(args, format);
    message("", format, args);
    va_end(args);
}

void ui_verbose(const char *format, ...)
{
    if (ui.level < UI_VERBOSE)
        return;
    va_list args;
    va_start(args, format);
    message("", format, args);
    va_end(args);
}

void ui_print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    pthread_mutex_lock(&ui.lock);
    erase_bar();
    fflush(stderr);
    vprintf(format, args);
    putchar('\n');
    fflush(stdout);
    pthread_mutex_unlock(&ui.lock);
    va_end(args);
}

int ui_usage_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message("", format, args);
    va_end(args);
    fprintf(stderr, "Try '%s --help' for more information.\n", ui.program);
    return 2;
}

char *ui_bytes(char buf[16], uint64_t bytes)
{
    static const char *const unit[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
    if (bytes < 1000) {
        snprintf(buf, 16, "%u B", (unsigned)bytes);
        return buf;
    }
    double value = (double)bytes / 1000;
    unsigned u = 0;
    while (value >= 999.95) {
        value /= 1000;
        u++;
    }
    snprintf(buf, 16, "%.1f %s", value, unit[u]);
    return buf;
}

char *ui_seconds(char buf[24], double seconds)
{
    if (!(seconds < 3.6e9)) /* also what is no number: a million hours */
        seconds = 3.6e9;
    if (seconds < 9.95) {
        snprintf(buf, 24, "%.1f s", seconds > 0 ? seconds : 0.0);
        return buf;
    }
    uint64_t s = (uint64_t)(seconds + 0.5);
    if (s < 60)
        snprintf(buf, 24, "%u s", (unsigned)s);
    else if (s < 3600)
        snprintf(buf, 24, "%u min %u s", (unsigned)(s / 60), (unsigned)(s % 60));
    else
        snprintf(buf, 24, "%u h %u min", (unsigned)(s / 3600), (unsigned)(s / 60 % 60));
    return buf;
}

double ui_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void ui_progress_start(const char *label, uint64_t total)
{
    pthread_mutex_lock(&ui.lock);
    ui.label = label;
    ui.total = total;
    ui.started = ui.shown = ui_now();
    pthread_mutex_unlock(&ui.lock);
}

/* "1.2 GB of 2.7 GB, 312 MB/s, 5 s left", as far as it is known. */
static void describe(char *text, size_t size, uint64_t done, double elapsed)
{
    char have[16], all[16], rate[16], left[24];
    double speed = elapsed > 0 ? (double)done / elapsed : 0;
    int n = snprintf(text, size, "%s", ui_bytes(have, done));
    if (ui.total)
        n += snprintf(text + n, size - n, " of %s", ui_bytes(all, ui.total));
    if (speed >= 1 && elapsed >= 0.5) {
        n += snprintf(text + n, size - n, ", %s/s", ui_bytes(rate, (uint64_t)speed));
        if (ui.total > done)
            snprintf(text + n, size - n, ", %s left",
                     ui_seconds(left, (double)(ui.total - done) / speed));
    }
}

static void draw_bar(uint64_t done, const char *text)
{
    struct winsize size;
    unsigned columns = 80;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20)
        columns = size.ws_col;
    double part = ui.total ? (double)done / (double)ui.total : 0;
    if (part > 1)
        part = 1;

    char line[256];
    int n = snprintf(line, sizeof line, "%s ", ui.label);
    if (ui.total)
        n += snprintf(line + n, sizeof line - n, "%3.0f %% ", 100 * part);
    enum { BAR = 10 }; /* with everything else this fits 80 columns */
    if (ui.total && columns >= n + BAR + 4 + strlen(text)) {
        int full = (int)(part * BAR);
        line[n++] = '[';
        for (int i = 0; i < BAR; i++)
            line[n++] = i < full ? '=' : i == full ? '>' : ' ';
        line[n++] = ']';
        line[n++] = ' ';
    }
    snprintf(line + n, sizeof line - n, "%s", text);
    fprintf(stderr, "\r%.*s\033[K", (int)columns - 1, line);
    fflush(stderr);
    ui.drawn = true;
}

void ui_progress(uint64_t done)
{
    if (ui.level < UI_NORMAL || pthread_mutex_trylock(&ui.lock) != 0)
        return; /* another thread is drawing */
    double now = ui_now();
    if (ui.label && now - ui.shown >= (ui.terminal ? DRAW_EVERY : LOG_EVERY)) {
        char text[128];
        describe(text, sizeof text, done, now - ui.started);
        if (ui.terminal)
            draw_bar(done, text);
        else
            fprintf(stderr, "%s: %s: %s\n", ui.program, ui.label, text);
        ui.shown = now;
    }
    pthread_mutex_unlock(&ui.lock);
}

void ui_progress_end(void)
{
    pthread_mutex_lock(&ui.lock);
    erase_bar();
    ui.label = NULL;
    pthread_mutex_unlock(&ui.lock);
}

void ui_json_string(FILE *f, const char *s, size_t len)
{
    const unsigned char *u = (const unsigned char *)s;
    fputc('"', f);
    for (size_t i = 0; i < len;) {
        uint32_t point;
        unsigned n = u[i] < 0x80 ? 1 : hfs_utf8(s + i, len - i, &point);
        if (u[i] == '"' || u[i] == '\\')
            fprintf(f, "\\%c", u[i]);
        else if (u[i] < 0x20 || u[i] == 0x7f)
            fprintf(f, "\\u%04x", u[i]);
        else if (n > 0)
            fwrite(u + i, 1, n, f);
        else
            fprintf(f, "\\udc%02x", u[i]);
        i += n ? n : 1;
    }
    fputc('"', f);
}
