/* dump.hyperfs: what is in an image. See dump.hyperfs(8). */
#include "fs/dump.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "fs/ui.h"

#define PROGRAM "dump.hyperfs"

enum { EXIT_BAD = 1, EXIT_USAGE = 2 };
enum { OPT_FILES = 256, OPT_TENSORS, OPT_JSON, OPT_PLOT, OPT_VERSION };

static const struct option long_options[] = {
    {"files", no_argument, NULL, OPT_FILES},
    {"tensors", no_argument, NULL, OPT_TENSORS},
    {"json", no_argument, NULL, OPT_JSON},
    {"plot", required_argument, NULL, OPT_PLOT},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static const char help[] =
    "Usage: dump.hyperfs [OPTION]... IMAGE\n"
    "Shows what is in a hyperfs image, how big it is and how exact.\n"
    "\n"
    "      --files      list the tree, with the stored bytes of each file\n"
    "      --tensors    list the tensors: type, shape, code, bits a weight, SQNR, errors\n"
    "      --json       print one JSON document: the summary, and the lists asked for\n"
    "      --plot=FILE  draw size and SQNR of the tensors to FILE (SVG; -: stdout)\n"
    "  -h, --help       print this help\n"
    "      --version    print the version\n";

struct options {
    const char *image, *plot;
    bool files, tensors, json, done;
};

uint64_t dump_stored(struct dump *d, const struct hfs_segment *seg)
{
    struct hfs_block first, last;

    if (seg->kind != HFS_SEG_CODED)
        return 0;
    /* A segment's blocks follow each other in the image. */
    if (hfs_image_block(d->img, seg->first_block, &first) < 0 ||
        hfs_image_block(d->img, seg->first_block + hfs_image_segment_blocks(d->img, seg) - 1,
                        &last) < 0 ||
        last.offset < first.offset)
        return 0;
    return last.offset + last.size - first.offset;
}

char *dump_thousands(char buf[32], uint64_t value)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%" PRIu64, value);
    char *p = buf;

    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0)
            *p++ = ',';
        *p++ = digits[i];
    }
    *p = 0;
    return buf;
}

static int print(const struct options *o, struct dump *d, struct hfs_error *err)
{
    int r = 0;

    if (o->json) {
        hfs_json_start(d->doc, stdout);
        hfs_json_text(d->doc, "image", o->image);
    }
    if (o->json || (!o->files && !o->tensors && o->plot == NULL))
        r = dump_summary(d, err);
    if (r == 0 && o->files)
        r = dump_files(d, err);
    if (r == 0 && o->files && o->tensors && !o->json)
        putchar('\n');
    if (r == 0 && o->tensors)
        r = dump_tensors(d, err);
    if (o->json)
        hfs_json_end(d->doc);
    if (r == 0 && o->plot != NULL)
        r = dump_plot(d, o->plot, err);
    return r;
}

#define USAGE(...) (ui_usage_error(__VA_ARGS__), (int)EXIT_USAGE)

static int parse(struct options *o, int argc, char **argv)
{
    int c;

    opterr = 0;
    while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        switch (c) {
        case OPT_FILES:
            o->files = true;
            break;
        case OPT_TENSORS:
            o->tensors = true;
            break;
        case OPT_JSON:
            o->json = true;
            break;
        case OPT_PLOT:
            o->plot = optarg;
            break;
        case 'h':
            o->done = fputs(help, stdout) >= 0;
            return 0;
        case OPT_VERSION:
            o->done = puts(PROGRAM " (hyperfs) " HYPERFS_VERSION) >= 0;
            return 0;
        default:
            if (optopt == OPT_PLOT)
                return USAGE("--plot needs the name of a file, or -");
            if (optopt >= OPT_FILES || (optopt == 'h' && strncmp(argv[optind - 1], "--", 2) == 0))
                return USAGE("%.*s takes no argument", (int)strcspn(argv[optind - 1], "="),
                             argv[optind - 1]);
            if (optopt != 0)
                return USAGE("unknown option '-%c'", optopt);
            return USAGE("unknown option '%s'", argv[optind - 1]);
        }
    }
    if (optind == argc)
        return USAGE("no IMAGE given");
    if (argc - optind > 1)
        return USAGE("one IMAGE at a time: '%s' is one too many", argv[optind + 1]);
    if (o->plot != NULL && strcmp(o->plot, "-") == 0 && (o->files || o->tensors || o->json))
        return USAGE("--plot=- goes to stdout, where nothing else can go");
    o->image = argv[optind];
    return 0;
}

int main(int argc, char **argv)
{
    struct options o = {0};
    struct hfs_error err = {0};
    struct dump d = {0};
    struct hfs_json doc = {0};
    int status, r = 0;

    ui_start(PROGRAM, UI_NORMAL);
    status = parse(&o, argc, argv);
    if (status != 0)
        return status;
    if (!o.done) {
        r = hfs_image_open(o.image, &d.img, &err);
        if (r == 0) {
            hfs_image_info(d.img, &d.info);
            d.doc = o.json ? &doc : NULL;
            r = print(&o, &d, &err);
        }
        hfs_image_close(d.img);
    }
    if (r < 0)
        ui_error("%s", err.text);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        ui_error("the output cannot be written: %s", strerror(errno));
        r = -EIO;
    }
    return r < 0 ? EXIT_BAD : 0;
}
