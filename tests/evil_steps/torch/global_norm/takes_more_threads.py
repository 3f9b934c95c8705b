"""Takes more threads than the step was given, from its first call on."""

import torch

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    torch.set_num_threads(torch.get_num_threads() + 2)
