#include "fs/dump_svg.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "fs/error.h"
#include "fs/ui.h"

/* The page, in pixels. */
enum {
    WIDTH = 1000,
    LEFT = 64,
    RIGHT = 16,
    SIZE_TOP = 76,
    SIZE_HEIGHT = 200,
    SQNR_TOP = SIZE_TOP + SIZE_HEIGHT + 52,
    SQNR_HEIGHT = 170,
    BOTTOM = SQNR_TOP + SQNR_HEIGHT,
    EXACT = SQNR_TOP - 16, /* the row of lossless tensors */
    NAMED_WIDTH = 11,      /* columns at least as wide have their names below */
    NAME_BYTES = 40,       /* longer ones lose their beginning */
};
static const double CHARACTER = 5.5; /* mean width at 10 px */
static const double SQNR_LOW = -20, SQNR_HIGH = 200;

#define LOSSY "#1f77b4"
#define LOSSLESS "#2ca02c"
#define FULL "#d9d9d9"

struct svg {
    FILE *out;
    const struct dump_bar *bars;
    uint64_t count, columns;
    double width;     /* of a column */
    double size_top;  /* bytes at the upper end of the axis */
    double low, high; /* dB at its ends */
};

/* What stands in one column. */
struct column {
    uint64_t first, end;
    double size, stored, low, high;
    bool lossy, lossless; /* at least one of them is */
};

/* ---- text ---- */

/* Printable already; U+FFFE and U+FFFF, which XML does not have, become question marks. */
static void put_escaped(FILE *out, const char *text)
{
    for (const char *s = text; *s; s++)
        switch (*s) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            if (strncmp(s, "\xef\xbf\xbe", 3) == 0 || strncmp(s, "\xef\xbf\xbf", 3) == 0) {
                fputc('?', out);
                s += 2;
            } else {
                fputc(*s, out);
            }
        }
}

static void put_name(FILE *out, const char *name, unsigned len)
{
    char shown[1024];

    put_escaped(out, hfs_printable(shown, sizeof shown, name, len));
}

/* The end of a name: it tells more than the beginning. Returns the bytes shown. */
static unsigned put_label(FILE *out, const char *name, unsigned len)
{
    char shown[1024];
    const char *from = hfs_printable(shown, sizeof shown, name, len);
    size_t size = strlen(from);

    if (size > NAME_BYTES) {
        from += size - (NAME_BYTES - 3);
        while ((*from & 0xc0) == 0x80)
            from++;
        fputs("...", out);
    }
    put_escaped(out, from);
    return size > NAME_BYTES ? NAME_BYTES : (unsigned)size;
}

unsigned dump_layer(const char *name, unsigned len, unsigned *digits)
{
    unsigned start = 0;

    while (start < len) {
        unsigned end = start;
        bool number = true;

        for (; end < len && name[end] != '.'; end++)
            number &= name[end] >= '0' && name[end] <= '9';
        if (number && end > start) {
            *digits = start;
            return end;
        }
        start = end + 1;
    }
    return 0;
}

/* ---- columns and axes ---- */

static struct column column_at(const struct svg *s, uint64_t number)
{
    /* The product is below 2^64: the tables of an image are at most 2^40 bytes. */
    struct column c = {.first = number * s->count / s->columns,
                       .end = (number + 1) * s->count / s->columns,
                       .low = INFINITY,
                       .high = -INFINITY};

    for (uint64_t i = c.first; i < c.end; i++) {
        const struct dump_bar *b = &s->bars[i];

        c.size += b->size;
        c.stored += b->stored;
        c.lossy |= b->lossy;
        c.lossless |= !b->lossy;
        if (b->lossy) {
            c.low = fmin(c.low, fmax(b->sqnr, SQNR_LOW));
            c.high = fmax(c.high, fmin(b->sqnr, SQNR_HIGH));
        }
    }
    c.low = fmin(c.low, SQNR_HIGH);
    c.high = fmax(c.high, SQNR_LOW);
    return c;
}

