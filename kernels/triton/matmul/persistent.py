"""Programs that stay take tile after tile; the copy engine (TMA) brings the operands and takes the results.

Floor: 2 M N K FLOPs forward, twice that backward, at the rate of Hopper's tensor cores; every operand read once, every
result written once. The loop over tiles and the one over K are made one, so that the operands of the next tile travel
while this one's results are finished, and results leave while the next tile is multiplied. What is left of a tile's
end, when a program's tensor cores rest, is short where a tile leaves in one piece, and hidden where two programs share
a multiprocessor, one of which multiplies while the other takes GELUs. The map of a tensor knows where it ends: no
masks, no addresses in registers.
dweight's tiles are few and their sums long: as in `splitk` they are cut into as many parts as fill the GPU once, one a
program, and a second kernel adds them.

The copy engine wants rows at multiples of 16 bytes, and fp32 has no tensor cores to feed: both are done as in `splitk`.
"""

from math import gcd

import triton
import triton.language as tl

from kernels.triton import blocks, descriptors, matmul_tiles, multiprocessors
from kernels.triton.launching import jit
from kernels.triton.math import gelu, gelu_grad
from kernels.triton.matmul_tiles import (
    STRIP,
    add_row_sums,
    finished_row_sums,
    halves,
    no_row_sums,
    store_dweight,
    store_sums,
    tile,
    tile_at,
    tiles,
    with_bias,
)
from kernels.triton.tuning import Tiles, tune

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
TENSOR_CORES = True
SPILLS = {"sm_100a": 168}  # bytes: wide tiles of a ragged inner dimension, or with sums beside them
REQUIRES = ("sm90",)

# Where a tile's end is short, one program a multiprocessor with the widest tile, as wgmma is then fed with the fewest
# reads of shared memory. With a GELU, or its gradient, it is a third of a tile at K = 768: two programs come first.
# SLICE: columns of a tile that leave at a time, by way of shared memory; what follows waits until they have left it.
ONE = [
    dict(tile(128, 256, 64, 8, 3), SLICE=256),
    dict(tile(128, 256, 64, 8, 4), SLICE=128),
    dict(tile(128, 128, 64, 8, 4), SLICE=128),
]
TWO = dict(tile(128, 128, 64, 8, 3), SLICE=64)
TWO_GRADIENT = dict(tile(128, 128, 64, 8, 3), SLICE=32)  # whose pre-GELUs come by way of shared memory too
SHARED = 113 << 10  # bytes for each of two programs: half of a Hopper multiprocessor's, without what the system keeps

FORWARD = Tiles(half={90: [*ONE, TWO]}, fp32=matmul_tiles.FORWARD.fp32)
FORWARD_GELU = Tiles(half={90: [TWO, dict(ONE[1], SLICE=64)]}, fp32=matmul_tiles.FORWARD.fp32)
DX = Tiles(half={90: [*ONE, TWO]}, fp32={90: matmul_tiles.PLAIN[:1]})
DX_GELU = Tiles(half={90: [TWO_GRADIENT, dict(ONE[1], SLICE=64)]}, fp32={90: matmul_tiles.PLAIN[:1]})
CANDIDATES = [tile(128, 256, 64, 8, 4), tile(128, 256, 64, 8, 3), tile(128, 128, 64, 8, 4)]
DWEIGHT = Tiles(half={90: CANDIDATES}, fp32=matmul_tiles.DWEIGHT.fp32)


