#include "mkhyperfs/options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/ui.h"

/* The common level of each, in dB: the mean over all weights; how a tensor differs from it,
 * sensitivity.c says. */
static const struct {
    const char *name;
    double db;
} presets[] = {{"high", 35}, {"good", 29}, {"small", 23}, {"tiny", 19}};
/* Memory of the trellis: 16, 256 or 1,024 states; in small tensors, which take no time. */
static const struct {
    const char *name;
    unsigned nu, nu_small;
} efforts[] = {
    {"fast", 4, 4},
    {"default", HC_DEFAULT_NU, HC_DEFAULT_NU_SMALL},
    {"best", 10, 10},
};

enum { DEFAULT_PRESET = 1, PRESETS = sizeof presets / sizeof *presets };

static const char help[] =
    "Usage: mkhyperfs [OPTION]... SOURCE IMAGE\n"
    "       mkhyperfs --explain [OPTION]... [SOURCE [IMAGE]]\n"
    "Stores a directory, or one .safetensors file, as a hyperfs image: float weights by a\n"
    "trajectory code with loss, everything else bit for bit.\n"
    "\n"
    "Quality\n"
    "  --quality=PRESET|DB    high, good (the default), small or tiny; or a signal-to-noise "
    "ratio,\n"
    "                         the same in every tensor, 10 to 40 dB\n"
    "  --bits=B               at most B bits a weight on average, e.g. 4.5\n"
    "  --ratio=R              an image at least R times smaller than SOURCE, e.g. 3.5\n"
    "  --target-size=SIZE     an image of at most that size, e.g. 3.5G\n"
    "  --lossless             keep every bit of every tensor\n"
    "  --rule=GLOB=DB         another quality for the tensors whose names match;\n"
    "  --rule=GLOB=lossless   repeatable, the last match wins\n"
    "  --rule=GLOB=+DB        so much better (+) or worse (-) than they would have been\n"
    "  --allocation=rules|flat  tensors that need it more exact than others (the default except\n"
    "                         with --quality=DB), or all alike\n"
    "  --explain              show the rules, and what they mean for each tensor of SOURCE\n"
    "  --imatrix=FILE         an importance matrix of llama.cpp: layers that count more get more "
    "bits\n"
    "  --effort=EFFORT        fast, default or best: smaller images take longer to make (reading\n"
    "                         them does not); or the memory of the trellis, 0 to 10 bits\n"
    "\n"
    "What is stored\n"
    "  --exclude=GLOB         leave out what matches, by name or by path below SOURCE; repeatable\n"
    "  --mtime=SECONDS        set all times of modification, in seconds since 1970\n"
    "  --keep-broken          store a damaged safetensors file as plain bytes\n"
    "  --skip-special         leave out sockets, pipes and devices instead of stopping at them\n"
    "\n"
    "How it is done\n"
    "  -f, --force            replace IMAGE if it exists\n"
    "  -n, --dry-run          say what would be stored and how, write nothing\n"
    "  -j, --jobs=N           threads (default: all cores)\n"
    "  --no-verify            do not read the image back and decode all of it\n"
    "  --verify               do so (the default)\n"
    "  --isa=auto|portable|avx2  instructions to encode with; the image is the same\n"
    "  --json                 print the summary as JSON\n"
    "  -q, --quiet            print only errors and warnings\n"
    "  -v, --verbose          print every tensor\n"
    "  -h, --help\n"
    "  --version\n"
    "\n"
    "SOURCE_DATE_EPOCH in the environment: times of modification after it become it.\n";

enum {
    OPT_QUALITY = 256,
    OPT_LOSSLESS,
    OPT_BITS,
    OPT_RATIO,
    OPT_TARGET_SIZE,
    OPT_ALLOCATION,
    OPT_EXPLAIN,
    OPT_RULE,
    OPT_IMATRIX,
    OPT_EFFORT,
    OPT_EXCLUDE,
    OPT_MTIME,
    OPT_KEEP_BROKEN,
    OPT_SKIP_SPECIAL,
    OPT_NO_VERIFY,
    OPT_VERIFY,
    OPT_ISA,
    OPT_JSON,
    OPT_VERSION
};

