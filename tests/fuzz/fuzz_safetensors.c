/* A safetensors file: whoever gets its tensors can cut it at their borders. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "codec/bytes.h"
#include "mkhyperfs/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void check_tensor(const struct st_header *h, size_t i, uint64_t *at)
{
    const struct st_tensor *t = &h->tensors[i];
    uint64_t elements = 1;
    for (unsigned d = 0; d < t->rank; d++)
        elements *= t->dims[d];
    FUZZ_CHECK(t->name && t->dtype > HC_DTYPE_NONE && t->dtype < HC_DTYPE_COUNT);
    FUZZ_CHECK(elements == t->elements && t->begin == *at && t->end >= t->begin);
    FUZZ_CHECK(t->end - t->begin == t->elements / 8 * hc_dtype_bits(t->dtype) +
                                        t->elements % 8 * hc_dtype_bits(t->dtype) / 8);
    FUZZ_CHECK(t->where >= 8 && t->where < h->bytes);
    for (size_t k = 0; k < i && k < 32; k++)
        FUZZ_CHECK(strcmp(h->tensors[k].name, t->name) != 0);
    *at = t->end;
}

/* The file has become shorter since its size was asked. */
static void read_shortened(int fd, size_t size, size_t length)
{
    struct hfs_error err = {{0}};
    struct st_header h;
    FUZZ_CHECK(ftruncate(fd, (off_t)length) == 0);
    int r = st_read(fd, size, "input.safetensors", &h, &err);
    if (r == 0)
        st_free(&h); /* only data was cut off, which is not read */
    else
        FUZZ_CHECK((r == -EBADMSG || r == -ESTALE) && err.text[0] && h.count == 0);
}

enum fuzz_verdict fuzz_one(const uint8_t *data, size_t size)
{
    struct hfs_error err = {{0}};
    struct st_header h;
    int fd = fuzz_file(data, size, NULL);
    int r = st_read(fd, size, "input.safetensors", &h, &err);
    if (r < 0) {
        FUZZ_CHECK(r == -EBADMSG && h.count == 0 && !h.tensors);
        FUZZ_CHECK(strncmp(err.text, "input.safetensors: byte ", 24) == 0);
    } else {
        uint64_t at = h.bytes;
        FUZZ_CHECK(h.bytes == 8 + load64(data));
        for (size_t i = 0; i < h.count; i++)
            check_tensor(&h, i, &at);
        FUZZ_CHECK(at == size);
        st_free(&h);
    }
    read_shortened(fd, size, size < 64 ? size / 2 : 8 + load64(data) % (size - 8));
    read_shortened(fd, size, size / 2);
    return r < 0 ? FUZZ_REFUSE : FUZZ_ACCEPT;
}

/* ---- a mutator that mends the header's length and the size of the data ---- */

/* The largest end of any data_offsets in the text. */
static uint64_t data_needed(const uint8_t *text, size_t len)
{
    static const char key[] = "data_offsets\":[";
    uint64_t most = 0;
    for (size_t i = 0; i + sizeof key <= len; i++) {
        if (memcmp(text + i, key, sizeof key - 1) != 0)
            continue;
        size_t at = i + sizeof key - 1;
        while (at < len && text[at] != ',' && text[at] != ']')
            at++;
        uint64_t end = 0;
        for (at++; at < len && text[at] >= '0' && text[at] <= '9' && end < 1 << 20; at++)
            end = 10 * end + text[at] - '0';
        most = end > most ? end : most;
    }
    return most;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct fuzz_random r = {seed};
    uint64_t way = fuzz_below(&r, 8);
    if (size < 8 || room < 64 || way == 0)
        return LLVMFuzzerMutate(data, size, room);
    uint64_t length = load64(data);
    size_t header = length < size - 8 ? (size_t)length : size - 8;
    header = LLVMFuzzerMutate(data + 8, header, room - 8);
    store64(data, header);
    uint64_t need = data_needed(data + 8, header);
    if (way == 1)
        need += fuzz_below(&r, 3) - 1;
    if (need > room - 8 - header)
        need = room - 8 - header;
    memset(data + 8 + header, 0, (size_t)need);
    return 8 + header + (size_t)need;
}
