"""Both operands multiplied out to fp32, then F.linear: PyTorch has no operator of its own for this."""

import torch.nn.functional as F

DTYPES = ("fp32", "bf16", "fp16")


def forward(x, x_scales, weight, scales, G, *, out):
    out.copy_(F.linear(wide(x, x_scales, G), wide(weight, scales, G)))


def wide(x, scales, G):
    """(rows, K) in fp32: each element times its group's scale."""
    return x.float().mul_(scales.repeat_interleave(G, -1)[:, : x.shape[-1]])
