// GELU and its derivative on sixteen values. 1/2 (1 + tanh u) is 1 / (1 + exp(-2u)): one exp and one reciprocal,
// and no cancellation where tanh u is near -1.
#pragma once

#include "common.hpp"

constexpr float GELU_SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float GELU_CUBIC = 0.044715f;

// e = exp(-2u), u = GELU_SCALE * (x + GELU_CUBIC x^3), as a power of two. Bounded above, so that 1 / (1 + e) is normal
// and e times it never infinity times zero; GELU is zero to fp32 by then.
INLINE vec gelu_exp(vec x) {
    const float scale = -2 * LOG2E * GELU_SCALE;
    return exp2_16(min16(splat(120.0f), x * (scale + scale * GELU_CUBIC * x * x)));
}

// From here on GELU is 0 or x, and its slope 0 or 1, to fp32. x is bounded before the formula, as a bound of the
// exponential alone leaves x or x^3 times something that is not 0. NaN stays: it is max16's and min16's second value.
constexpr float FAR = 10;

INLINE vec from_left(vec x) { return max16(splat(-FAR), x); }

INLINE vec gelu16(vec x) {
    x = from_left(x);
    return x * reciprocal16(1.0f + gelu_exp(x));
}

// gate + x gate' = gate (1 + x slope (1 - gate)), as gate' = gate (1 - gate) slope. 1 - gate is taken as e gate, which
// keeps its digits where gate is near 1.
INLINE vec gelu_grad16(vec x) {
    x = min16(splat(FAR), from_left(x));
    vec e = gelu_exp(x);
    vec gate = reciprocal16(1.0f + e);
    vec slope = 2 * GELU_SCALE + 6 * GELU_SCALE * GELU_CUBIC * x * x;
    return gate * (1.0f + x * slope * (e * gate));
}
