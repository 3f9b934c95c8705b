"""How wide the accesses of a call may be, and how a row is spread over threads: template parameters of kernels."""

import math
from dataclasses import dataclass

import torch

PACK_BYTES = 16  # as in packed.cuh
WARP = 32
WARPS = 4  # of a block, where a row is one warp's
MAX_THREADS = 1024  # of a block
REGISTERS_BESIDE_ROW = 16  # of a thread, roughly, for addresses and sums


def pack_width(*tensors: torch.Tensor | None, multiple_of: int = 0) -> int:
    """The most elements, a power of two up to 16 bytes, that may be accessed at once in all `tensors`.

    Each must begin at a multiple of the access, and the width must divide `multiple_of`, the length of a row (0: any
    width does). The narrowest type decides what 16 bytes hold: a float beside bf16 takes two accesses.
    """
    given = [t for t in tensors if t is not None]
    width = PACK_BYTES // min(t.element_size() for t in given)
    while any(t.data_ptr() % min(width * t.element_size(), PACK_BYTES) for t in given):
        width //= 2
    return math.gcd(width, multiple_of)


@dataclass(frozen=True)
class RowShape:
    """How a row of C elements lies in registers (common/row.cuh): PACKS packs of N in each of THREADS threads.

    A block has one row, or ROWS rows of one warp each.
    """

    C: int
    N: int
    PACKS: int
    THREADS: int

    @property
    def ROWS(self) -> int:
        return WARPS if self.THREADS == WARP else 1

    @property
    def template(self) -> dict[str, int]:
        return {"C": self.C, "N": self.N, "PACKS": self.PACKS, "THREADS": self.THREADS, "ROWS": self.ROWS}


def row_shape(C: int, N: int, most: int) -> RowShape:
    """The shape that holds a row of C elements in the fewest registers, with at most `most` elements in a thread.

    A thread holds more only where even MAX_THREADS threads could not hold the row otherwise: then registers spill, and
    the kernel is slow but right.
    """
    width = -(-C // N)
    packs = range(1, max(1, most // N, -(-width // MAX_THREADS)) + 1)
    shapes = [RowShape(C, N, p, WARP * -(-width // (p * WARP))) for p in packs]
    return min(
        (s for s in shapes if s.THREADS <= MAX_THREADS),
        key=lambda s: s.THREADS * (s.PACKS * N + REGISTERS_BESIDE_ROW),
    )
