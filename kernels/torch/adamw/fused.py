"""torch._fused_adamw_, as AdamW(fused=True) runs it, on fp32 masters; gradients scaled into fp32 copies."""

import torch

from kernels.torch import by_decay


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    updated = params if masters is None else masters
    # The operator's own grad_scale divides, and writes the gradients, which are inputs here.
    g = torch._foreach_mul([grad.float() for grad in grads], grad_scale)
    for decay, members in by_decay(weight_decays):
        torch._fused_adamw_(
            [updated[i] for i in members],
            [g[i] for i in members],
            [m[i] for i in members],
            [v[i] for i in members],
            [],
            [step] * len(members),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
    if masters is not None:
        torch._foreach_copy_(params, masters)
