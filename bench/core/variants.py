"""Which variants exist: a file's path is its name, and its source is read, not imported.

kernels/<backend>/<layer>/<variant>.py is `<backend>.<variant>` of `<layer>`. Reading the syntax tree is enough to list
stories, check signatures against the contract and tell what a variant needs, without importing torch or Triton.
More roots with the same layout come from `--kernels DIR` and from the entry point group `layerbench.kernels`
(each entry point names a package whose folder is a root). A file of theirs that cannot be a variant costs itself alone.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from bench import HOME
from bench.cli import USAGE, CannotGoOn, did_you_mean, no_such, say
from bench.core import BACKENDS, RUNGS
from bench.core.evidence import STORY, one_line
from kernels import Unavailable
from kernels.includes import sources
from reference import contract
from reference.contract import Shape

KERNELS = HOME / "kernels"
BYTECODE = "__pycache__"  # what Python keeps beside its sources is none
COMPILED = (".cpp", ".cc", ".cxx", ".c", ".cu", ".cuh", ".hpp", ".h")  # sources that lie beside a variant's Python
MOST_SOURCE_BYTES = 4 << 20  # of a variant's Python file
NAMES_SOMETHING = re.compile(r"\w{3}")  # of a pattern of KERNELS
MOST_NOTICES = 10  # on files of one root that are no variants
# What a variant's file may say of itself, and the types of it; a text alone counts as a tuple of one.
CONSTANTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("DTYPES", "REQUIRES", "KERNELS"), (tuple,)),
    "DETERMINISTIC": (bool, type(None)),
    "SPILLS": (int, dict),
    "TENSOR_CORES": (bool,),
}


class Misplaced(CannotGoOn):
    """A file under a kernels folder that cannot be a variant; the message names it and says why."""


class Unreadable(Misplaced):
    """Its place says which variant it would be; its content cannot be read, or breaks a rule."""


@dataclass(frozen=True)
class Variant:
    """One variant of one layer, as its source describes it."""

    layer: str
    backend: str
    stem: str
    path: Path
    story: str
    functions: frozenset[str]
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    requires: tuple[str, ...] = ()
    deterministic: bool | None = None
    kernels: tuple[str, ...] = ()
    spills: int | tuple[tuple[str, int], ...] = 0  # (see `may_spill`)
    tensor_cores: bool = False  # a GPU kernel that says it uses them: its machine code must
    options: frozenset[tuple[str, str]] = frozenset()  # (phase, optional scalar) that its functions take
    outside: bool = False  # of another root than this repository's: no yardstick, and no baseline of PyTorch's
    fault: str = ""  # why its file is no variant after all: it cannot run

    @property
    def name(self) -> str:
        return f"{self.backend}.{self.stem}"

    def may_spill(self, arch: str) -> int:
        """Bytes of registers that its GPU kernels are known to spill, at most, on an architecture ("sm_90a")."""
        return self.spills if isinstance(self.spills, int) else dict(self.spills).get(arch, 0)

    @property
    def own_code(self) -> bool:
        return BACKENDS[self.backend].own_code

    @property
    def gpu_code(self) -> bool:
        return BACKENDS[self.backend].gpu_code

    def has(self, phase: str) -> bool:
        return phase in self.functions

    def lacks(self, phase: str, shape: Shape) -> list[str]:
        """The options of a shape that it has no parameter for."""
        p = contract.pass_of(contract.load(self.layer), phase)
        return [name for name in p.options_in(shape) if (phase, name) not in self.options]

    def __str__(self) -> str:
        """Among all layers: "matmul cpu.simd"."""
        return f"{self.layer} {self.name}"

    def load(self) -> ModuleType:
        """Import the variant. Its errors are the caller's to report."""
        if self.path.is_relative_to(KERNELS):
            return importlib.import_module(f"kernels.{self.backend}.{self.layer}.{self.stem}")
        module_name = f"{package_of(self.path.parent)}.{self.stem}_{self.source_hash()[:8]}"
        if module_name in sys.modules:
            return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, self.path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
        return module

    def source_hash(self) -> str:
        """Of the variant's own files (same stem, any suffix; a folder of that name), its backend's shared ones, and
        what its own import and include."""
        digest = hashlib.sha256()
        own = [p for p in self.path.parent.iterdir() if p.stem == self.stem and p.is_file()]
        own += [p for p in (self.path.parent / self.stem).rglob("*") if p.is_file()]  # what bench.import brought
        own = [p for p in own if _is_source(p.relative_to(self.path.parent))]
        folders = [d for d in self.path.parent.parent.iterdir() if d.is_dir() and d.name not in contract.layer_names()]
        folders = [self.path.parent.parent, *(d for d in folders if _is_source(Path(d.name)))]
        shared = [p for d in folders for p in d.iterdir() if p.is_file() and _is_source(Path(p.name))]
        further = _read_by({*own, *shared}, own, self.path)
        for path in sorted(own) + sorted(shared) + sorted(further):
            digest.update(os.fsencode(path.name) + _content(path))
        return digest.hexdigest()[:16]


