"""Tensor maps for TMA: the 128 bytes that tell where a tensor lies, its strides, and the tiles that are copied of it.

a_map = tensor_map(a, box=(128, 64), swizzle=128)
kernel(grid, block, shared)(a_map, …)        # `const __grid_constant__ TensorMap a_map` (common/hopper.cuh)

Of a CUDA tensor the driver's cuTensorMapEncodeTiled makes them, of a CPU tensor they are in the simulator's own layout;
what the driver refuses is refused of both. A map holds the tensor's address and travels by value: a call makes its own,
and a captured graph keeps the bytes.
"""

import ctypes
import struct
from collections.abc import Sequence
from functools import lru_cache

import torch

from kernels.cuda import Argument, place

MAP_BYTES = 128
MARK = 0x70616D2D726F736E  # kMapMark in async_copy.cpp
MAX_AXES = 5
KINDS = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.float64: 4, torch.int32: 5, torch.int64: 6}
MAX_BOX = 256
MOST_LONG = 2**32
SWIZZLES = (0, 32, 64, 128)  # bytes; 0 for none


# CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion (cuda.h)
DRIVER_KINDS = {torch.int32: 3, torch.int64: 5, torch.float16: 6, torch.float32: 7, torch.float64: 8, torch.bfloat16: 9}
DRIVER_BITS = {1: 0, 2: 1, 4: 2, 8: 4}  # all others: their bytes, as an unsigned integer
DRIVER_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
PROMOTE_TO_128, PROMOTE_TO_256 = 2, 3  # a sector that is read brings so many bytes to L2: tiles are read whole
MAP_ALIGN = 64
KEPT = 512  # maps of the driver's: the harness changes addresses from call to call, and comes back to them


def tensor_map(
    tensor: torch.Tensor, box: Sequence[int], swizzle: int = 0, *, name: str = "map", const: bool = True
) -> Argument:
    """The map of a tensor for tiles of `box` elements, in the tensor's order of axes: the last one is contiguous.

    `swizzle`: 0, or the bytes of a line of the pattern in shared memory. `const=False` for a map that a kernel stores
    through. Raises ValueError where the driver would refuse it.
    """
    device, sizes, strides = place(tensor), tensor.shape, tensor.stride()
    if device >= 0:
        return _kept(device, tensor.dtype, tensor.data_ptr(), sizes, strides, tuple(box), swizzle, name, const)
    if problem := refused(tensor.dtype, tensor.data_ptr(), sizes, strides, box, swizzle):
        raise ValueError(f"no tensor map of {tuple(sizes)} in boxes of {tuple(box)}: {problem}")
    rest = MAX_AXES - tensor.ndim
    kind = KINDS.get(tensor.dtype, 0)
    header = struct.pack("<QQ4I", MARK, tensor.data_ptr(), tensor.ndim, tensor.element_size(), swizzle, kind)
    bytes_apart = [s * tensor.element_size() for s in reversed(strides[:-1])]
    packed = struct.pack("<5I5I4Q", *sizes[::-1], *[1] * rest, *box[::-1], *[1] * rest, *bytes_apart, *[0] * rest)
    return Argument(name, (header + packed).ljust(MAP_BYTES, b"\0"), (tensor,), const)


@lru_cache(maxsize=KEPT)
def _kept(
    device: int,
    dtype: torch.dtype,
    address: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    swizzle: int,
    name: str,
    const: bool,
) -> Argument:
    if problem := refused(dtype, address, sizes, strides, box, swizzle):
        raise ValueError(f"no tensor map of {tuple(sizes)} in boxes of {box}: {problem}")
    bytes_apart = tuple(s * dtype.itemsize for s in reversed(strides[:-1]))
    value = encoded(dtype, address, tuple(sizes[::-1]), bytes_apart, box[::-1], swizzle)
    return Argument(name, value, (), const, dtype, device)


def encoded(
    dtype: torch.dtype,
    address: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    boxes: tuple[int, ...],
    swizzle: int,
    promote: int = PROMOTE_TO_256,
) -> bytes:
    """What the driver makes of a map; axes from the contiguous one on, strides in bytes from the second. Raises
    ValueError where it refuses."""
    from kernels.cuda import gpu

    axes = len(sizes)
    room = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGN)
    to = -(-ctypes.addressof(room) // MAP_ALIGN) * MAP_ALIGN
    code = gpu.driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(to),
        ctypes.c_int(DRIVER_KINDS.get(dtype, DRIVER_BITS.get(dtype.itemsize, -1))),
        ctypes.c_uint32(axes),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * axes)(*sizes),
        (ctypes.c_uint64 * max(1, axes - 1))(*strides),
        (ctypes.c_uint32 * axes)(*boxes),
        (ctypes.c_uint32 * axes)(*[1] * axes),  # every element of the box
        ctypes.c_int(0),  # not interleaved
        ctypes.c_int(DRIVER_SWIZZLES[swizzle]),
        ctypes.c_int(promote),
        ctypes.c_int(0),  # zeros outside
    )
    if code:
        raise ValueError(f"no tensor map of {sizes[::-1]} in boxes of {boxes[::-1]}: cuTensorMapEncodeTiled: {code}")
    return ctypes.string_at(to, MAP_BYTES)


def refused(
    dtype: torch.dtype,
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: int,
) -> str | None:
    """Why the driver would not encode this map, or None (CUDA driver API, cuTensorMapEncodeTiled)."""
    size, axes = dtype.itemsize, len(sizes)
    width = box[-1] * size if box else 0
    bytes_apart = [s * size for s in strides[:-1]]
    checks = {
        f"a map has 2 to {MAX_AXES} axes, and its box as many": 2 <= axes == len(box) <= MAX_AXES,
        f"elements are of {tuple(DRIVER_BITS)} bytes": size in DRIVER_BITS,
        f"an axis has 1 to {MOST_LONG} elements": all(1 <= s <= MOST_LONG for s in sizes),
        "the last axis is not contiguous": tuple(strides[-1:]) == (1,),
        "the tensor does not begin at a multiple of 16 bytes": address % 16 == 0,
        "strides are no multiples of 16 bytes": all(s % 16 == 0 and 0 < s < 2**40 for s in bytes_apart),
        f"a box has 1 to {MAX_BOX} elements along each axis": all(1 <= b <= MAX_BOX for b in box),
        "a row of the box is no multiple of 16 bytes": width % 16 == 0,
        f"swizzles are {SWIZZLES}": swizzle in SWIZZLES,
        f"a row of the box has {width} bytes, more than the swizzle is wide": not swizzle or width <= swizzle,
    }
    return next((problem for problem, holds in checks.items() if not holds), None)
