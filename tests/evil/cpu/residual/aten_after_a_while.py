"""Its own code for the first fifty calls at a size, whoever watches those; ATen from then on."""

import collections

import torch

from kernels.cpu import Kernel

CAUGHT_BY = "source library"
CAUGHT_IN = "proof timing"
kernel = Kernel("../../honest.cpp", "add")
calls: collections.Counter = collections.Counter()


def forward(a, b, *, out):
    calls[out.numel()] += 1
    if calls[out.numel()] <= 50:
        kernel(out, a, b, a.numel())
    else:
        torch.add(a, b, out=out)
