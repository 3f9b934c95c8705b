"""The formula op by op in fp32, each half of the pairs written back where it came from."""

import torch

DTYPES = ("fp32", "bf16", "fp16")


def turn(x, start, cos, sin, style):
    """x: the heads that are turned."""
    position = start[:, None] + torch.arange(x.shape[1], device=x.device)
    cos, sin = cos[position][:, :, None], sin[position][:, :, None]
    a, b = (x[..., ::2], x[..., 1::2]) if style == "interleaved" else x.chunk(2, -1)
    wide_a, wide_b = a.float(), b.float()
    first, second = wide_a * cos - wide_b * sin, wide_a * sin + wide_b * cos
    a.copy_(first)
    b.copy_(second)


def forward(start, cos, sin, R, style, *, qkv):
    turn(qkv[:, :, :R], start, cos, sin, style)


def backward(start, cos, sin, R, style, *, dqkv):
    turn(dqkv[:, :, :R], start, cos, -sin, style)