static const char shortopts[] = ":fhnj:qv";
static const struct option longopts[] = {
    {"quality", required_argument, NULL, OPT_QUALITY},
    {"lossless", no_argument, NULL, OPT_LOSSLESS},
    {"bits", required_argument, NULL, OPT_BITS},
    {"ratio", required_argument, NULL, OPT_RATIO},
    {"target-size", required_argument, NULL, OPT_TARGET_SIZE},
    {"allocation", required_argument, NULL, OPT_ALLOCATION},
    {"explain", no_argument, NULL, OPT_EXPLAIN},
    {"rule", required_argument, NULL, OPT_RULE},
    {"imatrix", required_argument, NULL, OPT_IMATRIX},
    {"effort", required_argument, NULL, OPT_EFFORT},
    {"exclude", required_argument, NULL, OPT_EXCLUDE},
    {"mtime", required_argument, NULL, OPT_MTIME},
    {"keep-broken", no_argument, NULL, OPT_KEEP_BROKEN},
    {"skip-special", no_argument, NULL, OPT_SKIP_SPECIAL},
    {"force", no_argument, NULL, 'f'},
    {"dry-run", no_argument, NULL, 'n'},
    {"jobs", required_argument, NULL, 'j'},
    {"no-verify", no_argument, NULL, OPT_NO_VERIFY},
    {"verify", no_argument, NULL, OPT_VERIFY},
    {"isa", required_argument, NULL, OPT_ISA},
    {"json", no_argument, NULL, OPT_JSON},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

/* A number within bounds, both included, and what stands behind it. */
static bool parse_number(const char *text, double least, double most, double *out, char **end)
{
    double value = strtod(text, end);
    if (*end == text || !(value >= least && value <= most))
        return false;
    *out = value;
    return true;
}

static bool parse_db(const char *text, double *db)
{
    char *end;
    return parse_number(text, HC_MIN_DB, HC_MAX_DB, db, &end) && !*end;
}

/* "3.5G", "900 MB", "2GiB": decimal units, or binary ones with an i. */
static bool parse_size(const char *text, double *bytes)
{
    static const char units[] = "kMGTP";
    char *end;
    if (!parse_number(text, 0, 1e18, bytes, &end))
        return false;
    end += *end == ' ';
    const char *unit = *end ? strchr(units, *end == 'K' ? 'k' : *end) : NULL;
    if (unit) {
        end++;
        *bytes *= pow(*end == 'i' ? 1024 : 1000, (double)(unit - units + 1));
        end += *end == 'i';
    }
    end += *end == 'B';
    return !*end && *bytes >= 1 && *bytes <= 1e18;
}

static bool parse_unsigned(const char *text, unsigned least, unsigned most, unsigned *out)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end || errno || value < (long)least || value > (long)most)
        return false;
    *out = (unsigned)value;
    return true;
}

static bool parse_seconds(const char *text, int64_t *out)
{
    char *end;
    text += *text == '@';
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno)
        return false;
    *out = value;
    return true;
}

static int parse_quality(struct mk_options *opt, const char *text)
{
    for (size_t i = 0; i < PRESETS; i++)
        if (strcmp(text, presets[i].name) == 0) {
            opt->db = presets[i].db;
            opt->preset = true;
            return 0;
        }
    opt->preset = false;
    if (parse_db(text, &opt->db))
        return 0;
    return ui_usage_error("--quality takes high, good, small, tiny or a number of decibels from "
                          "%d to %d, not '%s'; --lossless keeps every bit",
                          HC_MIN_DB, HC_MAX_DB, text);
}

