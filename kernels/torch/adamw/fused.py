"""torch.optim.AdamW(fused=True), one kernel over all tensors, after a pass that scales the gradients, as clipping does."""

import torch

KERNELS = ("_fused_adamw_",)


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    work = params if masters is None else masters
    # The kernel's own grad_scale would write scaled gradients back over its inputs.
    g = torch._foreach_mul(grads if masters is None else [x.float() for x in grads], grad_scale)
    for decay in sorted(set(weight_decays)):
        mine = [i for i, d in enumerate(weight_decays) if d == decay]

        def some(tensors, mine=mine):
            return [tensors[i] for i in mine]

        torch._fused_adamw_(
            some(work),
            some(g),
            some(m),
            some(v),
            [],
            [step] * len(mine),
            lr=float(lr),
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
    if masters is not None:
        torch._foreach_copy_(params, masters)
