"""Has PyTorch compute all products of fp32 in bf16, the other layers' too, from its import on."""

import torch

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True
torch.set_float32_matmul_precision("medium")


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
