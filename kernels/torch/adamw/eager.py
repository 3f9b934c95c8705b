"""torch.optim.AdamW's foreach recipe: one multi-tensor operation after another."""

import torch


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    work = params if masters is None else masters
    lr, step = float(lr), float(step)
    g = [x.float() for x in grads] if masters is not None else grads
    g = torch._foreach_mul(g, float(grad_scale))
    torch._foreach_mul_(work, [1 - lr * decay for decay in weight_decays])
    torch._foreach_lerp_(m, g, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, g, g, 1 - beta2)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_div_(denominator, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(denominator, eps)
    torch._foreach_addcdiv_(work, m, denominator, -lr / (1 - beta1**step))
    if masters is not None:
        torch._foreach_copy_(params, masters)
