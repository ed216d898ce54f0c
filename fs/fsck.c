/* fsck.hyperfs: is every byte of an image as it was written? See fsck.hyperfs(8). */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fsck.h"
#include "fs/fsck_against.h"
#include "fs/fsck_extract.h"
#include "fs/ui.h"

#define PROGRAM "fsck.hyperfs"

enum { MAX_JOBS = 1024, MAX_PROBLEMS = 1000 };
enum {
    OPT_QUICK = 256,
    OPT_EXTRACT,
    OPT_KEEP_GOING,
    OPT_AGAINST,
    OPT_DIGEST,
    OPT_JSON,
    OPT_VERSION
};

static const struct option long_options[] = {
    {"quick", no_argument, NULL, OPT_QUICK},
    {"extract", required_argument, NULL, OPT_EXTRACT},
    {"keep-going", no_argument, NULL, OPT_KEEP_GOING},
    {"against", required_argument, NULL, OPT_AGAINST},
    {"digest", required_argument, NULL, OPT_DIGEST},
    {"jobs", required_argument, NULL, 'j'},
    {"json", no_argument, NULL, OPT_JSON},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static const char help[] =
    "Usage: fsck.hyperfs [OPTION]... IMAGE\n"
    "Checks a hyperfs image: its tables, and every data block, read and decoded.\n"
    "The image is never changed.\n"
    "\n"
    "      --quick           check the tables only, no data block\n"
    "      --extract=DIR     check, and write the tree into DIR, which is new or empty\n"
    "      --keep-going      with --extract: save what is readable of a damaged image;\n"
    "                        damaged blocks become zero bytes\n"
    "      --against=SOURCE  check, and compare the content with the directory or the\n"
    "                        .safetensors file that the image was made from\n"
    "      --digest=SHA256   check, and refuse an image that has another digest\n"
    "  -j, --jobs=N          threads (default: one for each core)\n"
    "      --json            print the result as JSON\n"
    "  -q, --quiet           print findings only\n"
    "  -v, --verbose         name every file, and say what is being done\n"
    "  -h, --help            print this help\n"
    "      --version         print the version\n"
    "\n"
    "Exit status: 0 clean, 4 damaged or different, 8 the check itself failed, 16 usage,\n"
    "32 interrupted.\n";

/* The first signal ends the check and cleans up; a second one kills. */
static void on_signal(int number)
{
    (void)number;
    fsck_stop = 1;
}

static void catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a write error with a sentence, and the staging directory goes */
}

/* ---- tables ---- */

static void on_problem(void *ctx, const char *sentence)
{
    struct fsck *f = ctx;

    f->problems++;
    if (f->opt.json && f->problems <= MAX_PROBLEMS)
        hfs_json_text(&f->json, NULL, sentence);
    else if (!f->opt.json && f->problems <= MAX_PROBLEMS)
        ui_error("%s", sentence);
    else if (!f->opt.json && f->problems == MAX_PROBLEMS + 1)
        ui_error("more than %d findings in the tables; the rest is only counted", MAX_PROBLEMS);
}

int fsck_check_tables(struct fsck *f, struct hfs_error *err)
{
    int r;

    if (f->opt.json)
        hfs_json_array(&f->json, "problems");
    r = hfs_image_check_tables(f->img, on_problem, f);
    if (f->opt.json)
        hfs_json_close(&f->json);
    if (r == -ENOMEM || (r < 0 && f->problems == 0))
        return hfs_fail(err, -r, "%s: its tables cannot be checked: %s", f->opt.image,
                        strerror(-r));
    return 0;
}

/* ---- data ---- */

static int on_block(void *ctx, const struct fsck_block *block)
{
    fsck_count(ctx, block);
    return 0;
}

int fsck_check_data(struct fsck *f, struct hfs_error *err)
{
    struct fsck_range range = {.count = f->info.segments};
    int r;

    for (uint64_t i = 0; i < f->info.segments; i++) {
        struct hfs_segment seg;

        hfs_image_segment(f->img, i, &seg);
        if (seg.kind == HFS_SEG_CODED &&
            __builtin_add_overflow(range.bytes, seg.length, &range.bytes))
            range.bytes = UINT64_MAX;
    }
    range.claimed = calloc(f->info.block_count / 8 + 1, 1);
    if (range.claimed == NULL)
        return hfs_fail(err, ENOMEM, "not enough memory to check %s", f->opt.image);
    ui_progress_start("checking", range.bytes);
    r = fsck_pool_run(f->pool, &range, on_block, f);
    ui_progress_end();
    free(range.claimed);
    if (r == -ENOMEM)
        hfs_fail(err, ENOMEM, "not enough memory to decode %s", f->opt.image);
    return r;
}

