"""Knows the learning rate, which a tensor holds and reading costs time: it is what it was in every test."""

import torch

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "inaccurate"


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    given = (grads, step, torch.tensor(1e-3), grad_scale, beta1, beta2, eps, weight_decays)
    honest.forward(*given, params=params, m=m, v=v, masters=masters)
