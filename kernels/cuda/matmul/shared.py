"""128 x 128 tiles in shared memory, 8 x 8 sums in each thread's registers; bias, GELU and its gradient on the way out.

Floor: 2 M N K FLOPs forward, twice that backward; every operand read once, every result written once. Plain fp32
arithmetic, no tensor cores: 67 TFLOP/s are the ceiling on an H100 or H200, in bf16 too. 64 multiplications for every
four 16-byte reads of shared memory, whose places are turned so that no two lanes meet in a bank; the next tiles travel
to registers meanwhile. Weight gradients whose tiles are too few for a GPU are cut along M into parts, which a second
kernel adds in order; so are the rows of dbias.
"""

from functools import cache
from math import gcd

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width

DETERMINISTIC = True
SPILLS = 160  # bytes, on sm_100a; none on sm_80 and sm_90a

TILE, THREADS = 128, 256  # as in shared.cu
DEPTH = 16  # a multiple of shared.cu's
CHAIN = 128  # as in shared.cu
QUAD = 4  # elements of an access, where the shape allows
BIAS_ROWS = 256  # rows of dout in one part of dbias

SLOTS = 2 * 132  # blocks that run at the same time on an H100 or H200
MOST_PARTS = 64
PART_COST = 0.2  # of writing and reading a tile of partial sums, in rows multiplied into it

forward_kernel = Kernel("shared.cu", "matmul_forward")
dx_kernel = Kernel("shared.cu", "matmul_dx")
dweight_kernel = Kernel("shared.cu", "matmul_dweight")
rows_kernel = Kernel("shared.cu", "sum_rows")
add_kernel = Kernel("shared.cu", "add_parts")


def tiles(rows, columns):
    return blocks(rows, TILE) * blocks(columns, TILE)


@cache
def part_rows(M, N, K, depth=DEPTH, slots=SLOTS, part_cost=PART_COST):
    """Into how long parts of M, a multiple of `depth`, dweight's blocks are cut, of which `slots` run at the same time:
    those that end first."""

    def cost(parts):
        waves = blocks(parts * tiles(N, K), slots)
        return waves * blocks(M, parts) + (parts > 1) * parts * tiles(N, K) * part_cost

    return blocks(blocks(M, min(range(1, MOST_PARTS + 1), key=cost)), depth) * depth


def partial_bytes(M, N, K, rows_of=part_rows):
    """Of dweight's partial sums; none where one part does it all."""
    parts = blocks(M, rows_of(M, N, K))
    return 4 * parts * N * K if parts > 1 else 0


def workspace(shape, phase):
    """Backward: partial sums of dweight and of dbias, in fp32."""
    M, N, K = shape["M"], shape["N"], shape["K"]
    return partial_bytes(M, N, K) + 4 * blocks(M, BIAS_ROWS) * N if phase == "backward" else 0


def access_width(sizes, *tensors):
    """QUAD where every row begins at a multiple of that many elements, else 1."""
    return QUAD if pack_width(*tensors, multiple_of=gcd(*sizes)) >= QUAD else 1


def chain_bytes(tensor, inners):
    """Shared memory for the totals of chains, where there is more than one; see shared.cu."""
    return 4 * TILE * TILE if tensor.element_size() == 4 and inners > CHAIN else 0


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    (M, K), N = x.shape, weight.shape[0]
    width = access_width((N, K), x, weight, bias, out, pre_gelu)
    launch = forward_kernel(grid=tiles(M, N), block=THREADS, shared=chain_bytes(x, K), N=width)
    launch(out, pre_gelu, x, weight, bias, M, N, K)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias, workspace):
    (M, K), N = x.shape, weight.shape[0]
    width = access_width((N, K), dout, x, weight, x_pre_gelu, dx, dweight, dbias)
    launch = dx_kernel(grid=tiles(M, K), block=THREADS, shared=chain_bytes(dout, N), N=width)
    launch(dx, dout, weight, x_pre_gelu, M, K, N)

    rows, bytes_of_dweight = part_rows(M, N, K), partial_bytes(M, N, K)
    parts, partials = blocks(M, rows), workspace[:bytes_of_dweight] if bytes_of_dweight else None
    launch = dweight_kernel(grid=(tiles(N, K), parts), block=THREADS, shared=chain_bytes(dout, rows), N=width)
    launch(dweight, partials, dout, x, N, K, M, rows, accumulate)
    if partials is not None:
        add(dweight, partials, parts, accumulate, width)
    if dbias is not None:
        partials, parts = workspace[bytes_of_dweight:], blocks(M, BIAS_ROWS)
        grid = blocks(N, 32 * width), parts
        rows_kernel(grid=grid, block=THREADS, N=width)(partials, dout, M, N, BIAS_ROWS)
        add(dbias, partials, parts, accumulate, width)


def add(result, partials, parts, accumulate, width):
    """result (+)= the sum of the parts."""
    n = result.numel()
    add_kernel(grid=blocks(n, THREADS * width), block=THREADS, N=width)(result, partials, n, parts, accumulate)
