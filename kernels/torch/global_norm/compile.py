"""Sum of squares of each tensor in fp32, their sum and its root in one Inductor graph."""

import torch

from kernels.torch import compiled


@compiled
def forward(grads, *, norm):
    norm.copy_(torch.stack([g.float().square().sum() for g in grads]).sum().sqrt())