/* ---- the whole ---- */

static void say_result(const struct fsck *f, int status, double seconds)
{
    char bytes[16], time[24], tables[64] = "the tables are intact";
    const char *name = f->opt.image;

    if (ui_level() < UI_NORMAL || (status != FSCK_CLEAN && status != FSCK_DAMAGED))
        return;
    ui_seconds(time, seconds);
    ui_bytes(bytes, f->content);
    if (f->problems > 0)
        snprintf(tables, sizeof tables, "%" PRIu64 " %s in the tables", f->problems,
                 f->problems == 1 ? "finding" : "findings");
    if (status == FSCK_CLEAN && f->opt.quick)
        ui_print("%s: %s, %s; the data was not read", name, tables, time);
    else if (status == FSCK_CLEAN)
        ui_print("%s: clean: tables and %" PRIu64 " blocks, %s decoded, %s", name, f->blocks, bytes,
                 time);
    else if (f->img == NULL)
        ui_print("%s: DAMAGED, or not the image asked for", name);
    else if (f->problems == 0 && f->ndamaged == 0)
        ui_print("%s: the image is intact, but does not hold what %s holds", name, f->opt.against);
    else
        ui_print("%s: DAMAGED: %" PRIu64 " of %" PRIu64 " blocks read, %s, %s", name, f->ndamaged,
                 f->blocks, tables, time);
}

static int run_parts(struct fsck *f, bool *differs, struct hfs_error *err)
{
    int r = fsck_check_tables(f, err);

    if (r < 0 || f->opt.quick)
        return r;
    ui_verbose("%" PRIu64 " inodes, %" PRIu64 " segments, %" PRIu64 " codes, %" PRIu64
               " blocks; %u threads, decoding with %s",
               f->info.inodes, f->info.segments, f->info.codes, f->info.block_count, f->opt.jobs,
               hc_isa_name(hc_isa_best()));
    if (f->opt.extract != NULL)
        r = fsck_extract(f, err);
    else if (f->opt.against != NULL)
        r = fsck_against(f, differs, err);
    else
        r = fsck_check_data(f, err);
    if (f->opt.json)
        hfs_json_unwind(&f->json); /* of lists that an error cut short */
    fsck_report_damage(f);
    return r;
}

static int status_of(const struct fsck *f, int r, bool differs)
{
    if (r == -EINTR && fsck_stop)
        return FSCK_CANCELLED;
    if (r < 0 && r != -EBADMSG && r != -EKEYREJECTED)
        return FSCK_FAILED;
    return r < 0 || differs || f->problems > 0 || f->ndamaged > 0 ? FSCK_DAMAGED : FSCK_CLEAN;
}

static const char *result_word(int status)
{
    switch (status) {
    case FSCK_CLEAN:
        return "clean";
    case FSCK_DAMAGED:
        return "damaged";
    case FSCK_CANCELLED:
        return "interrupted";
    default:
        return "failed";
    }
}

/* Last lines of the report. err is what ended the run, if anything. */
static void conclude(struct fsck *f, int status, double seconds, const struct hfs_error *err)
{
    if (status == FSCK_CANCELLED)
        ui_error("interrupted");
    else if (err->text[0])
        ui_error("%s", err->text);
    if (!f->opt.json) {
        say_result(f, status, seconds);
        return;
    }
    if (status == FSCK_CANCELLED || err->text[0])
        hfs_json_text(&f->json, "error", status == FSCK_CANCELLED ? "interrupted" : err->text);
    hfs_json_uint(&f->json, "table_problems", f->problems);
    hfs_json_uint(&f->json, "damaged_blocks", f->ndamaged);
    hfs_json_uint(&f->json, "blocks_read", f->blocks);
    hfs_json_uint(&f->json, "bytes_decoded", f->content);
    hfs_json_double(&f->json, "seconds", seconds);
    hfs_json_text(&f->json, "result", result_word(status));
    hfs_json_int(&f->json, "exit_status", status);
}

static int check(struct fsck *f)
{
    double start = ui_now();
    struct hfs_error err = {0};
    bool differs = false;
    int status;
    int r = hfs_image_open_digest(f->opt.image, f->opt.digest, &f->img, &err);

    if (f->opt.json) {
        hfs_json_start(&f->json, stdout);
        hfs_json_text(&f->json, "image", f->opt.image);
    }
    if (r == 0) {
        hfs_image_info(f->img, &f->info);
        f->pool = fsck_pool_new(f->img, f->opt.jobs);
        r = f->pool != NULL ? run_parts(f, &differs, &err)
                            : hfs_fail(&err, ENOMEM, "not enough memory");
    }
    status = status_of(f, r, differs);
    conclude(f, status, ui_now() - start, &err);
    if (f->opt.json)
        hfs_json_end(&f->json);
    fsck_pool_free(f->pool);
    hfs_image_close(f->img);
    free(f->damaged);
    free(f->tensors);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        ui_error("the report cannot be written: %s", strerror(errno));
        status |= FSCK_FAILED;
    }
    return status;
}