def package_of(folder: Path) -> str:
    """The name of a package of a layer's folder in another root, and of those around it, so that what lies there can
    be imported by relative imports: `from ._helper import f`, `from .. import shared`."""
    root = folder.parents[1]
    names = [f"layerbench_outside_{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}", folder.parent.name, folder.name]
    for depth, path in enumerate((root, folder.parent, folder), 1):
        name = ".".join(names[:depth])
        if name not in sys.modules:
            package = sys.modules[name] = ModuleType(name)
            package.__path__ = [str(path)]
    return ".".join(names)


def _is_source(path: Path) -> bool:
    """Whether a file or folder among the kernels is somebody's work: not bytecode, nor what is hidden."""
    return not any(part == BYTECODE or part.startswith(".") for part in path.parts)


def _read_by(known: set[Path], files: list[Path], variant: Path) -> set[Path]:
    """What these files of a variant import of its own folders, and include, beside what is known."""
    backend, root = variant.parent.parent, variant.parent.parent.parent
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        read: Iterable[Path] = ()
        if path.suffix == ".py":
            read = _imported(_content(path), (path.parent, backend, root, root.parent))
        elif path.suffix in COMPILED:
            with contextlib.suppress(OSError):
                read = sources(path, [backend, variant.parent]).files
        new = {p for p in read if p not in known | found and p.is_relative_to(root)}
        found |= new
        waiting += new
    return found


def _imported(source: bytes, folders: Iterable[Path]) -> Iterator[Path]:
    """Files in these folders that a module may import."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            within = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            for name in [within, *(f"{within}.{name}".strip(".") for name in names)]:
                for folder in folders if name else ():
                    whole = folder.joinpath(*name.split("."))
                    yield from (p for p in (whole.with_suffix(".py"), whole / "__init__.py") if p.is_file())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError:  # somebody's file beside the variants, which it cannot have read either
        return b""


def discover(extra: tuple[Path, ...] = (), layers: Collection[str] = ()) -> list[Variant]:
    """All variants of this repository, of the installed entry points and of `extra` roots; where layers are named,
    theirs alone, and files in the other layers' places are not read.

    Raises Misplaced for two variants of one name, and in this repository for a file in the wrong place, with the wrong
    signature or without a story. Of another root such a file is told once on stderr, and left out; where its place
    names a layer it is a variant with a `fault`, so that its row says why there is no more.
    """
    found: dict[tuple[str, str], Variant] = {}
    for root in (KERNELS, *_entry_point_roots(), *extra):
        if not root.is_dir():
            raise Misplaced(no_such(root, "folder", "--kernels DIR holds variants as kernels/ does"))
        for variant in _scan(root.resolve(), layers):
            key = (variant.layer, variant.name)
            if key in found:
                raise Misplaced(f"{variant.path} and {found[key].path} are both {variant.name} of {variant.layer}")
            found[key] = variant
    return sorted(found.values(), key=_place)


def _place(v: Variant) -> tuple[str, int, int, str]:
    """By layer and backend, and there in the order of the rungs."""
    rung = RUNGS.index(v.stem) if v.stem in RUNGS else len(RUNGS)
    return v.layer, list(BACKENDS).index(v.backend), rung, v.stem


def find(variants: list[Variant], layer: str, name: str) -> Variant:
    """The variant `name` of `layer`; CannotGoOn with a suggestion where there is none."""
    here = {v.name: v for v in variants if v.layer == layer}
    if name not in here:
        raise CannotGoOn(
            f"{layer} has no variant {name!r}{did_you_mean(name, here)} (it has: {', '.join(here)})", USAGE
        )
    return here[name]


def _entry_point_roots() -> list[Path]:
    roots = []
    for entry in importlib.metadata.entry_points(group="layerbench.kernels"):
        spec = importlib.util.find_spec(entry.value)
        if spec is None or not spec.submodule_search_locations:
            raise Misplaced(f"entry point layerbench.kernels:{entry.name} names {entry.value}, which is no package")
        roots.append(Path(next(iter(spec.submodule_search_locations))))
    return roots


def _scan(root: Path, layers: Collection[str]) -> list[Variant]:
    outside = root != KERNELS
    known = contract.layer_names()
    found, skipped = [], []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if path.stem.startswith("_") or not _is_source(Path(*parts)):
            continue
        if len(parts) == 2 and parts[0] in BACKENDS and parts[1] not in known:
            continue  # a backend's shared launcher code
        if len(parts) == 1 and not outside:
            continue  # what the launchers share
        if layers and len(parts) == 3 and parts[1] in known and parts[1] not in layers:
            continue
        try:
            found.append(replace(_read_once(path, parts, _stamp(path)), outside=outside))
        except Misplaced as error:
            if not outside:
                raise
            skipped.append(f"skipped: {one_line(error)}")
            if isinstance(error, Unreadable):
                found.append(_faulty(path, parts, one_line(error)))
    more = len(skipped) - MOST_NOTICES
    for notice in (*skipped[:MOST_NOTICES], *([f"skipped: {more} more files of {root}"] if more > 0 else [])):
        _tell_once(notice)
    return found


def _stamp(path: Path) -> tuple[int, ...]:
    """By which a file is known to be another one."""
    try:
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    except OSError:
        return ()


@functools.lru_cache(maxsize=1024)
def _read_once(path: Path, parts: tuple[str, ...], stamp: tuple[int, ...]) -> Variant:
    """A run asks for all variants several times."""
    return _read(path, parts)


@functools.cache
def _tell_once(text: str) -> None:
    say(text)


def _faulty(path: Path, parts: tuple[str, ...], fault: str) -> Variant:
    """What stands for a file whose place is a variant's and whose content is not."""
    backend, layer, _ = parts
    phases = frozenset(contract.phases_of(contract.load(layer)))
    return Variant(layer, backend, path.stem, path, "No variant: see its evidence.", phases, outside=True, fault=fault)


