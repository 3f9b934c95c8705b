"""Lists of tensors in one launch: a table of their addresses and sizes in the GPU's memory, written once for them.

    lists = Lists(CHUNK)
    table = lists.table(params, m, v, masters, grads, numbers=weight_decays)
    adamw[(table.programs,)](*table.bases, table, …, **table.constants)

A list has a base, its first tensor, and the table tells how far from there the others are. Distances and sizes are in
units that are constants, so that the compiler knows as much of alignment as of any argument and makes wide accesses of
them. A program finds its tensor and chunk with `chunk_of`, what is its with `address_of`, `size_of`, `number_of`.
As long as addresses, sizes and numbers are the same a call has nothing to do but to look; where one changed, another
table is written, by one copy that is waited for. A table that a CUDA graph reads stays as it is.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from math import gcd

import torch
import triton
import triton.language as tl

from kernels import cuda
from kernels.triton import power_of_2

Tensors = Sequence[torch.Tensor] | None  # None: their addresses are not asked for
NEVER = 1 << 62  # the first chunk of no tensor
LEAST = 16  # columns of a table, so that few lengths are compiled
ALIGN = 16  # bytes
SLAB = 1 << 20  # bytes of tables that are asked for at once
KEPT = 256  # tables

# --- in a kernel: `table` has rows of COUNT, one for each list with distances, then of sizes, first chunks, numbers ---


@triton.jit
def chunk_of(program, table, LISTS: tl.constexpr, COUNT: tl.constexpr):
    """(tensor, chunk of it) of a program, where each tensor has as many chunks as hold its elements."""
    firsts = table + (LISTS + 1) * COUNT
    tensor = tl.sum((tl.load(firsts + tl.arange(0, COUNT)) <= program).to(tl.int32), 0) - 1
    return tensor, program - tl.load(firsts + tensor)


@triton.jit
def address_of(base, table, row: tl.constexpr, tensor, ALIGNED: tl.constexpr, COUNT: tl.constexpr):
    """Of the tensor's first element, in the list of this number and base; ALIGNED: all are at multiples of 16 bytes."""
    UNIT: tl.constexpr = 128 // base.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    return base + tl.load(table + row * COUNT + tensor) * UNIT


@triton.jit
def size_of(table, tensor, LISTS: tl.constexpr, UNIT: tl.constexpr, COUNT: tl.constexpr):
    return tl.load(table + LISTS * COUNT + tensor) * UNIT


@triton.jit
def number_of(table, tensor, LISTS: tl.constexpr, COUNT: tl.constexpr):
    """The fp32 that belongs to the tensor."""
    return tl.load(table + (LISTS + 2) * COUNT + tensor).to(tl.int32).to(tl.float32, bitcast=True)


# --- around it ---


@dataclass
class Table:
    """A kernel's argument: what Triton asks of a tensor of int64."""

    words: bytes
    address: int  # on the GPU
    programs: int  # chunks of all tensors
    constants: dict  # for the kernel: LISTS, COUNT, ALIGNED, UNIT
    bases: list[torch.Tensor | None] = field(default_factory=list)  # the first tensors of the lists of this call
    tensors: list[torch.Tensor] = field(default_factory=list)  # that it points to, for the simulator
    memory: object = None  # that holds it, for the simulator
    source: int = 0  # address of the host's copy
    written: bool = False
    captured: bool = False
    dtype = torch.int64

    def data_ptr(self) -> int:
        return self.address

    def of(self, bases: list[torch.Tensor | None]) -> "Table":
        """This one for a call's lists: what is kept holds no tensors. (dataclasses.replace takes microseconds.)"""
        table = object.__new__(Table)
        vars(table).update(vars(self))
        table.bases = bases
        return table

    # What the simulator asks besides, to know which memory is the kernel's.

    def element_size(self) -> int:
        return 8

    def numel(self) -> int:
        return len(self.words) // 8

    @property
    def shape(self) -> tuple[int]:
        return (self.numel(),)

    def stride(self) -> tuple[int]:
        return (1,)


@dataclass
class Slab:
    """Memory for tables on a GPU, and page-locked memory of the host that they are copied from, place for place."""

    there: torch.Tensor
    here: torch.Tensor
    taken: int = 0

    @staticmethod
    def of(size: int, device: torch.device) -> "Slab":
        locked = device.type == "cuda"
        host = torch.empty(size, dtype=torch.uint8, pin_memory=locked)
        return Slab(torch.empty(size, dtype=torch.uint8, device=device), host)


