"""Moments in fp32, the mean refined once, and the whole backward, compiled by Inductor; the writes fused."""

import torch

from kernels.torch import column_sums, compiled


@compiled
def forward(x, weight, bias, eps, *, out, mean, rstd):
    x = x.float()
    first = x.mean(-1, keepdim=True)
    m = first + (x - first).mean(-1, keepdim=True)  # exact where all x are equal, which rstd would blow up otherwise
    r = torch.rsqrt((x - m).square().mean(-1, keepdim=True) + eps)
    out.copy_((x - m) * r * weight.float() + bias.float())
    # Beside a wide spread the first is sharper: x - first is rounded alike for all x of one binade, and drifts.
    mean.copy_(torch.where((first * r).square() < 1, first, m)[..., 0])
    rstd.copy_(r[..., 0])


@compiled
def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    dout, rstd = dout.float(), rstd[..., None]
    norm = (x.float() - mean[..., None]) * rstd
    dnorm = dout * weight.float()
    # dx = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)), each mean over C
    d = (dnorm - dnorm.mean(-1, keepdim=True) - norm * (dnorm * norm).mean(-1, keepdim=True)) * rstd
    dx.copy_(d if dresidual is None else d + dresidual.float())
    for grad, out in ((column_sums(dout * norm), dweight), (column_sums(dout), dbias)):
        out.copy_(out.float() + grad if accumulate else grad)
