"""The modules that a variant consists of, as they are written: which they are, and what a name in them stands for.

Its own file, what lies beside it, its backend's shared ones; packages are names. Nothing is imported or run.
"""

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench import HOME
from bench.core import BACKENDS
from bench.core.variants import COMPILED, KERNELS, Variant
from reference import contract

LAUNCHERS = frozenset(  # the harness's, in kernels/: they are trusted
    KERNELS / name
    for name in (
        *(
            "__init__.py",
            "cpu/__init__.py",
            "includes.py",
            "triton/__init__.py",
            "triton/tuning.py",
            "triton/lists.py",
            "triton/launching.py",
        ),
        "triton/descriptors.py",
        *(
            f"cuda/{name}.py"
            for name in ("__init__", "compiler", "cplusplus", "gpu", "packing", "persistent", "signature", "standard")
        ),
        *(f"cuda/{name}.py" for name in ("tensor_map", "libraries", "cublaslt", "cudnn_graph")),
    )
)

T = TypeVar("T", bound=ast.AST)


class Finding(NamedTuple):
    """What a line of a file says."""

    path: Path
    line: int
    what: str


class Written(NamedTuple):
    """A syntax tree: its statements, all its nodes, and what each node stands in."""

    body: list[ast.stmt]
    nodes: list[ast.AST]
    parents: dict[ast.AST, ast.AST]

    def of(self, kind: type[T]) -> Iterator[T]:
        return (node for node in self.nodes if isinstance(node, kind))


@functools.lru_cache(maxsize=256)
def _written(path: Path, changed_ns: int) -> Written:
    tree = ast.parse(path.read_bytes())  # in the encoding that it says it has
    nodes = list(ast.walk(tree))
    return Written(tree.body, nodes, {child: node for node in nodes for child in ast.iter_child_nodes(node)})


@dataclass
class Module:
    """A module as it is written. `names`: what each name stands for that an import, or an assignment of such a name,
    gave it; `@file` is a module that is read here. `rebound`: names that stand for something else as well."""

    path: Path
    written: Written
    names: dict[str, str] = field(default_factory=dict)
    rebound: set[str] = field(default_factory=set)
    imported: set[str] = field(default_factory=set)  # first parts of the modules it imports itself


