"""What a variant's source says that its backend has no need of: read, never run.

    foreign(variant)    ["line 12: imports ctypes", "helper.py line 3: torch.add", "twice.cpp line 7: system()"]

Own code (cpu, cuda, triton) computes in its kernels; what lies around them is a launcher's call, sizes and views. So
what it may use is listed, and what is not listed is named: a module, an operator or a method of torch, a builtin that
hides what is done. `prepare` and `workspace`, and what they alone call, may use besides what tuning needs. A variant of
torch is asked only for what no kernel wants: to see its caller's frames, and to replace what it did not define.

Read are the variant's module, modules beside it that it imports, its backend's shared ones, and the C++ and CUDA that
these name. The backend's launchers are trusted, and so is what Triton compiles. Nothing here is proof: values have no
types in a source, and native code can hide anything. What ran is for the checks that watch it run.
"""

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from bench import HOME
from bench.core import BACKENDS
from bench.core.variants import KERNELS, Variant
from bench.trial import native
from bench.trial.native import words
from reference import contract

# --- what own code may use ---

LAUNCHERS = frozenset(  # not read for findings: they are the harness's, in kernels/
    KERNELS / name
    for name in (
        *("__init__.py", "cpu/__init__.py", "triton/__init__.py", "triton/tuning.py"),
        *(f"cuda/{name}.py" for name in ("__init__", "compiler", "gpu", "packing", "signature")),
    )
)
# What a variant is offered by them; the rest (compiler flags, the simulator's hook) is theirs.
OFFERED = words(
    "Kernel Strided Argument blocks most_shared MAX_PARAMETER_BYTES Unavailable WARP pack_width row_shape"
    " multiprocessors capability UNFUSED Tiles Config TORCH_DTYPES tune text_of"
)
IN_TUNING = words("put cache_dir random_call")  # files between calls, and numbers
PURE = words(
    "__future__ abc collections contextlib dataclasses enum fractions functools itertools math numbers re string struct"
    " textwrap typing typing_extensions warnings"
)
# Of these own code may ask questions; the rest of them, and others, is for `prepare` and `workspace`.
QUESTIONS = {
    "os": {"environ", "getenv", "path", "cpu_count", "sep"},
    "sys": {"byteorder", "float_info", "maxsize", "platform", "version_info"},
    "types": {"SimpleNamespace", "MappingProxyType"},
    "logging": {"getLogger"},
}
TUNING = words("hashlib inspect json pathlib platform random shutil statistics tempfile time")
# That compute, or reach into the process: never, whatever REQUIRES says.
NEVER = words(
    "numpy scipy numba cupy jax tensorflow cffi ctypes mkl sklearn pandas polars pyarrow numexpr bottleneck onnxruntime"
    " mxnet paddle cython pycuda subprocess multiprocessing threading concurrent asyncio signal importlib gc builtins"
    " operator copy socket mmap bench tests reference"
)
BUILTINS = words(
    "open exec eval compile __import__ getattr setattr delattr globals locals vars memoryview input breakpoint"
    " __builtins__ __loader__ __spec__"
)
HIDING = words("exec eval compile __import__ breakpoint __builtins__ __loader__ __spec__")  # in prepare too
FILES = words("read_text read_bytes write_text write_bytes")
DUNDERS = words(
    "__call__ __doc__ __enter__ __exit__ __file__ __init__ __len__ __module__ __name__ __post_init__ __qualname__"
    " __version__"
)

