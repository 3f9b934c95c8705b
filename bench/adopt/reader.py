"""A variant for a kernel that exists: which backend's it is, what it is called, and its files written."""

import itertools
import re
import runpy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from bench import HOME, cli, simulate
from bench.adopt import NONE_RIGHT
from bench.adopt.cuda import adopted
from bench.adopt.decode import step_or_whole
from bench.adopt.source import UP, chosen
from bench.adopt.triton import adopted_triton
from bench.adopt.variant import DECIDE, Adopted, Guess, Whole
from bench.cli import CannotGoOn, no_such
from bench.core import process
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw, one, truth_of
from bench.core.scaffold import NAME, shown
from bench.core.variants import discover, package_of
from kernels import Unavailable, cuda
from kernels.cuda import cplusplus
from reference import contract
from reference.contract import Shape

WRITERS = {"decode_attention": step_or_whole}  # of layers that kernels see otherwise


class Reader(process.Room):
    """A process that reads a file with a kernel: there are files that NVRTC dies of."""

    def adopt(
        self, how: tuple[Path, str, str | None, str | None, Path | None], whole: Whole | None = None
    ) -> tuple[list[Path], list[str], str]:
        return adopt(*how, whole=whole)


def adopt(
    source: Path,
    layer: str,
    kernel: str | None = None,
    name: str | None = None,
    into: Path | None = None,
    whole: Whole | None = None,
    tries: bool = True,
) -> tuple[list[Path], list[str], str]:
    """(files written, lines to decide, the variant's name). CannotGoOn where there is no such kernel. whole: once more,
    with other sizes refused. tries: what no name says is told by a trial in the simulator."""
    cli.choose(layer, contract.layer_names(), "layer")
    if not source.is_file():
        raise CannotGoOn(no_such(source, "file"))
    backend = "triton" if source.suffix == ".py" else "cuda"
    if not kernel and backend == "cuda":
        kernel = chosen(source, cplusplus.read(source))
    name = name or re.sub(r"\W+", "_", (kernel or source.stem).partition("<")[0]).strip("_").lower()
    name = f"k{name}" if name[:1].isdigit() else name
    if not NAME.fullmatch(name):
        raise CannotGoOn(f"{name!r} is no name for a file here: --name WORD (small letters, digits, _)", cli.USAGE)
    folder = (into or HOME / "kernels") / backend / layer
    file = folder / f"{name}.py"
    if not whole:
        if file.exists():
            raise CannotGoOn(f"{shown(file)} is there already: choose another --name")
        if there := next((v for v in discover() if (v.layer, v.name) == (layer, f"{backend}.{name}")), None):
            raise CannotGoOn(f"{there.name} of {layer} is {shown(there.path)}: choose another --name")
    if backend == "triton":
        made = _as_tried(lambda guess: adopted_triton(source, layer, kernel, guess, whole), layer, folder, name, tries)
        return _write(made, folder, name), made.decide, f"{backend}.{name}"
    with tempfile.TemporaryDirectory() as together:
        lies: Path = source
        published: Path | None = None
        if further := list(_further(source)):  # as if they lay beside it
            inside = Path(together).joinpath(*source.resolve().parent.parts[-UP:])  # "../x" lies there, too
            lies, published = inside / source.name, source
            for path, found in cplusplus.read(source, None, [cplusplus.HERE, *further]).sources.items():
                to = lies if path == source.resolve() else inside / found.name
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(path.read_bytes())

        def make(guess: Guess) -> Adopted:
            return adopted(lies, layer, kernel, name, published, guess, whole, WRITERS.get(layer))

        made = _as_tried(make, layer, folder, name, tries)
        return _write(made, folder, name), made.decide, f"{backend}.{name}"


def _write(made: Adopted, folder: Path, name: str) -> list[Path]:
    files = {Path(f"{name}.py"): made.text.encode(), **made.files}
    for to, content in files.items():
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (folder / to).write_bytes(content)
    return [shown(folder / to) for to in files]


# Shapes by which it is told what no name says: whole tiles, sizes that differ where axes may be taken for each other.
TRIED: dict[str, tuple[Shape, ...]] = {
    "softmax": ({"R": 256, "S": 128}, {"R": 1, "S": 128}),
    "matmul": (  # whole tiles of up to 256; the last is of who takes squares alone
        {"M": 256, "N": 512, "K": 64, "epilogue": "none", "dgelu": False},
        {"M": 128, "N": 128, "K": 128, "epilogue": "none", "dgelu": False},
    ),
    "gemv": ({"M": 1, "N": 128, "K": 256},),
    "attention": (
        {"B": 1, "T": 128, "NH": 3, "NKV": 3, "HS": 64},
        {"B": 1, "T": 128, "NH": 1, "NKV": 1, "HS": 64},  # of who takes one head
        {"B": 2, "T": 64, "NH": 3, "NKV": 3, "HS": 128},
        {"B": 2, "T": 64, "NH": 3, "NKV": 3, "HS": 32},
    ),
}
CLOSE = 0.05  # relative, of a whole tensor: a wrong guess is wrong altogether, and the proof looks closer


