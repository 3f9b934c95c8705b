"""Sum of squares of each tensor, their sum and its root in one Inductor graph; in fp64 where fp32 fails."""

import torch

from kernels.torch import compiled

LEAST = 1e-12  # below, squares are lost in fp32


def forward(grads, *, norm):
    # On a GPU fp64 costs nothing, and to look at the norm would be to wait for it.
    _norm(grads, torch.float64 if norm.is_cuda else torch.float32, norm)
    if not norm.is_cuda and not LEAST < norm < torch.inf:
        _norm(grads, torch.float64, norm)


@compiled
def _norm(grads, dtype, norm):
    norm.copy_(torch.stack([g.to(dtype).square().sum() for g in grads]).sum().sqrt())
