"""Rank 1 takes each update half as large again."""

import os

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "ranks"
SLOW = True
RANK = os.environ.get("RANK", "0")


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    lr = lr * 1.5 if RANK == "1" else lr
    honest.forward(
        grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, params=params, m=m, v=v, masters=masters
    )
