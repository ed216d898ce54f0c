/* Runs inputs through a target without libFuzzer, and mutants of them.
 *
 *     replay_NAME [-n] [-m MUTANTS] FILE|FOLDER...
 *
 * An input named accept-*, refuse-* or damage-* must be found so, unless -n is given. Prints the
 * Test Anything Protocol. Mutants come from HYPERFS_SEED, else from the clock; the seed is printed
 * first.
 */
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#pragma weak LLVMFuzzerCustomMutator

enum { ROOM = 64 << 10, SECONDS = 20 };

static struct fuzz_random source;
static bool names_tell = true;

/* Flips, inserts, removes: enough for mutants where there is no libFuzzer. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room)
{
    for (uint64_t n = 1 + fuzz_below(&source, 4); n > 0; n--) {
        size_t at = size ? fuzz_below(&source, size) : 0;
        uint64_t way = fuzz_below(&source, 8);
        if (size == 0 || (way == 0 && size < room)) {
            if (room == 0)
                return 0;
            memmove(data + at + 1, data + at, size++ - at);
            data[at] = (uint8_t)fuzz_next(&source);
        } else if (way == 1) {
            memmove(data + at, data + at + 1, --size - at);
        } else if (way < 4) {
            data[at] = (uint8_t)fuzz_next(&source);
        } else {
            data[at] ^= (uint8_t)(1u << fuzz_below(&source, 8));
        }
    }
    return size;
}

static uint8_t *load(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) < 0) {
        perror(path);
        exit(2);
    }
    *size = (size_t)st.st_size;
    uint8_t *data = fuzz_alloc(*size);
    FUZZ_CHECK(fread(data, 1, *size, f) == *size);
    fclose(f);
    return data;
}

struct list {
    char **path;
    unsigned count;
};

static void add(struct list *l, const char *path)
{
    l->path = realloc(l->path, (l->count + 1) * sizeof *l->path);
    FUZZ_CHECK(l->path && (l->path[l->count] = strdup(path)));
    l->count++;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void add_all(struct list *l, const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;
    if (!d) {
        add(l, path);
        return;
    }
    while ((e = readdir(d))) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (e->d_name[0] != '.')
            add(l, name);
    }
    closedir(d);
    qsort(l->path, l->count, sizeof *l->path, by_name);
}

/* Whether the verdict is the one that the input's name tells. */
static bool as_named(const char *path, enum fuzz_verdict verdict)
{
    static const char *const names[] = {"accept-", "refuse-", "damage-"};
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    for (int i = 0; i < 3 && names_tell; i++)
        if (strncmp(name, names[i], strlen(names[i])) == 0)
            return verdict == (enum fuzz_verdict)i;
    return true;
}

static bool run_input(const char *path)
{
    size_t size;
    uint8_t *data = load(path, &size);
    enum fuzz_verdict verdict = fuzz_one(data, size);
    free(data);
    if (!as_named(path, verdict))
        printf("# %s: the verdict is %s\n", path,
               verdict == FUZZ_ACCEPT   ? "accept"
               : verdict == FUZZ_REFUSE ? "refuse"
                                        : "damage");
    return as_named(path, verdict);
}

/* A mutant of a mutant ... of one input; a crash leaves the seed and the number behind. */
static unsigned run_mutants(const struct list *l, unsigned mutants)
{
    uint8_t *data = fuzz_alloc(ROOM);
    time_t end = time(NULL) + SECONDS;
    unsigned n = 0;
    size_t size = 0;
    for (; n < mutants && time(NULL) < end; n++) {
        if (n % 8 == 0) {
            uint8_t *input = load(l->path[fuzz_below(&source, l->count)], &size);
            size = size < ROOM ? size : ROOM;
            memcpy(data, input, size);
            free(input);
        }
        size = LLVMFuzzerCustomMutator && fuzz_below(&source, 8)
                   ? LLVMFuzzerCustomMutator(data, size, ROOM, (unsigned)fuzz_next(&source))
                   : LLVMFuzzerMutate(data, size, ROOM);
        uint8_t *copy = fuzz_alloc(size);
        if (size)
            memcpy(copy, data, size);
        fuzz_one(copy, size);
        free(copy);
    }
    free(data);
    return n;
}

int main(int argc, char **argv)
{
    struct list l = {0};
    unsigned mutants = 0, failed = 0;
    const char *seed = getenv("HYPERFS_SEED");
    int option;
    while ((option = getopt(argc, argv, "nm:")) != -1) {
        if (option == '?')
            return 2;
        if (option == 'n')
            names_tell = false;
        else
            mutants = (unsigned)strtoul(optarg, NULL, 0);
    }
    for (int i = optind; i < argc; i++)
        add_all(&l, argv[i]);
    source.state = seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL);
    if (l.count == 0) {
        fprintf(stderr, "%s: no inputs\n", argv[0]);
        return 2;
    }
    printf("1..%u\n# seed: HYPERFS_SEED=%llu\n", l.count + (mutants > 0),
           (unsigned long long)source.state);
    for (unsigned i = 0; i < l.count; i++) {
        fflush(stdout);
        bool good = run_input(l.path[i]);
        failed += !good;
        printf("%s %u - %s\n", good ? "ok" : "not ok", i + 1, l.path[i]);
    }
    if (mutants) {
        fflush(stdout);
        printf("ok %u - %u mutants\n", l.count + 1, run_mutants(&l, mutants));
    }
    for (unsigned i = 0; i < l.count; i++)
        free(l.path[i]);
    free(l.path);
    return failed != 0;
}
