/* The trajectory's points and their order.
 *
 * U points p(theta) = theta * (1, z) / U of a line that winds z times around the torus are a
 * lattice; four copies shifted by 0, b1/2, b2/2 and (b1+b2)/2 (the phases) are together the same
 * lattice at half the spacing, with basis b1, b2 in units of 1/(2U). Point m b1 + n b2
 * belongs to phase (m mod 2) + 2 (n mod 2). Within a phase points are ranked by distance
 * from the origin, ties by theta. Distances are integers, so the order is the same
 * everywhere.
 *
 * The spacing d is defined by area: d^2 = 2/sqrt(3) times the area of the fine lattice's cell,
 * which is U units squared.
 */
#ifndef HYPERFS_CODEC_LATTICE_H
#define HYPERFS_CODEC_LATTICE_H

#include <stdint.h>

#include "codec/codec.h"

enum { HC_MIN_POINTS = 64, HC_MAX_POINTS = 1 << 20, HC_MAX_NPOINTS = 1 << 16 };

/* A point m b1 + n b2. */
struct hc_point {
    int32_t m, n;
};

struct hc_lattice {
    int32_t b1[2], b2[2];
    uint32_t npoints;
    struct hc_point *point[4]; /* npoints each, by rank */
    double radius;             /* all fine points within it have a rank; units of 1/(2U) */
};

/* Winding z of U whose lattice has the largest minimum distance, the smallest such z, and the
 * reduced basis (hc_trajectory in codec.h says how). Sets points, winding, b1, b2. */
void hc_lattice_choose(uint32_t points, struct hc_trajectory *t);

/* A trajectory for npoints = 256 << k points a phase, k = 0 .. 8: U, winding and basis from a
 * table. -EINVAL for another number. */
int hc_lattice_for(uint32_t npoints, struct hc_trajectory *t);

/* Checks the lattice fields of t: -EINVAL if they break their contract. */
int hc_lattice_check(const struct hc_trajectory *t);

/* Ranks the points. -EINVAL if t is out of range or the window does not fit on the torus. */
int hc_lattice_new(const struct hc_trajectory *t, struct hc_lattice **out);
void hc_lattice_free(struct hc_lattice *l);

/* Coordinates of a point in units of 1/(2U). */
static inline int32_t hc_point_x(const struct hc_lattice *l, struct hc_point p)
{
    return p.m * l->b1[0] + p.n * l->b2[0];
}

static inline int32_t hc_point_y(const struct hc_lattice *l, struct hc_point p)
{
    return p.m * l->b1[1] + p.n * l->b2[1];
}

/* d in units of 1/(2U). */
double hc_lattice_spacing(uint32_t points);

/* Largest distance of any place in the plane from the nearest point of one phase, same units. */
double hc_lattice_covering_radius(const struct hc_trajectory *t);

#endif
