"""All tensors in one launch: each block finds its tensor and chunk by binary search and moves 16 bytes an access.

Floor: 28 bytes a parameter, in fp32 (read grad, param, m, v; write param, m, v) and in bf16 with fp32 masters (read
grad, master, m, v; write param, master, m, v); about 15 FLOPs, so memory sets the pace. Each byte moves once, with the
hint that it is not wanted again; a thread has four independent loads in flight. bf16 moves 8 bytes an access, so that
its fp32 companions move 16 without gaps between neighbouring threads. The tensors' addresses travel by value with the
launch, 56 bytes each: up to 583 tensors, which is all of GPT-2 1558M.
"""

from kernels.cuda import MAX_PARAMETER_BYTES, Kernel
from kernels.cuda.packing import Lists

DETERMINISTIC = True

THREADS = 256
CHUNK = 8192  # elements of a block
MOST_TENSORS = (MAX_PARAMETER_BYTES - 64) // 56  # of a launch

forward_kernel = Kernel("shared.cu", "adamw", THREADS=THREADS, CHUNK=CHUNK)


lists = Lists(CHUNK, MOST_TENSORS)


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    scalars = step, lr, grad_scale, 1 - beta1, 1 - beta2, eps
    for group in lists.groups(params, m, v, masters, grads):
        N = min(4, group.width)
        launch = forward_kernel(grid=group.blocks, block=THREADS, TENSORS=group.count, N=N)
        launch(*group.tensors, group.sizes, group.firsts, weight_decays[group.some], *scalars)
