"""Pairs that lie side by side as complex numbers, as Llama's own code has them; half a head apart op by op, in fp32."""

import torch

DTYPES = ("fp32", "bf16", "fp16")


def turn(x, start, cos, sin, style):
    """x: the heads that are turned."""
    position = start[:, None] + torch.arange(x.shape[1], device=x.device)
    cos, sin = cos[position][:, :, None], sin[position][:, :, None]
    wide = x.float()  # x itself, where it is fp32
    if style == "interleaved":
        torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(torch.complex(cos, sin))
    else:
        a, b = wide.chunk(2, -1)
        turned = a * cos - b * sin
        b.mul_(cos).add_(a * sin)
        a.copy_(turned)
    if wide is not x:
        x.copy_(wide)


def forward(start, cos, sin, R, style, *, qkv):
    turn(qkv[:, :, :R], start, cos, sin, style)


def backward(start, cos, sin, R, style, *, dqkv):
    turn(dqkv[:, :, :R], start, cos, -sin, style)
