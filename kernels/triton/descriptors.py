"""Descriptors of tensors, for Hopper's copy engine: checked once for an address, a layout and a tile."""

import functools
from dataclasses import dataclass

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import cuda

KEPT = 1024  # descriptors: the harness changes addresses from call to call, and comes back to them


@dataclass(frozen=True)
class Base:
    """What Triton asks of a descriptor's tensor; the tensor itself would be kept alive."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


def described(
    tensor: torch.Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], tile: tuple[int, ...]
) -> TensorDescriptor:
    """A descriptor of the tensor with these sizes and strides, in elements, for tiles of that many."""
    if cuda.place(tensor) < 0:  # for the simulator, which must see the tensor
        return TensorDescriptor(tensor, list(sizes), list(strides), list(tile))
    return _kept(tensor.data_ptr(), tensor.dtype, sizes, strides, tile)


@functools.lru_cache(maxsize=KEPT)
def _kept(
    address: int, dtype: torch.dtype, sizes: tuple[int, ...], strides: tuple[int, ...], tile: tuple[int, ...]
) -> TensorDescriptor:
    return TensorDescriptor(Base(address, dtype), list(sizes), list(strides), list(tile))
