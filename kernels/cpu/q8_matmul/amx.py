"""AMX on bytes: 16 x 16 sums over 64 products an instruction, scaled after each group while the next one is multiplied.

Floor: weight read once, a byte an element and a scale a group. Rows of weight are tiles as they lie, only x is packed.
What limits it: the scaling, four vector instructions on each row of a tile's sums, takes longer than the 16 cycles of
its products. Groups of less than 64 fill a part of a tile, and a single row of x one column: there cpu.simd is faster.
"""

from kernels.cpu import Kernel

REQUIRES = ("amx",)
DETERMINISTIC = True

SIDE, STEP = 32, 64  # rows, and bytes of k, that are padded to: as in amx.cpp

forward_kernel = Kernel("amx.cpp", "q8_matmul_forward", tiles=True)


def workspace(shape, phase):
    """x by whole steps of each group, and its scales, from a whole line on."""
    rows = (shape["M"] + SIDE - 1) // SIDE * SIDE
    return rows * shape["KG"] * ((shape["G"] + STEP - 1) // STEP * STEP + 4) + 64


def forward(x, x_scales, weight, scales, G, *, out, workspace):
    M, K = x.shape
    forward_kernel(out, x, x_scales, weight, scales, workspace, M, len(weight), K, G)
