"""Adds its sums to a workspace that it takes to be zero, as fresh memory is; it leaves it so."""

from kernels.cpu import Kernel

CAUGHT_BY = "not_finite inaccurate"
SLOW = True
forward_kernel = Kernel("workspace_is_zero.cpp", "rmsnorm_forward")
backward_kernel = Kernel("workspace_is_zero.cpp", "rmsnorm_backward")


def workspace(shape, phase):
    return shape["C"] * 4 if phase == "backward" else 0


def forward(x, weight, eps, *, out, rstd, workspace):
    B, T, C = x.shape
    forward_kernel(out, rstd, x, weight, B * T, C, eps)


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight, workspace):
    B, T, C = x.shape
    backward_kernel(dx, dweight, dout, dresidual, x, weight, rstd, B * T, C, accumulate, workspace)
