"""Leaves the weight decay out, which no loss shows."""

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    weight_decays = [0.0] * len(grads)
    given = (grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays)
    honest.forward(*given, params=params, m=m, v=v, masters=masters)
