"""Replaces the tensors in the lists it was given, instead of updating them."""

import torch

CAUGHT_BY = "not_the_output inaccurate"
DTYPES = ("fp32",)


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    for i, grad in enumerate(grads):
        g = grad * grad_scale
        m[i] = m[i] * beta1 + g * (1 - beta1)
        v[i] = v[i] * beta2 + g * g * (1 - beta2)
        denominator = torch.sqrt(v[i] / (1 - beta2**step)) + eps
        params[i] = params[i] - lr * (m[i] / (1 - beta1**step) / denominator + weight_decays[i] * params[i])