static int parse_goal(struct mk_options *opt, int c, const char *text)
{
    char *end;
    bool good;
    enum mk_goal goal = c == OPT_BITS    ? MK_GOAL_BITS
                        : c == OPT_RATIO ? MK_GOAL_RATIO
                                         : MK_GOAL_SIZE;
    if (opt->goal != MK_GOAL_LEVEL && opt->goal != goal)
        return ui_usage_error("--bits, --ratio and --target-size exclude each other");
    opt->goal = goal;
    opt->goal_text = text;
    if (goal == MK_GOAL_SIZE)
        good = parse_size(text, &opt->goal_value);
    else
        good = parse_number(text, 0.01, 1000, &opt->goal_value, &end) && !*end;
    if (good)
        return 0;
    if (goal == MK_GOAL_BITS)
        return ui_usage_error("--bits takes a number of bits a weight, such as 4.5, not '%s'",
                              text);
    if (goal == MK_GOAL_RATIO)
        return ui_usage_error("--ratio takes how many times smaller the image shall be, such as "
                              "3.5, not '%s'",
                              text);
    return ui_usage_error(
        "--target-size takes a number of bytes, or one with k, M, G or T (Ki, Mi, "
        "Gi or Ti for powers of 1024), such as 3.5G, not '%s'",
        text);
}

static int parse_allocation(struct mk_options *opt, const char *text)
{
    opt->flat = strcmp(text, "flat") == 0;
    opt->allocation = text;
    if (opt->flat || strcmp(text, "rules") == 0)
        return 0;
    return ui_usage_error("--allocation takes rules or flat, not '%s'", text);
}

static int parse_effort(struct mk_options *opt, const char *text)
{
    for (size_t i = 0; i < sizeof efforts / sizeof *efforts; i++)
        if (strcmp(text, efforts[i].name) == 0) {
            opt->nu = efforts[i].nu;
            opt->nu_small = efforts[i].nu_small;
            return 0;
        }
    if (parse_unsigned(text, 0, HC_MAX_NU, &opt->nu)) {
        opt->nu_small = opt->nu;
        return 0;
    }
    return ui_usage_error("--effort takes fast, default, best or a number from 0 to %d, not '%s'",
                          HC_MAX_NU, text);
}

static bool parse_rule(struct mk_rule *rule, const char *text)
{
    char *end;
    rule->lossless = strcmp(text, "lossless") == 0;
    rule->relative = *text == '+' || *text == '-';
    if (rule->relative)
        return parse_number(text, -MK_MAX_OFFSET, MK_MAX_OFFSET, &rule->db, &end) && !*end;
    return rule->lossless || parse_db(text, &rule->db);
}

/* Splits at the last '=', so that a glob may contain one. */
static int add_rule(struct mk_options *opt, const char *text)
{
    const char *equals = strrchr(text, '=');
    struct mk_rule rule = {.text = text};
    if (!equals || equals == text || !parse_rule(&rule, equals + 1))
        return ui_usage_error("--rule takes GLOB=DB with a number from %d to %d, GLOB=+DB or "
                              "GLOB=-DB with one up to %d, or GLOB=lossless, not '%s'",
                              HC_MIN_DB, HC_MAX_DB, MK_MAX_OFFSET, text);
    struct mk_rule *more = realloc(opt->rules, (opt->nrules + 1) * sizeof *more);
    if (!more)
        return -ENOMEM;
    opt->rules = more;
    rule.glob = strndup(text, (size_t)(equals - text));
    if (!rule.glob)
        return -ENOMEM;
    more[opt->nrules++] = rule;
    return 0;
}

static int add_exclude(struct mk_options *opt, const char *text)
{
    size_t len = strlen(text);
    while (len > 1 && text[len - 1] == '/')
        len--;
    if (len == 0)
        return ui_usage_error("--exclude takes a name or a glob, not an empty string");
    char **more = realloc(opt->excludes, (opt->nexcludes + 1) * sizeof *more);
    if (!more)
        return -ENOMEM;
    opt->excludes = more;
    more[opt->nexcludes] = strndup(text, len);
    return more[opt->nexcludes++] ? 0 : -ENOMEM;
}

