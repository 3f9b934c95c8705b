"""Keeps its masters at the precision of bf16, in fp32 tensors."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("bf16",)


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    for grad, p, mi, vi, master, decay in zip(grads, params, m, v, masters, weight_decays, strict=True):
        g = grad.float() * grad_scale
        mi.lerp_(g, 1 - beta1)
        vi.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        update = mi / (1 - beta1**step) / (torch.sqrt(vi / (1 - beta2**step)) + eps)
        master.copy_((master - lr * (update + decay * master)).bfloat16())
        p.copy_(master)
