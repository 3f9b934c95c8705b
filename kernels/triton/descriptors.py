"""Descriptors of tensors, for Hopper's copy engine: checked once for an address, a layout and a tile."""

import functools
from dataclasses import dataclass

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import cuda
from kernels.triton.launching import Described

KEPT = 1024  # descriptors: the harness changes addresses from call to call, and comes back to them


@dataclass(frozen=True)
class Base:
    """What Triton asks of a descriptor's tensor; the tensor itself would be kept alive."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


def described(tensor: torch.Tensor, tile: tuple[int, ...], axes: tuple[int, ...] = ()) -> TensorDescriptor:
    """A descriptor of the tensor in tiles of that many elements, its axes in this order (as they are)."""
    device = cuda.place(tensor)
    if device < 0:  # for the simulator, which must see the tensor
        return TensorDescriptor(tensor, *_ordered(tensor.shape, tensor.stride(), axes), list(tile))
    return _kept(device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tile, axes)


@functools.lru_cache(maxsize=KEPT)
def _kept(
    device: int,
    address: int,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    tile: tuple[int, ...],
    axes: tuple[int, ...],
) -> TensorDescriptor:
    return Described(Base(address, dtype), device, *_ordered(sizes, strides, axes), tile)


def _ordered(sizes: tuple[int, ...], strides: tuple[int, ...], axes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    order = axes or range(len(sizes))
    return [sizes[i] for i in order], [strides[i] for i in order]
