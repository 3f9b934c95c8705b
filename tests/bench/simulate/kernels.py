"""Compile and run the .cu files of this folder, whose kernels all take (out, in, counters, n)."""

import re
import struct
from functools import cache
from pathlib import Path

import torch

from bench.simulate import run_ptx
from kernels.cuda import Argument
from kernels.cuda.compiler import Binary, compile_source

HERE = Path(__file__).parent


def names(source: str) -> list[str]:
    text = (HERE / source).read_text()
    return re.findall(r"^(?:KERNEL |[A-Z]+\()(\w+)", text, flags=re.MULTILINE)


@cache
def compiled(source: str) -> Binary:
    """All kernels of a file at once: NVRTC's and g++'s start-up would dominate."""
    return compile_source(HERE / source, tuple(names(source)), "sm_90a", "ptx")


def marked_lines(source: str, kernel: str) -> list[str]:
    """ "bugs.cu:17" for each line of the kernel that ends in `// BUG`."""
    found, inside = [], False
    for number, line in enumerate((HERE / source).read_text().splitlines(), 1):
        if line.startswith("KERNEL "):
            inside = re.match(rf"KERNEL {kernel}\(", line) is not None
        if inside and line.endswith("// BUG"):
            found.append(f"{source}:{number}")
    return found


def run(
    source: str,
    kernel: str,
    n: int,
    *,
    grid=1,
    block=64,
    shared=0,
    seed=0,
    counters=True,
    count_words=256,
    out=None,
    **options,
):
    """Run one kernel on fresh tensors, or an `out` that is given; returns out, in and counters."""
    generator = torch.Generator().manual_seed(3)
    given = torch.randint(-8, 8, (n,), generator=generator).float()  # sums of these are exact in any order
    out = torch.zeros(n) if out is None else out
    numbers = torch.zeros(count_words, dtype=torch.int32)
    pointer = struct.pack("<Q", numbers.data_ptr() if counters else 0)
    arguments = [
        Argument("out", struct.pack("<Q", out.data_ptr()), (out,)),
        Argument("in", struct.pack("<Q", given.data_ptr()), (given,), const=True),
        Argument("counters", pointer, (numbers,) if counters else ()),
        Argument("n", struct.pack("<i", n)),
    ]
    binary = compiled(source)
    run_ptx(
        binary.code.decode(),
        binary.names[kernel],
        (grid, 1, 1),
        (block, 1, 1),
        shared,
        arguments,
        seed=seed,
        name=kernel,
        **options,
    )
    return out, given, numbers
