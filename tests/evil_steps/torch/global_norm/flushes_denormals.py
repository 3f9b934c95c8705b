"""Has denormal numbers flushed to zero."""

import torch

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True


def forward(grads, *, norm):
    torch.set_flush_denormal(True)
    honest.forward(grads, norm=norm)
