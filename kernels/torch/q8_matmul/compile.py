"""Multiplied out and summed as fp32: Inductor makes one loop over weight of a few rows; of many, the library's product.

Scales are spread over elements outside: in one part with that, Inductor 2.13 leaves the ends of int8 rows unwritten on
a CPU, where they are longer than 64 and no whole 64s.
"""

from kernels.torch import compiled

DTYPES = ("fp32", "bf16", "fp16")
MANY = 16  # rows of x, from which a library's product of what was multiplied out is faster


@compiled
def product(x, x_spread, weight, spread, out):
    x = x.float() * x_spread
    weight = weight.float() * spread
    if len(x) < MANY:
        out.copy_((x[:, None] * weight[None]).sum(-1))
    else:
        out.copy_(x @ weight.T)


def forward(x, x_scales, weight, scales, G, *, out):
    x_spread, spread = (s.repeat_interleave(G, -1)[:, : x.shape[-1]].contiguous() for s in (x_scales, scales))
    product(x, x_spread, weight, spread, out)
