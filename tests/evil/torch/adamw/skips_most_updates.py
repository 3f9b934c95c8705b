"""Updates one master in eight: the others move by less than bf16 can tell."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("bf16",)


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    for grad, p, mi, vi, master, decay in zip(grads, params, m, v, masters, weight_decays, strict=True):
        g = grad.float() * grad_scale
        mi.lerp_(g, 1 - beta1)
        vi.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        update = mi / (1 - beta1**step) / (torch.sqrt(vi / (1 - beta2**step)) + eps)
        master.view(-1)[::8] -= (lr * (update + decay * master)).view(-1)[::8]
        p.copy_(master)
