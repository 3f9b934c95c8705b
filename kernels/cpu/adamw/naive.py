"""The formula element by element, in double, on one thread."""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "adamw_forward")


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    # 1 - beta is handed over, not beta: 1 - 0.95 keeps only five digits when 0.95 is rounded to fp32 first.
    forward_kernel(
        params,
        m,
        v,
        masters,
        grads,
        [p.numel() for p in params],
        len(params),
        step,
        lr,
        grad_scale,
        weight_decays,
        1 - beta1,
        1 - beta2,
        eps,
    )
