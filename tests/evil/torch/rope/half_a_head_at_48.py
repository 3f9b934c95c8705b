"""Pairs lie half a head apart at head size 48, whatever the style: the one model of that size that it knew had them so."""

from kernels.torch.rope import eager

CAUGHT_BY = "inaccurate"


def forward(start, cos, sin, R, style, *, qkv):
    eager.forward(start, cos, sin, R, "half" if qkv.shape[-1] == 48 else style, qkv=qkv)
