"""Addition, mean of squares and normalisation in fp32, compiled by Inductor; the writes fused."""

import torch

from kernels.torch import column_sums, compiled


@compiled
def forward(x, residual, weight, eps, *, residual_out, out, rstd):
    rounded = x + residual
    residual_out.copy_(rounded)
    x = rounded.float()
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    out.copy_(x * r * weight.float())
    rstd.copy_(r[..., 0])


@compiled
def backward(dout, dresidual_out, residual_out, weight, rstd, accumulate, *, dresidual, dweight):
    dout, rstd = dout.float(), rstd[..., None]
    norm = residual_out.float() * rstd
    dnorm = dout * weight.float()
    # rstd * (dnorm - norm * mean(dnorm * norm)), the mean over C, plus what the stream brings
    d = (dnorm - norm * (dnorm * norm).mean(-1, keepdim=True)) * rstd
    dresidual.copy_(d if dresidual_out is None else d + dresidual_out.float())
    grad = column_sums(dout * norm)
    dweight.copy_(dweight.float() + grad if accumulate else grad)