DTYPES = frozenset(f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))
TORCH = DTYPES | {
    f"torch.{name}"
    for name in words(
        "Tensor Size device dtype layout strided finfo iinfo is_tensor inf nan pi empty empty_like empty_strided"
        " no_grad inference_mode get_num_threads contiguous_format preserve_format __version__ version"
        " cuda.is_available cuda.current_device cuda.device_count cuda.get_device_properties cuda.get_device_name"
        " cuda.get_device_capability cuda.device cuda.device_of cuda.current_stream"
    )
}
# Of torch, in `prepare` too: it makes what a call would use later.
MAKERS = words("_C _dynamo _inductor compile fx jit library multiprocessing ops overrides utils")
OPERATORS = words("aten prim prims c10d inductor mkl mkldnn onednn quantized cudnn")  # of torch, in torch.ops
VIEWS = words(
    "T mT H mH data_ptr device dim dtype element_size expand expand_as flatten imag itemsize layout movedim narrow"
    " nbytes ndim ndimension nelement new_empty new_empty_strided numel permute real reshape select shape size split"
    " squeeze storage_offset stride swapaxes swapdims t tensor_split transpose type unbind unflatten unfold unsqueeze"
    " view view_as as_strided chunk detach get_device diagonal names requires_grad contiguous"
    " untyped_storage"
)
# Names that lists, texts and numbers have too say nothing of a tensor, unless the contract says that it is one.
PLAIN = frozenset(name for kind in (list, dict, set, str, bytes, tuple, int, float, slice) for name in dir(kind))
COMPUTES = frozenset(
    name
    for name in dir(torch.Tensor)
    if not name.startswith("_") and not name.startswith("is_") and name not in VIEWS | FILES
)

# --- what no variant may use ---

FRAMES = words(
    "_getframe _current_frames currentframe setprofile settrace get_objects get_referrers get_referents f_back f_locals"
    " f_globals f_builtins tb_frame gi_frame cr_frame ag_frame __globals__ __closure__ cell_contents __subclasses__"
    " getouterframes getinnerframes"
)
PATCHING = frozenset({"ctypes", "_ctypes", "unittest.mock", "forbiddenfruit"})
SETTINGS = re.compile(r"torch\.backends\b|[\w.]*\.\w*config\b")  # a check of its own watches these
PROCESS = re.compile(
    r"os\.(sched_\w+|nice|setpriority|fork\w*|exec\w+|spawn\w+|posix_spawn\w*|system|popen|kill\w*|ptrace|putenv"
    r"|unsetenv|setsid|_exit|abort|dup2?|pipe2?|memfd_create)"
)
ENVIRONMENT = "os.environ"
EVALUATES = words("typing.get_type_hints typing.ForwardRef typing_extensions.get_type_hints string.Formatter")
COMPILER = re.compile(r"triton\.(jit|runtime\.jit|experimental\.gluon\.jit)")
SUFFIXES = (".cpp", ".cc", ".cxx", ".c", ".cu", ".cuh", ".hpp", ".h")
# What views and parts of a tensor are told by is no tensor; nor are several.
OF_NO_TENSOR = words(
    "shape size stride dtype device numel dim ndim element_size data_ptr storage_offset nelement nbytes itemsize type"
    " get_device layout names requires_grad split chunk unbind tensor_split"
)

T = TypeVar("T", bound=ast.AST)


class Finding(NamedTuple):
    """What a line of a file says."""

    path: Path
    line: int
    what: str


def foreign(variant: Variant) -> list[str]:
    """What the variant's source uses that it must not, by file and line; empty for an honest one."""
    files = _Files(variant)
    found = set(files.broken)
    for file in files.read():
        found |= set(_Reader(file, files, variant).findings())
    if variant.own_code:
        start = [variant.path.with_suffix(suffix) for suffix in SUFFIXES] + files.natives()
        for path, text in native.sources(start, KERNELS / variant.backend):
            found |= {Finding(path, line, what) for line, what in native.foreign(text)}
    own = [f for f in found if f.path == variant.path]
    others = [f for f in found if f.path != variant.path]
    told = [f"line {f.line}: {f.what}" for f in sorted(own, key=lambda f: (f.line, f.what))]
    return told + [f"{f.path.name} line {f.line}: {f.what}" for f in sorted(others)]


# --- files ---


