#include "codec/fit.h"

#include <math.h>

#include "codec/scan.h"
#include "codec/trellis.h"

enum {
    ROUNDS = 64,  /* of the iteration between window and root mean square */
    SYMBOLS = 256 /* of the entropy code: high bytes of the ranks */
};

static const double pi = 3.14159265358979;

/* Squared length of the median non-zero pair. */
static double median_square(const struct hc_scan *s)
{
    uint64_t total = 0, below = 0;
    for (unsigned b = s->first; b < s->end; b++)
        total += s->bin[b].count;
    for (unsigned b = s->first; b < s->end; b++) {
        below += s->bin[b].count;
        if (below > total / 2)
            return hc_scan_edge(b);
    }
    return 0;
}

struct hc_fit hc_fit_window(const struct hc_scan *s, double sqnr_db, double mse, double reach)
{
    struct hc_fit f = {.mean_square = median_square(s) / 1.386};
    /* d^2 over the mean square; shrinking adds (shrink * rms)^2 to the noise of the trellis. */
    double noise = pow(10, -sqnr_db / 10) / mse;
    noise /= 1 + HC_SHRINK_FACTOR * HC_SHRINK_FACTOR * noise / mse;
    uint64_t total = hc_scan_outside(s) + s->bin[0].count;

    for (unsigned b = s->first; b < s->end; b++)
        total += s->bin[b].count;
    for (int round = 0; round < ROUNDS; round++) {
        double before = f.mean_square, energy = 0;
        uint64_t carried = s->bin[0].count;
        f.d = sqrt(before * noise);
        double window2 = reach * reach * f.d * f.d;
        for (unsigned b = s->first; b < s->end && hc_scan_edge(b + 1) <= window2; b++) {
            carried += s->bin[b].count;
            energy += hc_scan_energy(s, b);
        }
        f.outside = 1 - (double)carried / (double)total;
        f.mean_square = carried ? energy / (2 * (double)carried) : 0;
        if (fabs(f.mean_square - before) <= 1e-9 * before)
            break;
    }
    return f;
}

uint32_t hc_window_points(unsigned split)
{
    return 256u << (split - 1);
}

double hc_window_reach(uint32_t npoints)
{
    return sqrt(npoints * 2 * sqrt(3.0) / pi) - 1.25;
}

/* Entropy in bits of the high byte of a rank, over the carried pairs. Ranks count points by their
 * length, a point for each coarse cell: so each of the symbols stands for a ring of the same area,
 * and the histogram of squared lengths says how many pairs are in it. */
static double ring_entropy(const struct hc_scan *s, double ring, double carried)
{
    double count[SYMBOLS] = {0}, sum = 0;
    count[0] = (double)s->bin[0].count;
    for (unsigned b = s->first; b < s->end; b++) {
        double from = hc_scan_edge(b) / ring, to = hc_scan_edge(b + 1) / ring;
        if (s->bin[b].count == 0)
            continue;
        if (from >= SYMBOLS)
            break;
        double density = (double)s->bin[b].count / (to - from);
        for (unsigned k = (unsigned)from; k < SYMBOLS && k < to; k++)
            count[k] += density * (fmin(to, k + 1.0) - fmax(from, k));
    }
    for (unsigned k = 0; k < SYMBOLS; k++)
        if (count[k] > 0)
            sum -= count[k] * log2(count[k] / carried);
    return sum / carried;
}

double hc_predict_bits(const struct hc_scan *s, const struct hc_target *target)
{
    const unsigned nu = hc_scan_elements(s) <= (uint64_t)HC_SAMPLE_BLOCKS * 2 * HC_TRAJECTORY_PAIRS
                            ? target->nu_small
                            : target->nu;
    const double mse = hc_trellis_taps(nu).mse;
    const double exact_bits = 16 + 2.0 * hc_dtype_bits(s->dtype);
    double least = INFINITY;
    unsigned trials = 0;

    if (s->first >= s->end)
        return INFINITY;
    for (unsigned split = 1; split <= HC_MAX_SPLIT && trials < HC_SPLIT_TRIALS; split++) {
        struct hc_fit f =
            hc_fit_window(s, target->sqnr_db, mse, hc_window_reach(hc_window_points(split)));
        if ((f.outside * exact_bits > HC_OUTSIDE_COST && split < HC_MAX_SPLIT) || !(f.d > 0))
            continue;
        trials++;
        double pairs = (double)s->elements / 2 * (1 - f.outside);
        double ring = (double)(1u << (split - 1)) * 2 * sqrt(3.0) * f.d * f.d / pi;
        double bits = (1 - f.outside) * (ring_entropy(s, ring, pairs) + split - 1 + (nu > 0)) +
                      f.outside * exact_bits;
        if (bits / 2 < least)
            least = bits / 2;
    }
    return least;
}
