"""Run matmul's tensor-core variants, whole or with one edit of a source, and judge each of their three products."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw, one, truth_of
from bench.simulate import SimulationError, limit_time
from kernels.cuda import Kernel, matmul, persistent

COMMON = Path(matmul.__path__[0]).parent / "common"
PRODUCTS = {"forward": ("out", "pre_gelu"), "dx": ("dx",), "dweight": ("dweight", "dbias")}
SECONDS = 20  # of a launch: one that never ends is found to be that


@dataclass(frozen=True)
class Tried:
    """A shape, and how its work is cut: `part` rows of M in a part of dweight, on so many multiprocessors."""

    M: int
    N: int
    K: int
    epilogue: str = "bias"
    dgelu: bool = False
    accumulate: bool = False
    part: int = 1 << 20
    blocks: int = 2
    dtype: str = "bf16"

    def case(self, phase: str) -> Case:
        shape: dict[str, Any] = {name: getattr(self, name) for name in ("M", "N", "K", "epilogue", "dgelu", "dtype")}
        if phase == "backward":
            shape["accumulate"] = self.accumulate
        return Case("matmul", phase, shape, "tried", self.M + self.N + self.K)


@dataclass(frozen=True)
class Mutant:
    """One edit: `old`, which the file has once, becomes `new`. A survivor says why it is not found."""

    variant: str
    product: str
    name: str
    old: str = ""
    new: str = ""
    file: str = ""  # a header; the variant's own source otherwise
    constants: tuple[tuple[str, int], ...] = ()  # of the variant's module, in place of the source's
    survives: str = ""

    def write(self, module: ModuleType, folder: Path) -> Path:
        """The source, and beside it the header that is edited: the others are found where they always are, and so none
        of them may include this one."""
        source = Path(str(module.__file__)).with_suffix(".cu")
        shutil.copy(source, folder)
        edited = folder / source.name
        if self.file:
            edited = folder / "common" / self.file
            edited.parent.mkdir()
            shutil.copy(COMMON / self.file, edited)
        text = edited.read_text()
        assert not self.old or text.count(self.old) == 1, f"{self.name}: {self.old!r} is there {text.count(self.old)}x"
        edited.write_text(text.replace(self.old, self.new) if self.old else text)
        return folder / source.name


def outputs(module: ModuleType, product: str, tried: Tried) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Of one call: a result's name, what came out, and what is right."""
    phase = "forward" if product == "forward" else "backward"
    case = tried.case(phase)
    values = draw(case)
    with cut(module, tried):
        arena = Arena(case, "cpu", workspace_of(module, case))
        arena.load(values)
        arena.reset()
        arena.call(getattr(module, phase))
    truth = truth_of(case, values)
    for name in PRODUCTS[product]:
        if arena.outputs.get(name) is not None:
            yield name, one(arena.outputs[name]), one(truth[name])


@contextmanager
def cut(module: ModuleType, tried: Tried) -> Iterator[None]:
    rows: Callable = lambda *_: tried.part  # noqa: E731
    with patch.object(module, "part_rows", rows), patch.object(persistent, "SIMULATED", tried.blocks):
        yield


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    limit_time(seconds)
    try:
        yield
    finally:
        limit_time(0)


def is_right(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Each element is what rounding the exact result once gives, or its neighbour."""
    unit = 2.0**-8 if got.dtype == torch.bfloat16 else 2.0**-11
    allowed = unit * (want.abs() + 0.01 * want.square().mean().sqrt())
    return bool(((got.double() - want).abs() <= allowed).all())


def wrong(module: ModuleType, product: str, tried: Tried) -> list[str]:
    """Names of the results that are not right."""
    return [name for name, got, want in outputs(module, product, tried) if not is_right(got, want)]


def verdict(mutant: Mutant, module: ModuleType, tries: tuple[Tried, ...], times: int, folder: Path) -> str:
    """How a mutant is found: the kind of the first report, "wrong result", or "" where it is not."""
    attribute = f"{mutant.product}_kernel"
    kernel = Kernel(Path(str(module.__file__)).with_suffix(".cu").name, getattr(module, attribute).entry)
    kernel.source = mutant.write(module, folder)
    changed: dict[str, Any] = {attribute: kernel, **dict(mutant.constants)}
    with patch.multiple(module, **changed), limited(SECONDS):
        for _ in range(times):  # each launch has an order of threads of its own
            for tried in tries:
                try:
                    if wrong(module, mutant.product, tried):
                        return "wrong result"
                except SimulationError as error:
                    return error.reports[0].kind
    return ""