class _Written(NamedTuple):
    """A syntax tree: its statements, all its nodes, and what each node stands in."""

    body: list[ast.stmt]
    nodes: list[ast.AST]
    parents: dict[ast.AST, ast.AST]

    def of(self, kind: type[T]) -> Iterator[T]:
        return (node for node in self.nodes if isinstance(node, kind))


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed_ns: int) -> _Written:
    tree = ast.parse(path.read_bytes())  # in the encoding that it says it has
    nodes = list(ast.walk(tree))
    return _Written(tree.body, nodes, {child: node for node in nodes for child in ast.iter_child_nodes(node)})


@dataclass
class _File:
    """A module as it is written. `names`: what each name stands for that an import, or an assignment of such a name,
    gave it; `@file` is a module that is read here. `rebound`: names that stand for something else as well."""

    path: Path
    written: "_Written"
    names: dict[str, str] = field(default_factory=dict)
    rebound: set[str] = field(default_factory=set)
    imported: set[str] = field(default_factory=set)  # first parts of the modules it imports itself


class _Files:
    """The modules that a variant consists of, each read once."""

    def __init__(self, variant: Variant):
        self.variant = variant
        self.known: dict[Path, _File] = {}
        self.broken: list[Finding] = []
        self.start = self.get(variant.path)

    def get(self, path: Path) -> _File | None:
        """A module and, before it is returned, those it imports; None where it cannot be read."""
        if path not in self.known:
            try:
                file = _File(path, _read(path, path.stat().st_mtime_ns))
            except (OSError, SyntaxError, ValueError, RecursionError) as error:
                self.broken.append(Finding(path, 1, f"cannot be read ({type(error).__name__})"))
                return None
            self.known[path] = file
            if _unchecked(path):
                self.broken.append(Finding(path, 1, "has a compiled module beside it that Python does not check"))
            self._bind(file)
        return self.known[path]

    @functools.cached_property
    def own_names(self) -> frozenset[str]:
        return _own_names(self.read())

    @functools.cached_property
    def for_tuning(self) -> frozenset[str]:
        return _for_tuning(self.read())

    def natives(self) -> list[Path]:
        """The C++ and CUDA files that are named."""
        found = []
        for file in self.read():
            texts = {n.value for n in file.written.of(ast.Constant) if isinstance(n.value, str) and "\n" not in n.value}
            called = {a.value for n in file.written.of(ast.Call) for a in n.args[:1] if isinstance(a, ast.Constant)}
            found += [file.path.parent / text for text in texts if text.endswith(SUFFIXES) or text in called]
        return [path for path in found if len(str(path)) < 1000]

    def read(self) -> list[_File]:
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

    def _bind(self, file: _File) -> None:
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

    def _alias(self, file: _File, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name) and (dotted := self.dotted(file, value)):
            file.names.setdefault(target.id, dotted)

    def _import(self, file: _File, a: ast.alias) -> None:
        first = a.name.partition(".")[0]
        file.imported.add(first)
        for part in (a.name, first):
            path = self.module(file.path, part, 0)
            if path and self.get(path) and (a.asname or part == first):
                file.names[a.asname or first] = f"@{path}"
                return
        file.names[a.asname or first] = a.name if a.asname else first

    def member(self, file: _File, node: ast.ImportFrom, name: str) -> str:
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

    def dotted(self, file: _File, node: ast.expr | None) -> str | None:
        """torch.add, of `t.add` where t is torch; None where it is no name that an import gave."""
        if isinstance(node, ast.Name):
            return file.names.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        base = self.dotted(file, node.value)
        if base and base.startswith("@") and (other := self.known.get(Path(base[1:]))):
            return other.names.get(node.attr) or self._submodule(other, node.attr) or f"{base}.{node.attr}"
        return f"{base}.{node.attr}" if base else None

    def _submodule(self, package: _File, name: str) -> str | None:
        if package.path.name != "__init__.py":
            return None
        folder = package.path.parent
        path = next((p for p in (folder / f"{name}.py", folder / name / "__init__.py") if p.is_file()), None)
        return f"@{path}" if path and self.get(path) else None