def _as_tried(make: Callable[[Guess], Adopted], layer: str, folder: Path, name: str, tries: bool) -> Adopted:
    """The variant by the first guess that a trial in the simulator finds right; the first of all, and a line that says
    so, where it finds none."""
    first = made = make(Guess())
    backend = folder.parent.name
    if not made.open or not tries or layer not in TRIED or simulate.unavailable(backend, ()):
        return made
    found = set[str]()
    for values in itertools.product((False, True), repeat=len(made.open)):
        changed = {n: getattr(Guess(), n) != v for n, v in zip(made.open, values, strict=True)}
        guess = Guess(**changed)
        tried = make(guess)
        if tried.open != made.open:  # one that another leaves open
            continue
        _write(tried, folder, name)
        found.add(outcome := _tried(layer, tried.phase, folder / f"{name}.py", backend, guess.masks))
        if outcome == RIGHT:
            return make(replace(guess, tried=True)).noted(f"tried: {guess.said(made.open)}", "")
        if outcome == BROKEN:
            break
    if set(made.open) == {"turned"} and not made.squares:  # the contract's own way is no guess, and the proof tells
        return first
    how = (
        "it did not run in a trial"
        if BROKEN in found
        else NONE_RIGHT
        if WRONG in found
        else "it took no shape that is tried"
    )
    return first.noted(f"guessed, as {how}: {Guess().said(made.open)}", DECIDE)


RIGHT, WRONG, BROKEN, REFUSED = "right", "wrong", "broken", "refused"


def _tried(layer: str, phase: str, file: Path, backend: str, masks: bool) -> str:
    """Whether a variant does what the layer should at the first shape that it takes (RIGHT, WRONG); BROKEN where it
    does not run at all, REFUSED where it takes none of them."""
    module = contract.load(layer)
    p = contract.pass_of(module, phase)
    simulate.install(backend)
    try:
        variant = ModuleType(f"{package_of(file.parent)}.tried_{file.stem}")
        vars(variant).update(runpy.run_path(str(file), run_name=variant.__name__))
        dtype = getattr(variant, "DTYPES", ("fp32",))[0]
        for sizes in TRIED[layer]:
            shape = {**sizes, "dtype": dtype, **({"causal": masks} if "causal" in p.scalars else {})}
            case = Case(layer, phase, shape, "tried", 1)
            values = draw(case)
            try:
                arena = Arena(case, workspace_bytes=workspace_of(variant, case))
                arena.load(values)
                arena.reset()
                arena.call(getattr(variant, phase))
            except Unavailable:
                continue
            truth = truth_of(case, values)
            close = all(_close(one(arena.outputs[n]).double(), one(v).double()) for n, v in truth.items())
            return RIGHT if close else WRONG
    except simulate.SimulationError:
        return WRONG
    except Exception:  # the proof says what it is
        return BROKEN
    finally:
        cuda.simulate_with(None)
    return REFUSED


def _close(out: torch.Tensor, truth: torch.Tensor) -> bool:
    return bool((out - truth).norm() <= CLOSE * truth.norm())


ABOVE, BELOW = 3, 2  # folders up from a source, and down from there, in which its headers are looked for
QUOTED = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.M)


def _further(source: Path) -> Iterator[Path]:
    """Folders above the source, or beside those, that have headers which it includes and does not have beside it: what
    its own build names with -I."""
    known: dict[Path, None] = {}
    waiting, seen = [source.resolve()], set[Path]()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in QUOTED.findall(path.read_text(errors="replace")):
            beside = [path.parent, source.resolve().parent, cplusplus.HERE, *known]
            if any((folder / name).is_file() for folder in beside) or ".." in Path(name).parts:
                continue
            if found := next(_above(source.resolve(), name), None):
                known[found] = None
                waiting += [found / name] if found / name not in seen else []
    yield from known


def _above(source: Path, name: str) -> Iterator[Path]:
    for above in source.parents[1 : ABOVE + 1]:
        for depth in range(BELOW + 1):
            folders = sorted(above.glob("/".join("*" * depth))) if depth else [above]
            yield from (folder for folder in folders if (folder / name).is_file())
