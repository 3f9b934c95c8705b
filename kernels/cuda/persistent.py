"""Blocks that stay, one on each multiprocessor, and take item after item."""

import torch

from kernels.cuda import multiprocessors

SIMULATED = (
    2  # blocks at most for tensors on the CPU: in the simulator each is to take several items of small shapes, too
)


def persistent_blocks(items: int, tensor: torch.Tensor, of_each: int = 1) -> int:
    """How many blocks to launch on the tensor's device for so many items; `of_each` fit a multiprocessor."""
    return min(items, multiprocessors(tensor) * of_each if tensor.is_cuda else SIMULATED)
