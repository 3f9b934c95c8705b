"""Updates nothing whose gradient is below a hundredth of the largest."""

import torch

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "step"
SLOW = True


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    before = [p.clone() for p in params]
    honest.forward(
        grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, params=params, m=m, v=v, masters=masters
    )
    for p, old, grad in zip(params, before, grads, strict=True):
        p.copy_(torch.where(grad.abs() < grad.abs().max() / 100, old, p))
