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
import re
import sys
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import torch

from bench.core import BACKENDS
from bench.core.variants import COMPILED, KERNELS, Variant
from bench.trial import native
from bench.trial.compiled import Compiled, texts_of
from bench.trial.modules import LAUNCHERS, Finding, Module, Modules, name_of
from bench.trial.native import words
from reference import contract

# --- what own code may use ---

# What a variant is offered by its backend's launchers; the rest (compiler flags, the simulator's hook) is theirs.
OFFERED = words(
    "Kernel Strided Argument Loaded as_int32 zeroed blocks most_shared MAX_PARAMETER_BYTES Unavailable WARP"
    " pack_width row_shape Lists tensor_map persistent_blocks multiprocessors capability power_of_2 described UNFUSED"
    " Tiles Config TORCH_DTYPES tune text_of jit"
    " Products OUT DX DWEIGHT DEFAULT BIAS GELU_AUX_BIAS DGELU BGRADB WORKSPACE ROUND Attention"  # of libraries
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
    "operator": {"lt", "le", "eq", "ne", "ge", "gt", "itemgetter"},
    "importlib": {"metadata"},
    "packaging": {"version"},
}
TUNING = words("hashlib inspect json pathlib platform random shutil statistics tempfile time")
# That compute, or reach into the process: never, whatever REQUIRES says.
NEVER = words(
    "numpy scipy numba cupy jax tensorflow cffi ctypes mkl sklearn pandas polars pyarrow numexpr bottleneck onnxruntime"
    " mxnet paddle cython pycuda subprocess multiprocessing threading concurrent asyncio signal gc builtins"
    " copy socket mmap bench tests reference"
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
        " cuda.get_device_capability cuda.device cuda.device_of cuda.current_stream cuda.synchronize channels_last"
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
    "_getframe _current_frames currentframe getouterframes getinnerframes walk_stack extract_stack setprofile settrace"
    " addaudithook get_objects get_referrers get_referents f_back f_locals f_globals f_builtins tb_frame gi_frame"
    " cr_frame ag_frame __globals__ __closure__ cell_contents __subclasses__"
)
# By which memory is reached by its address, in Python.
ADDRESSES = words("__array_interface__ __array_struct__ _construct_storage_from_data_pointer _new_shared_fd_cpu")
# A code's own word for where it is from, and what runs a text as if it were from anywhere.
ORIGINS = words("co_filename CodeType exec eval compile __import__")
WATCHING = re.compile(r"(sys\.monitoring|gc\.callbacks|inspect\.(stack|trace))\b")
PATCHING = frozenset({"ctypes", "_ctypes", "unittest.mock", "forbiddenfruit"})
SETTINGS = re.compile(r"torch\.backends\b|[\w.]*\.\w*config\b")  # a check of its own watches these
PROCESS = re.compile(
    r"os\.(sched_\w+|nice|setpriority|fork\w*|exec\w+|spawn\w+|posix_spawn\w*|system|popen|kill\w*|ptrace|putenv"
    r"|unsetenv|setsid|_exit|abort|dup2?|pipe2?|memfd_create)|importlib\b"
)
ENVIRONMENT = "os.environ"
EVALUATES = words("typing.get_type_hints typing.ForwardRef typing_extensions.get_type_hints string.Formatter")
COMPILER = re.compile(r"triton\.(jit|runtime\.jit|experimental\.gluon\.jit)")
OUR_COMPILER = f"@{KERNELS / 'triton' / 'launching.py'}.jit"
MOST_TEXT = 100  # of a finding
# What views and parts of a tensor are told by is no tensor; nor are several.
OF_NO_TENSOR = words(
    "shape size stride dtype device numel dim ndim element_size data_ptr storage_offset nelement nbytes itemsize type"
    " get_device layout names requires_grad split chunk unbind tensor_split"
)


def foreign(variant: Variant) -> list[str]:
    """What the variant's source uses that it must not, by file and line; empty for an honest one."""
    files = Modules(variant)
    found = set(files.broken)
    for file in files.read():
        try:
            found |= set(_Reader(file, files, variant).findings())
        except RecursionError:
            found.add(Finding(file.path, 1, "is nested too deeply to be read"))
    if variant.own_code:
        start = [variant.path.with_suffix(suffix) for suffix in COMPILED] + files.natives()
        compiled = Compiled(files.read(), start) if variant.backend == "cuda" else None
        for path, line, said in texts_of(files.read()) if compiled else ():  # what a launch gives a macro, a template
            found |= {Finding(path, line, what[:MOST_TEXT]) for _, what in native.foreign(said)}
        for path, text in native.sources(start, KERNELS / variant.backend):
            for seen in compiled.texts(path, text) if compiled else (text,):
                found |= {Finding(path, line, what[:MOST_TEXT]) for line, what in native.foreign(seen)}
    own = [f for f in found if f.path == variant.path]
    others = [f for f in found if f.path != variant.path]
    told = [f"line {f.line}: {f.what}" for f in sorted(own, key=lambda f: (f.line, f.what))]
    return told + [f"{f.path.name} line {f.line}: {f.what}" for f in sorted(others)]


# --- Python ---


