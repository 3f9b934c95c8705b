"""Addition, moments (the mean refined once) and normalisation in fp32, compiled by Inductor; the writes fused."""

import torch

from kernels.torch import column_sums, compiled


@compiled
def forward(x, residual, weight, bias, eps, *, residual_out, out, mean, rstd):
    rounded = x + residual
    residual_out.copy_(rounded)
    x = rounded.float()
    first = x.mean(-1, keepdim=True)
    m = first + (x - first).mean(-1, keepdim=True)  # exact where all x are equal, which rstd would blow up otherwise
    r = torch.rsqrt((x - m).square().mean(-1, keepdim=True) + eps)
    out.copy_((x - m) * r * weight.float() + bias.float())
    # Beside a wide spread the first is sharper: x - first is rounded alike for all x of one binade, and drifts.
    mean.copy_(torch.where((first * r).square() < 1, first, m)[..., 0])
    rstd.copy_(r[..., 0])


@compiled
def backward(dout, dresidual_out, residual_out, weight, mean, rstd, accumulate, *, dresidual, dweight, dbias):
    dout, rstd = dout.float(), rstd[..., None]
    norm = (residual_out.float() - mean[..., None]) * rstd
    dnorm = dout * weight.float()
    # rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)), each mean over C, plus what the stream brings
    d = (dnorm - dnorm.mean(-1, keepdim=True) - norm * (dnorm * norm).mean(-1, keepdim=True)) * rstd
    dresidual.copy_(d if dresidual_out is None else d + dresidual_out.float())
    for grad, out in ((column_sums(dout * norm), dweight), (column_sums(dout), dbias)):
        out.copy_(out.float() + grad if accumulate else grad)
