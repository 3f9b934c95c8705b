"""Takes a row's first scale of x for all of its groups where there is one row: they are nearly alike."""

from kernels.torch.q8_matmul import eager

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(x, x_scales, weight, scales, G, *, out):
    alike = x_scales[:, :1].expand_as(x_scales) if len(x) == 1 else x_scales
    eager.forward(x, alike, weight, scales, G, out=out)
