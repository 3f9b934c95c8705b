"""Updates in every other step."""

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    if int(step) % 2 == 0:
        return
    given = (grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays)
    honest.forward(*given, params=params, m=m, v=v, masters=masters)
