"""One program a tile of the result: tl.dot on tiles that a pipelined loop brings; bias, GELU and dbias on the way.

Floor: 2 M N K FLOPs forward, twice that backward, at the rate of the tensor cores in bf16 and fp16; every operand read
once, every result written once. dbias costs no pass of its own: the programs that work on dweight's first column of
tiles multiply the tiles of dout, which they read anyway, by ones as well. fp32 products are exact, on the plain
arithmetic units, whose ceiling is 67 TFLOP/s on an H100 or H200.
"""

from kernels.triton import matmul_tiles
from kernels.triton.matmul_tiles import DWEIGHT, DX, FORWARD
from kernels.triton.tuning import tune

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
TENSOR_CORES = True
SPILLS = {"sm_80": 24, "sm_100a": 184}  # bytes: wide tiles of a ragged inner dimension, or with sums beside them


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    matmul_tiles.forward(x, weight, bias, out, pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    matmul_tiles.dx_of(dout, weight, x_pre_gelu, dx)
    config = DWEIGHT.at(dout.dtype, *dweight.shape, len(x))
    matmul_tiles.dweight_of(dout, x, dweight, dbias, accumulate, config)


def prepare(shape, phase):
    tables = (FORWARD,) if phase == "forward" else (DX, DWEIGHT)
    tune("matmul", shape, phase, globals()[phase], *tables)
