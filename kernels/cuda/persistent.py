"""Blocks that stay, one on each multiprocessor, and take item after item."""

from functools import cache

import torch

from kernels.cuda import place

SIMULATED = (
    2  # blocks at most for tensors on the CPU: in the simulator each is to take several items of small shapes too
)


def persistent_blocks(items: int, tensor: torch.Tensor, of_each: int = 1) -> int:
    """How many blocks to launch on the tensor's device for so many items; `of_each` fit a multiprocessor."""
    most = _multiprocessors(place(tensor)) * of_each if tensor.is_cuda else SIMULATED
    return min(items, most)


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