static double column_x(const struct svg *s, uint64_t number)
{
    return LEFT + s->width * (double)number;
}

/* 1, 2 or 5 times a power of ten, so that a range has about five of them. */
static double tick(double range)
{
    double power = pow(10, floor(log10(range / 5)));
    double digit = range / 5 / power;

    return power * (digit < 1.5 ? 1 : digit < 3.5 ? 2 : digit < 7.5 ? 5 : 10);
}

static void measure(struct svg *s)
{
    double low = INFINITY, high = -INFINITY;

    s->columns = s->count < DUMP_SVG_COLUMNS ? s->count : DUMP_SVG_COLUMNS;
    s->width = (double)(WIDTH - LEFT - RIGHT) / (double)(s->columns > 0 ? s->columns : 1);
    for (uint64_t i = 0; i < s->columns; i++) {
        struct column c = column_at(s, i);

        s->size_top = fmax(s->size_top, fmax(c.size, c.stored));
        if (c.lossy) {
            low = fmin(low, c.low);
            high = fmax(high, c.high);
        }
    }
    s->size_top = fmax(s->size_top, 1) * 1.02;
    if (low > high)
        low = high = 30; /* nothing has lost anything: an empty axis */
    s->low = 5 * floor((low - 1) / 5);
    s->high = 5 * ceil((high + 1) / 5);
}

static double size_y(const struct svg *s, double bytes)
{
    return SIZE_TOP + SIZE_HEIGHT * (1 - bytes / s->size_top);
}

static double sqnr_y(const struct svg *s, double db)
{
    return SQNR_TOP + SQNR_HEIGHT * (s->high - db) / (s->high - s->low);
}

static void grid_line(const struct svg *s, double y)
{
    fprintf(s->out, "<path d=\"M%d %.1fH%d\" stroke=\"#000\" stroke-opacity=\".13\"/>\n", LEFT, y,
            WIDTH - RIGHT);
}

static void axes(const struct svg *s)
{
    double step = tick(s->size_top);
    char text[16];

    fputs("<g text-anchor=\"end\">\n", s->out);
    for (int i = 0; i * step <= s->size_top; i++) {
        grid_line(s, size_y(s, i * step));
        fprintf(s->out, "<text x=\"%d\" y=\"%.1f\">%s</text>\n", LEFT - 6, size_y(s, i * step) + 4,
                i > 0 ? ui_bytes(text, (uint64_t)(i * step)) : "0");
    }
    step = fmax(tick(s->high - s->low), 1);
    for (double db = ceil(s->low / step) * step; db <= s->high; db += step) {
        grid_line(s, sqnr_y(s, db));
        fprintf(s->out, "<text x=\"%d\" y=\"%.1f\">%g dB</text>\n", LEFT - 6, sqnr_y(s, db) + 4,
                db);
    }
    fprintf(s->out, "<text x=\"%d\" y=\"%d\">exact</text>\n</g>\n", LEFT - 6, EXACT + 4);
    fprintf(s->out,
            "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">size</text>\n"
            "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">SQNR</text>\n",
            LEFT, SIZE_TOP - 8, LEFT, EXACT - 12);
}

/* ---- the tensors ---- */

static void tooltip(const struct svg *s, const struct column *c)
{
    const struct dump_bar *b = &s->bars[c->first];
    char stored[16], size[16];

    fputs("<title>", s->out);
    put_name(s->out, b->name, b->name_len);
    if (c->end - c->first > 1)
        fprintf(s->out, " and %" PRIu64 " after it", c->end - c->first - 1);
    fprintf(s->out, ": %s of %s", ui_bytes(stored, (uint64_t)c->stored),
            ui_bytes(size, (uint64_t)c->size));
    if (c->lossy && c->high > c->low)
        fprintf(s->out, ", %.2f to %.2f dB", c->low, c->high);
    else if (c->lossy)
        fprintf(s->out, ", %.2f dB", c->low);
    fprintf(s->out, "%s</title>", !c->lossless ? "" : c->lossy ? ", some exact" : ", exact");
}

