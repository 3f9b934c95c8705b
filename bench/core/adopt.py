"""A variant for a kernel that exists: which backend's it is, what it is called, and its files written."""

import re
from pathlib import Path

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.core.adopt_cuda import adopted, chosen
from bench.core.adopt_triton import adopted_triton
from bench.core.scaffold import NAME, shown
from bench.core.variants import discover
from kernels.cuda import cplusplus
from reference import contract


def adopt(
    source: Path, layer: str, kernel: str | None = None, name: str | None = None, into: Path | None = None
) -> tuple[list[Path], list[str], str]:
    """(files written, lines to decide, the variant's name). CannotGoOn where there is no such kernel."""
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
    if file.exists():
        raise CannotGoOn(f"{shown(file)} is there already: choose another --name")
    if there := next((v for v in discover() if (v.layer, v.name) == (layer, f"{backend}.{name}")), None):
        raise CannotGoOn(f"{there.name} of {layer} is {shown(there.path)}: choose another --name")
    made = adopted_triton(source, layer, kernel) if backend == "triton" else adopted(source, layer, kernel, name)
    for to, content in {Path(f"{name}.py"): made.text.encode(), **made.files}.items():
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (folder / to).write_bytes(content)
    return [shown(folder / to) for to in (Path(f"{name}.py"), *made.files)], made.decide, f"{backend}.{name}"
