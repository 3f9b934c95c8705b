"""Which kernels a GPU variant launches for a shape, found by calling it with launchers that only write down."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeVar

from bench.core.arena import Arena, workspace_of
from bench.core.case import Case
from kernels import cuda
from kernels.cuda import libraries

T = TypeVar("T")


class Build(Protocol):
    """What was compiled: kernels.cuda.Build, or bench.simulate.triton_driver.Build."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str:
        """For people."""
        ...


class Launch(Protocol):
    """A call as it is handed to a driver: kernels.cuda.Launch, or bench.simulate.triton_driver.Launch."""

    @property
    def build(self) -> Build: ...
    @property
    def grid(self) -> tuple[int, int, int]: ...
    @property
    def block(self) -> tuple[int, int, int]: ...
    @property
    def shared(self) -> int: ...


@dataclass(frozen=True)
class KernelUse:
    """One kernel as a variant launches it: the instance, and the geometry of the launch."""

    build: Build
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # dynamic, bytes

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]


def launches_of(module: ModuleType, case: Case, arch: str = cuda.TARGET) -> list[KernelUse]:
    """The launches of one call for a GPU, in order. Memory is reserved, but neither filled nor touched: any size will
    do. Triton's kernels are compiled on the way, as far as PTX."""
    found: list[KernelUse] = []

    def write_down(launch: Launch) -> None:
        found.append(KernelUse(launch.build, launch.grid, launch.block, launch.shared))

    with launching_with(write_down, arch):
        arena = Arena(case, "cpu", workspace_of(module, case))
        arena.call(getattr(module, case.phase))
    return found


def launches_as(module: ModuleType, case: Case, arch: str, configuration: str) -> list[KernelUse]:
    """`launches_of` with the tile sizes that `configured_call` told of another call. Raises LookupError where these
    tables do not give them."""
    entries = without_origin(configuration)
    tables = tables_of(module)
    for name, table in tables.items():
        ran_with = [config for text, config in table.listed(name).items() if text in entries]
        table.trying = ran_with[0] if len(ran_with) == 1 else None
    try:
        found, ran = configured_call(module, lambda: launches_of(module, case, arch))
    finally:
        for table in tables.values():
            table.trying = None
    if without_origin(ran) != entries:
        raise LookupError(f"{configuration!r} is wanted, the tables give {ran!r}")
    return found


def without_origin(configuration: str) -> set[str]:
    """Its entries without `(default)` and `(tuned)`."""
    return {entry.rpartition(" (")[0] for entry in configuration.split("; ")}


def configured_call(module: ModuleType, call: Callable[[], T]) -> tuple[T, str]:
    """Make a call; its answer, and the tile sizes that its launches took from a Triton variant's tables, or what of a
    library ran."""
    tables, calls = tables_of(module), libraries.calls_of(module)
    for each in (*tables.values(), *calls):
        each.used.clear()
    answer = call()
    told = [table.text(name) for name, table in tables.items() if table.used]
    return answer, "; ".join([*told, *(each.text() for each in calls if each.used)])


@contextmanager
def untuned() -> Iterator[None]:
    """Preparing a variant measures nothing inside (kernels.triton.tuning.untuned, kernels.cuda.libraries.untuned)."""
    tuning = sys.modules.get("kernels.triton.tuning")  # where it is not imported, no variant has a table
    with tuning.untuned() if tuning else nullcontext(), libraries.untuned():
        yield


def tables_of(module: ModuleType) -> dict[str, Any]:
    """A Triton variant's tables of tile sizes (kernels.triton.tuning.Tiles), by name."""
    tuning = sys.modules.get("kernels.triton.tuning")  # where it is not imported, no variant has a table
    return tuning.tables_of(module) if tuning else {}


@contextmanager
def launching_with(run: Callable[[Launch], None], arch: str, whole: bool = False) -> Iterator[None]:
    """Have launches on CPU tensors go to `run`, made for an architecture, as long as the context lasts. whole: Triton
    compiles as for a card, down to the cubin."""
    with ExitStack() as stack:
        if "triton" in sys.modules:  # else no variant has imported it
            from bench.simulate import triton_driver

            stack.enter_context(triton_driver.launching_with(run, arch, whole))
        stack.enter_context(cuda.targeting(arch))
        stack.enter_context(libraries.on_paper())
        before = cuda._simulator
        cuda.simulate_with(run)
        try:
            yield
        finally:
            cuda.simulate_with(before)
