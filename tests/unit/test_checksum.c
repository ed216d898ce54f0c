/* One checksum on every processor: if this fails, images are damaged where others find them whole.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "codec/codec.h"
#include "fs/checksum.h"

#include <xxhash.h>

static void test_is_xxh3_of_any_length(void **state)
{
    (void)state;
    enum { LARGEST = 300000 };
    uint8_t *data = malloc(LARGEST + 1);
    assert_non_null(data);
    for (size_t i = 0; i <= LARGEST; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t len = 0; len <= LARGEST; len += len < 2100 ? 1 : 7919) {
        uint64_t right = XXH3_64bits(data + 1, len);
        assert_int_equal(hfs_checksum(data + 1, len), right);
#if defined(__x86_64__)
        if (hc_isa_best() == HC_ISA_AVX2)
            assert_int_equal(hfs_checksum_avx2(data + 1, len), right);
#endif
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_is_xxh3_of_any_length)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
