"""Lists of tensors in one launch: they travel as tuples, and a program finds its tensor and chunk by its number."""

import triton
import triton.language as tl

MOST = 32  # tensors of a launch: each costs a program a few scalar selects, and a launch a few microseconds


def groups(count: int):
    """Slices of a list, each of at most MOST tensors."""
    return [slice(first, min(first + MOST, count)) for first in range(0, count, MOST)]


def padded(values, filler):
    """A tuple as long as the next power of two, so that few lengths are compiled."""
    return (*values, *[filler] * (triton.next_power_of_2(len(values)) - len(values)))


@triton.jit
def chunk_of(program, sizes, CHUNK: tl.constexpr):
    """(tensor, chunk of it) of a program, where tensor i has as many chunks as hold its sizes[i] elements."""
    first = program * 0
    tensor = program * 0
    tensor_first = program * 0
    for i in tl.static_range(len(sizes)):
        here = (program >= first) & (sizes[i] > 0)
        tensor = tl.where(here, i, tensor)
        tensor_first = tl.where(here, first, tensor_first)
        first += tl.cdiv(sizes[i], CHUNK)
    return tensor, program - tensor_first


@triton.jit
def pick(values, tensor):
    """values[tensor], where `tensor` is not known before the program runs."""
    found = values[0]
    for i in tl.static_range(1, len(values)):
        found = tl.where(tensor == i, values[i], found)
    return found