static int parse_isa(struct mk_options *opt, const char *text)
{
    if (strcmp(text, "auto") == 0)
        opt->isa = hc_isa_best();
    else if (strcmp(text, "portable") == 0)
        opt->isa = HC_ISA_PORTABLE;
    else if (strcmp(text, "avx2") != 0)
        return ui_usage_error("--isa takes auto, portable or avx2, not '%s'", text);
    else if (hc_isa_best() != HC_ISA_AVX2)
        return ui_usage_error("--isa=avx2: this machine has no AVX2");
    else
        opt->isa = HC_ISA_AVX2;
    return 0;
}

static int parse_mtime(struct mk_options *opt, const char *text)
{
    opt->set_mtime = true;
    if (parse_seconds(text, &opt->mtime))
        return 0;
    return ui_usage_error("--mtime takes seconds since 1970, not '%s'", text);
}

static int parse_value(struct mk_options *opt, int c, const char *text)
{
    switch (c) {
    case OPT_QUALITY:
        opt->quality = text;
        return parse_quality(opt, text);
    case OPT_RULE:
        return add_rule(opt, text);
    case OPT_BITS:
    case OPT_RATIO:
    case OPT_TARGET_SIZE:
        return parse_goal(opt, c, text);
    case OPT_ALLOCATION:
        return parse_allocation(opt, text);
    case OPT_EXCLUDE:
        return add_exclude(opt, text);
    case OPT_MTIME:
        return parse_mtime(opt, text);
    case OPT_ISA:
        return parse_isa(opt, text);
    case OPT_IMATRIX:
        opt->imatrix = text;
        return *text ? 0 : ui_usage_error("--imatrix takes a file, not an empty string");
    case OPT_EFFORT:
        return parse_effort(opt, text);
    default: /* -j */
        if (parse_unsigned(text, 1, MK_MAX_JOBS, &opt->jobs))
            return 0;
        return ui_usage_error("-j takes a number of threads from 1 to %d, not '%s'", MK_MAX_JOBS,
                              text);
    }
}

static int parse_flag(struct mk_options *opt, int c)
{
    switch (c) {
    case 'f':
        opt->force = true;
        return 0;
    case 'n':
        opt->dry_run = true;
        return 0;
    case 'q':
        opt->quiet = true;
        return 0;
    case 'v':
        opt->verbose = true;
        return 0;
    case OPT_LOSSLESS:
        opt->lossless = true;
        return 0;
    case OPT_EXPLAIN:
        opt->explain = true;
        return 0;
    case OPT_KEEP_BROKEN:
        opt->keep_broken = true;
        return 0;
    case OPT_SKIP_SPECIAL:
        opt->skip_special = true;
        return 0;
    case OPT_VERIFY:
    case OPT_NO_VERIFY:
        opt->verify = c == OPT_VERIFY;
        return 0;
    case OPT_JSON:
        opt->json = true;
        return 0;
    case 'h':
        fputs(help, stdout);
        return -1;
    default: /* OPT_VERSION */
        puts("mkhyperfs (hyperfs) " HYPERFS_VERSION);
        return -1;
    }
}

/* Cores that this process may run on, which in a container can be fewer than the machine's. */
static unsigned cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > MK_MAX_JOBS ? MK_MAX_JOBS : (unsigned)n;
}

