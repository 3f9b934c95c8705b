"""The formula tensor by tensor in one Inductor graph: every tensor read once and written once."""

from kernels.torch import compiled


@compiled
def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    for i, grad in enumerate(grads):
        p = params[i] if masters is None else masters[i]
        g = grad.float() * grad_scale
        new_m = beta1 * m[i] + (1 - beta1) * g
        new_v = beta2 * v[i] + (1 - beta2) * g * g
        update = new_m / correction1 / ((new_v / correction2).sqrt() + eps)
        new_p = p - lr * (update + weight_decays[i] * p)
        m[i].copy_(new_m)
        v[i].copy_(new_v)
        params[i].copy_(new_p)
        if masters is not None:
            masters[i].copy_(new_p)
