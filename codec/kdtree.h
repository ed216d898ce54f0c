/* A k-d tree over points of the plane: the reference for nearest points.
 *
 * The encoder finds nearest points in closed form (kernels_common.h, cell_distance), which
 * lattices allow; this tree (libkdtree++) finds them by search, from the points alone, and is what
 * tests and benchmarks hold the closed form against. Not linked into the tools.
 */
#ifndef HYPERFS_CODEC_KDTREE_H
#define HYPERFS_CODEC_KDTREE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hc_kdtree;

/* A balanced tree of n points (x[i], y[i]); NULL when out of memory. */
struct hc_kdtree *hc_kdtree_new(const double *x, const double *y, size_t n);
void hc_kdtree_free(struct hc_kdtree *t);

/* Number of the point nearest to (x, y); its squared distance in *distance2. n > 0. */
size_t hc_kdtree_nearest(const struct hc_kdtree *t, double x, double y, double *distance2);

#ifdef __cplusplus
}
#endif

#endif
