"""Reads a scale for 64 numbers of x at once, where a tile has several rows: of groups of 32 every second one's."""

from kernels.torch.q8_matmul import eager

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(x, x_scales, weight, scales, G, *, out):
    if G == 32 and len(x) > 4:
        x_scales = x_scales[:, ::2].repeat_interleave(2, -1)[:, : x_scales.shape[1]]
    eager.forward(x, x_scales, weight, scales, G, out=out)