def _unchecked(path: Path) -> bool:
    """Whether Python would run a compiled module by its hash, or without any look at the source (PEP 552)."""
    compiled = Path(importlib.util.cache_from_source(str(path)))
    return compiled.is_file() and any(compiled.read_bytes()[4:8])


def _module(path: Path) -> str:
    """kernels.cpu, of a file of kernels/."""
    parts = path.relative_to(KERNELS.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --- Python ---


class _Reader:
    """Findings of one module."""

    def __init__(self, file: _File, files: _Files, variant: Variant):
        self.file, self.files, self.variant = file, files, variant
        self.parents = file.written.parents
        self.own_names, self.for_tuning = files.own_names, files.for_tuning
        self.tensors: dict[ast.FunctionDef, set[str]] = {}

    def findings(self) -> Iterator[Finding]:
        rules = OWN_RULES if self.variant.own_code else TORCH_RULES
        for node in self.file.written.nodes:
            if isinstance(node, ast.expr) and self._compiled(node):
                continue
            for rule in rules:
                for what in rule(self, node):
                    yield Finding(self.file.path, getattr(node, "lineno", 1), what)

    # --- where a node is ---

    def _around(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node

    def _function(self, node: ast.AST) -> ast.FunctionDef | None:
        """The outermost function around a node."""
        around = [n for n in self._around(node) if isinstance(n, ast.FunctionDef)]
        return around[-1] if around else None

    def _tuning(self, node: ast.AST) -> bool:
        function = self._function(node)
        if function is None or function.name not in self.for_tuning or not self._in_body(function, node):
            return False
        return isinstance(self.parents[function], ast.Module)

    def _once(self, node: ast.AST) -> bool:
        """What `prepare` calls itself, at once: no call can do it again."""
        parent, inner = self.parents.get(node), (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
        nested = sum(isinstance(n, inner) for n in self._around(node)) > 1
        return self._tuning(node) and isinstance(parent, ast.Call) and parent.func is node and not nested

    def _compiled(self, node: ast.AST) -> bool:
        """Inside a function that Triton compiles: what that takes is no Python."""
        function = self._function(node)
        if function is None or self.variant.backend != "triton":
            return False
        decorators = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
        names = [self.files.dotted(self.file, d) or "" for d in decorators if self._given(d)]
        return any(COMPILER.fullmatch(name) for name in names) and self._in_body(function, node)

    def _in_body(self, function: ast.FunctionDef, node: ast.AST) -> bool:
        """Not in its decorators, defaults and annotations, which are worked out where it is defined."""
        inside = [node, *self._around(node)]
        return inside[inside.index(function) - 1] in function.body if function in inside else False

    def _tensors(self, node: ast.AST) -> Set[str]:
        """Names that are a tensor by the contract, in forward and backward."""
        function = self._function(node)
        if function is None or self.file.path != self.variant.path or function.name not in contract.PHASES:
            return frozenset()
        if function.name not in contract.phases_of(contract.load(self.variant.layer)):
            return frozenset()
        if function not in self.tensors:
            p = contract.pass_of(contract.load(self.variant.layer), function.name)
            found = self.tensors[function] = {t.name for t in (*p.inputs, *p.outputs) if not t.many} | {"workspace"}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and self._rooted(node.value, found):
                    found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        return self.tensors[function]

    def _rooted(self, value: ast.expr, tensors: Set[str]) -> bool:
        """Whether it is one of these tensors, a view of it, or its type."""
        while not isinstance(value, ast.Name):
            if isinstance(value, ast.Attribute) and value.attr not in OF_NO_TENSOR and not value.attr.startswith("is_"):
                value = value.value
            elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
                if value.func.id != "type" or not value.args:
                    return False
                value = value.args[0]
            elif isinstance(value, ast.Call):
                value = value.func
            elif isinstance(value, ast.Subscript):
                value = value.value
            else:
                return False
        return value.id in tensors

    def _top(self, node: ast.AST) -> bool:
        """Whether a name or an attribute is the whole of a dotted name."""
        return not (isinstance(parent := self.parents.get(node), ast.Attribute) and parent.value is node)

    def _given(self, node: ast.expr) -> bool:
        """Whether a dotted name begins with a name that an import alone gave."""
        while isinstance(node, ast.Attribute):
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.file.names:
            return False
        return node.id not in self.file.rebound or self._alias(node.id)

    def _limits(self, node: ast.expr) -> bool:
        """torch.finfo(…), whose max is a number."""
        return isinstance(node, ast.Call) and self._called(node) in ("torch.finfo", "torch.iinfo")

    def _alias(self, name: str) -> bool:
        """Whether all that is ever assigned to a name are names of imports."""
        if any(node.arg == name for node in self.file.written.of(ast.arg)):
            return False
        for node in self.file.written.of(ast.Name):
            if node.id == name and isinstance(node.ctx, ast.Store):
                parent = self.parents[node]
                if not isinstance(parent, ast.Assign) or not self.files.dotted(self.file, parent.value):
                    return False
        return True

    # --- rules of own code: each tells what it finds at a node ---

    def imports(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for a in node.names:
                yield from self._import(a.name, None, 0)
        elif isinstance(node, ast.ImportFrom):
            for a in node.names:
                yield from self._import(node.module or "", a.name, node.level)

    def _import(self, module: str, member: str | None, level: int) -> Iterator[str]:
        first = module.partition(".")[0]
        path = self.files.module(self.file.path, module, level) or (
            self.files.module(self.file.path, f"{module}.{member}" if module else member, level) if member else None
        )
        if member == "*":
            yield f"imports * from {'.' * level}{module}"
        elif first == "kernels" and not level:
            yield from self._import_of_kernels(f"{module}.{member}" if member else module)
        elif first == "torch" and not level:
            dotted = f"{module}.{member}" if member else module
            if not _torch_may(dotted) and not any(known.startswith(f"{dotted}.") for known in TORCH):
                yield f"imports {dotted}"
        elif path is None and not self._may_import(first):
            yield f"imports {module or member}"
        if member and path in LAUNCHERS:
            told = self.file.names.get(member) or ""
            if not told.startswith("@") and not told.startswith("kernels."):
                yield from self._use(told, True, f" through {module}")

    def _import_of_kernels(self, dotted: str) -> Iterator[str]:
        backend = [*dotted.split("."), ""][1]
        if backend in BACKENDS and backend != self.variant.backend:
            yield f"imports kernels.{backend}"

    def _may_import(self, first: str) -> bool:
        if first in NEVER:
            return False
        by_backend = {"triton": {"triton"}}.get(self.variant.backend, set())
        return first in PURE | TUNING | set(QUESTIONS) | by_backend | set(self.variant.requires) - {"torch", "triton"}

    def uses(self, node: ast.AST) -> Iterator[str]:
        """Dotted names of modules."""
        if not isinstance(node, ast.Name | ast.Attribute) or not self._top(node):
            return
        dotted = self.files.dotted(self.file, node)
        if dotted is None or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)):
            return
        if dotted == "torch":
            alias = self.parents.get(node)
            if not (isinstance(alias, ast.Assign) and isinstance(alias.targets[0], ast.Name)):
                yield "hands torch itself on"
            return
        yield from self._use(dotted, not self._once(node), "", tuning=self._tuning(node))

    def _use(self, dotted: str, kept: bool, how: str, tuning: bool = False) -> Iterator[str]:
        """kept: what stands there may be used by a call later, and not by tuning alone."""
        first, *rest = dotted.split(".")
        if dotted.startswith("@"):
            path, _, member = dotted[1:].partition(".py.")
            name = member.partition(".")[0]
            theirs = name and name not in OFFERED | (IN_TUNING if tuning else set())
            if theirs and Path(f"{path}.py") in LAUNCHERS:
                yield f"{_module(Path(f'{path}.py'))}.{name}"
        elif dotted in EVALUATES:
            yield dotted
        elif first == "torch":
            packages = set(self.variant.requires if self.variant.kernels else ()) - OPERATORS
            named = rest[:1] == ["ops"] and bool(packages & set(rest[1:2]))
            inside = bool(rest) and rest[0] in MAKERS
            if not _torch_may(dotted) and not named and (kept or inside):
                yield f"{dotted}{how}"
        elif first in QUESTIONS:
            if (not rest or rest[0] not in QUESTIONS[first]) and not (tuning and not PROCESS.match(dotted)):
                yield f"{dotted}{how}"
        elif first in TUNING:
            if not tuning:
                yield f"{dotted}{how}"
        elif first in NEVER or first in sys.stdlib_module_names - PURE:
            if how or first not in self.file.imported:
                yield f"uses {first}{how}"
        elif any(part.lstrip("_") in HIDDEN - ({"testing"} if tuning else set()) for part in rest):
            yield f"{dotted}{how}"

    def builtins(self, node: ast.AST) -> Iterator[str]:
        said = isinstance(node, ast.Name) and node.id in BUILTINS and node.id not in self.file.rebound and node.id
        if said and (said in HIDING or not self._tuning(node)):
            yield f"{said}()"

    def attributes(self, node: ast.AST) -> Iterator[str]:
        """Methods and attributes of what may be a tensor, of files, and of objects' insides."""
        if not isinstance(node, ast.Attribute):
            return
        name = node.attr
        if name.startswith("__") and name.endswith("__") and name not in DUNDERS | FRAMES:
            yield f"looks into {name}"
        elif self._given(node.value) or self._limits(node.value) or self._tuning(node):
            return
        elif name in FILES:
            yield f"files: {name}"
        elif name in COMPUTES:
            parent = self.parents.get(node)
            called = isinstance(parent, ast.Call) and parent.func is node and name not in PLAIN | self.own_names
            if name.endswith("_") or name == "data" or called or self._rooted(node.value, self._tensors(node)):
                yield f"Tensor.{name}"
        elif name == "fn" and self.variant.backend == "triton":
            yield "calls in Python what Triton was to compile (fn)"
        elif isinstance(node.ctx, ast.Store) and self._rooted(node.value, self._tensors(node)):
            yield f"sets {ast.unparse(node.value)}.{name}"

    def classes(self, node: ast.AST) -> Iterator[str]:
        """Tensors of its own, that may compute when they are looked at; attributes taken apart by a pattern."""
        if isinstance(node, ast.ClassDef):
            if any((self.files.dotted(self.file, base) or "").startswith("torch.") for base in node.bases):
                yield f"a class of torch's: {node.name}"
        elif isinstance(node, ast.MatchClass):
            yield from (f"Tensor.{name}" for name in node.kwd_attrs if name in COMPUTES - PLAIN)

    def stores(self, node: ast.AST) -> Iterator[str]:
        """`out[…] = x`, `out += x`: torch copies and adds."""
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if self._rooted(node.value, self._tensors(node)):
                yield f"writes {ast.unparse(node.value)}[…] by torch"
        elif isinstance(node, ast.AugAssign) and self._rooted(node.target, self._tensors(node)):
            yield f"changes {ast.unparse(node.target)} by torch"

    def environment(self, node: ast.AST) -> Iterator[str]:
        """What Triton and others read when they compile: its interpreter is NumPy."""
        changed = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del) and node.value
        if isinstance(node, ast.Attribute) and node.attr in ("setdefault", "update", "pop", "clear", "popitem"):
            changed = node.value
        if isinstance(changed, ast.expr) and self.files.dotted(self.file, changed) == ENVIRONMENT:
            yield f"writes {ENVIRONMENT}"

    def kernels(self, node: ast.AST) -> Iterator[str]:
        """A kernel whose source has no name to read it by."""
        if isinstance(node, ast.Call) and re.search(r"/kernels/(cpu|cuda)/__init__\.py\.Kernel$", self._called(node)):
            source = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "source"), None)
            if not isinstance(source, ast.Constant):
                yield "a kernel's source is not written down as a text"

    def _called(self, node: ast.Call) -> str:
        return self.files.dotted(self.file, node.func) or ""

    # --- rules of all ---

    def frames(self, node: ast.AST) -> Iterator[str]:
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        yield from (f"looks at frames or objects of others: {name}" for name in names if name in FRAMES)

    def patches(self, node: ast.AST) -> Iterator[str]:
        """What was defined elsewhere is replaced."""
        target: ast.expr | None = None
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node
            told = self.files.dotted(self.file, node.value)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            told = self.files.dotted(self.file, node.value) or self._namespace(node.value)
            of_launcher = told is not None and any(told.startswith(f"@{path}") for path in LAUNCHERS)
            target = node if told and (told == "sys.modules" or told.endswith("__dict__") or of_launcher) else None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            target = node.args[0] if node.args else None
            told = self.files.dotted(self.file, target)
        if target is None or not told or SETTINGS.match(told):
            return
        own = told.startswith("@") and not any(told.startswith(f"@{path}") for path in LAUNCHERS)
        if not own:
            if told.startswith("@"):
                path, _, member = told[1:].partition(".py.")
                told = f"{_module(Path(f'{path}.py'))}.{member}"
            yield f"replaces {told}{f'.{node.attr}' if isinstance(node, ast.Attribute) else ''}"

    def _namespace(self, node: ast.expr) -> str | None:
        """`vars(torch)` is torch.__dict__."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars" and node.args:
            told = self.files.dotted(self.file, node.args[0])
            return told and f"{told}.__dict__"
        return None

    def reaches(self, node: ast.AST) -> Iterator[str]:
        """Modules by which a variant of torch could do either."""
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modules = [str(node.args[0].value)] if called in ("import_module", "__import__") else []
        elif isinstance(node, ast.Attribute) and self._top(node):
            dotted = self.files.dotted(self.file, node) or ""
            modules = ["ctypes"] if dotted.startswith("ctypes.") and "ctypes" not in self.file.imported else []
        found = [m for m in modules if m in PATCHING or m.partition(".")[0] in PATCHING]
        yield from (f"imports {module}" for module in found[:1])


Rule = Callable[[_Reader, ast.AST], Iterator[str]]
HIDDEN = frozenset(NEVER | TUNING | set(QUESTIONS) | {"torch", "np", "ops", "testing", "interpreter"})
SHARED_RULES: tuple[Rule, ...] = (_Reader.frames, _Reader.patches)
TORCH_RULES: tuple[Rule, ...] = (*SHARED_RULES, _Reader.reaches)
OWN_RULES: tuple[Rule, ...] = (
    *SHARED_RULES,
    *(_Reader.imports, _Reader.uses, _Reader.builtins, _Reader.attributes, _Reader.classes, _Reader.stores),
    *(_Reader.environment, _Reader.kernels),
)


def _torch_may(dotted: str) -> bool:
    head, _, name = dotted.rpartition(".")
    if head == "torch.Tensor":
        return name in VIEWS
    return dotted in TORCH or dotted == "torch" or head in DTYPES or head == "torch.version"


def _own_names(files: Iterable[_File]) -> frozenset[str]:
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


def _for_tuning(files: Iterable[_File]) -> frozenset[str]:
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