def _clock(node: ast.expr) -> str:
    """What reads a clock in a kernel that Triton compiles, by its own name or in assembly; "" for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := native.CLOCKS.search(node.value)):
        return f"a clock: {found[0]}"
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return f"a clock: {name}" if name == "globaltimer" else ""


class _Reader:
    """Findings of one module."""

    def __init__(self, file: Module, files: Modules, variant: Variant):
        self.file, self.files, self.variant = file, files, variant
        self.parents = file.written.parents
        self.own_names, self.for_tuning = files.own_names, files.for_tuning
        self.tensors: dict[ast.FunctionDef, set[str]] = {}
        self.bound: dict[ast.AST, frozenset[str]] = {}
        self.aliases: dict[str, bool] = {}

    def findings(self) -> Iterator[Finding]:
        rules = OWN_RULES if self.variant.own_code else TORCH_RULES
        for node in self.file.written.nodes:
            if isinstance(node, ast.expr) and self._compiled(node):
                if what := _clock(node):
                    yield Finding(self.file.path, node.lineno, what)
                continue
            for rule in rules:
                for what in rule(self, node):
                    yield Finding(self.file.path, getattr(node, "lineno", 1), what[:MOST_TEXT])

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
        return any(COMPILER.fullmatch(name) or name == OUR_COMPILER for name in names) and self._in_body(function, node)

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
        if node.id not in self.aliases:
            self.aliases[node.id] = node.id not in self.file.rebound or self._alias(node.id)
        return self.aliases[node.id]

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
                yield f"{name_of(Path(f'{path}.py'))}.{name}"
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
        if not isinstance(node, ast.Name) or node.id not in BUILTINS or not isinstance(node.ctx, ast.Load):
            return
        hidden = node.id in HIDING or not (self._tuning(node) or self._asks_triton(node))
        if hidden and not any(node.id in self._locals(f) for f in self._around(node) if isinstance(f, SCOPES)):
            yield f"{node.id}()"

    def _asks_triton(self, node: ast.Name) -> bool:
        """`getattr(tl, "make_tensor_descriptor", None)`: whether this version has it."""
        call = self.parents.get(node)
        if node.id != "getattr" or not isinstance(call, ast.Call) or call.func is not node or len(call.args) < 2:
            return False
        of, name = call.args[:2]
        told = isinstance(name, ast.Constant) and isinstance(name.value, str) and name.value
        asked = (self.files.dotted(self.file, of) or "").startswith("triton.") and self._given(of)
        return bool(told) and asked and str(told).lstrip("_") not in HIDDEN and not str(told).startswith("_")

    def _locals(self, scope: ast.AST) -> frozenset[str]:
        """Names that are bound in a function itself, and so are no builtins in it."""
        if scope not in self.bound:
            assert isinstance(scope, SCOPES)
            found = {a.arg for a in ast.walk(scope.args) if isinstance(a, ast.arg)}
            others: set[str] = set()
            waiting: list[ast.AST] = list(scope.body) if isinstance(scope.body, list) else [scope.body]
            while waiting:
                inside = waiting.pop()
                if isinstance(inside, ast.Name) and isinstance(inside.ctx, ast.Store):
                    found.add(inside.id)
                elif isinstance(inside, ast.Global | ast.Nonlocal):
                    others |= set(inside.names)
                if not isinstance(inside, (*SCOPES, ast.ClassDef, *COMPREHENSIONS)):
                    waiting += ast.iter_child_nodes(inside)
            self.bound[scope] = frozenset(found - others)
        return self.bound[scope]

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
        names = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else names
        names += [node.id] if isinstance(node, ast.Name) else []
        names += [node.name] if isinstance(node, ast.FunctionDef) else []
        yield from (f"reaches memory by its address: {name}" for name in names if name in ADDRESSES)
        dotted = self.files.dotted(self.file, node) if isinstance(node, ast.expr) and self._top(node) else None
        if dotted and WATCHING.match(dotted):
            yield f"looks at frames or objects of others: {dotted}"

    def origins(self, node: ast.AST) -> Iterator[str]:
        """Code that is made of a text, and may say that it is anybody's."""
        name = ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in BUILTINS:
            around = (f for f in self._around(node) if isinstance(f, SCOPES))
            own = node.id in self.own_names or any(node.id in self._locals(f) for f in around)
            name = "" if own or node.id in self.file.names else node.id
        elif isinstance(node, ast.Attribute):
            name = node.attr if node.attr in ("co_filename", "CodeType") else ""
        elif isinstance(node, ast.keyword):
            name = node.arg or ""
            name = name if name == "co_filename" else ""
        if name in ORIGINS:
            yield f"code made of a text: {name}"

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
                told = f"{name_of(Path(f'{path}.py'))}.{member}"
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


SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Rule = Callable[[_Reader, ast.AST], Iterator[str]]
HIDDEN = frozenset(NEVER | TUNING - {"random"} | set(QUESTIONS) | {"torch", "np", "ops", "testing", "interpreter"})
SHARED_RULES: tuple[Rule, ...] = (_Reader.frames, _Reader.patches)
TORCH_RULES: tuple[Rule, ...] = (*SHARED_RULES, _Reader.reaches, _Reader.origins)
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
