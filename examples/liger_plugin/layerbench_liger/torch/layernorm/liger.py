"""Liger-Kernel's Triton layernorm as its users call it: it allocates its results, which are copied out."""

import torch

from bench import simulate

if not torch.cuda.is_available():
    simulate.install("triton")  # Liger's kernels are Triton's: without a GPU the simulator runs them
from liger_kernel.ops.layer_norm import layer_norm_backward, layer_norm_forward

REQUIRES = ("liger_kernel", "triton")


def forward(x, weight, bias, eps, *, out, mean, rstd):
    y, _, mu, r, *_ = layer_norm_forward(x, weight, bias, eps)
    out.copy_(y)
    mean.view(-1).copy_(mu)
    rstd.view(-1).copy_(r)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    C = x.shape[-1]
    rows = x.view(-1, C)
    d, dw, db = layer_norm_backward(dout, rows, weight, weight, mean.view(-1), rstd.view(-1))
    torch.add(d, dresidual, out=dx) if dresidual is not None else dx.copy_(d)
    for into, new in ((dweight, dw), (dbias, db)):
        into.add_(new) if accumulate else into.copy_(new)
