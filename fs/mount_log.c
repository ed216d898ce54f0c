/* Contract: fs/mount_log.h. */
#include "fs/mount_log.h"

#include <fuse_lowlevel.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "fs/error.h"
#include "fs/ui.h"

static bool to_syslog;
static bool holding;
static char held[1024]; /* what libfuse said first */

static void emit(int priority, const char *sentence)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (to_syslog)
        syslog(priority, "%s", sentence);
    else if (poll(&out, 1, 0) == 0)
        return; /* a pipe that nobody reads: a request must not wait for it */
    else if (priority == LOG_DEBUG)
        ui_verbose("%s", sentence);
    else if (priority >= LOG_NOTICE)
        ui_info("%s", sentence);
    else
        ui_error("%s", sentence);
}

void mount_log(int priority, const char *format, ...)
{
    char sentence[sizeof(struct hfs_error)];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    emit(priority, sentence);
}

/* libfuse writes some of its sentences in pieces, and ends them with a newline. */
static void from_libfuse(enum fuse_log_level level, const char *format, va_list args)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char line[1000];
    if (level >= FUSE_LOG_DEBUG) { /* the trace that -d asks for */
        if (!to_syslog)
            vfprintf(stderr, format, args);
        return;
    }
    pthread_mutex_lock(&lock);
    size_t used = strlen(line);
    vsnprintf(line + used, sizeof line - used, format, args);
    char *end = strchr(line, '\n');
    if (end || strlen(line) == sizeof line - 1) {
        if (end)
            *end = '\0';
        const char *sentence = strncmp(line, "fuse: ", 6) == 0 ? line + 6 : line;
        if (!holding)
            emit((int)level, sentence); /* syslog's levels */
        else if (!held[0])
            snprintf(held, sizeof held, ": %s", sentence);
        line[0] = '\0';
    }
    pthread_mutex_unlock(&lock);
}

void mount_log_start(void)
{
    holding = true;
    fuse_set_log_func(from_libfuse);
}

const char *mount_log_reason(void)
{
    return held;
}

void mount_log_serving(void)
{
    holding = false;
    if (held[0])
        emit(LOG_WARNING, held + 2);
}

void mount_log_to_syslog(void)
{
    openlog("hyperfs", LOG_PID | LOG_NDELAY, LOG_DAEMON);
    to_syslog = true;
}

bool mount_log_allows(uint64_t segment, uint64_t block, uint64_t *hidden)
{
    enum { BLOCKS = 32, SECONDS = 60 };
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        uint64_t segment, block;
        time_t until;
    } recent[BLOCKS];
    static uint64_t left_out;

    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&lock);
    int place = -1;
    for (int i = 0; i < BLOCKS; i++) {
        bool live = recent[i].until > now.tv_sec;
        if (live && recent[i].segment == segment && recent[i].block == block) {
            place = -1;
            break;
        }
        if (!live && place < 0)
            place = i;
    }
    if (place >= 0) {
        recent[place].segment = segment;
        recent[place].block = block;
        recent[place].until = now.tv_sec + SECONDS;
        *hidden = left_out;
        left_out = 0;
    } else {
        left_out++;
    }
    pthread_mutex_unlock(&lock);
    return place >= 0;
}
