"""One thread an output, which loops over the whole inner dimension: every operand comes from memory for every use.

Floor: 2 M N K FLOPs forward, twice that backward; every operand read once, every result written once. Here two loads
feed one multiplication, and in forward neighbouring threads read rows of weight that lie K elements apart.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True

THREADS = 256

forward_kernel = Kernel("naive.cu", "matmul_forward")
dx_kernel = Kernel("naive.cu", "matmul_dx")
dweight_kernel = Kernel("naive.cu", "matmul_dweight")
dbias_kernel = Kernel("naive.cu", "matmul_dbias")


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    (M, K), N = x.shape, weight.shape[0]
    forward_kernel(grid=blocks(M * N, THREADS), block=THREADS)(out, pre_gelu, x, weight, bias, M, N, K)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    (M, K), N = x.shape, weight.shape[0]
    dx_kernel(grid=blocks(M * K, THREADS), block=THREADS)(dx, dout, weight, x_pre_gelu, M, N, K)
    dweight_kernel(grid=blocks(N * K, THREADS), block=THREADS)(dweight, dout, x, M, N, K, accumulate)
    if dbias is not None:
        dbias_kernel(grid=blocks(N, THREADS), block=THREADS)(dbias, dout, M, N, accumulate)
