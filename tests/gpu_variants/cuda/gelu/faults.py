"""Its forward reads an illegal address; its backward is right."""

import torch

from tests.fake_gpu import fault, kernel

KERNELS = ("gelu_*",)
CAUGHT_BY = "crash"


def forward(x, *, out):
    with kernel("gelu_forward"):
        fault()


def backward(dout, x, *, dx):
    with kernel("gelu_backward"):
        torch.ops.aten.gelu_backward.grad_input(dout, x, approximate="tanh", grad_input=dx)
