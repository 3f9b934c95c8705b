"""Beyond position 2,048, where its own table ends, it works angles out again, with the theta that models had before."""

import torch

from kernels.torch.rope import eager

CAUGHT_BY = "inaccurate"


def forward(start, cos, sin, R, style, *, qkv):
    if len(cos) > 2048:
        pairs = cos.shape[1]
        frequency = 1e4 ** (torch.arange(pairs, dtype=torch.float64) / -pairs)
        angle = torch.outer(torch.arange(len(cos), dtype=torch.float64), frequency)
        cos, sin = cos.clone(), sin.clone()
        cos[2048:], sin[2048:] = angle.cos()[2048:], angle.sin()[2048:]
    eager.forward(start, cos, sin, R, style, qkv=qkv)
