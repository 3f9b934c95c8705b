"""Large tensors on a CPU looked at in one pass over memory (onepass.cpp), where PyTorch's operators take ten.

    errors(got, truth, share, noise, length)   how far off an output is, stretch by stretch
    holds(held, source, shift, factor)         whether a buffer holds a tensor that was rolled and scaled

Each answers None where it cannot tell: no C++ compiler, other dtypes, values that are not finite. Whoever asks then
uses PyTorch's operators, which are what a test holds these to.
"""

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from kernels import Unavailable
from kernels.cpu import CompileError, Kernel

LARGE = 1 << 20  # elements: below, PyTorch is as quick, and nothing is compiled for what small shapes need
KEPT_AS = {torch.float32: torch.float64, torch.bfloat16: torch.float32}  # the truth of an output (bench/trial/truth.py)


ERRORS, HOLDS = Kernel("onepass.cpp", "errors"), Kernel("onepass.cpp", "holds")
Found = TypeVar("Found")


@functools.cache
def _built(dtype: torch.dtype) -> bool:
    """Whether there is a compiler, and what it makes of the simplest numbers is right."""
    got, found = torch.ones(2, dtype=dtype), torch.empty(4, dtype=torch.float64)
    try:
        ERRORS(got, torch.tensor([1, 3], dtype=KEPT_AS[dtype]), torch.tensor([0.5, 0.5]).double(), found, 2, 2)
    except (Unavailable, CompileError):
        return False
    if found.tolist() != [1.0, 1.0, 1.0, 2.0]:
        raise RuntimeError("bench/core/onepass.cpp does not measure errors: nothing can be judged with it")
    return True


def _fits(*tensors: torch.Tensor) -> bool:
    return all(x.is_cpu and x.dim() == 1 and x.is_contiguous() for x in tensors) and tensors[0].numel() >= LARGE


def errors(
    got: torch.Tensor, truth: torch.Tensor, share: float, noise: float, length: int
) -> tuple[float, float, float, float] | None:
    """Of flat tensors that are whole stretches of `length` elements, in units of `share` |truth| + `noise`: the largest
    square of an error, the largest sum of squares of a stretch, the sum of all, and the largest error as it is."""
    if not _fits(got, truth) or KEPT_AS.get(got.dtype) != truth.dtype or len(got) % length or not _built(got.dtype):
        return None
    unit = torch.tensor([share, noise], dtype=torch.float64)

    def part(begin: int, end: int) -> list[float]:
        found = torch.empty(4, dtype=torch.float64)
        a, b = begin * length, end * length
        ERRORS(got[a:b], truth[a:b], unit, found, b - a, length)
        return found.tolist()

    one, stretch, total, absolute = zip(*_in_threads(part, len(got) // length), strict=True)
    return (max(one), max(stretch), sum(total), max(absolute)) if math.isfinite(sum(total)) else None


def holds(held: torch.Tensor, source: torch.Tensor, shift: int, factor: float) -> bool | None:
    """Whether element i of `held` has the bits of element i - `shift` of `source`, taken around, times `factor`: fp32,
    flat. None also where they differ: a NaN may have other bits than PyTorch's."""
    if not _fits(held, source) or {held.dtype, source.dtype} != {torch.float32} or not _built(torch.float32):
        return None
    by = torch.tensor([factor])

    def part(begin: int, end: int) -> bool:
        same = torch.empty(1, dtype=torch.int64)
        HOLDS(held, source, by, same, shift, begin, end, len(held))
        return bool(same)

    return all(_in_threads(part, len(held))) or None


def _in_threads(part: Callable[[int, int], Found], count: int) -> list[Found]:
    """What is found in equal parts of so many, one a thread of PyTorch's."""
    workers = min(torch.get_num_threads(), count)
    ends = [count * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(part, ends, ends[1:]))
