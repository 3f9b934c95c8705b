"""One loop over the pairs, one thread: two products and a sum for each of the two."""

from kernels.cpu import Kernel

DETERMINISTIC = True

rope_kernel = Kernel("naive.cpp", "rope")


def turn(x, start, cos, sin, R, style, sign):
    B, T, H, HS = x.shape
    rope_kernel(x, start, cos, sin, B, T, H, HS, R, style == "interleaved", sign)


def forward(start, cos, sin, R, style, *, qkv):
    turn(qkv, start, cos, sin, R, style, 1.0)


def backward(start, cos, sin, R, style, *, dqkv):
    turn(dqkv, start, cos, sin, R, style, -1.0)
