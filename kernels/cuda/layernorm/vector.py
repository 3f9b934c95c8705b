"""Blocks that stay, each warp with its next two rows on the way to shared memory while it normalises the present one.

Floor, per element of x: forward one read and one write, backward three reads and one write; memory sets the pace.
700 ns of a multiprocessor's share of 4.8 TB/s are 25 KB; with what goes wrong under load one wants 40 to 64 KB on their
way. In `shared` a warp asks for one row, and then for nothing until another block takes its place: at C = 768 in bf16
at most 1,024 threads x 48 bytes = 48 KiB, of which a launch, two reductions, the weights' way and the stores leave some
half on average. Here it is 1,024 threads x 96 bytes = 96 KiB (fp32: 192 KiB) at any time, by cp.async and so without
registers. 2-byte accesses, which no such copy is, and rows of which not one fits beside another are `shared`'s; so is
backward, whose rows come the same way (per multiprocessor 512 threads x 144 to 288 bytes).
"""

from functools import cache

from kernels.cuda import Kernel, blocks, most_shared
from kernels.cuda.layernorm import shared
from kernels.cuda.layernorm.shared import LEAST_COPY, REGISTERS_PER_SM, RESERVED_SHARED, SHARED_PER_SM, SMS
from kernels.cuda.packing import pack_width, row_shape

REQUIRES = ("sm80",)
DETERMINISTIC = True
SPILLS = {"sm_90a": 8}  # bytes, by NVRTC 13.5: rows of 1,600 in bf16

AHEAD = 2  # rows on their way
THREADS_PER_SM, MAX_PER_SM = 2048, 32  # threads, blocks
REGISTERS_BESIDE_ROW = 40  # of a thread, at most

forward_kernel = Kernel("vector.cu", "layernorm_forward", AHEAD=AHEAD)


def workspace(shape, phase):
    return shared.workspace(shape, phase)


@cache
def forward_launch(row, size, most):
    """(blocks that fit on a multiprocessor at once, bytes of dynamic shared memory of each), for elements of so many
    bytes and at most so many bytes of shared memory; 0 blocks where rows cannot be copied ahead. The compiler is told,
    and keeps to the registers that they have."""
    threads, elements = row.ROWS * row.THREADS, row.PACKS * row.N
    bytes_ahead = AHEAD * size * threads * elements
    if row.N * size < LEAST_COPY or bytes_ahead + RESERVED_SHARED > most:
        return 0, 0
    by_registers = REGISTERS_PER_SM // ((REGISTERS_BESIDE_ROW + elements) * threads)
    by_memory = SHARED_PER_SM // (bytes_ahead + RESERVED_SHARED)
    return max(1, min(MAX_PER_SM, by_registers, by_memory, THREADS_PER_SM // threads)), bytes_ahead


def forward(x, weight, bias, eps, *, out, mean, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(out, x, weight, bias, multiple_of=C), shared.FORWARD_ELEMENTS)
    per_sm, bytes_ahead = forward_launch(row, x.element_size(), most_shared(x))
    if not per_sm:
        shared.forward(x, weight, bias, eps, out=out, mean=mean, rstd=rstd)
        return
    grid = min(blocks(B * T, row.ROWS), SMS * per_sm)
    launch = forward_kernel(grid, row.ROWS * row.THREADS, shared=bytes_ahead, BLOCKS=per_sm, **row.template)
    launch(out, mean, rstd, x, weight, bias, B * T, eps)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias, workspace):
    saved = dresidual, x, weight, mean, rstd, accumulate
    shared.backward(dout, *saved, dx=dx, dweight=dweight, dbias=dbias, workspace=workspace)
