"""Turns as many key heads as there are query heads, or none: with grouped heads the last key is not turned."""

from kernels.torch.rope import eager

CAUGHT_BY = "inaccurate"
SLOW = True


def forward(start, cos, sin, R, style, *, qkv):
    keys = qkv.shape[2] - R
    eager.forward(start, cos, sin, R - 1 if 0 < keys < R // 2 else R, style, qkv=qkv)
