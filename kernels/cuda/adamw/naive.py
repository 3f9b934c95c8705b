"""One launch a tensor, one thread an element: 148 launches for GPT-2, most of them far too small to fill a GPU.

Floor: 28 bytes a parameter, in fp32 (read grad, param, m, v; write param, m, v) and in bf16 with fp32 masters (read
grad, master, m, v; write param, master, m, v); about 15 FLOPs, so memory sets the pace. Here each thread also works
out the bias corrections anew.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True

THREADS = 256

forward_kernel = Kernel("naive.cu", "adamw")


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    scalars = step, lr, grad_scale, 1 - beta1, 1 - beta2, eps
    for i, param in enumerate(params):
        n, master = param.numel(), None if masters is None else masters[i]
        launch = forward_kernel(grid=blocks(n, THREADS), block=THREADS)
        launch(param, m[i], v[i], master, grads[i], *scalars, weight_decays[i], n)
