"""torch.compile of the plain formula; Inductor fuses it into a pass for the statistics and one for the rest."""

import torch

from kernels.torch import compiled


def forward(x, weight, bias, eps, *, out, mean, rstd):
    _forward(x, weight, bias, eps, out, mean, rstd)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    _backward(dout, dresidual, x, weight, mean, rstd, accumulate, dx, dweight, dbias)


def normalise(x, weight, bias, eps):
    """(out, mean, rstd) in fp32, shapes (B, T, C), (B, T), (B, T)."""
    x = x.float()
    variance, mean = torch.var_mean(x, -1, correction=0)
    rstd = (variance + eps).rsqrt()
    return (x - mean[..., None]) * rstd[..., None] * weight.float() + bias.float(), mean, rstd


@compiled
def _forward(x, weight, bias, eps, out, mean, rstd):
    for into, value in zip((out, mean, rstd), normalise(x, weight, bias, eps), strict=True):
        into.copy_(value)


@compiled
def _backward(dout, dresidual, x, weight, mean, rstd, accumulate, dx, dweight, dbias):
    dout = dout.float()
    norm = (x.float() - mean[..., None]) * rstd[..., None]
    dnorm = dout * weight.float()
    grad = (dnorm - dnorm.mean(-1, keepdim=True) - norm * (dnorm * norm).mean(-1, keepdim=True)) * rstd[..., None]
    dx.copy_(grad if dresidual is None else grad + dresidual.float())
    for into, value in ((dweight, (dout * norm).sum((0, 1))), (dbias, dout.sum((0, 1)))):
        into.copy_(into.float() + value if accumulate else value)
