"""The formula in fp32, compiled by Inductor into a loop over the pairs, and one that writes them back."""

import torch

from kernels.torch import compiled


def turn(x, start, cos, sin, style):
    """x: the heads that are turned."""
    position = start[:, None] + torch.arange(x.shape[1], device=x.device)
    cos, sin = cos[position][:, :, None], sin[position][:, :, None]
    a, b = (x[..., ::2], x[..., 1::2]) if style == "interleaved" else x.chunk(2, -1)
    a, b = a.float(), b.float()
    turned = a * cos - b * sin, a * sin + b * cos
    x.copy_(torch.stack(turned, -1).flatten(-2) if style == "interleaved" else torch.cat(turned, -1))


@compiled
def forward(start, cos, sin, R, style, *, qkv):
    turn(qkv[:, :, :R], start, cos, sin, style)


@compiled
def backward(start, cos, sin, R, style, *, dqkv):
    turn(dqkv[:, :, :R], start, cos, -sin, style)
