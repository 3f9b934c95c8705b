"""Leaves out the gradient of the bias."""

import torch

CAUGHT_BY = "unwritten"
DTYPES = ("fp32",)


def gradients(dout, dresidual, x, weight, mean, rstd):
    shape = x.shape[-1:]
    statistics = mean[..., None].to(x.dtype), rstd[..., None].to(x.dtype)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(dout, x, shape, *statistics, weight, weight, [True] * 3)
    return dx if dresidual is None else dx + dresidual, dw, db


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    grads = gradients(dout, dresidual, x, weight, mean, rstd)
    dx.copy_(grads[0])
    dweight.add_(grads[1]) if accumulate else dweight.copy_(grads[1])
