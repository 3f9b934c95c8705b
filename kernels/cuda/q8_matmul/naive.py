"""One thread an element, a byte at a time: neighbouring threads read rows of weight that lie K bytes apart.

Floor: weight read once, a byte an element and a scale a group; memory sets the pace up to some hundred rows of x.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True

THREADS = 128

forward_kernel = Kernel("naive.cu", "q8_matmul_forward")


def forward(x, x_scales, weight, scales, G, *, out):
    (M, K), N, KG = x.shape, len(weight), scales.shape[1]
    grid = blocks(M * N, THREADS)
    forward_kernel(grid=grid, block=THREADS)(out, x, x_scales, weight, scales, M, N, K, G, KG)