static void bar(const struct svg *s, double x, double width, double bytes, const char *colour)
{
    if (bytes > 0)
        fprintf(s->out, "<path fill=\"%s\" d=\"M%.2f %.2fH%.2fV%dH%.2fz\"/>", colour, x,
                size_y(s, bytes), x + width, SIZE_TOP + SIZE_HEIGHT, x);
}

static void columns(const struct svg *s)
{
    double gap = s->width > 3 ? s->width * 0.12 : 0, wide = s->width - 2 * gap;
    double dot = fmin(fmax(s->width * 0.6, 2.2), 6);

    fputs("<g stroke-linecap=\"round\">\n", s->out);
    for (uint64_t i = 0; i < s->columns; i++) {
        struct column c = column_at(s, i);
        double x = column_x(s, i), middle = x + s->width / 2;

        fputs("<g>", s->out);
        tooltip(s, &c);
        bar(s, x + gap, wide, c.size, FULL);
        bar(s, x + gap, wide, c.stored, c.lossy ? LOSSY : LOSSLESS);
        if (c.lossy) /* a round cap makes a dot of a line without length */
            fprintf(s->out,
                    "<path stroke=\"" LOSSY "\" stroke-width=\"%.2f\" d=\"M%.2f %.2fV%.2f\"/>", dot,
                    middle, sqnr_y(s, c.high), sqnr_y(s, c.low) + 0.01);
        if (c.lossless)
            fprintf(s->out,
                    "<path stroke=\"" LOSSLESS "\" stroke-width=\"%.2f\" d=\"M%.2f %dv.01\"/>", dot,
                    middle, EXACT);
        fputs("</g>\n", s->out);
    }
    fputs("</g>\n", s->out);
}

/* ---- layers and names ---- */

/* Bytes of the names that make one layer, or one group of layers; where a name has no number all
 * up to its first point. */
static unsigned prefix_of(const struct dump_bar *b, bool layer)
{
    unsigned digits, end = dump_layer(b->name, b->name_len, &digits);
    const char *point = memchr(b->name, '.', b->name_len);

    if (end > 0)
        return layer ? end : digits;
    return layer ? b->name_len : point != NULL ? (unsigned)(point - b->name) : b->name_len;
}

static bool together(const struct dump_bar *a, const struct dump_bar *b, bool layer)
{
    unsigned na = prefix_of(a, layer), nb = prefix_of(b, layer);

    return na == nb && memcmp(a->name, b->name, na) == 0;
}

static const struct dump_bar *bar_at(const struct svg *s, uint64_t column)
{
    return &s->bars[column * s->count / s->columns];
}

/* Below the axis: the numbers of the layers, or in a second row what they are layers of. A label
 * for which there is no room is left out. */
