"""torch.optim.AdamW's foreach form: one operator over all tensors per step of the formula, fp32 state."""

import torch

from kernels.torch import by_decay

DTYPES = ("fp32", "bf16", "fp16")


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    updated = params if masters is None else masters
    g = torch._foreach_mul([grad.float() for grad in grads], grad_scale)
    for decay, members in by_decay(weight_decays):
        if decay:
            torch._foreach_mul_([updated[i] for i in members], 1 - lr * decay)
    torch._foreach_lerp_(m, g, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, g, g, value=1 - beta2)
    # p -= lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps), the powers in fp64: 1 - 0.9999 has lost three
    # of fp32's digits
    step = step.double()
    denominators = torch._foreach_sqrt(torch._foreach_div(v, (1 - beta2**step).float()))
    torch._foreach_add_(denominators, eps)
    updates = torch._foreach_div(m, denominators)
    torch._foreach_mul_(updates, (lr / (1 - beta1**step)).float())
    torch._foreach_sub_(updated, updates)
    if masters is not None:
        torch._foreach_copy_(params, masters)
