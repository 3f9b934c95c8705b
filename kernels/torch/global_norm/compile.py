"""torch.compile of the sums of squares."""

import torch

from kernels.torch import compiled


def forward(grads, *, norm):
    _forward(grads, norm)


@compiled
def _forward(grads, norm):
    norm.copy_(torch.stack([g.float().square().sum() for g in grads]).sum().sqrt())
