"""torch.compile of the mask and the softmax."""

import torch

from kernels.torch import compiled
from reference.softmax import visible


def forward(x, causal, *, out):
    _forward(x, causal, out)


def backward(dout, out, causal, *, dx):
    _backward(dout, out, dx)


@compiled
def _forward(x, causal, out):
    if causal:
        x = x.masked_fill(~visible(x.shape[0], x.shape[1], True, x.device), -torch.inf)
    out.copy_(torch.softmax(x.float(), -1))


@compiled
def _backward(dout, out, dx):
    # A masked column has out = 0, so its dx is 0 without a mask.
    dout, out = dout.float(), out.float()
    dx.copy_(out * (dout - (dout * out).sum(-1, keepdim=True)))