def _read(path: Path, parts: tuple[str, ...]) -> Variant:
    """A variant from its source, every rule of the house checked."""
    if len(parts) != 3:
        raise Misplaced(f"{path} is misplaced: a variant is <backend>/<layer>/<variant>.py")
    backend, layer, _ = parts
    if backend not in BACKENDS:
        raise Misplaced(f"{path} is misplaced: no backend {backend!r}{did_you_mean(backend, BACKENDS)}")
    if layer not in contract.layer_names():
        hint = did_you_mean(layer, contract.layer_names())
        raise Misplaced(f"{path} is misplaced: no layer {layer!r}{hint}")
    if path.stem != one_line(path.stem, 100) or "," in path.stem:
        raise Misplaced(f"{path} is misplaced: its name has a character that no name of a variant has, or too many")
    tree = _tree(path)
    story = one_line((ast.get_docstring(tree) or "").partition("\n")[0].strip(), STORY)
    if not story:
        raise Unreadable(f"{path} tells no story: its first docstring line must say what it does")
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    if "forward" not in functions and "backward" not in functions:
        raise Unreadable(f"{path} has neither forward nor backward")
    options = _check_signatures(path, layer, functions)
    constants = _constants(path, tree)
    return Variant(
        layer=layer,
        backend=backend,
        stem=path.stem,
        path=path,
        story=story,
        functions=frozenset(functions) & {"forward", "backward", "workspace", "prepare", "supports"},
        options=options,
        **{name.lower(): value for name, value in constants.items()},
    )


def _tree(path: Path) -> ast.Module:
    """The syntax tree of a source file; Unreadable where there is none."""
    try:
        if not path.is_file():  # a folder, a pipe that nobody writes to, a link to nothing
            raise Unreadable(f"{path} is no file")
        if path.stat().st_size > MOST_SOURCE_BYTES:
            raise Unreadable(f"{path} has more than {MOST_SOURCE_BYTES >> 20} MiB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape that is none, say: importing it warns
            return ast.parse(_utf8(path), os.fsdecode(path))
    except SyntaxError as error:
        raise Unreadable(f"{path} line {error.lineno}: {error.msg}") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"{path} cannot be read: {type(error).__name__}: {one_line(error, 200)}") from error