class Modules:
    """The modules that a variant consists of, each read once."""

    def __init__(self, variant: Variant):
        self.variant = variant
        self.known: dict[Path, Module] = {}
        self.broken: list[Finding] = []
        self.start = self.get(variant.path)

    def get(self, path: Path) -> Module | None:
        """A module and, before it is returned, those it imports; None where it cannot be read."""
        if path not in self.known:
            try:
                file = Module(path, _written(path, path.stat().st_mtime_ns))
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
                self.broken.append(Finding(path, 1, f"cannot be read ({type(error).__name__})"))
                return None
            self.known[path] = file
            if unchecked(path):
                self.broken.append(Finding(path, 1, "has a compiled module beside it that Python does not check"))
            try:
                self._bind(file)
            except RecursionError:
                self.broken.append(Finding(path, 1, "is nested too deeply to be read"))
        return self.known[path]

    @functools.cached_property
    def own_names(self) -> frozenset[str]:
        return names_of_classes(self.read())

    @functools.cached_property
    def for_tuning(self) -> frozenset[str]:
        return only_for_tuning(self.read())

    def natives(self) -> list[Path]:
        """The C++ and CUDA files that are named."""
        found = []
        for file in self.read():
            texts = {n.value for n in file.written.of(ast.Constant) if isinstance(n.value, str) and "\n" not in n.value}
            called = {a.value for n in file.written.of(ast.Call) for a in n.args[:1] if isinstance(a, ast.Constant)}
            found += [file.path.parent / text for text in texts if text.endswith(COMPILED) or text in called]
        return [path for path in found if len(str(path)) < 1000]

    def read(self) -> list[Module]:
        """All but launchers, and what is another backend's: its import is named, and enough."""
        others = [KERNELS / backend for backend in BACKENDS if backend != self.variant.backend]
        return [
            file
            for path, file in self.known.items()
            if path not in LAUNCHERS and not any(path.is_relative_to(other) for other in others)
        ]

    def module(self, at: Path, name: str, level: int) -> Path | None:
        """The file of a module that is the variant's own or its backend's; None for packages."""
        parts = name.split(".") if name else []
        root = self.variant.path.parents[2]
        if level:
            folders = [at.parents[level - 1]]
        elif parts[0] in ("kernels", root.name):
            folders = [HOME, root.parent]
        elif parts[0] in sys.stdlib_module_names or parts[0] in ("torch", "triton", "bench", "tests", "reference"):
            return None
        else:
            folders = [at.parent, root]
        for base in (folder.joinpath(*parts) for folder in folders):
            for file in (base.with_suffix(".py") if parts else base, base / "__init__.py"):
                if file.is_file() and (level or file.is_relative_to(KERNELS) or file.is_relative_to(root)):
                    return file
        return None

    def _bind(self, file: Module) -> None:
        for imported in file.written.of(ast.Import):
            for a in imported.names:
                self._import(file, a)
        for taken in file.written.of(ast.ImportFrom):
            for a in taken.names:
                file.names[a.asname or a.name] = self.member(file, taken, a.name)
        for _ in range(2):  # a name of a name
            for node in file.written.of(ast.Assign):
                for target in node.targets:
                    self._alias(file, target, node.value)
            for annotated in file.written.of(ast.AnnAssign):
                self._alias(file, annotated.target, annotated.value)
            for inside in file.written.of(ast.NamedExpr):
                self._alias(file, inside.target, inside.value)
        file.rebound |= {node.arg for node in file.written.of(ast.arg)}
        file.rebound |= {node.id for node in file.written.of(ast.Name) if isinstance(node.ctx, ast.Store)}

    def _alias(self, file: Module, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name) and (dotted := self.dotted(file, value)):
            file.names.setdefault(target.id, dotted)

    def _import(self, file: Module, a: ast.alias) -> None:
        first = a.name.partition(".")[0]
        file.imported.add(first)
        for part in (a.name, first):
            path = self.module(file.path, part, 0)
            if path and self.get(path) and (a.asname or part == first):
                file.names[a.asname or first] = f"@{path}"
                return
        file.names[a.asname or first] = a.name if a.asname else first

    def member(self, file: Module, node: ast.ImportFrom, name: str) -> str:
        """What `from module import name` stands for."""
        module = node.module or ""
        if not node.level:
            file.imported.add(module.partition(".")[0])
        inner = self.module(file.path, f"{module}.{name}" if module else name, node.level)
        outer = self.module(file.path, module, node.level) if module or node.level else None
        if inner and self.get(inner) and inner != outer:
            return f"@{inner}"
        if outer and (other := self.get(outer)):
            return other.names.get(name, f"@{outer}.{name}")
        return f"{module}.{name}" if module else name

    def dotted(self, file: Module, node: ast.expr | None) -> str | None:
        """torch.add, of `t.add` where t is torch; None where it is no name that an import gave."""
        if isinstance(node, ast.Name):
            return file.names.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        base = self.dotted(file, node.value)
        if base and base.startswith("@") and (other := self.known.get(Path(base[1:]))):
            return other.names.get(node.attr) or self._submodule(other, node.attr) or f"{base}.{node.attr}"
        return f"{base}.{node.attr}" if base else None

    def _submodule(self, package: Module, name: str) -> str | None:
        if package.path.name != "__init__.py":
            return None
        folder = package.path.parent
        path = next((p for p in (folder / f"{name}.py", folder / name / "__init__.py") if p.is_file()), None)
        return f"@{path}" if path and self.get(path) else None


def unchecked(path: Path) -> bool:
    """Whether Python would run a compiled module by its hash, or without any look at the source (PEP 552)."""
    compiled = Path(importlib.util.cache_from_source(str(path)))
    return compiled.is_file() and any(compiled.read_bytes()[4:8])


def name_of(path: Path) -> str:
    """kernels.cpu, of a file of kernels/."""
    parts = path.relative_to(KERNELS.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def names_of_classes(files: Iterable[Module]) -> frozenset[str]:
    """Names of what the classes of the variant's own files have: its objects' attributes are no tensors'."""
    found = set()
    for file in files:
        for one in file.written.of(ast.ClassDef):
            for node in ast.walk(one):
                if isinstance(node, ast.FunctionDef):
                    found.add(node.name)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found.add(node.id)
    return frozenset(found)


def only_for_tuning(files: Iterable[Module]) -> frozenset[str]:
    """Functions that `prepare` and `workspace` reach and nothing else does, by the names that are written in them."""
    says: dict[str, set[str]] = {}
    top: set[str] = set()
    for file in files:
        for node in file.written.body:
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            if isinstance(node, ast.FunctionDef):
                says.setdefault(node.name, set()).update(names - {node.name})
                decorators = (n for d in node.decorator_list for n in ast.walk(d))
                top |= {n.id for n in decorators if isinstance(n, ast.Name)}
            elif not isinstance(node, ast.Import | ast.ImportFrom):
                top |= names

    def reached(start: Iterable[str]) -> set[str]:
        found: set[str] = set()
        waiting = [name for name in start if name in says]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [n for n in says[name] if n in says]
        return found

    tuning = reached(["prepare", "workspace"])
    return frozenset(tuning - reached([*top, *(set(says) - tuning), *contract.PHASES]))
