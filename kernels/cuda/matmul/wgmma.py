"""Hopper: one thread copies tiles by TMA, two warpgroups multiply in turns; one finishes beside the other's products.

Floor: 2 M N K FLOPs forward, twice that backward; every operand read once, every result written once.

One block on each multiprocessor takes tiles of 128 x 128 of the result, one after the other, in strips whose operands
stay in L2. A producer keeps 5 stages of 64 of the inner dimension filled; the consumers have every second tile each:
while one rounds its sums, takes GELU and has the TMA store them from shared memory, the other has the tensor cores for
itself. That counts where the inner dimension is short (K = 768: 12 stages a tile). x_pre_gelu, or the gradient that is
added to, comes by TMA beside the products, and the result is written in its place. Weight gradients whose tiles are too
few for a GPU are cut along M into parts, which a second kernel adds in order. dbias is summed by the consumers of the
first column of tiles, from the tiles of dout that are in shared memory for wgmma.

What limits it: tiles of 128 x 128 read 1.33 times from L2 what those of 128 x 256 would, for which a consumer of this
kind has too few registers. No clusters: neighbours do not share what they read.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.matmul import shared
from kernels.cuda.matmul.shared import add, tiles
from kernels.cuda.persistent import persistent_blocks
from kernels.cuda.tensor_map import tensor_map

DTYPES = ("bf16", "fp16")
REQUIRES = ("sm90a",)
DETERMINISTIC = True
TENSOR_CORES = True

TILE, DEPTH, STAGES, THREADS = 128, 64, 5, 384  # as in wgmma.cu
LINE = 64  # elements of 128 bytes
SHARED = (STAGES * 2 * TILE * DEPTH + 2 * 2 * TILE * LINE) * 2 + (2 * STAGES + 4) * 8  # Shared in wgmma.cu
PIECE = 8  # elements of 16 bytes, of which TMA wants the strides to be multiples
QUAD = 4

MULTIPROCESSORS = 132  # of an H100 or H200
PART_COST = 4.0  # of writing and reading a tile of partial sums, in rows multiplied into it

forward_kernel = Kernel("wgmma.cu", "matmul_forward")
dx_kernel = Kernel("wgmma.cu", "matmul_dx")
dweight_kernel = Kernel("wgmma.cu", "matmul_dweight")


def supports(shape):
    return all(shape[axis] % PIECE == 0 for axis in "NK") or f"N or K is no multiple of {PIECE}"


def part_rows(M, N, K):
    return shared.part_rows(M, N, K, DEPTH, MULTIPROCESSORS, PART_COST)


def partial_bytes(M, N, K):
    return shared.partial_bytes(M, N, K, part_rows)


def workspace(shape, phase):
    """Backward: partial sums of dweight and of dbias, in fp32."""
    M, N, K = shape["M"], shape["N"], shape["K"]
    return partial_bytes(M, N, K) + 4 * blocks(M, part_rows(M, N, K)) * N if phase == "backward" else 0


def launch(kernel, items, like):
    return kernel(grid=persistent_blocks(items, like), block=THREADS, shared=SHARED, T=like.dtype)


def along(operand):
    """The map of an operand that is contiguous along the dimension summed over: a tile is one box."""
    return tensor_map(operand, (TILE, DEPTH), 128)


def across(operand):
    """The map of an operand that is contiguous along the other dimension: a tile is two boxes."""
    return tensor_map(operand, (DEPTH, LINE), 128)


def result(tensor, const=False):
    """The map of what a tile of the result goes to, or of what it is combined with."""
    return tensor_map(tensor, (TILE, LINE), 128, const=const)


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    (M, K), N = x.shape, weight.shape[0]
    to, with_gelu = result(out), pre_gelu is not None
    run = launch(forward_kernel, tiles(M, N), x)
    run(to, result(pre_gelu) if with_gelu else to, along(x), along(weight), bias, M, N, K, with_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias, workspace):
    (M, K), N = x.shape, weight.shape[0]
    to, was_gelu = result(dx), x_pre_gelu is not None
    beside = result(x_pre_gelu, const=True) if was_gelu else to
    run = launch(dx_kernel, tiles(M, K), dout)
    run(to, along(dout), across(weight), beside, M, K, N, was_gelu)

    rows, bytes_of_dweight = part_rows(M, N, K), partial_bytes(M, N, K)
    parts, partials = blocks(M, rows), workspace[:bytes_of_dweight] if bytes_of_dweight else None
    bias_partials = workspace[bytes_of_dweight:] if dbias is not None else None
    run = launch(dweight_kernel, tiles(N, K) * parts, dout)
    run(result(dweight), partials, bias_partials, across(dout), across(x), N, K, M, rows, accumulate)
    if partials is not None:
        add(dweight, partials, parts, accumulate, QUAD)
    if dbias is not None:
        add(dbias, bias_partials, parts, accumulate, QUAD)
