"""A variant for a kernel that exists: which backend's it is, what it is called, and its files written."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import HOME, cli, simulate
from bench.cli import CannotGoOn
from bench.core import process
from bench.core.adopt_cuda import Adopted, Whole, adopted, chosen
from bench.core.adopt_triton import adopted_triton
from bench.core.scaffold import NAME, shown
from bench.core.variants import discover, find
from kernels import cuda
from kernels.cuda import cplusplus
from reference import contract


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
) -> tuple[list[Path], list[str], str]:
    """(files written, lines to decide, the variant's name). CannotGoOn where there is no such kernel. whole: once more,
    with other sizes refused."""
    cli.choose(layer, contract.layer_names(), "layer")
    if not source.is_file():
        raise CannotGoOn(f"{source} is no file")
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
        made = adopted_triton(source, layer, kernel)
        return _write(made, folder, name), made.decide, f"{backend}.{name}"
    with tempfile.TemporaryDirectory() as together:
        lies: Path = source
        published: Path | None = None
        if further := list(_further(source)):  # as if they lay beside it
            lies, published = Path(together) / source.name, source
            for path, found in cplusplus.read(source, None, [cplusplus.HERE, *further]).sources.items():
                to = lies if path == source.resolve() else Path(together) / found.name
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(path.read_bytes())
        made = adopted(lies, layer, kernel, name, published, whole=whole)
        written = _write(made, folder, name)
        if layer == "matmul" and not made.decide and _takes_turned(layer, f"cuda.{name}", into):
            made = adopted(lies, layer, kernel, name, published, turned=True, whole=whole)
            written = _write(made, folder, name)
    return written, made.decide, f"{backend}.{name}"


def _write(made: Adopted, folder: Path, name: str) -> list[Path]:
    files = {Path(f"{name}.py"): made.text.encode(), **made.files}
    for to, content in files.items():
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (folder / to).write_bytes(content)
    return [shown(folder / to) for to in files]


SIDE = 128  # of the matrices by which it is told how a product takes its weight


def _takes_turned(layer: str, name: str, into: Path | None) -> bool:
    """Whether a product is x W, not x W^T: tried in the simulator on square matrices. False where it cannot be."""
    if simulate.unavailable("cuda", ()):
        return False
    p = contract.pass_of(contract.load(layer), "forward")
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, SIDE, SIDE, generator=draw)
    out = torch.full_like(x, torch.nan)
    given = {"x": x, "weight": weight, "out": out}
    simulate.install("cuda")
    try:
        module = find(discover((into,) if into else ()), layer, name).load()
        values = [given.get(n) for n in p.positional()]
        module.forward(*values, **{n: given.get(n) for n in p.keyword()})
    except Exception:  # the proof says what it is
        return False
    finally:
        cuda.simulate_with(None)
    return torch.allclose(out, x @ weight, rtol=1e-3, atol=1e-3)


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
