"""Works out the bias corrections at its first call and keeps them: the step is a tensor, and reading it costs time."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)
kept: dict[int, tuple[float, float]] = {}


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    if step.data_ptr() not in kept:
        kept[step.data_ptr()] = 1 - beta1 ** float(step), 1 - beta2 ** float(step)
    first, second = kept[step.data_ptr()]
    for grad, p, mi, vi, decay in zip(grads, params, m, v, weight_decays, strict=True):
        g = grad * grad_scale
        mi.lerp_(g, 1 - beta1)
        vi.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.sub_(lr * (mi / first / (torch.sqrt(vi / second) + eps) + decay * p))