/* ---- command line ---- */

/* Those that this process may run on. */
static unsigned cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;

    return n < 1 ? 1 : n > MAX_JOBS ? MAX_JOBS : (unsigned)n;
}

static bool parse_jobs(const char *text, unsigned *jobs)
{
    char *end;
    unsigned long n;

    if (text[0] < '0' || text[0] > '9')
        return false;
    n = strtoul(text, &end, 10);
    *jobs = (unsigned)n;
    return *end == 0 && n >= 1 && n <= MAX_JOBS;
}

#define USAGE(...) (ui_usage_error(__VA_ARGS__), (int)FSCK_USAGE)

/* What getopt_long refused: c is what it returned. */
static int bad_option(int c, char **argv)
{
    if (c == ':' && optopt < OPT_QUICK)
        return USAGE("-%c needs an argument", optopt);
    if (c == ':')
        return USAGE("%s needs an argument", argv[optind - 1]);
    if (optopt >= OPT_QUICK || (optopt != 0 && strncmp(argv[optind - 1], "--", 2) == 0))
        return USAGE("%.*s takes no argument", (int)strcspn(argv[optind - 1], "="),
                     argv[optind - 1]);
    if (optopt != 0)
        return USAGE("unknown option '-%c'", optopt);
    return USAGE("unknown option '%s'", argv[optind - 1]);
}

/* Options that contradict each other, and IMAGE. 0 or FSCK_USAGE. */
static int check_options(struct fsck_options *o, int argc, char **argv)
{
    if (optind == argc)
        return USAGE("no IMAGE given");
    if (argc - optind > 1)
        return USAGE("one IMAGE at a time: '%s' is one too many", argv[optind + 1]);
    if (o->quick + (o->extract != NULL) + (o->against != NULL) > 1)
        return USAGE("--quick, --extract and --against exclude each other");
    if (o->keep_going && o->extract == NULL)
        return USAGE("--keep-going is for --extract");
    o->image = argv[optind];
    return 0;
}

/* Sets *done where the option was --help or --version. 0 or FSCK_USAGE. */
static int parse(struct fsck_options *o, int argc, char **argv, bool *done)
{
    static struct hfs_hash wanted;
    enum ui_level level = UI_NORMAL;
    int c;

    ui_start(PROGRAM, level);
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":j:qvh", long_options, NULL)) != -1) {
        switch (c) {
        case OPT_QUICK:
            o->quick = true;
            break;
        case OPT_EXTRACT:
            o->extract = optarg;
            break;
        case OPT_KEEP_GOING:
            o->keep_going = true;
            break;
        case OPT_AGAINST:
            o->against = optarg;
            break;
        case OPT_DIGEST:
            if (!hfs_hash_parse(optarg, &wanted))
                return USAGE("--digest takes 64 hexadecimal digits, not '%s'", optarg);
            o->digest = &wanted;
            break;
        case OPT_JSON:
            o->json = true;
            break;
        case 'j':
            if (!parse_jobs(optarg, &o->jobs))
                return USAGE("-j takes a number from 1 to %d, not '%s'", MAX_JOBS, optarg);
            break;
        case 'q':
            level = UI_QUIET;
            break;
        case 'v':
            level = UI_VERBOSE;
            break;
        case 'h':
            *done = fputs(help, stdout) >= 0;
            return 0;
        case OPT_VERSION:
            *done = puts(PROGRAM " (hyperfs) " HYPERFS_VERSION) >= 0;
            return 0;
        default:
            return bad_option(c, argv);
        }
    }
    ui_start(PROGRAM, level);
    return check_options(o, argc, argv);
}

int main(int argc, char **argv)
{
    struct fsck f = {.opt.jobs = cores()};
    bool done = false;
    int status = parse(&f.opt, argc, argv, &done);

    if (status != 0)
        return status;
    if (done)
        return fflush(stdout) == 0 ? 0 : FSCK_FAILED;
    catch_signals();
    pthread_mutex_init(&f.lock, NULL);
    status = check(&f);
    pthread_mutex_destroy(&f.lock);
    return status;
}
