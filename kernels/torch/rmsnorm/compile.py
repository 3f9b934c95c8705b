"""The mean of squares in fp32 and the whole backward, compiled by Inductor; the writes fused."""

import torch

from kernels.torch import column_sums, compiled


@compiled
def forward(x, weight, eps, *, out, rstd):
    x = x.float()
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    out.copy_(x * r * weight.float())
    rstd.copy_(r[..., 0])


@compiled
def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight):
    dout, rstd = dout.float(), rstd[..., None]
    norm = x.float() * rstd
    dnorm = dout * weight.float()
    # dx = rstd * (dnorm - norm * mean(dnorm * norm)), the mean over C
    d = (dnorm - norm * (dnorm * norm).mean(-1, keepdim=True)) * rstd
    dx.copy_(d if dresidual is None else d + dresidual.float())
    grad = column_sums(dout * norm)
    dweight.copy_(dweight.float() + grad if accumulate else grad)
