"""New files to start from: a variant that is a copy of the simplest one there is, and a layer's contract."""

import re
from pathlib import Path

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.core.variants import Variant, discover
from reference import contract

NAME = re.compile(r"[a-z][a-z0-9_]*")
SOURCE = re.compile(r'Kernel\(\s*"([^"]+)"')

# --- a variant ---


def new_variant(layer: str, name: str, backend: str, into: Path | None = None) -> tuple[list[Path], list[str]]:
    """(files written, commands to use next). CannotGoOn for an unknown layer, a bad name, or one that is taken."""
    cli.choose(layer, contract.layer_names(), "layer")
    _check_name(name)
    variants = discover()
    start = simplest(variants, layer, backend) or same_tensors(variants, layer, backend)
    root = into or HOME / "kernels"
    files = copies(start, name, root / backend / layer)
    if taken := [path for path in files if path.exists()]:
        raise CannotGoOn(f"{shown(taken[0])} is there already: choose another name")
    _write(files)
    written = [shown(path) for path in files]
    commands = next_commands(layer, f"{backend}.{name}", start, into)
    if start.layer != layer:
        commands.insert(0, f"$EDITOR {written[-1]}     # {start.layer}'s formula still: make it {layer}'s")
    return written, commands


def simplest(variants: list[Variant], layer: str, backend: str) -> Variant | None:
    """What a new variant starts from: eager, naive, or where there is neither, the shortest file."""
    found = [
        v for v in variants if (v.layer, v.backend) == (layer, backend) and v.path.is_relative_to(HOME / "kernels")
    ]
    plain = [v for v in found if v.stem in ("eager", "naive")]
    return min(plain or found, key=lambda v: len(v.path.read_text()), default=None)


def same_tensors(variants: list[Variant], layer: str, backend: str) -> Variant:
    """What the first variant of a layer starts from: another layer's with the same signature, so that all but the
    formula stays. CannotGoOn, which says the signature, where there is none."""
    wanted = contract.load(layer)
    for other in contract.layer_names():
        module = contract.load(other)
        alike = (module.FORWARD, module.BACKWARD) == (wanted.FORWARD, wanted.BACKWARD)
        if alike and (start := simplest(variants, other, backend)):
            return start
    passes = [(phase, contract.pass_of(wanted, phase)) for phase in contract.phases_of(wanted)]
    signatures = [f"{phase}({', '.join(p.positional())}, *, {', '.join(p.keyword())})" for phase, p in passes]
    raise CannotGoOn(
        f"{backend} has no variant of {layer} to start from, and none of another layer with the same tensors; "
        f"write kernels/{backend}/{layer}/NAME.py with {' and '.join(signatures)} (CONTRIBUTING.md has whole ones)"
    )


def copies(start: Variant, name: str, folder: Path) -> dict[Path, str]:
    """The new files and what is in them. C++ and CUDA sources come along, under the new name."""
    text = start.path.read_text()
    end = text.index('"""', 3)
    rest = text[3:end].partition("\n")[2]
    files: dict[Path, str] = {}
    code = text[end:]
    for source in dict.fromkeys(SOURCE.findall(code)):
        origin = (start.path.parent / source).resolve()
        new = f"{name}{origin.suffix}" if origin.stem == start.stem and "/" not in source else None
        new = new or f"{name}_{origin.parent.name}{origin.suffix}"
        code = code.replace(f'"{source}"', f'"{new}"')
        files[folder / new] = origin.read_text()
    of = "" if folder.name == start.layer else f"{start.layer}'s "
    story = f'"""A copy of {of}{start.name}, to start from.'
    return {folder / f"{name}.py": f"{story}\n{rest}{code}" if rest.strip() else f"{story}{code}", **files}


def next_commands(layer: str, variant: str, start: Variant, into: Path | None) -> list[str]:
    also = f" --kernels {into}" if into else ""
    prove = f"python -m bench.layer {layer} --only {variant}{also}"
    commands = [
        f"{prove} --watch     # right and how fast, again after each save",
        f"{prove} --check-only -a dtype={','.join(start.dtypes)}     # is it right in every dtype?",
        f"python -m bench.layer {layer} --all{also}     # how fast, beside everything there is?",
    ]
    if start.backend in ("cuda", "triton"):
        commands.append(f"python -m bench.static {layer} --only {variant}{also}     # registers, spills, occupancy")
    return commands


# --- a layer ---

CONTRACT = '''"""{title}: out = x * sigmoid(x), to start from. Replace the formula, then all that follows from it."""

import torch

from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(inputs=(Tensor("x", "N"),), outputs=(Tensor("out", "N"),))
BACKWARD = Pass(inputs=(Tensor("dout", "N"), Tensor("x", "N")), outputs=(Tensor("dx", "N"),))


def forward(x):
    return {{"out": x * torch.sigmoid(x)}}


def backward(dout, x):
    # d out / dx = s + x s (1 - s), s = sigmoid(x)
    s = torch.sigmoid(x)
    return {{"dx": dout * (s + x * s * (1 - s))}}


def typical(B: int, T: int) -> Shape:
    """What is timed while no model lists this layer among its calls: here the width of a small model's MLP."""
    return dict(N=B * T * 4 * 768)


RAGGED = [dict(N=7), dict(N=769 * 127), dict(N=4096)]


def tails(tensors, shape):
    """Far tails, where the exponential overflows in a careless formula."""
    tensors["x"].mul_(30)


CASES = {{"tails": tails}}


def flops(shape: Shape, phase: str) -> int:
    return shape["N"] * {{"forward": 4, "backward": 8}}[phase]
'''

EAGER = '''"""The formula op by op in fp32, copied into its destination."""

import torch


def forward(x, *, out):
    x = x.float()
    out.copy_(x * torch.sigmoid(x))


def backward(dout, x, *, dx):
    x = x.float()
    s = torch.sigmoid(x)
    dx.copy_(dout.float() * (s + x * s * (1 - s)))
'''


def new_layer(name: str) -> tuple[list[Path], list[str]]:
    """A contract that is whole (an elementwise function with its gradient) and the PyTorch variant that is its yard."""
    _check_name(name)
    if name in contract.layer_names():
        raise CannotGoOn(f"{name} is a layer already: reference/{name}.py")
    files = {
        HOME / "reference" / f"{name}.py": CONTRACT.format(title=name.capitalize()),
        HOME / "kernels" / "torch" / name / "eager.py": EAGER,
    }
    if taken := [path for path in files if path.exists()]:
        raise CannotGoOn(f"{shown(taken[0])} is there already")
    _write(files)
    commands = [
        f"$EDITOR reference/{name}.py     # what it is: tensors, formula, awkward shapes, cases, FLOPs",
        "$EDITOR tests/reference/test_layers.py     # torch_forward: the operator of PyTorch that it is compared with",
        f"python -m pytest -q tests/reference -k {name}     # the formula against that, the gradient against autograd",
        f"python -m bench.layer {name} --all     # its PyTorch variant, proved and timed",
        f"python -m bench.new {name} mine --backend cpu     # its first kernel (or cuda, triton)",
    ]
    return [shown(path) for path in files], commands


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise CannotGoOn(
            f"{name!r} is no name for a file here: small letters, digits and _ (a word, not a number)", cli.USAGE
        )


def _write(files: dict[Path, str]) -> None:
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise CannotGoOn(f"cannot write {shown(path)}: {error.strerror}") from error


def shown(path: Path) -> Path:
    """As a person in the repository would type it."""
    return path.relative_to(HOME) if path.is_relative_to(HOME) else path
