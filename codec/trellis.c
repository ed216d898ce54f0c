#include "codec/trellis.h"

#include <string.h>

#include "codec/codec.h"

struct hc_taps hc_trellis_taps(unsigned nu)
{
    static const struct hc_taps taps[] = {
        {0x0, 0x0, 0.2778}, /* one phase: hexagonal lattice of spacing 2d */
        {0x1, 0x1, 0.1329},    {0x1, 0x3, 0.1205},     {0x5, 0x3, 0.1159},   {0xb, 0x4, 0.1124},
        {0x19, 0x17, 0.1105},  {0x29, 0x1f, 0.1092},   {0x5d, 0x24, 0.1082}, {0xed, 0x48, 0.1074},
        {0xab, 0x184, 0.1068}, {0x12f, 0x3f6, 0.1063},
    };
    return taps[nu < sizeof taps / sizeof *taps ? nu : sizeof taps / sizeof *taps - 1];
}

void hc_trellis_trace(unsigned nu, unsigned g0, unsigned g1, unsigned state,
                      const uint32_t *decisions, size_t n, uint8_t *path, uint8_t *phase)
{
    const size_t words = hc_trellis_words(nu);
    const unsigned top = nu - 1;
    uint8_t phase_of[2 << HC_MAX_NU]; /* by history and path bit */

    for (unsigned k = 0; k < 2u << nu; k++)
        phase_of[k] = (uint8_t)hc_phase(k >> 1, k & 1, g0, g1);
    for (size_t t = n; t-- > 0;) {
        unsigned b = state & 1, j = state >> 1;
        unsigned from_top = decisions[t * words + (j >> 4)] >> hc_decision_bit(j, b) & 1;
        state = j | from_top << top;
        path[t] = (uint8_t)b;
        phase[t] = phase_of[state << 1 | b];
    }
}
