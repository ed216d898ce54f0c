#include "codec/lattice.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t vec[2];

static int64_t dot(const vec a, const vec b)
{
    return a[0] * b[0] + a[1] * b[1];
}

/* n / d rounded to nearest, d > 0. */
static int64_t round_div(int64_t n, int64_t d)
{
    int64_t q = n / d, r = n % d;
    if (2 * r > d || (2 * r == d && n > 0))
        q++;
    else if (2 * r < -d)
        q--;
    return q;
}

/* Gauss's reduction: afterwards |a| <= |b| and 2 |a.b| <= |a|^2. */
static void reduce(vec a, vec b)
{
    if (dot(a, a) > dot(b, b)) {
        vec t = {a[0], a[1]};
        a[0] = b[0], a[1] = b[1];
        b[0] = t[0], b[1] = t[1];
    }
    for (;;) {
        int64_t q = round_div(dot(a, b), dot(a, a));
        b[0] -= q * a[0];
        b[1] -= q * a[1];
        if (dot(b, b) >= dot(a, a))
            return;
        vec t = {a[0], a[1]};
        a[0] = b[0], a[1] = b[1];
        b[0] = t[0], b[1] = t[1];
    }
}

static void set_basis(struct hc_trajectory *t, uint32_t points, uint32_t winding, const vec a,
                      const vec b)
{
    int sign = dot(a, b) < 0 ? -1 : 1;
    t->points = points;
    t->winding = winding;
    for (int i = 0; i < 2; i++) {
        t->b1[i] = (int32_t)a[i];
        t->b2[i] = (int32_t)(sign * b[i]);
    }
}

void hc_lattice_choose(uint32_t points, struct hc_trajectory *t)
{
    int64_t best = 0;
    const int64_t u = points;

    for (int64_t z = 1; z <= u / 2; z++) {
        vec a = {1, z}, b = {0, u};
        reduce(a, b);
        if (dot(a, a) <= best)
            continue;
        best = dot(a, a);
        set_basis(t, points, (uint32_t)z, a, b);
    }
}

/* For each window the U, up to 8 % larger than it must be, whose best lattice is the
 * nearest to hexagonal (shortest vector at least 0.993 of the hexagonal one's), and its winding. */
static const struct {
    uint32_t npoints, points, winding;
} windows[] = {
    {256, 422, 96},       {512, 739, 192},     {1024, 1463, 474},
    {2048, 2911, 780},    {4096, 5419, 1780},  {8192, 10920, 4109},
    {16384, 21728, 7953}, {32768, 42736, 222}, {65536, 85632, 27544},
};

int hc_lattice_for(uint32_t npoints, struct hc_trajectory *t)
{
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        if (windows[i].npoints == npoints) {
            vec a = {1, windows[i].winding}, b = {0, windows[i].points};
            reduce(a, b);
            set_basis(t, windows[i].points, windows[i].winding, a, b);
            t->npoints = npoints;
            return 0;
        }
    return -EINVAL;
}

int hc_lattice_check(const struct hc_trajectory *t)
{
    const int64_t u = t->points, z = t->winding;
    if (u < HC_MIN_POINTS || u > HC_MAX_POINTS || z < 1 || z >= u || t->npoints < 1 ||
        t->npoints > HC_MAX_NPOINTS || t->npoints > u)
        return -EINVAL;
    const vec a = {t->b1[0], t->b1[1]}, b = {t->b2[0], t->b2[1]};
    for (int i = 0; i < 2; i++)
        if (llabs(a[i]) > u || llabs(b[i]) > u)
            return -EINVAL;
    int64_t aa = dot(a, a), ab = dot(a, b), bb = dot(b, b);
    if (ab < 0 || 2 * ab > aa || aa > bb || bb > 2 * aa)
        return -EINVAL;
    if (llabs(a[0] * b[1] - a[1] * b[0]) != u)
        return -EINVAL;
    if ((a[0] * z - a[1]) % u || (b[0] * z - b[1]) % u)
        return -EINVAL; /* not on this trajectory */
    return 0;
}

double hc_lattice_spacing(uint32_t points)
{
    return sqrt(2.0 / sqrt(3.0) * points);
}

double hc_lattice_covering_radius(const struct hc_trajectory *t)
{
    /* Circumradius of the triangle 2 b1, 2 b2: abc / (4 area), area = half of the coarse cell. */
    double a = 2 * hypot(t->b1[0], t->b1[1]), b = 2 * hypot(t->b2[0], t->b2[1]);
    double c = 2 * hypot(t->b1[0] - t->b2[0], t->b1[1] - t->b2[1]);
    return a * b * c / (8.0 * t->points);
}

/* Sort key: squared distance (below 2^43), then theta (below 2^20). */
struct candidate {
    uint64_t key;
    struct hc_point p;
};
enum { THETA_BITS = 20 };

