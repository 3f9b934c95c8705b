"""Weight gradients whose tiles are too few for a GPU are cut along the batch; a second kernel adds the parts in order.

Floor: 2 M N K FLOPs forward, twice that backward, at the rate of the tensor cores in bf16 and fp16; every operand read
once, every result written once. GPT-2 124M's weight gradients are 18 to 72 tiles of 128 x 256, and an H100 has 132
multiprocessors: with all the rows of a batch in one tile, most of them would wait. The partial sums are written and
read once more, in fp32: 8 bytes a part and an element. Forward and dx are those of `tiled`.
"""

from kernels.triton import matmul_tiles
from kernels.triton.matmul_tiles import DWEIGHT, DX, FORWARD
from kernels.triton.tuning import tune

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
TENSOR_CORES = True
SPILLS = {"sm_80": 48, "sm_100a": 168}  # bytes: wide tiles of a ragged inner dimension, or with sums beside them


def workspace(shape, phase):
    """Backward: partial sums of dweight and of dbias, in fp32."""
    return matmul_tiles.partial_bytes(shape, DWEIGHT) if phase == "backward" else 0


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    matmul_tiles.forward(x, weight, bias, out, pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias, workspace):
    matmul_tiles.dx_of(dout, weight, x_pre_gelu, dx)
    (M, N), K = dout.shape, x.shape[1]
    config = DWEIGHT.at(dout.dtype, N, K, M)
    rows = matmul_tiles.part_rows(M, N, K, dout.dtype, config)
    matmul_tiles.dweight_of(dout, x, dweight, dbias, accumulate, config, rows, workspace)


def prepare(shape, phase):
    tables = (FORWARD,) if phase == "forward" else (DX, DWEIGHT)
    tune("matmul", shape, phase, globals()[phase], *tables)