@jit(do_not_specialize=["M", "N", "K"])
def persistent_forward(
    out, pre_gelu, x, weight, bias, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRIP: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    tl.assume(K > 0)
    tile_count = tl.cdiv(M, BM) * tl.cdiv(N, BN)
    for index in tl.range(tl.program_id(0), tile_count, tl.num_programs(0), flatten=True):
        row, column = tile_at(index, M, N, BM, BN, STRIP)
        sums = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            sums = tl.dot(x.load([row, k]), weight.load([column, k]).T, sums)
        send_out(out, pre_gelu, bias, sums, row, column, N, BM, BN, SLICE)


@triton.jit
def send_out(
    out, pre_gelu, bias, sums, row, column, N, BM: tl.constexpr, BN: tl.constexpr, SLICE: tl.constexpr
):  # fmt: skip
    if BN > SLICE:
        left, right = halves(sums, BM, BN)
        send_out(out, pre_gelu, bias, left, row, column, N, BM, BN // 2, SLICE)
        send_out(out, pre_gelu, bias, right, row, column + BN // 2, N, BM, BN // 2, SLICE)
    else:
        sums = with_bias(sums, bias, column, N, BN)
        if pre_gelu is not None:
            pre_gelu.store([row, column], sums.to(pre_gelu.dtype))
            sums = gelu(sums)
        out.store([row, column], sums.to(out.dtype))


@jit(do_not_specialize=["M", "N", "K"])
def persistent_dx(
    dx, dout, weight, x_pre_gelu, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRIP: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    tl.assume(N > 0)
    tile_count = tl.cdiv(M, BM) * tl.cdiv(K, BN)
    for index in tl.range(tl.program_id(0), tile_count, tl.num_programs(0), flatten=True):
        row, column = tile_at(index, M, K, BM, BN, STRIP)
        sums = tl.zeros((BM, BN), tl.float32)
        for n in range(0, N, BK):
            sums = tl.dot(dout.load([row, n]), weight.load([n, column]), sums)
        send_dx(dx, x_pre_gelu, sums, row, column, BM, BN, SLICE)


@triton.jit
def send_dx(dx, x_pre_gelu, sums, row, column, BM: tl.constexpr, BN: tl.constexpr, SLICE: tl.constexpr):
    if BN > SLICE:
        left, right = halves(sums, BM, BN)
        send_dx(dx, x_pre_gelu, left, row, column, BM, BN // 2, SLICE)
        send_dx(dx, x_pre_gelu, right, row, column + BN // 2, BM, BN // 2, SLICE)
    else:
        if x_pre_gelu is not None:
            sums *= gelu_grad(x_pre_gelu.load([row, column]).to(tl.float32))
        dx.store([row, column], sums.to(dx.dtype))


@jit(do_not_specialize=["M", "part_rows", "accumulate"])
def mapped_dweight(
    dweight, dbias, dout, x, M, N, K, part_rows, accumulate,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """As matmul_dweight: one tile and part a program. Parts are a multiple of BK rows; past the last row are zeros."""
    part = tl.program_id(1)
    begin = part * part_rows
    end = tl.minimum(begin + part_rows, M)
    row, column = tile_at(tl.program_id(0), N, K, BM, BN, STRIP)
    # Two loops, so that the tiles without dbias pay nothing for it.
    if dbias is not None and column == 0:
        sums, row_sums = dweight_product(dout, x, row, column, begin, end, True, BM, BN, BK)
        store_sums(dbias + part * N, row_sums, row, N, accumulate, BM)
    else:
        sums, _ = dweight_product(dout, x, row, column, begin, end, False, BM, BN, BK)
    store_dweight(dweight + part * tl.cast(N, tl.int64) * K, sums, row, column, N, K, accumulate, BM, BN)


@triton.jit
def dweight_product(
    dout, x, row, column, begin, end,
    ROW_SUMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    sums, row_sums = tl.zeros((BM, BN), tl.float32), no_row_sums(True, BM, BK)
    for m in range(begin, end, BK):
        left = dout.load([m, row]).T  # (BM, BK)
        sums = tl.dot(left, x.load([m, column]), sums)
        if ROW_SUMS:
            row_sums = add_row_sums(row_sums, left, True, BK)
    return sums, finished_row_sums(row_sums, True)


def workspace(shape, phase):
    """Backward: partial sums of dweight and of dbias, in fp32."""
    return matmul_tiles.partial_bytes(shape, DWEIGHT) if phase == "backward" else 0


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    if not mapped(x, weight, out, pre_gelu):
        matmul_tiles.forward(x, weight, bias, out, pre_gelu)
        return
    (M, K), N = x.shape, weight.shape[0]
    config = (FORWARD if pre_gelu is None else FORWARD_GELU).at(x.dtype, M, N, K)
    BM, BN, BK = config["BM"], config["BN"], config["BK"]
    results = [described(result, BM, min(BN, config["SLICE"])) for result in (out, pre_gelu)]
    operands = described(x, BM, BK), described(weight, BN, BK)
    launch = persistent_forward[(programs(M, N, config),)]
    launch(*results, *operands, bias, M, N, K, STRIP=STRIP, **config)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias, workspace):
    if mapped(dout, weight, dx, x_pre_gelu):
        launch_dx(dout, weight, x_pre_gelu, dx)
    else:
        matmul_tiles.dx_of(dout, weight, x_pre_gelu, dx)
    (M, N), K = dout.shape, x.shape[1]
    config = DWEIGHT.at(dout.dtype, N, K, M)
    rows = matmul_tiles.part_rows(M, N, K, dout.dtype, config)
    if mapped(dout, x):
        launch_dweight(dout, x, dweight, dbias, accumulate, config, rows, workspace)
    else:
        matmul_tiles.dweight_of(dout, x, dweight, dbias, accumulate, config, rows, workspace)


def launch_dx(dout, weight, x_pre_gelu, dx):
    (M, N), K = dout.shape, weight.shape[1]
    config = (DX if x_pre_gelu is None else DX_GELU).at(dout.dtype, M, K, N)
    BM, BN, BK = config["BM"], config["BN"], config["BK"]
    columns = min(BN, config["SLICE"])
    result, pre_gelu = described(dx, BM, columns), described(x_pre_gelu, BM, columns)
    operands = described(dout, BM, BK), described(weight, BK, BN)
    launch = persistent_dx[(programs(M, K, config),)]
    launch(result, *operands, pre_gelu, M, N, K, STRIP=STRIP, **config)


def launch_dweight(dout, x, dweight, dbias, accumulate, config, rows, workspace):
    (M, N), K = dout.shape, x.shape[1]
    operands = described(dout, config["BK"], config["BM"]), described(x, config["BK"], config["BN"])
    parts = blocks(M, rows)
    launch = mapped_dweight[(tiles(N, K, config), parts)]
    if parts == 1:
        launch(dweight, dbias, *operands, M, N, K, rows, accumulate, STRIP=STRIP, **config)
    else:
        partials, bias_partials = matmul_tiles.partials_in(workspace, parts, N, K)
        bias_sums = None if dbias is None else bias_partials
        launch(partials, bias_sums, *operands, M, N, K, rows, False, STRIP=STRIP, **config)
        matmul_tiles.add_parts_of(dweight, dbias, partials, bias_partials, accumulate)


def mapped(*tensors):
    """Whether the copy engine can move them all, and should."""
    present = [t for t in tensors if t is not None]
    aligned = all(gcd(t.data_ptr(), t.stride(0) * t.element_size()) % 16 == 0 for t in present)
    return aligned and present[0].element_size() == 2


def described(tensor, rows, columns):
    """For tiles of that size."""
    return None if tensor is None else descriptors.described(tensor, (rows, columns))


def programs(rows, columns, config):
    """That fit on the GPU at once, or one for each tile."""
    stage = 2 * (config["BM"] + config["BN"]) * config["BK"]
    two = config["num_stages"] * stage + 2 * config["BM"] * config["SLICE"] <= SHARED
    return min(tiles(rows, columns, config), multiprocessors() * (2 if two else 1))


def prepare(shape, phase):
    forward_tables = FORWARD, FORWARD_GELU, matmul_tiles.FORWARD
    tables = forward_tables if phase == "forward" else (DX, DX_GELU, matmul_tiles.DX, DWEIGHT)
    tune("matmul", shape, phase, globals()[phase], *tables)
