"""Takes more threads than the run was given, from its first update on."""

import torch

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "training"


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    given = (grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays)
    honest.forward(*given, params=params, m=m, v=v, masters=masters)
    torch.set_num_threads(torch.get_num_threads() + 1)
