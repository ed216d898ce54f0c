#include "codec/codec.h"
#include "codec/kernels.h"

enum hc_isa hc_isa_best(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
        return HC_ISA_AVX2;
#endif
    return HC_ISA_PORTABLE;
}

const char *hc_isa_name(enum hc_isa isa)
{
    return isa == HC_ISA_AVX2 ? "avx2" : "portable";
}

const struct hc_kernels *hc_kernels_of(enum hc_isa isa)
{
#if defined(__x86_64__)
    if (isa == HC_ISA_AVX2 && hc_isa_best() == HC_ISA_AVX2)
        return hc_kernels_avx2_fastest();
#endif
    (void)isa;
    return &hc_kernels_portable;
}
