"""addmm and mm straight into their destinations; GELU and its derivative compiled by Inductor."""

# Inductor would call the same library for the product, into a buffer of its own, and then copy it: a write and
# a read of the whole result that a careful user would not pay.

import torch

from kernels.torch import compiled

SQRT_2_OVER_PI = 0.7978845608028654
CUBIC = 0.044715


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    product = pre_gelu if epilogue == "bias_gelu" else out
    if epilogue == "none":
        torch.mm(x, weight.T, out=product)
    else:
        torch.addmm(bias, x, weight.T, out=product)
    if epilogue == "bias_gelu":
        _gelu(product, out)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    torch.mm(dout, weight, out=dx)
    if x_pre_gelu is not None:
        _times_gelu_grad(x_pre_gelu, dx)
    if accumulate:
        torch.addmm(dweight, dout.T, x, out=dweight)
    else:
        torch.mm(dout.T, x, out=dweight)
    if dbias is not None:
        # Not compiled: on a CPU Inductor adds the rows one after another, 15 times less exact over 4,096 of them.
        db = dout.sum(0, dtype=torch.float32)
        dbias.add_(db) if accumulate else dbias.copy_(db)


@compiled
def _gelu(x, out):
    x = x.float()
    out.copy_(0.5 * x * (1 + torch.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))))


@compiled
def _times_gelu_grad(x, dx):
    x = x.float()
    t = torch.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
    slope = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x)
    dx.copy_(dx.float() * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope))
