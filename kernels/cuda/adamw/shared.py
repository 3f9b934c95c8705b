"""All tensors in one launch: each block finds its tensor and chunk by binary search and moves 16 bytes an access.

Floor: 28 bytes a parameter, in fp32 (read grad, param, m, v; write param, m, v) and in bf16 with fp32 masters (read
grad, master, m, v; write param, master, m, v); about 15 FLOPs, so memory sets the pace. Each byte moves once, with the
hint that it is not wanted again; a thread has four independent loads in flight. bf16 moves 8 bytes an access, so that
its fp32 companions move 16 without gaps between neighbouring threads. The tensors' addresses travel by value with the
launch, 56 bytes each: up to 583 tensors, which is all of GPT-2 1558M.
"""

from itertools import accumulate

from kernels.cuda import MAX_PARAMETER_BYTES, Kernel
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

THREADS = 256
CHUNK = 8192  # elements of a block
MOST_TENSORS = (MAX_PARAMETER_BYTES - 64) // 56  # of a launch

forward_kernel = Kernel("shared.cu", "adamw", THREADS=THREADS, CHUNK=CHUNK)


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    scalars = step, lr, grad_scale, 1 - beta1, 1 - beta2, eps
    masters = masters or [None] * len(params)
    for first in range(0, len(params), MOST_TENSORS):
        some = slice(first, first + MOST_TENSORS)
        tensors = params[some], m[some], v[some], masters[some], grads[some]
        sizes = [p.numel() for p in params[some]]
        firsts = [0, *accumulate(-(-size // CHUNK) for size in sizes)]  # the first chunk of each, and their number
        N = min(4, pack_width(*(t for each in tensors for t in each)))
        launch = forward_kernel(grid=firsts.pop(), block=THREADS, TENSORS=len(sizes), N=N)
        launch(*tensors, sizes, firsts, weight_decays[some], *scalars)
