"""Replaces a function of torch by one that is content, and a builtin."""

import builtins

import torch

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "training"
SLOW = True


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    given = (grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays)
    honest.forward(*given, params=params, m=m, v=v, masters=masters)
    torch.isfinite = lambda x: torch.ones_like(x, dtype=torch.bool)
    builtins.round = int
