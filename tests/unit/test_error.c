/* Messages. What a user loses when one of these fails: a hostile name in an image writes control
 * sequences to the terminal, or the first and true reason of a failure is overwritten. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fs/error.h"

static void the_first_error_stays(void **state)
{
    (void)state;
    struct hfs_error err = {{0}};
    assert_int_equal(hfs_fail(&err, ENOENT, "%s: %d", "first", 1), -ENOENT);
    assert_int_equal(hfs_fail(&err, EIO, "second"), -EIO);
    assert_string_equal(err.text, "first: 1");
    assert_int_equal(hfs_fail(NULL, EIO, "third"), -EIO);
}

static void expect_printed(const char *name, const char *want)
{
    char buf[64];
    assert_string_equal(hfs_printable(buf, sizeof buf, name, (unsigned)strlen(name)), want);
}

static void control_bytes_become_visible(void **state)
{
    (void)state;
    expect_printed("", "");
    expect_printed("model-00001.safetensors ~", "model-00001.safetensors ~");
    expect_printed("a\x1b[2Jb\n\x7f", "a\\x1b[2Jb\\x0a\\x7f");
    expect_printed("gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f");
    expect_printed("\xe6\xa8\xa1\xf0\x9f\xa4\x97", "\xe6\xa8\xa1\xf0\x9f\xa4\x97");
    expect_printed("\xc2\x9b", "\\xc2\\x9b"); /* CSI of the C1 controls */
    expect_printed("\xc1\x9b\xe0\x82\x9b", "\\xc1\\x9b\\xe0\\x82\\x9b"); /* overlong */
    expect_printed("\xed\xa0\x80", "\\xed\\xa0\\x80");                   /* surrogate */
    expect_printed("\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80");          /* beyond U+10FFFF */
    expect_printed("x\xe6\xa8", "x\\xe6\\xa8");                          /* cut short */
}

/* Every size of the buffer: terminated, within it, and cut between characters. */
static void long_names_are_cut(void **state)
{
    (void)state;
    const char *name = "ab\xc3\xbc\x01\xe6\xa8\xa1xyz";
    for (unsigned size = 1; size < 24; size++) {
        char *buf = malloc(size); /* so that the sanitizer sees a byte too many */
        hfs_printable(buf, size, name, (unsigned)strlen(name));
        assert_true(strlen(buf) < size);
        if (size <= strlen("ab\xc3\xbc\\x01\xe6\xa8\xa1xyz"))
            assert_true(size < 4 || strcmp(buf + strlen(buf) - 3, "...") == 0);
        free(buf);
    }
    char buf[8];
    assert_string_equal(hfs_printable(buf, 8, "abcdefg", 7), "abcdefg");
    assert_string_equal(hfs_printable(buf, 8, "abcdefgh", 8), "abcd...");
    assert_string_equal(hfs_printable(buf, 8, "abc\xc3\xbcxyz", 8), "abc...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_error_stays),
        cmocka_unit_test(control_bytes_become_visible),
        cmocka_unit_test(long_names_are_cut),
    };
    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
