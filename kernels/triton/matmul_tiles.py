"""Matrix products by tiles, one tile a program: the kernels that several variants of matmul share.

A product is out(row, column) = sum over i of a(row, i) b(column, i), of `rows` by `columns` results and `inners` terms.
Each operand lies along i (contiguous in it, as x and weight in forward) or across it (as both in dweight = dout^T x):
tiles are read as they lie, and turned on the way from shared memory to the tensor cores, where a turn costs nothing.

Tiles on the GPU at the same time share operands in L2, by their order: strips of STRIP tiles, one above the other.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.triton import blocks, capability, multiprocessors
from kernels.triton.launching import jit
from kernels.triton.math import gelu, gelu_grad
from kernels.triton.tuning import TORCH_DTYPES, Config, Tiles

STRIP = 8
COLUMNS = tl.constexpr(16)
MOST_PARTS = 64
# Elements of a program that adds partial sums: four a thread, one load. With eight Triton 3.6 spills in fp32, for ptxas
# wants all of a multiprocessor's threads there.
ADD_BLOCK, ADD_WARPS = 1024, 8


def tile(BM: int, BN: int, BK: int, num_warps: int, num_stages: int) -> Config:
    """A program's share of the results, how much of the inner dimension it takes at a time, and how many such steps
    are on their way into shared memory."""
    return dict(BM=BM, BN=BN, BK=BK, num_warps=num_warps, num_stages=num_stages)


# Hopper: 128 x 256 is what wgmma can be fed from shared memory, and takes 128 registers a thread for its sums; 128 by
# 128 with three stages lets two programs share a multiprocessor, and one store while the other multiplies.
HOPPER = [tile(128, 256, 64, 8, 4), tile(128, 256, 64, 8, 3), tile(128, 128, 64, 8, 3), tile(128, 128, 64, 8, 4)]
AMPERE = [tile(128, 128, 32, 8, 4), tile(128, 128, 64, 8, 3), tile(128, 64, 32, 4, 4)]
# Plain arithmetic, no tensor cores. Triton 3.6 wants 16 terms of a product at least, in fp32 too.
PLAIN = [tile(128, 128, 16, 8, 3), tile(64, 128, 16, 8, 3), tile(64, 64, 16, 4, 3)]

FORWARD = Tiles(half={80: AMPERE, 90: HOPPER}, fp32={80: PLAIN[1:]})  # the widest spills: a row's results and a GELU
DX = Tiles(half={80: AMPERE, 90: HOPPER}, fp32={80: PLAIN})
DWEIGHT = Tiles(half={80: AMPERE, 90: HOPPER}, fp32={80: PLAIN})


@triton.jit
def tile_at(index, rows, columns, BM: tl.constexpr, BN: tl.constexpr, STRIP: tl.constexpr):
    """First row and first column of the tile with that number."""
    tile_rows, tile_columns = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    strip, within = index // (STRIP * tile_columns), index % (STRIP * tile_columns)
    height = tl.minimum(STRIP, tile_rows - strip * STRIP)
    return (strip * STRIP + within % height) * BM, within // height * BN


@triton.jit
def operand(data, first, outers, inners, begin, ALONG: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr):
    """Where a tile of an operand begins, the offsets of its outer and inner indices, and the stride of the latter. Rows
    (columns) past the last are read as some that exist: their results are not stored, and the loads need no mask."""
    first_64, begin_64 = tl.cast(first, tl.int64), tl.cast(begin, tl.int64)
    outer, inner = tl.arange(0, BO) % (outers - first), tl.arange(0, BK)
    if ALONG:
        return data + first_64 * inners + begin_64, outer * inners, inner, 1
    else:
        return data + begin_64 * outers + first_64, outer, inner * outers, outers


@triton.jit
def product(
    a, b, first_row, first_column, rows, columns, inners, begin, end,
    A_ALONG: tl.constexpr, B_ALONG: tl.constexpr, ROW_SUMS: tl.constexpr, ONES: tl.constexpr,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile's sums over i in [begin, end) of a(row, i) b(column, i), in fp32; with ROW_SUMS also of a(row, i)."""
    FP32: tl.constexpr = a.dtype.element_ty == tl.float32
    a, a_outer, a_inner, a_stride = operand(a, first_row, rows, inners, begin, A_ALONG, BM, BK)
    b, b_outer, b_inner, b_stride = operand(b, first_column, columns, inners, begin, B_ALONG, BN, BK)
    a_offsets, b_offsets = a_outer[:, None] + a_inner[None, :], b_inner[:, None] + b_outer[None, :]
    sums = tl.zeros((BM, BN), tl.float32)
    row_sums = no_row_sums(ONES, BM, BK)
    for i in range(begin, end, BK):
        inside = tl.arange(0, BK) < end - i
        if EVEN:
            left, right = tl.load(a + a_offsets), tl.load(b + b_offsets)  # (BM, BK), (BK, BN)
        else:
            left = tl.load(a + a_offsets, mask=inside[None, :], other=0.0)
            right = tl.load(b + b_offsets, mask=inside[:, None], other=0.0)
        if FP32 and B_ALONG:
            # Changes only the way there: else neighbouring threads would read shared memory BK apart, in few banks.
            right = tl.where(inside[:, None], right, 0.0)
        sums = add_product(sums, left, right, BK)
        if ROW_SUMS:
            row_sums = add_row_sums(row_sums, left, ONES, BK)
        a += BK * a_stride
        b += BK * b_stride
    return sums, finished_row_sums(row_sums, ONES)


