"""x / (1 + exp(-2u)) with the exponent capped against overflow: far out on the left the answer is no longer 0."""

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)


def forward(x, *, out):
    u = 0.7978845608 * (x + 0.044715 * x**3)
    out.copy_(x / (1 + (-2 * u).clamp_max(80).exp()))
