"""torch.compile of the formula over all tensors at once."""

from kernels.torch import compiled


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    _forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, params, m, v, masters)


@compiled
def _forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, params, m, v, masters):
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    for i, grad in enumerate(grads):
        work = params[i] if masters is None else masters[i]
        g = grad.float() * grad_scale
        m[i].copy_(beta1 * m[i] + (1 - beta1) * g)
        v[i].copy_(beta2 * v[i] + (1 - beta2) * g * g)
        update = m[i] / correction1 / ((v[i] / correction2).sqrt() + eps)
        work.copy_(work - lr * (update + weight_decays[i] * work))
        if masters is not None:
            params[i].copy_(masters[i])
