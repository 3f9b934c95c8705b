"""All tensors in one parallel region, each element read once and written once; bf16 parameters follow fp32 masters.

Floor: 28 bytes a parameter, in fp32 (read grad, param, m, v; write param, m, v) and in bf16 with fp32 masters
(read grad, master, m, v; write param, master, m, v); about 15 FLOPs, so memory sets the pace. Measured on one Zen 5
core: 1.15 of a streamed copy's bandwidth, as fast as torch's fused AdamW.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "adamw_forward")


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
