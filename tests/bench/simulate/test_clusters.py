"""Clusters of several blocks: what kernels answer, what launches are refused, and planted bugs by their reports."""

import re
import struct
from functools import cache

import pytest
import torch

from bench.simulate import SimulationError, count, instructions_cluster, run_ptx, tensor_map
from bench.simulate.ptx import parse
from bench.simulate.translate import find_line
from kernels.cuda import Argument
from kernels.cuda.compiler import Binary, compile_source
from tests.bench.simulate.kernels import HERE, marked_lines

SEEDS = range(9)  # 7 lands every copy at once, 6 half of them
TILE = 8


@cache
def names(source: str) -> tuple[str, ...]:
    return tuple(re.findall(r"^KERNEL (?:__cluster_dims__\([^)]*\) )?(\w+)\(", (HERE / source).read_text(), re.MULTILINE))


@cache
def compiled(source: str) -> Binary:
    return compile_source(HERE / source, names(source), "sm_90a", "ptx")


def numbers(count: int, most: int = 1000) -> torch.Tensor:
    return torch.randint(0, most, (count,), generator=torch.Generator().manual_seed(3)).int()


def run(kernel: str, *, cluster=None, blocks=8, threads=64, words=1, n=0, seed=0, source="clusters.cu", **options):
    """Run a kernel; returns `words` numbers for each of its threads, and what it was given as [block][thread]."""
    grid = blocks if isinstance(blocks, tuple) else (blocks, 1, 1)
    all_threads = grid[0] * grid[1] * grid[2] * threads
    given, counters = numbers(all_threads), torch.zeros(256, dtype=torch.int32)
    out = torch.zeros(words * all_threads, dtype=torch.int32)
    matrix = torch.arange(16 * TILE * 4 * TILE, dtype=torch.int32).view(16 * TILE, 4 * TILE)
    arguments = [
        Argument("out", struct.pack("<Q", out.data_ptr()), (out,)),
        Argument("in", struct.pack("<Q", given.data_ptr()), (given,), const=True),
        Argument("counters", struct.pack("<Q", counters.data_ptr()), (counters,)),
        tensor_map(matrix, (TILE, TILE)),
        Argument("n", struct.pack("<i", n)),
    ]
    binary, block = compiled(source), (threads, 1, 1)
    sizes = (cluster, 1, 1) if isinstance(cluster, int) else cluster
    options = {"seed": seed, "name": kernel, "cluster": sizes, **options}
    run_ptx(binary.code.decode(), binary.names[kernel], grid, block, 0, arguments, **options)
    return out, given.view(-1, threads)


def by_cluster(given: torch.Tensor, size: int) -> torch.Tensor:
    """[cluster][rank][thread]"""
    return given.view(-1, size, given.shape[-1])


def rolled(given: torch.Tensor, size: int, by: int = 1) -> torch.Tensor:
    """What the block so many ranks before was given."""
    return by_cluster(given, size).roll(by, 1).reshape(given.shape)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", (1, 2, 4, 8))
def test_sums_over_the_cluster(size, seed):
    out, given = run("summed", cluster=size, seed=seed)
    wanted = by_cluster(given, size).sum(1, keepdim=True).expand(-1, size, -1)
    assert torch.equal(out, wanted.reshape(-1).int())
