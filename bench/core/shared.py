"""Memory that two processes share: one makes it, the other opens it by its path, and it is gone with the last of them.

box = Box(size)                     bytes that are zero; box.bytes is the tensor over them
opened(box.path, box.size)          the same bytes in another process of this user
box, given = stored(values)         the tensors of a call, and where they lie
values_in(opened(...), given.table) these tensors there
"""

import fcntl
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.core.case import DTYPES, Value, Values, each

ALIGN = 64
ADD_SEALS, SEALS = (
    1033,
    0x2 | 0x4 | 0x10,
)  # F_ADD_SEALS; F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE (linux/fcntl.h)
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Place = tuple[str, tuple[int, ...], int]  # dtype, sizes, offset in bytes
Table = dict[str, Place | list[Place] | None]


class Box:
    """Anonymous memory with a file descriptor, which another process opens under /proc."""

    def __init__(self, size: int):
        self.size = max(1, size)
        self._file = os.memfd_create("layerbench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._file, self.size)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        self.bytes = torch.frombuffer(mmap.mmap(self._file, self.size), dtype=torch.uint8)

    def seal(self) -> None:
        """From now on only those who have it mapped already can write to it."""
        fcntl.fcntl(self._file, ADD_SEALS, SEALS)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def __del__(self) -> None:
        self.close()


def opened(path: str, size: int) -> torch.Tensor:
    """The bytes of another process's box; what is written to them here stays here. Raises OSError where it is gone."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_size < size:
            raise OSError(f"{path} is smaller than {size} bytes")
        mapped = mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(file)
    return torch.frombuffer(mapped, dtype=torch.uint8)


@dataclass(frozen=True)
class Given:
    """Where the tensors of a call lie."""

    path: str
    size: int
    table: Table


def stored(values: Values) -> tuple[Box, Given]:
    """Copy CPU tensors into a box of their own, each of them contiguous and aligned."""
    table: Table = {}
    end = 0
    for name, value in values.items():
        places: list[Place] = []
        for tensor in each(value):
            places.append((NAMES[tensor.dtype], tuple(tensor.shape), end))
            end += aligned(tensor.numel() * tensor.element_size())
        table[name] = places if isinstance(value, list) else places[0] if places else None
    box = Box(end)
    for into, source in zip(_all(values_in(box.bytes, table)), _all(values), strict=True):
        into.copy_(source)
    box.seal()
    return box, Given(box.path, box.size, table)


def values_in(memory: torch.Tensor, table: Table) -> Values:
    """The tensors that lie in a box, as views of it."""

    def at(place: Place) -> torch.Tensor:
        name, sizes, offset = place
        dtype = DTYPES[name]
        return memory[offset : offset + math.prod(sizes) * dtype.itemsize].view(dtype).view(sizes)

    def value(places: Place | list[Place] | None) -> Value:
        if places is None:
            return None
        return [at(p) for p in places] if isinstance(places, list) else at(places)

    return {name: value(places) for name, places in table.items()}


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _all(values: Values) -> Iterator[torch.Tensor]:
    for value in values.values():
        yield from each(value)