class Lists:
    """Tables of one kernel. chunk: elements of a program."""

    def __init__(self, chunk: int):
        self.chunk = chunk
        self.kept: dict[tuple, Table] = {}
        self.last: tuple[tuple, Table] | None = None  # of `kept`: to compare is less than to hash
        self.slabs: list[Slab] = []

    def table(self, *lists: Tensors, numbers: Sequence[float] = ()) -> Table:
        """The table for these lists; the first one is there, and tells the sizes."""
        first = lists[0]
        assert first is not None
        device = cuda.place(first[0])
        if device < 0:
            return self._simulated(lists, numbers)
        from kernels.cuda import gpu

        there = [each for each in lists if each is not None]
        addresses = tuple(map(torch.Tensor.data_ptr, chain.from_iterable(there)))
        sizes = tuple(map(torch.Tensor.numel, first))
        key = (device, addresses, sizes, tuple(numbers), *(each and (len(each), each[0].dtype) for each in lists))
        stream = gpu.current_stream(device)
        captured = gpu.capturing(stream)
        table = self.last[1] if self.last and self.last[0] == key else self.kept.get(key)
        if table is None:
            table = self._made(lists, numbers)
            table.address, table.source = self._place(len(table.words), device, first[0].device, captured)
            ctypes.memmove(table.source, table.words, len(table.words))
            self.kept[key] = table
        if not table.written:
            gpu.upload(device, table.address, table.source, len(table.words), stream)
            if not captured:  # a captured copy is made when the graph is replayed, for the graph
                gpu.wait(device, stream)  # once; then any stream may read it
                table.written = True
        table.captured |= captured
        self.last = key, table
        return table.of(_bases(lists))

    def _made(self, lists: tuple[Tensors, ...], numbers: Sequence[float]) -> Table:
        """Raises TypeError or ValueError where tensors of one list differ in dtype, or are not contiguous."""
        first = lists[0]
        assert first is not None
        for each in lists:
            if each and len({t.dtype for t in each}) > 1:
                raise TypeError("a list has tensors of several dtypes")
            if each and not all(t.is_contiguous() for t in each):
                raise ValueError("a list has a tensor that is not contiguous")
        count = max(LEAST, power_of_2(len(first)))
        sizes = [t.numel() for t in first]
        firsts = [0, *accumulate(-(-size // self.chunk) for size in sizes)]
        programs = firsts.pop()
        addresses = [[t.data_ptr() for t in each] if each else [] for each in lists]
        bits = [struct.unpack("<i", struct.pack("<f", number))[0] for number in numbers]
        aligned = all(address % ALIGN == 0 for address in chain.from_iterable(addresses))
        units = [ALIGN if aligned else each[0].element_size() if each else 1 for each in lists]
        distances = [[(a - each[0]) // unit for a in each] for each, unit in zip(addresses, units, strict=True)]
        unit = gcd(ALIGN, *sizes)
        rows = [_row(each, 0, count) for each in distances]
        rows += [_row([s // unit for s in sizes], 0, count), _row(firsts, NEVER, count), _row(bits, 0, count)]
        return Table(b"".join(rows), 0, programs, dict(LISTS=len(lists), COUNT=count, ALIGNED=aligned, UNIT=unit))

    def _simulated(self, lists: tuple[Tensors, ...], numbers: Sequence[float]) -> Table:
        table = self._made(lists, numbers)
        table.memory = ctypes.create_string_buffer(table.words, len(table.words) + ALIGN)
        start = ctypes.addressof(table.memory)
        table.address = start + -start % ALIGN
        ctypes.memmove(table.address, table.words, len(table.words))
        table.tensors = [t for each in lists if each for t in each]
        table.bases = _bases(lists)
        return table

    def _place(self, size: int, device: int, where: torch.device, captured: bool) -> tuple[int, int]:
        """Memory for another table, on the GPU and on the host: of the oldest one that has as many bytes and no graph,
        or new."""
        if len(self.kept) >= KEPT and not captured:
            for key, old in self.kept.items():
                if key[0] == device and not old.captured and len(old.words) == size:
                    from kernels.cuda import gpu

                    del self.kept[key]
                    self.last = None
                    gpu.wait(device)  # for what reads it, in any stream
                    return old.address, old.source
        slab = self.slabs[-1] if self.slabs else None
        if slab is None or slab.taken + size > slab.there.nbytes or slab.there.device != where:
            slab = Slab.of(max(SLAB, size), where)
            self.slabs.append(slab)
        start, slab.taken = slab.taken, slab.taken + -(-size // ALIGN) * ALIGN
        return slab.there.data_ptr() + start, slab.here.data_ptr() + start

    def reserve(self) -> None:
        """Ask for the memory of the first tables: for `prepare`, so that no call allocates."""
        from triton.runtime import driver

        device = driver.active.get_active_torch_device()
        if device.type == "cuda" and (not self.slabs or self.slabs[-1].taken > SLAB // 2):
            self.slabs.append(Slab.of(SLAB, torch.device("cuda", driver.active.get_current_device())))


def _bases(lists: tuple[Tensors, ...]) -> list[torch.Tensor | None]:
    return [each[0] if each else None for each in lists]


def _row(values: Sequence[int], filler: int, count: int) -> bytes:
    return struct.pack(f"<{count}q", *values, *[filler] * (count - len(values)))
