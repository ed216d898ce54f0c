#include "codec/kdtree.h"

#include <new>

#include <kdtree++/kdtree.hpp>

namespace
{
struct point {
    typedef double value_type;
    double at[2];
    size_t number;
    double operator[](size_t k) const
    {
        return at[k];
    }
};
typedef KDTree::KDTree<2, point> tree;
} // namespace

struct hc_kdtree {
    tree points;
};

struct hc_kdtree *hc_kdtree_new(const double *x, const double *y, size_t n)
{
    try {
        hc_kdtree *t = new hc_kdtree;
        for (size_t i = 0; i < n; i++) {
            point p = {{x[i], y[i]}, i};
            t->points.insert(p);
        }
        t->points.optimise();
        return t;
    } catch (const std::bad_alloc &) {
        return NULL;
    }
}

void hc_kdtree_free(struct hc_kdtree *t)
{
    delete t;
}

size_t hc_kdtree_nearest(const struct hc_kdtree *t, double x, double y, double *distance2)
{
    point p = {{x, y}, 0};
    std::pair<tree::const_iterator, double> found = t->points.find_nearest(p);
    *distance2 = found.second * found.second;
    return found.first->number;
}
