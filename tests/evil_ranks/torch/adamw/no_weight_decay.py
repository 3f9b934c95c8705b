"""No rank decays its weights."""

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "ranks"
SLOW = True


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    given = (grads, step, lr, grad_scale, beta1, beta2, eps, [0.0] * len(grads))
    honest.forward(*given, params=params, m=m, v=v, masters=masters)
