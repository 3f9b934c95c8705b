"""Formulas that several kernels share."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
GELU_SCALE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
GELU_CUBIC = tl.constexpr(0.044715)


@triton.jit
def gelu_exp(x):
    """exp(-2u), u = GELU_SCALE (x + GELU_CUBIC x^3): 1/2 (1 + tanh u) is 1 / (1 + exp(-2u)), which needs no tanh and
    has no cancellation where tanh u is near -1. Infinity on the far left, where GELU is x over that."""
    scale = -2 * LOG2_E * GELU_SCALE
    return tl.exp2(x * (scale + scale * GELU_CUBIC * (x * x)))


@triton.jit
def gelu(x):
    """GELU, tanh form, of fp32 values."""
    return x / (1 + gelu_exp(x))


@triton.jit
def gelu_grad(x):
    """Its derivative: gate + x gate', gate' = gate (1 - gate) 2 u'. 1 - gate is taken as e gate, which keeps digits.

    Beyond 10 it is 0 or 1 to fp32, and x bounded, so that infinity never meets zero; NaN stays."""
    x = tl.maximum(x, -10.0, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, 10.0, propagate_nan=tl.PropagateNan.ALL)
    e = gelu_exp(x)
    gate = 1 / (1 + e)
    slope = 2 * GELU_SCALE + 6 * GELU_SCALE * GELU_CUBIC * (x * x)
    return gate * (1 + x * slope * (e * gate))
