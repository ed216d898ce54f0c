/* Changes an image and mends its checksums: how inputs for regressions are made by hand.
 *
 *     mend IN OUT WORD...
 *
 * tests/fuzz/image_parts.h has the words. `whole` among them mends the checksums of decoded
 * blocks too. IN may have wrong checksums: without any word they are mended.
 */
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image_parts.h"

static uint8_t *load(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) < 0) {
        perror(path);
        exit(1);
    }
    *size = (size_t)st.st_size;
    uint8_t *data = fuzz_alloc(*size);
    FUZZ_CHECK(fread(data, 1, *size, f) == *size);
    fclose(f);
    return data;
}

int main(int argc, char **argv)
{
    struct fz_image img;
    size_t size;
    bool whole = false;
    if (argc < 3) {
        fprintf(stderr, "usage: mend IN OUT WORD...\n");
        return 2;
    }
    uint8_t *data = load(argv[1], &size);
    if (!fz_take_apart(data, size, &img)) {
        fprintf(stderr, "mend: %s is too far from an image\n", argv[1]);
        return 1;
    }
    free(data);
    for (int i = 3; i < argc; i++) {
        bool late = strncmp(argv[i], "image", 5) == 0;
        const char *wrong = NULL;
        if (strcmp(argv[i], "whole") == 0)
            whole = true;
        else if (!late)
            wrong = fz_edit(&img, argv[i]);
        if (wrong) {
            fprintf(stderr, "mend: '%s' %s\n", argv[i], wrong);
            return 1;
        }
    }
    data = whole ? fz_put_together_whole(&img, &size) : fz_put_together(&img, &size);
    for (int i = 3; i < argc; i++)
        if (strncmp(argv[i], "image", 5) == 0 && !fz_edit_bytes(&data, &size, argv[i])) {
            fprintf(stderr, "mend: '%s' is wrong\n", argv[i]);
            return 1;
        }
    FILE *f = fopen(argv[2], "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) {
        perror(argv[2]);
        return 1;
    }
    free(data);
    fz_free(&img);
    return 0;
}
