// GELU and its derivative on sixteen values. 1/2 (1 + tanh u) is 1 / (1 + exp(-2u)): one exp and one division, and
// no cancellation where tanh u is near -1.
#pragma once

#include "common.hpp"

constexpr float GELU_SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float GELU_CUBIC = 0.044715f;

// -2u, u = GELU_SCALE * (x + GELU_CUBIC x^3)
INLINE vec gelu_exponent(vec x) { return -2 * GELU_SCALE * x * (1.0f + GELU_CUBIC * x * x); }

INLINE vec gelu16(vec x) { return x / (1.0f + exp16(gelu_exponent(x))); }

// gate + x * gate' with gate = 1 / (1 + e), gate' = gate (1 - gate) 2 du/dx. 1 - gate is taken as e * gate, which keeps
// its digits where gate is near 1; e is bounded, so that this is never infinity times zero.
INLINE vec gelu_grad16(vec x) {
    vec e = exp16(min16(splat(80.0f), gelu_exponent(x)));
    vec gate = 1.0f / (1.0f + e);
    return gate + x * gate * (e * gate) * (2 * GELU_SCALE + 6 * GELU_SCALE * GELU_CUBIC * x * x);
}