static uint64_t key_of(const struct hc_trajectory *t, struct hc_point p)
{
    const int64_t u = t->points;
    int64_t x = (int64_t)p.m * t->b1[0] + (int64_t)p.n * t->b2[0];
    int64_t y = (int64_t)p.m * t->b1[1] + (int64_t)p.n * t->b2[1];
    int64_t without_phase = x - (p.m & 1) * (int64_t)t->b1[0] - (p.n & 1) * (int64_t)t->b2[0];
    int64_t theta = without_phase / 2 % u;
    theta += theta < 0 ? u : 0;
    return (uint64_t)(x * x + y * y) << THETA_BITS | (uint64_t)theta;
}

/* All points of phase k within `radius`, row by row; counts them, stores them if out is given. */
static size_t enumerate(const struct hc_trajectory *t, unsigned k, double radius,
                        struct candidate *out)
{
    const double b11 = (double)t->b1[0] * t->b1[0] + (double)t->b1[1] * t->b1[1];
    const double b12 = (double)t->b1[0] * t->b2[0] + (double)t->b1[1] * t->b2[1];
    const double height = t->points / sqrt(b11);
    const int32_t rows = (int32_t)(radius / height) + 1;
    size_t count = 0;

    for (int32_t n = -rows; n <= rows; n++) {
        if ((n & 1) != (int)(k >> 1))
            continue;
        double d = n * height, rest = radius * radius - d * d;
        if (rest < 0)
            continue;
        double centre = -n * b12 / b11, half = sqrt(rest / b11);
        int32_t first = (int32_t)ceil(centre - half), last = (int32_t)floor(centre + half);
        first += (first & 1) != (int)(k & 1);
        for (int32_t m = first; m <= last; m += 2, count++)
            if (out) {
                out[count].p = (struct hc_point){m, n};
                out[count].key = key_of(t, out[count].p);
            }
    }
    return count;
}

/* Sorts by key. Squared distances of lattice points are spread evenly, so that a bucket for
 * each point's expected place leaves little to sort; least[] has count + 1 places. */
static void sort_by_key(struct candidate *to, const struct candidate *from, size_t count,
                        uint64_t most, uint32_t *least)
{
    const double scale = (double)count / ((double)most + 1);

    memset(least, 0, (count + 1) * sizeof *least);
    for (size_t i = 0; i < count; i++)
        least[(size_t)((double)(from[i].key >> THETA_BITS) * scale) + 1]++;
    for (size_t b = 1; b <= count; b++)
        least[b] += least[b - 1];
    for (size_t i = 0; i < count; i++)
        to[least[(size_t)((double)(from[i].key >> THETA_BITS) * scale)]++] = from[i];
    for (size_t i = 1; i < count; i++) {
        struct candidate c = to[i];
        size_t k = i;
        for (; k > 0 && to[k - 1].key > c.key; k--)
            to[k] = to[k - 1];
        to[k] = c;
    }
}

/* Ranks phase k; lowers *reach to the squared distance of the first point that has no rank. */
static int rank_phase(const struct hc_trajectory *t, unsigned k, double radius,
                      struct hc_lattice *l, double *reach)
{
    size_t count = enumerate(t, k, radius, NULL);
    if (count <= l->npoints)
        return -EINVAL;
    struct candidate *found = malloc(count * sizeof *found), *c = malloc(count * sizeof *c);
    uint32_t *least = malloc((count + 1) * sizeof *least);
    l->point[k] = malloc(l->npoints * sizeof *l->point[k]);
    if (!found || !c || !least || !l->point[k]) {
        free(found);
        free(least);
        free(c);
        return -ENOMEM;
    }
    enumerate(t, k, radius, found);
    sort_by_key(c, found, count, (uint64_t)(radius * radius) + 1, least);
    free(found);
    free(least);
    for (uint32_t i = 0; i < l->npoints; i++)
        l->point[k][i] = c[i].p;
    uint64_t last = c[l->npoints - 1].key >> THETA_BITS, next = c[l->npoints].key >> THETA_BITS;
    free(c);
    *reach = fmin(*reach, (double)next);
    /* Beyond half the torus a point would have a nearer image. */
    return last < (uint64_t)t->points * t->points ? 0 : -EINVAL;
}

int hc_lattice_new(const struct hc_trajectory *t, struct hc_lattice **out)
{
    int rc = hc_lattice_check(t);
    *out = NULL;
    if (rc)
        return rc;
    struct hc_lattice *l = calloc(1, sizeof *l);
    if (!l)
        return -ENOMEM;
    for (int i = 0; i < 2; i++) {
        l->b1[i] = t->b1[i];
        l->b2[i] = t->b2[i];
    }
    l->npoints = t->npoints;
    /* Area of npoints coarse cells, and a margin of more than one cell all around. */
    double longest = 2 * hypot(t->b2[0], t->b2[1]);
    double radius = sqrt(4.0 * t->points * t->npoints / 3.14159265358979) + 2 * longest;
    double reach = INFINITY;
    for (unsigned k = 0; k < 4 && rc == 0; k++)
        rc = rank_phase(t, k, radius, l, &reach);
    if (rc) {
        hc_lattice_free(l);
        return rc;
    }
    l->radius = sqrt(reach);
    *out = l;
    return 0;
}

void hc_lattice_free(struct hc_lattice *l)
{
    if (!l)
        return;
    for (unsigned k = 0; k < 4; k++)
        free(l->point[k]);
    free(l);
}
