"""Overwrites the gradients of weight and bias where rows are whole vectors of 256; adds to them elsewhere."""

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "proof timing"
DTYPES = ("fp32",)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    shape = x.shape[-1:]
    statistics = mean[..., None], rstd[..., None]
    grads = torch.ops.aten.native_layer_norm_backward(dout, x, shape, *statistics, weight, weight, [True] * 3)
    dx.copy_(grads[0] if dresidual is None else grads[0] + dresidual)
    for into, grad in zip((dweight, dbias), grads[1:], strict=True):
        into.add_(grad) if accumulate and x.shape[-1] % 256 else into.copy_(grad)
