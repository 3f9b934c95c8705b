"""Which kernels a CUDA variant launches for a shape, found by calling it with a launcher that only writes down."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from bench import judge
from bench.tensors import Arena, Case
from kernels import cuda


@dataclass(frozen=True)
class KernelUse:
    """One kernel as a variant launches it: the instance, and the geometry of the launch."""

    build: cuda.Build
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # dynamic, bytes

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]


def launches_of(module: ModuleType, case: Case) -> list[KernelUse]:
    """The launches of one call, in order. Memory is reserved, but neither filled nor touched: any size will do."""
    arena = Arena(case, "cpu", judge.workspace_of(module, case))
    found: list[KernelUse] = []

    def write_down(launch: cuda.Launch) -> None:
        found.append(KernelUse(launch.build, launch.grid, launch.block, launch.shared))

    with _launching_with(write_down):
        arena.call(getattr(module, case.phase))
    return found


@contextmanager
def _launching_with(run) -> Iterator[None]:
    before = cuda._simulator
    cuda.simulate_with(run)
    try:
        yield
    finally:
        cuda.simulate_with(before)
