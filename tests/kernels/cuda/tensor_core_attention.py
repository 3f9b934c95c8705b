"""Run a variant of attention in the simulator, whole or with one edit of its source, and judge what came out."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench.core.arena import Arena, workspace_of
from bench.core.case import Case
from bench.simulate import SimulationError
from bench.simulate.launcher import ARCH, run_ptx
from bench.trial import checks
from kernels import cuda
from kernels.cuda.compiler import compile_source
from tests.kernels.briefs import brief_of


def launch(seed: int):
    """What runs a launch in the simulator, its threads and blocks in the order of the seed (0: one after the other)."""

    def run(call: cuda.Launch) -> None:
        build = call.build
        binary = compile_source(build.source, (build.name,), ARCH, "ptx", build.defines, build.appended)
        where = call.grid, call.block, call.shared, call.arguments
        run_ptx(binary.code.decode(), binary.names[build.name], *where, seed=seed, name=build.name)

    return run


def prepared(module: ModuleType, phase: str, shape: dict, edit: str | None = None, seed: int = 0):
    """(arena, brief): a call of the variant is `arena.call(getattr(module, phase))`."""
    case = Case("attention", phase, shape, "test", seed, edit)
    brief = brief_of(case)
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(brief.values)
    arena.reset()
    cuda.simulate_with(launch(seed))
    return arena, brief


def verdict(module: ModuleType, phase: str, shape: dict, edit: str | None = None, seed: int = 0) -> str:
    """The project's own: "ok", the name of the check that failed, or the kind of the simulator's first report."""
    arena, brief = prepared(module, phase, shape, edit, seed)
    try:
        arena.call(getattr(module, phase))
    except SimulationError as error:
        return error.reports[0].kind
    return checks.inspect(arena, brief).check


@dataclass(frozen=True)
class Mutant:
    """One edit: `old`, which is there once in a part of the source, becomes `new`.

    kernel: which one is run from the edited source. A survivor says why it is not found. tried: shapes and edits of the
    case beside the usual ones. part: if it is not the kernel's own.
    """

    kernel: str
    name: str
    old: str
    new: str = ""
    survives: str = ""
    tried: tuple[tuple[dict, str | None], ...] = ()
    part: str = ""

    def write(self, source: Path, parts: dict[str, tuple[str, str]], folder: Path) -> Path:
        """parts: for each the texts that it lies between."""
        text = source.read_text()
        first, last = parts[self.part or self.kernel]
        begin = text.index(first)
        end = text.index(last, begin) if last else len(text)
        part = text[begin:end]
        assert part.count(self.old) == 1, f"{self.name}: {self.old!r} is there {part.count(self.old)} times"
        path = folder / source.name
        path.write_text(text[:begin] + part.replace(self.old, self.new) + text[end:])
        return path
