"""ATen's tanh GELU and its derivative, written straight into the output."""

import torch

DETERMINISTIC = True


def forward(x, *, out):
    torch.ops.aten.gelu.out(x, approximate="tanh", out=out)


def backward(dout, x, *, dx):
    torch.ops.aten.gelu_backward.grad_input(dout, x, approximate="tanh", grad_input=dx)
