#include "fs/fsck_weights.h"

#include <math.h>
#include <string.h>

#include "codec/weight.h"

enum { BATCH = 512 };

double fsck_weight_limit(const struct hc_code *code)
{
    /* The trajectory fills a torus whose side is 2 U steps, half of them on each side of 0. */
    return (double)code->t.points * hc_step_value(code->t.step);
}

void fsck_measure_block(struct fsck_measure *m, enum hc_dtype dtype, double limit,
                        const uint8_t *original, const uint8_t *decoded, size_t len)
{
    size_t width = hc_dtype_bits(dtype) / 8;
    double a[BATCH], b[BATCH];

    for (size_t left = len / width; left > 0;) {
        size_t n = left < BATCH ? left : BATCH;

        hc_weights_load(a, original, n, dtype);
        hc_weights_load(b, decoded, n, dtype);
        for (size_t i = 0; i < n; i++) {
            double error = fabs(a[i] - b[i]);
            bool same = memcmp(original + i * width, decoded + i * width, width) == 0;

            m->exact += same;
            if (same && !(fabs(a[i]) <= limit))
                continue;
            if (!isfinite(error)) {
                m->broken++;
                continue;
            }
            m->signal += a[i] * a[i];
            m->noise += error * error;
            if (error > m->max_error)
                m->max_error = error;
        }
        m->elements += n;
        original += n * width;
        decoded += n * width;
        left -= n;
    }
}

void fsck_measure_add(struct fsck_measure *sum, const struct fsck_measure *m)
{
    sum->signal += m->signal;
    sum->noise += m->noise;
    sum->exact += m->exact;
    sum->elements += m->elements;
    sum->broken += m->broken;
    if (m->max_error > sum->max_error)
        sum->max_error = m->max_error;
}

double fsck_measure_sqnr(const struct fsck_measure *m)
{
    return m->noise > 0 ? 10 * log10(m->signal / m->noise) : INFINITY;
}