def _utf8(path: Path) -> str:
    """What a file says; Unreadable where it is in another encoding than all that read it expect."""
    content = path.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Unreadable(f"{path} line {line} is not UTF-8 (latin-1, perhaps): save it as UTF-8") from error


def _check_signatures(path: Path, layer: str, functions: dict[str, ast.FunctionDef]) -> frozenset[tuple[str, str]]:
    """The optional scalars that they take. Raises Unreadable where one is not as the contract wants it."""
    module, taken = contract.load(layer), set()
    if "supports" in functions:
        args = functions["supports"].args
        if [a.arg for a in (*args.posonlyargs, *args.args)] != ["shape"] or args.kwonlyargs:
            raise Unreadable(f"{path}: supports takes a shape: supports(shape)")
    for phase in contract.PHASES:
        if phase not in functions:
            continue
        if phase not in contract.phases_of(module):
            raise Unreadable(f"{path} has a {phase}, but {layer} has none")
        p = contract.pass_of(module, phase)
        args = functions[phase].args
        before = [a.arg for a in (*args.posonlyargs, *args.args)]
        after = [a.arg for a in args.kwonlyargs]
        if "workspace" in after and "workspace" not in functions:
            raise Unreadable(f"{path}: {phase} takes a workspace, but no workspace(shape, phase) says how large")
        want_after = [*p.keyword(), *(["workspace"] if "workspace" in after else [])]
        options = [name for name in p.optional if name in before]
        if before != [*p.positional(), *options] or sorted(after) != sorted(want_after):
            may = f" or {phase}(…, {', '.join(f'{name}=0' for name in p.optional)}, *, …)" if p.optional else ""
            wanted = f"{phase}({', '.join(p.positional())}, *, {', '.join(want_after)}){may}"
            written = ", ".join([*before, *(["*", *after] if after else [])])
            raise Unreadable(f"{path}: {layer} wants {wanted}, not {phase}({written})")
        defaults = [getattr(d, "value", None) for d in args.defaults]
        if options and (len(defaults) != len(options) or any(type(d) is not int or d for d in defaults)):
            raise Unreadable(f"{path}: {phase}'s optional {', '.join(options)} must be 0 by default")
        taken |= {(phase, name) for name in options}
    return frozenset(taken)


