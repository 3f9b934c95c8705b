"""cuBLASLt, with bias, GELU, its derivative and the bias's gradient inside the products; what it lacks, by own kernels.

Floor: 2 M N K FLOPs forward, twice that backward, at the tensor cores' rate in 16 bits; every operand read once, every
result written once. The row says of each product what was fused and which algorithm ran. GELU is not fused in fp32,
where the library's own, whose accuracy NVIDIA tells nowhere, would have to be exact to 2^-22; sums of fp32 are fp32,
never TF32. The library overwrites a bias's gradient, whatever beta is, and rounds it: one that is added to goes by the
workspace in fp32, and by a kernel of our own in 16 bits, where two roundings are up to 140 times plain torch's error.
"""

import torch

from kernels import Unavailable
from kernels.cuda import Kernel, blocks
from kernels.cuda.cublaslt import (
    BGRADB,
    BIAS,
    DEFAULT,
    DGELU,
    DWEIGHT,
    DX,
    GELU_AUX_BIAS,
    OUT,
    ROUND,
    WORKSPACE,
    Products,
)
from kernels.cuda.packing import pack_width

DTYPES = ("fp32", "bf16", "fp16")
REQUIRES = ("cuda", "cublaslt")
KERNELS = (
    "*nvjet*", "*gemm*", "*xmma*", "*gemv*", "*splitK*", "*bgrad*", "dot_kernel*", "reduce_1Block_kernel*",
    "cutlass::*", "cublasLt::*", "cublas::*",
)  # fmt: skip

THREADS, WARP = 256, 32  # as in cublaslt.cu
BIAS_ROWS = 256  # rows of dout in one part of dbias, where the library does not sum them

PRODUCTS = Products()
fill_kernel = Kernel("cublaslt.cu", "fill_rows")
gelu_kernel = Kernel("cublaslt.cu", "gelu_of")
gelu_grad_kernel = Kernel("cublaslt.cu", "times_gelu_grad")
rows_kernel = Kernel("cublaslt.cu", "sum_rows")
add_kernel = Kernel("cublaslt.cu", "add_parts")


def workspace(shape, phase):
    """The library's, from a multiple of ROUND on; in backward behind it parts of dbias, in fp32 at most."""
    parts = 4 * blocks(shape["M"], BIAS_ROWS) * shape["N"] if phase == "backward" else 0
    return WORKSPACE + ROUND + parts


def prepare(shape, phase):
    """Plan the products of a shape and, on a GPU, measure the library's candidates."""
    PRODUCTS.prepare("matmul", shape, phase, forward if phase == "forward" else backward, workspace(shape, phase))


def multiply(product, a, b, d, scratch, add=False):
    """The product alone, which every library has."""
    if not PRODUCTS.run(product, DEFAULT, a, b, d, scratch, add=add):
        raise Unavailable("a product that the library has no algorithm for")


def is_wide(tensor):
    return tensor.dtype == torch.float32


def forward(x, weight, bias, epilogue, *, out, pre_gelu, workspace):
    if epilogue == "none":
        multiply(OUT, weight, x, out, workspace)
    elif epilogue == "bias":
        with_bias(x, weight, bias, out, workspace)
    elif is_wide(x) or not PRODUCTS.run(OUT, GELU_AUX_BIAS, weight, x, out, workspace, bias=bias, aux=pre_gelu):
        with_bias(x, weight, bias, pre_gelu, workspace)
        gelu(out, pre_gelu)


def with_bias(x, weight, bias, out, workspace):
    """The product and the bias, rounded once."""
    if not PRODUCTS.run(OUT, BIAS, weight, x, out, workspace, bias=bias):
        PRODUCTS.own("bias")
        (M, N), width = out.shape, pack_width(out, bias, multiple_of=out.shape[1])
        fill_kernel(grid=blocks(M * N, THREADS * width), block=THREADS, N=width)(out, bias, M * N, N)
        multiply(OUT, weight, x, out, workspace, add=True)


def gelu(out, pre_gelu):
    PRODUCTS.own("gelu")
    n, N = out.numel(), pack_width(out, pre_gelu, multiple_of=out.shape[1])
    gelu_kernel(grid=blocks(n, THREADS * N), block=THREADS, N=N)(out, pre_gelu, n)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias, workspace):
    fused = x_pre_gelu is not None and not is_wide(dout)
    if not (fused and PRODUCTS.run(DX, DGELU, weight, dout, dx, workspace, aux=x_pre_gelu)):
        multiply(DX, weight, dout, dx, workspace)
        if x_pre_gelu is not None:
            times_gelu_grad(dx, x_pre_gelu)

    scratch = workspace[WORKSPACE + -workspace.data_ptr() % ROUND :].view(torch.float32)
    sums = scratch[: dweight.shape[0]] if accumulate else dbias
    fused = dbias is not None and (is_wide(dout) or not accumulate)
    if fused and PRODUCTS.run(DWEIGHT, BGRADB, x, dout, dweight, workspace, bias=sums, add=accumulate):
        if accumulate:
            PRODUCTS.own("adding dbias")
            add_parts(dbias, sums, 1, True)
        return
    multiply(DWEIGHT, x, dout, dweight, workspace, add=accumulate)
    if dbias is not None:
        sum_rows(dbias, dout, accumulate, scratch)


def times_gelu_grad(dx, x_pre_gelu):
    PRODUCTS.own("dgelu")
    n, N = dx.numel(), pack_width(dx, x_pre_gelu, multiple_of=dx.shape[1])
    gelu_grad_kernel(grid=blocks(n, THREADS * N), block=THREADS, N=N)(dx, x_pre_gelu, n)


def sum_rows(dbias, dout, accumulate, partials):
    """dbias (+)= the sum of dout's rows, in parts that are then added in order."""
    PRODUCTS.own("dbias")
    (M, N), parts = dout.shape, blocks(dout.shape[0], BIAS_ROWS)
    rows_kernel(grid=(blocks(N, WARP), parts), block=THREADS)(partials, dout, M, N, BIAS_ROWS)
    add_parts(dbias, partials, parts, accumulate)


def add_parts(dbias, partials, parts, accumulate):
    n = dbias.numel()
    add_kernel(grid=blocks(n, THREADS), block=THREADS)(dbias, partials, n, parts, accumulate)