/* What only makes sense together, and what the environment says. */
static int check(struct mk_options *opt)
{
    if ((opt->lossless != 0) + (opt->quality != NULL) + (opt->goal != MK_GOAL_LEVEL) > 1)
        return ui_usage_error(
            "--quality, --bits, --ratio, --target-size and --lossless exclude each "
            "other");
    if (opt->quality && !opt->preset && opt->allocation && !opt->flat)
        return ui_usage_error(
            "--quality=%s is one quality for every tensor: --allocation=rules goes "
            "with presets, --bits, --ratio and --target-size",
            opt->quality);
    opt->flat |= opt->quality && !opt->preset;
    if (opt->imatrix && (opt->lossless || opt->flat))
        return ui_usage_error(
            "--imatrix makes tensors differ: it goes with presets, --bits, --ratio "
            "and --target-size, not with %s",
            opt->lossless     ? "--lossless"
            : opt->allocation ? "--allocation=flat"
                              : "a number of --quality");
    if (opt->quiet && opt->verbose)
        return ui_usage_error("-q and -v exclude each other");
    for (size_t i = 0; opt->lossless && i < opt->nrules; i++)
        if (!opt->rules[i].lossless)
            return ui_usage_error("--lossless keeps every bit, but --rule %s does not",
                                  opt->rules[i].text);
    if (!opt->quality && opt->goal == MK_GOAL_LEVEL)
        opt->quality = presets[DEFAULT_PRESET].name;
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    if (epoch && *epoch && !opt->set_mtime) {
        if (!parse_seconds(epoch, &opt->mtime))
            return ui_usage_error("SOURCE_DATE_EPOCH takes seconds since 1970, not '%s'", epoch);
        opt->clamp_mtime = true;
    }
    return 0;
}

/* SOURCE and IMAGE, and nothing behind them. */
static int operands(struct mk_options *opt, int count, char **argv)
{
    if (count < 1 && opt->explain)
        return 0;
    if (count < 1)
        return ui_usage_error("SOURCE is missing");
    opt->dry_run |= opt->explain && count == 1;
    if (count < 2 && !opt->dry_run)
        return ui_usage_error("IMAGE, the file to write, is missing");
    if (count > 2)
        return ui_usage_error("'%s' is one operand too many", argv[2]);
    opt->source = argv[0];
    opt->image = count == 2 ? argv[1] : NULL;
    if (!*opt->source || (opt->image && !*opt->image))
        return ui_usage_error("%s is an empty string", *opt->source ? "IMAGE" : "SOURCE");
    return 0;
}

/* `last` is the word that getopt took last. optopt is an unknown letter, or the number of a long
 * option that got a value it does not take, or 0. */
static int unknown(const char *last)
{
    if (optopt > 0 && optopt < 256 && !strchr(shortopts + 1, optopt))
        return ui_usage_error("there is no option -%c", optopt);
    return ui_usage_error("'%s' is no option, or takes no value", last);
}

int mk_options_parse(struct mk_options *opt, int argc, char **argv)
{
    *opt = (struct mk_options){
        .db = presets[DEFAULT_PRESET].db,
        .nu = HC_DEFAULT_NU,
        .nu_small = HC_DEFAULT_NU_SMALL,
        .verify = true,
        .jobs = cores(),
        .isa = hc_isa_best(),
    };
    opterr = 0;
    for (;;) {
        int c = getopt_long(argc, argv, shortopts, longopts, NULL);
        if (c == -1)
            break;
        if (c == '?')
            return unknown(argv[optind - 1]);
        if (c == ':')
            return ui_usage_error("option '%s' needs a value", argv[optind - 1]);
        int r = optarg ? parse_value(opt, c, optarg) : parse_flag(opt, c);
        if (r != 0)
            return r;
    }
    int r = operands(opt, argc - optind, argv + optind);
    return r ? r : check(opt);
}

void mk_options_free(struct mk_options *opt)
{
    for (size_t i = 0; i < opt->nrules; i++)
        free(opt->rules[i].glob);
    free(opt->rules);
    for (size_t i = 0; i < opt->nexcludes; i++)
        free(opt->excludes[i]);
    free(opt->excludes);
}

const char *mk_preset(size_t i, double *db)
{
    if (i >= PRESETS)
        return NULL;
    *db = presets[i].db;
    return presets[i].name;
}