def _constants(path: Path, tree: ast.Module) -> dict:
    values = {}
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name = node.targets[0].id
        if name not in CONSTANTS:
            continue
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise Unreadable(f"{path} line {node.lineno}: {name} must be a literal") from error
        values[name] = value = (
            (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
        )
        fits = type(value) in CONSTANTS[name]
        if isinstance(value, tuple):
            fits &= all(type(v) is str for v in value)
        elif isinstance(value, dict):
            fits &= all(type(k) is str and type(v) is int for k, v in value.items())
            values[name] = tuple(value.items())
        if not fits:
            raise Unreadable(f"{path} line {node.lineno}: {name} cannot be {ast.unparse(node.value)[:60]}")
    for pattern in values.get("KERNELS", ()):
        if not NAMES_SOMETHING.search(pattern):  # else own code could run any library's
            raise Unreadable(f"{path}: KERNELS has {pattern!r}, which names no kernel")
    for dtype in values.get("DTYPES", ()):
        if dtype not in contract.ITEM_SIZE:
            known = ", ".join(d for d in contract.ITEM_SIZE if d != "int")
            raise Unreadable(f"{path}: DTYPES has {dtype!r}, which is none of {known}")
    return values


def need_support(module: ModuleType, shape: Shape) -> None:
    """Ask a variant's `supports(shape)`, where it has one. Raises Unavailable with its words, or with the sizes."""
    if not hasattr(module, "supports"):
        return
    answer = module.supports(shape)
    if answer is True:
        return
    if answer is False:
        sizes = ", ".join(f"{name}={value}" for name, value in shape.items() if type(value) is int)
        raise Unavailable(f"a shape such as {sizes}")
    if isinstance(answer, str) and answer:
        raise Unavailable(one_line(answer, 100))
    raise TypeError(f"supports(shape) answers True, False, or a few words on what it does not take, not {answer!r:.60}")


def need_options(module: ModuleType, layer: str, phase: str, shape: Shape) -> None:
    """Raises Unavailable where a shape has an optional scalar that a variant's function has no parameter for."""
    parameters = inspect.signature(getattr(module, phase)).parameters
    for name in contract.pass_of(contract.load(layer), phase).options_in(shape):
        if name not in parameters:
            raise Unavailable(f"the option {name}")


def takes_workspace(module: ModuleType, phase: str) -> bool:
    """Whether a variant's phase wants scratch memory, which `workspace(shape, phase)` then sizes."""
    return "workspace" in inspect.signature(getattr(module, phase)).parameters


def simulated(variant: Variant, device: str, force: bool = False) -> bool:
    """Whether the simulator runs this variant: its backend wants a GPU, and there is none, or `force` says so."""
    return variant.gpu_code and (force or device == "cpu")


def builds_each_shape(variant: Variant) -> bool:
    """Whether a variant is compiled anew, in seconds, for each shape that it is called with."""
    return variant.backend == "torch" and variant.stem == "compile"


def unavailable(variant: Variant, device: str, dtype: str, simulate: bool = False) -> str | None:
    """Why this variant cannot run here at this dtype, or None. Imports torch for GPU questions only.

    `simulate` has the simulator run GPU kernels although `device` is a GPU.
    """
    if variant.fault:
        return variant.fault
    if dtype not in variant.dtypes:
        return f"does not support {dtype} (has {', '.join(variant.dtypes)})"
    if simulated(variant, device, simulate):
        from bench import simulate as simulator  # loads torch

        for need in variant.requires:
            if need in LIBRARIES:
                return _missing(need, "cpu")
        return simulator.unavailable(variant.backend, variant.requires)
    if variant.backend == "cpu" and device != "cpu":
        return f"runs on the CPU, not on {device}"
    if variant.backend == "cpu":
        from kernels.cpu import find_compiler  # loads torch

        try:
            find_compiler()
        except Unavailable as error:
            return str(error)
    for need in variant.requires:
        if reason := _missing(need, device):
            return reason
    return None


# NVIDIA's, which no simulator runs, and where Python's packages have them: package, file.
LIBRARIES = {"cublaslt": ("nvidia", "*/lib/libcublasLt.so.*"), "cudnn": ("cudnn", "__init__.py")}
CPU_TAGS = {"avx2": "avx2", "avx512": "avx512f", "avx512bf16": "avx512_bf16", "amx": "amx_bf16"}


def libraries_lie_here(variant: Variant) -> bool:
    """Whether Python's packages have the libraries that a variant calls: a guess, for which nothing is loaded."""
    return all(_lies_here(*LIBRARIES[need]) for need in variant.requires if need in LIBRARIES)


def _lies_here(package: str, file: str) -> bool:
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return any(True for folder in folders for _ in Path(folder).glob(file))


@functools.cache
def _missing(need: str, device: str) -> str | None:
    """Why a tag of REQUIRES is not met: a CPU feature, `cuda`, a compute capability such as `sm80`, a library of
    NVIDIA's, or a package."""
    if need in CPU_TAGS:
        from kernels.cpu import cpu_flags

        return None if CPU_TAGS[need] in cpu_flags().split() else f"this CPU has no {need}"
    if need in LIBRARIES:
        from kernels.cuda import libraries  # loads torch

        return libraries.missing(need, device)
    if need == "cuda" or need.startswith("sm"):
        if not device.startswith("cuda"):
            return "needs an NVIDIA GPU (--device cuda)"
        import torch

        if not torch.cuda.is_available():
            return "no usable NVIDIA GPU"
        from kernels.cuda.gpu import capability_of  # torch would make a context, which nobody here needs

        major, minor = capability_of(int(device.partition(":")[2] or 0))
        return _too_old(need, major * 10 + minor)
    try:
        found = importlib.util.find_spec(need)
    except (ImportError, ValueError):  # of a package inside one that is missing; of a name that none can have
        found = None
    return None if found else f"needs the Python package {need}"


def _too_old(need: str, capability: int) -> str | None:
    """Why a GPU of this capability (90 is Hopper) does not meet `cuda`, `sm80` (or later), `sm90a` (that one alone)."""
    wanted = int("".join(c for c in need if c.isdigit()) or 0)
    meets = capability == wanted if need.endswith("a") and wanted else capability >= wanted
    return None if meets else f"needs {need}, this GPU is sm{capability}"
