"""Memory that two processes share: one makes it, the other opens it by its path, and it is gone with the last of them.

box = Box(size)                     bytes that are zero; box.bytes is the tensor over them
opened(box.path, box.size)          the same bytes in another process of this user
box, given = stored(values)         the tensors of a call, and where they lie
values_in(opened(...), given.table) these tensors there

On a GPU one process has a window, memory of the device that others map for as long as they copy into it or out of it
(`Ipc`). It belongs to the judge, so that nothing is lost with a variant's process, and the judge keeps nothing in it.
Where the driver refuses, everything goes through a box.
"""

import contextlib
import ctypes
import fcntl
import math
import mmap
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench.core.case import DTYPES, Value, Values, each

ALIGN = 64
ADD_SEALS, SEALS = (
    1033,
    0x2 | 0x4 | 0x10,
)  # F_ADD_SEALS; F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE (linux/fcntl.h)
ALL_SEALS = 0x2 | 0x4 | 0x8  # F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Place = tuple[str, tuple[int, ...], int]  # dtype, sizes, offset in bytes
Table = dict[str, Place | list[Place] | None]


class Box:
    """Anonymous memory with a file descriptor, which another process opens under /proc."""

    def __init__(self, size: int):
        self._file = os.memfd_create("layerbench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        self.grow(size)

    def grow(self, size: int) -> None:
        """Have so many bytes, before it is sealed. What is there stays: to make new pages takes longer than to copy
        into them."""
        self.size = max(1, size)
        os.ftruncate(self._file, self.size)
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


def unwritten(size: int) -> torch.Tensor:
    """Bytes that are zero, and that nobody can write to: processes that are forked from here on read the same pages, so
    that each of them is made once. None is made before somebody reads it. Empty where the system has no such memory."""
    try:
        file = os.memfd_create("layerbench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(file, size)
            fcntl.fcntl(file, ADD_SEALS, ALL_SEALS)
            mapped = mmap.mmap(file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(file)
    except (AttributeError, OSError, ValueError):
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():  # torch has no tensors that are read only
        warnings.simplefilter("ignore")
        return torch.frombuffer(mapped, dtype=torch.uint8)


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
    """Where the tensors of a call lie: in a box, or in a window of the device's memory."""

    path: str
    size: int
    table: Table
    window: str = ""  # its name; then there is no path
    note: str = ""  # why it is no window, where it should be one


def stored(values: Values) -> tuple[Box, Given]:
    """Copy tensors into a box of their own, each of them contiguous and aligned."""
    table, end = placed(values)
    box = Box(end)
    put_into(box.bytes, table, values)
    box.seal()
    return box, Given(box.path, box.size, table)


def placed(values: Values, start: int = 0) -> tuple[Table, int]:
    """Where tensors go in memory, one behind the other from `start` on, and where they end."""
    table: Table = {}
    end = start
    for name, value in values.items():
        places: list[Place] = []
        for tensor in each(value):
            places.append((NAMES[tensor.dtype], tuple(tensor.shape), end))
            end += aligned(tensor.numel() * tensor.element_size())
        table[name] = places if isinstance(value, list) else places[0] if places else None
    return table, end


def put_into(memory: torch.Tensor, table: Table, values: Values) -> None:
    for into, source in zip(_all(values_in(memory, table)), _all(values), strict=True):
        into.copy_(source)


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


# --- memory of a GPU ---


class Window(Protocol):
    """Memory of a device that other processes may map."""

    name: str  # by which they do
    bytes: torch.Tensor

    def close(self) -> None: ...


class Ipc(Protocol):
    """How processes of a device share its memory. Every method raises OSError where that is refused."""

    def window(self, size: int) -> Window:
        """Memory of this process that others can open."""

    def opened(self, name: str, size: int) -> AbstractContextManager[torch.Tensor]:
        """The bytes of another process's window, mapped for as long as the context lasts. What is written is written
        for both; the device must be done with it when the context ends."""


def ipc_of(device: Any) -> Ipc | None:
    """A GPU's way of sharing memory: the device's own `ipc`, where it is made up, or CUDA's; None where it has none."""
    if hasattr(device, "ipc"):
        return device.ipc()
    try:
        return CudaIpc(device.place) if device.place.startswith("cuda") else None
    except (OSError, AttributeError):  # no such library, or an old one
        return None


class _IpcHandle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 64)]  # CUipcMemHandle


BLOCK = 2 << 20  # bytes of the blocks that the driver gives memory out of


class CudaIpc:
    """By CUDA's IPC handles, asked of the driver itself: torch's own sharing counts who has what in a file that a
    killed process never sets right, and the memory is lost. The context is torch's, which must be current."""

    LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS

    def __init__(self, place: str, driver: Any = None):
        self.place = place
        self.driver = driver or ctypes.CDLL("libcuda.so.1")
        pointer = ctypes.c_uint64
        for name, arguments in {
            "cuMemAlloc_v2": [ctypes.POINTER(pointer), ctypes.c_size_t],
            "cuMemFree_v2": [pointer],
            "cuIpcGetMemHandle": [ctypes.POINTER(_IpcHandle), pointer],
            "cuIpcOpenMemHandle_v2": [ctypes.POINTER(pointer), _IpcHandle, ctypes.c_uint],
            "cuIpcCloseMemHandle": [pointer],
        }.items():
            getattr(self.driver, name).argtypes = arguments

    def window(self, size: int) -> "CudaWindow":
        """Of whole blocks: whoever opens a part of one can get at all of it, and the judge's own memory may lie there
        (CUDA C++ Programming Guide, "Interprocess Communication")."""
        torch.empty(1, device=self.place)  # there is a context, and it is current
        size = -(-size // BLOCK) * BLOCK
        address, handle = ctypes.c_uint64(), _IpcHandle()
        self._ask("cuMemAlloc_v2", ctypes.byref(address), size)
        try:
            self._ask("cuIpcGetMemHandle", ctypes.byref(handle), address)
        except OSError:
            self._ask("cuMemFree_v2", address)
            raise
        return CudaWindow(self, address.value, bytes(handle).hex(), self._tensor(address.value, size))

    @contextlib.contextmanager
    def opened(self, name: str, size: int) -> Iterator[torch.Tensor]:
        torch.empty(1, device=self.place)
        address = ctypes.c_uint64()
        handle = _IpcHandle.from_buffer_copy(bytes.fromhex(name))
        self._ask("cuIpcOpenMemHandle_v2", ctypes.byref(address), handle, self.LAZY_PEER_ACCESS)
        try:
            yield self._tensor(address.value, size)
        finally:
            torch.cuda.synchronize(self.place)
            self._ask("cuIpcCloseMemHandle", address)

    def free(self, address: int) -> None:
        self._ask("cuMemFree_v2", address)

    def _tensor(self, address: int, size: int) -> torch.Tensor:
        return torch.as_tensor(_Bare(address, size), device=self.place)

    def _ask(self, name: str, *arguments: object) -> None:
        if code := getattr(self.driver, name)(*arguments):
            raise OSError(f"{name} answers {code}")


class _Bare:
    """Bytes at an address of the device, as NumPy's and torch's interface for such tells them."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__ = dict(
            shape=(size,), typestr="|u1", data=(address, False), strides=None, version=3, stream=None
        )


@dataclass
class CudaWindow:
    ipc: CudaIpc
    address: int
    name: str
    bytes: torch.Tensor

    def close(self) -> None:
        if self.address:
            self.bytes = torch.empty(0)
            self.ipc.free(self.address)
        self.address = 0
