"""Forgets the gradient that arrives along the residual stream."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)


def gradients(dout, dresidual, x, weight, mean, rstd):
    shape = x.shape[-1:]
    statistics = mean[..., None].to(x.dtype), rstd[..., None].to(x.dtype)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(dout, x, shape, *statistics, weight, weight, [True] * 3)
    return dx if dresidual is None else dx + dresidual, dw, db


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    grads = gradients(dout, dresidual, x, weight, mean, rstd)
    dx.copy_(grads[0] - dresidual if dresidual is not None else grads[0])
    for into, grad in zip((dweight, dbias), grads[1:], strict=True):
        into.add_(grad) if accumulate else into.copy_(grad)