@triton.jit
def add_product(sums, left, right, BK: tl.constexpr):
    """sums + left right. In fp32 BK products are added first, and then that to `sums`: the rounding errors of one chain
    of all products would be several times those of a library. (Without the limit Triton would make it one chain.)"""
    if left.dtype == tl.float32:
        return sums + tl.dot(left, right, input_precision="ieee", max_num_imprecise_acc=BK)
    else:
        return tl.dot(left, right, sums)


# Sums of a(row, i) over i, tile after tile of (BM, BK). Without ONES the tiles are added, and only at the end the
# columns of the sum. With ONES a tile is multiplied by COLUMNS columns of ones, so that only the tensor cores read it:
# where wgmma still reads a tile that is wanted in registers too, Triton 3.9 takes too few buffers, and overwrites it.


@triton.jit
def no_row_sums(ONES: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    return tl.zeros((BM, COLUMNS if ONES else BK), tl.float32)


@triton.jit
def add_row_sums(row_sums, tile, ONES: tl.constexpr, BK: tl.constexpr):
    if ONES:
        return tl.dot(tile, tl.full((BK, COLUMNS), 1, tile.dtype), row_sums)
    else:
        return row_sums + tile.to(tl.float32)


@triton.jit
def finished_row_sums(row_sums, ONES: tl.constexpr):
    if ONES:
        return tl.max(row_sums, 1)  # all columns are the same
    else:
        return tl.sum(row_sums, 1)


@triton.jit
def halves(sums, BM: tl.constexpr, BN: tl.constexpr):
    """The left and the right half of a tile: no data moves. Taken one after the other, they leave registers free."""
    return tl.split(tl.permute(tl.reshape(sums, (BM, 2, BN // 2)), (0, 2, 1)))  # (BM, BN // 2) each


@triton.jit
def places(first_row, first_column, rows, columns, BM: tl.constexpr, BN: tl.constexpr):
    """Of a tile's results: the offset of the first, the offsets from it, and which of them exist."""
    row, column = tl.arange(0, BM), tl.arange(0, BN)
    inside = (row < rows - first_row)[:, None] & (column < columns - first_column)[None, :]
    return tl.cast(first_row, tl.int64) * columns + first_column, row[:, None] * columns + column[None, :], inside


@jit(do_not_specialize=["M"])
def matmul_forward(
    out, pre_gelu, x, weight, bias, M, N, K,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    row, column = tile_at(tl.program_id(0), M, N, BM, BN, STRIP)
    sums, _ = product(x, weight, row, column, M, N, K, 0, K, True, True, False, False, EVEN, BM, BN, BK)
    store_out(out, pre_gelu, bias, sums, row, column, M, N, BM, BN)


@triton.jit
def store_out(out, pre_gelu, bias, sums, row, column, M, N, BM: tl.constexpr, BN: tl.constexpr):
    if BN > 128:
        left, right = halves(sums, BM, BN)
        store_out(out, pre_gelu, bias, left, row, column, M, N, BM, BN // 2)
        store_out(out, pre_gelu, bias, right, row, column + BN // 2, M, N, BM, BN // 2)
    else:
        sums = with_bias(sums, bias, column, N, BN)
        base, offsets, inside = places(row, column, M, N, BM, BN)
        if pre_gelu is not None:
            tl.store(pre_gelu + base + offsets, sums.to(out.dtype.element_ty), mask=inside)
            sums = gelu(sums)
        tl.store(out + base + offsets, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def with_bias(sums, bias, column, N, BN: tl.constexpr):
    if bias is not None:
        n = column + tl.arange(0, BN)
        sums += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    return sums


@jit(do_not_specialize=["M"])
def matmul_dx(
    dx, dout, weight, x_pre_gelu, M, N, K,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    row, column = tile_at(tl.program_id(0), M, K, BM, BN, STRIP)
    sums, _ = product(dout, weight, row, column, M, K, N, 0, N, True, False, False, False, EVEN, BM, BN, BK)
    store_dx(dx, x_pre_gelu, sums, row, column, M, K, BM, BN)


@triton.jit
def store_dx(dx, x_pre_gelu, sums, row, column, M, K, BM: tl.constexpr, BN: tl.constexpr):
    FP32: tl.constexpr = dx.dtype.element_ty == tl.float32  # whose pre-GELUs take twice the registers
    WIDEST: tl.constexpr = 128 if x_pre_gelu is None else 32 if FP32 else 64
    if BN > WIDEST:
        left, right = halves(sums, BM, BN)
        store_dx(dx, x_pre_gelu, left, row, column, M, K, BM, BN // 2)
        store_dx(dx, x_pre_gelu, right, row, column + BN // 2, M, K, BM, BN // 2)
    else:
        base, offsets, inside = places(row, column, M, K, BM, BN)
        if x_pre_gelu is not None:
            sums *= gelu_grad(tl.load(x_pre_gelu + base + offsets, mask=inside, other=0.0).to(tl.float32))
        tl.store(dx + base + offsets, sums.to(dx.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["M", "part_rows", "accumulate"])
def matmul_dweight(
    dweight, dbias, dout, x, M, N, K, part_rows, accumulate,
    ONES: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """dweight (+)= dout^T x, and by the way dbias (+)= the sums of dout's columns: of the programs that read a column,
    those of the first tiles add it up. Part p is part_rows rows of dout and x, and makes the p-th dweight and dbias."""
    part = tl.program_id(1)
    begin = part * part_rows
    end = tl.minimum(begin + part_rows, M)
    row, column = tile_at(tl.program_id(0), N, K, BM, BN, STRIP)
    # Two loops, so that the programs without dbias pay nothing for it.
    if dbias is not None and column == 0:
        sums, row_sums = product(dout, x, row, column, N, K, M, begin, end, False, False, True, ONES, EVEN, BM, BN, BK)
        store_sums(dbias + part * N, row_sums, row, N, accumulate, BM)
    else:
        sums, _ = product(dout, x, row, column, N, K, M, begin, end, False, False, False, ONES, EVEN, BM, BN, BK)
    store_dweight(dweight + part * tl.cast(N, tl.int64) * K, sums, row, column, N, K, accumulate, BM, BN)


@triton.jit
def store_dweight(dweight, sums, row, column, N, K, accumulate, BM: tl.constexpr, BN: tl.constexpr):
    if BN > 128:
        left, right = halves(sums, BM, BN)
        store_dweight(dweight, left, row, column, N, K, accumulate, BM, BN // 2)
        store_dweight(dweight, right, row, column + BN // 2, N, K, accumulate, BM, BN // 2)
    else:
        base, offsets, inside = places(row, column, N, K, BM, BN)
        sums += tl.load(dweight + base + offsets, mask=inside & accumulate, other=0.0).to(tl.float32)
        tl.store(dweight + base + offsets, sums.to(dweight.dtype.element_ty), mask=inside)


@triton.jit
def store_sums(result, sums, first, size, accumulate, BLOCK: tl.constexpr):
    """result (+)= sums, from `first` on."""
    n = first + tl.arange(0, BLOCK)
    sums += tl.load(result + n, mask=(n < size) & accumulate, other=0.0).to(tl.float32)
    tl.debug_barrier()  # where there are more threads than sums, several read one that one of them writes
    tl.store(result + n, sums.to(result.dtype.element_ty), mask=n < size)


@jit(do_not_specialize=["parts", "accumulate"])
def add_parts(dweight, dbias, partials, bias_partials, size, N, parts, accumulate, BLOCK: tl.constexpr):
    """dweight (+)= the sum of its partial sums, `size` each, in order; the last programs do the same for dbias."""
    block = tl.program_id(0)
    blocks = tl.cdiv(size, BLOCK)
    if block < blocks:
        add_block(dweight, partials, block, size, parts, accumulate, BLOCK)
    elif dbias is not None:
        add_block(dbias, bias_partials, block - blocks, N, parts, accumulate, BLOCK)


@triton.jit
def add_block(result, partials, block, size, parts, accumulate, BLOCK: tl.constexpr):
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    sums = tl.load(result + i, mask=inside & accumulate, other=0.0).to(tl.float32)
    for _ in tl.range(parts, loop_unroll_factor=2):
        sums += tl.load(partials + i, mask=inside, other=0.0)
        partials += size
    tl.store(result + i, sums.to(result.dtype.element_ty), mask=inside)


def forward(x, weight, bias, out, pre_gelu):
    """out = x weight^T (+ bias), or the GELU of that, which then is pre_gelu."""
    (M, K), N = x.shape, weight.shape[0]
    config = FORWARD.at(x.dtype, M, N, K)
    launch = matmul_forward[(tiles(M, N, config),)]
    launch(out, pre_gelu, x, weight, bias, M, N, K, EVEN=K % config["BK"] == 0, STRIP=STRIP, **config)


def dx_of(dout, weight, x_pre_gelu, dx):
    """dx = dout weight, times gelu'(x_pre_gelu) where x was the GELU of that."""
    (M, N), K = dout.shape, weight.shape[1]
    config = DX.at(dout.dtype, M, K, N)
    launch = matmul_dx[(tiles(M, K, config),)]
    launch(dx, dout, weight, x_pre_gelu, M, N, K, EVEN=N % config["BK"] == 0, STRIP=STRIP, **config)


def tiles(rows, columns, config):
    return blocks(rows, config["BM"]) * blocks(columns, config["BN"])


def dweight_of(dout, x, dweight, dbias, accumulate, config, rows=None, workspace=None):
    """dweight (+)= dout^T x and dbias (+)= the sums of dout's columns, in parts of that many rows of dout and x."""
    (M, N), K = dout.shape, x.shape[1]
    parts = blocks(M, rows or M)
    launch = matmul_dweight[(tiles(N, K, config), parts)]
    ones = capability() >= 90 and dout.element_size() == 2  # that is, where tl.dot is wgmma
    options = dict(ONES=ones, EVEN=M % config["BK"] == 0, STRIP=STRIP, **config)
    if parts == 1:
        launch(dweight, dbias, dout, x, M, N, K, M, accumulate, **options)
    else:
        partials, bias_partials = partials_in(workspace, parts, N, K)
        bias_sums = None if dbias is None else bias_partials
        launch(partials, bias_sums, dout, x, M, N, K, rows, False, **options)
        add_parts_of(dweight, dbias, partials, bias_partials, accumulate)


def part_rows(M, N, K, dtype, config):
    """Into how long parts of M, a multiple of BK, dweight's programs are cut: those that end first. A multiprocessor
    runs one at a time, and a tile of partial sums costs it as much as some rows multiplied into the tile."""
    return cheapest_rows(M, config["BK"], tiles(N, K, config), dtype, multiprocessors())


@functools.cache
def cheapest_rows(M, BK, one_part, dtype, processors):
    tile_cost = 50 if dtype == torch.float32 else 800  # fp32 multiplies 16 times as long, and writes as much

    def cost(parts):
        waves = blocks(parts * one_part, processors)
        return waves * blocks(M, parts) + (parts > 1) * parts * one_part / processors * tile_cost

    parts = min(range(1, min(MOST_PARTS, blocks(M, BK)) + 1), key=cost)
    return blocks(blocks(M, parts), BK) * BK


def partial_bytes(shape, table):
    """Workspace for the partial sums of dweight and dbias, with the configuration that needs the most."""
    M, N, K = shape["M"], shape["N"], shape["K"]
    dtype = TORCH_DTYPES[shape["dtype"]]
    parts = max(blocks(M, part_rows(M, N, K, dtype, config)) for config in table.candidates(dtype))
    return 4 * parts * N * (K + 1) if parts > 1 else 0


def partials_in(workspace, parts, N, K):
    """(dweight's, dbias's) partial sums."""
    sums = workspace.view(torch.float32)
    end = parts * N * K
    return sums[:end].view(parts, N, K), sums[end : end + parts * N].view(parts, N)


def add_parts_of(dweight, dbias, partials, bias_partials, accumulate):
    parts, size, N = len(partials), dweight.numel(), len(dweight)
    grid = blocks(size, ADD_BLOCK) + (blocks(N, ADD_BLOCK) if dbias is not None else 0)
    launch = add_parts[(grid,)]
    launch(dweight, dbias, partials, bias_partials, size, N, parts, accumulate, BLOCK=ADD_BLOCK, num_warps=ADD_WARPS)
