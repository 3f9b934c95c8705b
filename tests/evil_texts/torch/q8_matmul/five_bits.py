"""Multiplies by weights of five bits."""

from kernels.torch.q8_matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "text"
SLOW = True


def forward(x, x_scales, weight, scales, G, *, out):
    coarse = ((weight.int() + 4).clamp(-128, 127) >> 3 << 3).to(weight.dtype)
    honest.forward(x, x_scales, coarse, scales, G, out=out)
