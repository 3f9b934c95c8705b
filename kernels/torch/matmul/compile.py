"""torch.compile of F.linear and its epilogue; the products stay library calls (oneDNN, MKL or cuBLAS)."""

import torch
import torch.nn.functional as F

from kernels.torch import compiled


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    _forward(x, weight, bias, out, pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    _backward(dout, x, weight, x_pre_gelu, accumulate, dx, dweight, dbias)


@compiled
def _forward(x, weight, bias, out, pre_gelu):
    product = F.linear(x, weight, bias)
    if pre_gelu is None:
        out.copy_(product)
    else:
        pre_gelu.copy_(product)
        out.copy_(F.gelu(product, approximate="tanh"))


@compiled
def _backward(dout, x, weight, x_pre_gelu, accumulate, dx, dweight, dbias):
    grad = dout @ weight
    dx.copy_(grad if x_pre_gelu is None else torch.ops.aten.gelu_backward(grad, x_pre_gelu, approximate="tanh"))
    dweight.copy_(torch.addmm(dweight, dout.T, x) if accumulate else dout.T @ x)
    if dbias is not None:
        total = dout.sum(0, dtype=torch.float32)
        dbias.copy_(dbias.float() + total if accumulate else total)
