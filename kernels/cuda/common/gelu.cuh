// GELU, tanh form, and its derivative, without tanh: 1/2 (1 + tanh u) is 1 / (1 + exp(-2u)), which is one exponential
// and one reciprocal, and has no cancellation where tanh u is near -1.
#pragma once

#include "common/math.cuh"

constexpr float GELU_SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float GELU_CUBIC = 0.044715f;

// exp(-2u), u = GELU_SCALE (x + GELU_CUBIC x^3). Bounded above, so that 1 / (1 + exp(-2u)) is normal and exp(-2u) times
// it is never infinity times zero; GELU is zero to fp32 by then.
__device__ inline float gelu_exp(float x) {
    constexpr float scale = -2 * LOG2_E * GELU_SCALE;
    return exp2_approx(fminf(120.0f, x * (scale + scale * GELU_CUBIC * (x * x))));
}

// From here on GELU is 0 or x, and its slope 0 or 1, to fp32. x is bounded before the formula, as a bound of the
// exponential alone leaves x or x^3 times something that is not 0. A NaN is neither side of it, and stays.
constexpr float GELU_FAR = 10;

__device__ inline float from_left(float x) { return x < -GELU_FAR ? -GELU_FAR : x; }

__device__ inline float gelu(float x) {
    x = from_left(x);
    return x * reciprocal_approx(1 + gelu_exp(x));
}

// gate + x gate', gate' = gate (1 - gate) 2 u'. 1 - gate is taken as e gate, which keeps its digits where gate is
// near 1.
__device__ inline float gelu_grad(float x) {
    x = x > GELU_FAR ? GELU_FAR : from_left(x);
    float e = gelu_exp(x);
    float gate = reciprocal_approx(1 + e);
    float slope = 2 * GELU_SCALE + 6 * GELU_SCALE * GELU_CUBIC * (x * x);
    return gate * (1 + x * slope * (e * gate));
}
