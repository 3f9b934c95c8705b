"""128 x 128 tiles on tensor cores, copied beside the products in stages; bias, GELU, its gradient and dbias fused.

Floor: 2 M N K FLOPs forward, twice that backward; every operand read once, every result written once. mma.sync, one
warp at a time: on Hopper 62 to 68 % of what wgmma reaches, in published comparisons; on Ampere it is all that there is.

Each of 4 warps has 64 x 64 sums in registers. 64 of the inner dimension are a stage; one is multiplied while cp.async
brings the others. 16 of it are in registers twice: ldmatrix reads the next while these are multiplied. The 16-byte
pieces of a tile are swizzled, so that nothing meets in a bank. Two blocks share a multiprocessor: one's way out,
through shared memory in whole sectors, hides behind the other's products. Weight gradients whose tiles are too few for
a GPU are cut along M into parts, which a second kernel adds in order. dbias is a product with ones of the tiles of dout
that are there anyway. What limits it: each warp reads its own operands from shared memory, 64 x 64 x 16 products for
every 4 KiB; and with K = 768 the 12 stages of a tile hardly outlast its beginning and its end.

Rows of no multiple of 16 bytes are copied in smaller accesses, down to single elements without cp.async: right, but
slow.
"""

from math import gcd

from kernels.cuda import Kernel, blocks, most_shared
from kernels.cuda.matmul import shared
from kernels.cuda.matmul.shared import add, tiles
from kernels.cuda.packing import pack_width

DTYPES = ("bf16", "fp16")
REQUIRES = ("sm80",)
DETERMINISTIC = True
TENSOR_CORES = True
SPILLS = 32  # bytes, by NVRTC 13.0, of 255 registers; none by 13.5

TILE, DEPTH, THREADS = 128, 64, 128  # as in mma.cu
STAGE_BYTES = 2 * TILE * DEPTH * 2
RESULT_BYTES = 4 * 64 * (64 + 8) * 4  # the warps' parts of the result, on their way through shared memory
BLOCKS = 2  # that are to share a multiprocessor
QUAD = 4  # floats of an access, where the shape allows

SLOTS = BLOCKS * 132  # blocks that run at the same time on an H100 or H200
PART_COST = 2.0  # of writing and reading a tile of partial sums, in rows multiplied into it

forward_kernel = Kernel("mma.cu", "matmul_forward")
dx_kernel = Kernel("mma.cu", "matmul_dx")
dweight_kernel = Kernel("mma.cu", "matmul_dweight")


def part_rows(M, N, K):
    return shared.part_rows(M, N, K, DEPTH, SLOTS, PART_COST)


def partial_bytes(M, N, K):
    return shared.partial_bytes(M, N, K, part_rows)


def workspace(shape, phase):
    """Backward: partial sums of dweight and of dbias, in fp32."""
    M, N, K = shape["M"], shape["N"], shape["K"]
    return partial_bytes(M, N, K) + 4 * blocks(M, part_rows(M, N, K)) * N if phase == "backward" else 0


def launch(kernel, grid, sizes, *tensors):
    """The kernel, for accesses that the tensors allow and for as many stages as BLOCKS blocks can have."""
    stages = 3 if most_shared(tensors[0]) >= BLOCKS * 3 * STAGE_BYTES else 2
    size = max(stages * STAGE_BYTES, RESULT_BYTES)
    return kernel(grid=grid, block=THREADS, shared=size, N=width_of(sizes, *tensors), STAGES=stages)


def width_of(sizes, *tensors):
    return pack_width(*tensors, multiple_of=gcd(*sizes))


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    (M, K), N = x.shape, weight.shape[0]
    run = launch(forward_kernel, tiles(M, N), (N, K), x, weight, bias, out, pre_gelu)
    run(out, pre_gelu, x, weight, bias, M, N, K)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias, workspace):
    (M, K), N = x.shape, weight.shape[0]
    tensors = dout, x, weight, x_pre_gelu, dx, dweight
    launch(dx_kernel, tiles(M, K), (N, K), *tensors)(dx, dout, weight, x_pre_gelu, M, K, N)

    rows, bytes_of_dweight = part_rows(M, N, K), partial_bytes(M, N, K)
    parts, partials = blocks(M, rows), workspace[:bytes_of_dweight] if bytes_of_dweight else None
    bias_partials = workspace[bytes_of_dweight:] if dbias is not None else None
    run = launch(dweight_kernel, (tiles(N, K), parts), (N, K), *tensors)
    run(dweight, partials, bias_partials, dout, x, N, K, M, rows, accumulate)
    width = min(QUAD, width_of((N, K), *tensors, dbias))
    if partials is not None:
        add(dweight, partials, parts, accumulate, width)
    if dbias is not None:
        add(dbias, bias_partials, parts, accumulate, width)
