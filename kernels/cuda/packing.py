"""How wide the accesses of a call may be, and how a row is spread over threads: template parameters of kernels."""

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch

from kernels.cuda import Argument, place

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


@functools.cache
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


Tensors = Sequence[torch.Tensor] | None  # None: null pointers


@dataclass(frozen=True)
class Group:
    """Tensors of one launch in several lists, of which the i-th ones belong together and have as many elements."""

    some: slice  # of the lists
    count: int
    width: int  # the widest access that all of them allow, in elements
    blocks: int  # one for each chunk of each tensor
    tensors: list  # for each list an argument of the kernel: Many<T*, count>
    sizes: list[int] | Argument  # elements of each: Many<long long, count>
    firsts: list[int] | Argument  # the first chunk of each: Many<int, count>


class Lists:
    """Lists of tensors as arguments, by value. What was encoded once is kept by addresses and sizes: a call that finds
    another address encodes anew, and one that finds the same has nothing to do but to look.

    chunk: elements of a block. most: tensors of a launch.
    """

    KEPT = 64  # of calls: the harness changes addresses from call to call, and comes back to them

    def __init__(self, chunk: int, most: int):
        self.chunk, self.most = chunk, most
        self.kept: dict[tuple, list[Group]] = {}
        self.last: tuple[tuple, list[Group]] = (), []  # of `kept`: to compare is less than to hash

    def groups(self, *lists: Tensors) -> list[Group]:
        """The launches for these lists; the first one is there, and tells the sizes."""
        first = lists[0]
        assert first is not None
        if not first or place(first[0]) < 0:  # for the simulator, which must see the tensors
            return self._made(lists)
        there = [each for each in lists if each is not None]
        addresses = tuple(map(torch.Tensor.data_ptr, chain.from_iterable(there)))
        sizes = tuple(map(torch.Tensor.numel, first))
        key = (addresses, sizes, *(each and (len(each), each[0].dtype) for each in lists))
        last, found = self.last
        if last == key:
            return found
        found = self.kept.get(key)  # type: ignore[assignment]
        if found is None:
            if len(self.kept) == self.KEPT:
                del self.kept[next(iter(self.kept))]
            found = self.kept[key] = [_encoded(group) for group in self._made(lists)]
        self.last = key, found
        return found

    def _made(self, lists: tuple[Tensors, ...]) -> list[Group]:
        first = lists[0]
        assert first is not None
        groups = []
        for begin in range(0, len(first), self.most):
            some = slice(begin, begin + self.most)
            parts = [[None] * len(first[some]) if each is None else list(each[some]) for each in lists]
            sizes = [t.numel() for t in first[some]]
            firsts = [0, *accumulate(-(-size // self.chunk) for size in sizes)]
            blocks = firsts.pop()
            width = pack_width(*chain.from_iterable(parts))
            groups.append(Group(some, len(sizes), width, blocks, parts, sizes, firsts))
        return groups


def _encoded(group: Group) -> Group:
    n = group.count
    assert isinstance(group.sizes, list) and isinstance(group.firsts, list)
    return Group(
        group.some,
        n,
        group.width,
        group.blocks,
        [_addresses(each) for each in group.tensors],
        Argument("sizes", struct.pack(f"<{n}q", *group.sizes)),
        Argument("firsts", struct.pack(f"<{n}i", *group.firsts)),
    )


def _addresses(tensors: Sequence[torch.Tensor | None]) -> Argument:
    """Raises TypeError or ValueError where tensors of one list differ in dtype or place, or are not contiguous."""
    there = [t for t in tensors if t is not None]
    found = {(t.dtype, place(t)) for t in there}
    if len(found) > 1:
        raise TypeError(f"a list has tensors of {' and '.join(sorted(map(str, found)))}")
    if any(not t.is_contiguous() for t in there):
        raise ValueError("a list has a tensor that is not contiguous")
    dtype, device = next(iter(found), (None, -1))
    values = struct.pack(f"<{len(tensors)}Q", *(0 if t is None else t.data_ptr() for t in tensors))
    return Argument("tensors", values, dtype=dtype, device=device)