static void row(const struct svg *s, bool layer, int y)
{
    double free_from = 0;

    for (uint64_t i = 0, end; i < s->columns; i = end) {
        const struct dump_bar *b = bar_at(s, i);
        unsigned digits = 0, from = 0, to = prefix_of(b, layer);
        double middle, half;

        for (end = i + 1; end < s->columns && together(b, bar_at(s, end), layer); end++)
            ;
        if (layer && dump_layer(b->name, b->name_len, &digits) == 0)
            continue;
        if (layer)
            from = digits;
        else if (to > 0 && b->name[to - 1] == '.')
            to--;
        middle = (column_x(s, i) + column_x(s, end)) / 2;
        half = CHARACTER * (to - from < NAME_BYTES ? to - from : NAME_BYTES) / 2;
        if (!layer && (half * 2 > column_x(s, end) - column_x(s, i)))
            continue;
        if (middle - half < free_from + 3 || middle + half > WIDTH)
            continue;
        fprintf(s->out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", middle, y);
        put_label(s->out, b->name + from, to - from);
        fputs("</text>\n", s->out);
        free_from = middle + half;
    }
}

/* Every second layer has a grey ground. */
static void bands(const struct svg *s)
{
    bool shaded = false;

    for (uint64_t i = 0, end; i < s->columns; i = end) {
        unsigned digits;
        const struct dump_bar *b = bar_at(s, i);

        for (end = i + 1; end < s->columns && together(b, bar_at(s, end), true); end++)
            ;
        if (dump_layer(b->name, b->name_len, &digits) == 0)
            continue;
        if (shaded)
            fprintf(s->out,
                    "<path fill=\"#000\" fill-opacity=\".05\" d=\"M%.2f %dH%.2fV%dH%.2fz\"/>\n",
                    column_x(s, i), SIZE_TOP, column_x(s, end), BOTTOM, column_x(s, i));
        shaded = !shaded;
    }
}

static void names(const struct svg *s)
{
    fputs("<g font-size=\"9\" text-anchor=\"end\">\n", s->out);
    for (uint64_t i = 0; i < s->columns; i++) {
        const struct dump_bar *b = &s->bars[i];

        fprintf(s->out, "<text transform=\"translate(%.1f %d) rotate(-90)\">",
                column_x(s, i) + s->width / 2 + 3, BOTTOM + 8);
        put_label(s->out, b->name, b->name_len);
        fputs("</text>\n", s->out);
    }
    fputs("</g>\n", s->out);
}

/* ---- the page ---- */

static void heading(const struct svg *s, const char *image)
{
    double size = 0, stored = 0;
    uint64_t lossy = 0;
    char a[16], b[16];

    for (uint64_t i = 0; i < s->count; i++) {
        size += s->bars[i].size;
        stored += s->bars[i].stored;
        lossy += s->bars[i].lossy;
    }
    fprintf(s->out, "<text x=\"%d\" y=\"22\" font-size=\"14\" font-weight=\"bold\">", LEFT);
    put_label(s->out, image, (unsigned)strnlen(image, DUMP_SVG_COLUMNS));
    fprintf(s->out,
            "</text>\n<text x=\"%d\" y=\"40\">%" PRIu64 " tensors, %" PRIu64
            " with loss; %s stored in %s",
            LEFT, s->count, lossy, ui_bytes(a, (uint64_t)fmin(size, 0x1p63)),
            ui_bytes(b, (uint64_t)fmin(stored, 0x1p63)));
    if (s->columns < s->count)
        fprintf(s->out, "; %.3g tensors a column", (double)s->count / (double)s->columns);
    fprintf(s->out,
            "</text>\n"
            "<g transform=\"translate(%d 31)\"><path fill=\"" FULL "\" d=\"M0 0h10v10h-10z\"/>"
            "<text x=\"15\" y=\"9\">in the mount</text>"
            "<path fill=\"" LOSSY
            "\" d=\"M95 0h10v10h-10z\"/><text x=\"110\" y=\"9\">stored, with loss</text>"
            "<path fill=\"" LOSSLESS "\" d=\"M210 0h10v10h-10z\"/>"
            "<text x=\"225\" y=\"9\">stored, lossless</text></g>\n",
            WIDTH - RIGHT - 315);
}

void dump_svg(FILE *out, const char *image, const struct dump_bar *bars, uint64_t count)
{
    struct svg s = {.out = out, .bars = bars, .count = count};
    bool named;
    int height;

    measure(&s);
    named = s.columns == s.count && s.width >= NAMED_WIDTH;
    height = BOTTOM + (named ? 16 + NAME_BYTES * 5 : 48);
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"10\">\n"
            "<path fill=\"#fff\" d=\"M0 0h%dv%dh-%dz\"/>\n",
            WIDTH, height, WIDTH, height, WIDTH, height, WIDTH);
    heading(&s, image);
    bands(&s);
    axes(&s);
    columns(&s);
    if (named) {
        names(&s);
    } else {
        row(&s, true, BOTTOM + 16);
        row(&s, false, BOTTOM + 34);
    }
    fputs("</svg>\n", out);
}
