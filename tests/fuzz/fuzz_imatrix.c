/* An importance matrix, GGUF or the older form: what is read of it is finite, named once and
 * sorted. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "mkhyperfs/imatrix.h"
#include "tests/fuzz/fuzz.h"

static void check_entry(const struct imatrix *im, size_t i)
{
    const struct imatrix_entry *e = &im->entries[i];
    double energy = 0;
    FUZZ_CHECK(e->name && imatrix_find(im, e->name) == e);
    FUZZ_CHECK(i == 0 || strcmp(im->entries[i - 1].name, e->name) < 0);
    FUZZ_CHECK(e->counts >= 1 && e->counts <= IMATRIX_MAX_COUNTS);
    FUZZ_CHECK(isfinite(e->tokens) && e->tokens >= 0);
    FUZZ_CHECK(isfinite(e->strength) && e->strength >= 0);
    FUZZ_CHECK(isfinite(e->squares) && e->squares >= 0);
    if (imatrix_energy(e, e->values / e->counts, &energy))
        FUZZ_CHECK(isfinite(energy) && energy >= 0);
    FUZZ_CHECK(imatrix_peak(e) > 0.999); /* 1 or more, but for rounding */
}

enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size)
{
    struct hfs_error err = {{0}};
    struct imatrix im;
    char path[64];
    int fd = fuzz_file(data, size, NULL);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int r = imatrix_read(path, &im, &err);
    if (r < 0)
        FUZZ_CHECK(r == -EBADMSG && strncmp(err.text, path, strlen(path)) == 0);
    for (size_t i = 0; r == 0 && i < im.count; i++)
        check_entry(&im, i);
    imatrix_free(&im);
    return r < 0 ? FUZZ_REFUSE : FUZZ_ACCEPT;
}
