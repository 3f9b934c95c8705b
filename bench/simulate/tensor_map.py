"""Tensor maps for TMA: the simulator's own layout of the 128 bytes that the driver's cuTensorMapEncodeTiled would fill.

a_map = tensor_map(a, box=(128, 64), swizzle=128)
kernel(grid, block, shared)(a_map, …)        # `const __grid_constant__ CUtensorMap a_map`
"""

import struct
from collections.abc import Sequence

import torch

from kernels.cuda import Argument

MAP_BYTES = 128
MARK = 0x70616D2D726F736E  # kMapMark in async_copy.cpp
MAX_AXES = 5
KINDS = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.float64: 4, torch.int32: 5, torch.int64: 6}
MAX_BOX = 256
SWIZZLES = (0, 32, 64, 128)  # bytes; 0 for none


def tensor_map(
    tensor: torch.Tensor, box: Sequence[int], swizzle: int = 0, *, name: str = "map", const: bool = True
) -> Argument:
    """The map of a tensor for tiles of `box` elements, in the tensor's order of axes: the last one is contiguous.

    `const=False` for a map that a kernel stores through. Raises ValueError where the driver would refuse it.
    """
    if problem := refused(tensor, box, swizzle):
        raise ValueError(f"no tensor map of {tuple(tensor.shape)} in boxes of {tuple(box)}: {problem}")
    rest = MAX_AXES - tensor.ndim
    sizes = [*reversed(tensor.shape), *[1] * rest]
    boxes = [*reversed(box), *[1] * rest]
    strides = [s * tensor.element_size() for s in reversed(tensor.stride()[:-1])] + [0] * rest
    header = struct.pack(
        "<QQ4I", MARK, tensor.data_ptr(), tensor.ndim, tensor.element_size(), swizzle, KINDS.get(tensor.dtype, 0)
    )
    packed = header + struct.pack("<5I5I4Q", *sizes, *boxes, *strides)
    return Argument(name, packed.ljust(MAP_BYTES, b"\0"), (tensor,), const)


def refused(tensor: torch.Tensor, box: Sequence[int], swizzle: int) -> str | None:
    """Why the driver would not encode this map, or None (CUDA driver API, cuTensorMapEncodeTiled)."""
    width = box[-1] * tensor.element_size() if box else 0
    strides = [s * tensor.element_size() for s in tensor.stride()[:-1]]
    checks = {
        f"a map has 2 to {MAX_AXES} axes, and its box as many": 2 <= tensor.ndim == len(box) <= MAX_AXES,
        "the last axis is not contiguous": tensor.stride(-1) == 1,
        "the tensor does not begin at a multiple of 16 bytes": tensor.data_ptr() % 16 == 0,
        "strides are no multiples of 16 bytes": all(s % 16 == 0 and 0 < s < 2**40 for s in strides),
        f"a box has 1 to {MAX_BOX} elements along each axis": all(1 <= b <= MAX_BOX for b in box),
        "a row of the box is no multiple of 16 bytes": width % 16 == 0,
        f"swizzles are {SWIZZLES}": swizzle in SWIZZLES,
        f"a row of the box has {width} bytes, more than the swizzle is wide": not swizzle or width <= swizzle,
    }
    return next((problem for problem, holds in checks.items() if not holds), None)
