"""Whose code ran in a call: which operators of PyTorch, which other libraries, and what was handed to them.

    returned, seen = attested(call)
    fault = judge_calls(variant, seen)      None, or (check, evidence)

Several witnesses, because each has a blind side:

    the profiler    every operator that passes PyTorch's dispatcher, in all threads of the process, and whatever
                    dispatch modes are switched off: RecordFunction's global callbacks. Blind where a thread switches
                    them off; markers before and after the call, and `deeds.Watch`, tell that
    a dispatch mode the operators of this thread; blind where modes are switched off
    a function mode tensors that are handed to another library by `numpy()`, `__array__`, `__dlpack__`
    sys.setprofile  other packages' functions by the file or module that they come from, in this thread and in those
                    that it starts with `threading`. Blind to what is neither Python nor a built-in function (a ufunc,
                    say): but that needs an array of the tensor's memory first, which a built-in function makes

What compiled code does with the pointers that it was given none of them sees (see `ran`, and the source check).
"""

import fnmatch
import functools
import os
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import (
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    RecordScope,
    _ExperimentalConfig,
    _RecordFunctionFast,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core import deeds, owners
from bench.core.variants import Variant
from bench.trial import ran

# The profiler says on stderr when it starts and stops; it reads this at its first start.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

# Views and questions: they move no data.
ALLOWED = {
    *("view", "_unsafe_view", "reshape", "as_strided", "slice", "select", "narrow", "split", "split_with_sizes"),
    *("unbind", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "alias", "detach", "chunk", "diagonal"),
    *("sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size", "_reshape_alias", "flatten"),
    # Seen by the profiler alone: what it runs in turn, where it must copy, is seen by its own name.
    *("to", "contiguous", "expand_as", "view_as", "unflatten", "movedim", "swapaxes", "numpy_T", "lift_fresh"),
}
ALLOCATES = {"empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "full_like", "new_empty"}
ALLOCATES |= {
    "new_zeros",
    "new_full",
    "new_ones",
    "empty_strided",
    "new_empty_strided",
    "clone",
    "arange",
    "tensor",
    "scalar_tensor",
}
HANDS_OVER = {"numpy", "__array__", "tolist", "__dlpack__"}  # ways out of torch to another CPU library
HANDS_OVER_IN_C = {"_to_dlpack", "_to_dlpack_versioned"}  # … that no mode is told of
COMPILERS = ("_dynamo", "_inductor")  # of torch: they compute without an operator to be seen
FREE = {"torch", "triton", "nvtx"}  # what own code may run: its launcher, and what is seen otherwise
OF_THE_MODE = "PythonDispatchMode"  # what the profiler calls Attestation itself
SITE = ("site-packages", "dist-packages")


class Fault(NamedTuple):
    """A check that failed, by its name, and what was seen."""

    check: str
    evidence: str


@dataclass
class Seen:
    """What ran in a call, in the order in which each witness saw it."""

    operators: list[str] = field(default_factory=list)  # without "aten::"
    handed: list[str] = field(default_factory=list)  # "Tensor.numpy"
    libraries: list[str] = field(default_factory=list)  # "numpy.frombuffer"; "package: function" of Python code
    blinded: str = ""  # why operators may have run unseen


class Attestation(TorchDispatchMode):
    """Records which ATen operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler at the first call: two seconds of each process

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(_plain(func._schema.name))
        return func(*args, **(kwargs or {}))


class Handovers(TorchFunctionMode):
    """Records tensors that are handed to another library."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in HANDS_OVER:
            self.called.append(name)
        return func(*args, **(kwargs or {}))


class Operators:
    """Records the operators that any thread of the process runs. Half a millisecond, and some µs an operator."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.blinded = ""

    def __enter__(self) -> "Operators":
        config = ProfilerConfig(
            ProfilerState.KINETO, False, False, False, False, False, _ExperimentalConfig(profile_all_threads=True)
        )
        _prepare_profiler(config, {ProfilerActivity.CPU})
        _enable_profiler(config, {ProfilerActivity.CPU})
        # Named anew each time, so that nobody else can leave them.
        self._markers = [f"layerbench {secrets.token_hex(8)}" for _ in range(2)]
        _mark(self._markers[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _mark(self._markers[1])
        try:
            events = _disable_profiler().events()
        except RuntimeError:
            events = []
        names = {e.name() for e in events}
        missing = [when for m, when in zip(self._markers, ("before", "after"), strict=True) if m not in names]
        if missing:
            self.blinded = f"the profiler did not see the harness's own marker {' and '.join(missing)} the call"
        user, not_theirs = int(RecordScope.USER_SCOPE.value), {OF_THE_MODE, *self._markers}
        self.called = [_plain(e.name()) for e in events if int(e.scope()) != user and e.name() not in not_theirs]


def _mark(name: str) -> None:
    with _RecordFunctionFast(name):
        pass


def _plain(name: str) -> str:
    """An operator's name: without aten's namespace and without its overload; of other namespaces with theirs."""
    return name.removeprefix("aten::")


class Libraries:
    """Records by sys.setprofile which other packages' functions are called, and from whose code they are not free.

    A package may be called by another one, by the harness, and by what a backend's variants share; a variant's own
    file may not. The profile function that was there before is back afterwards.
    """

    def __init__(self) -> None:
        self.called: list[str] = []

    def __enter__(self) -> "Libraries":
        self._before = sys.getprofile(), threading.getprofile()
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(self._before[0])
        threading.setprofile(self._before[1])  # type: ignore[arg-type]

    def _look(self, frame: FrameType, event: str, what: Any) -> None:
        if event == "c_call":
            if what.__name__ in HANDS_OVER_IN_C and _package(frame.f_code.co_filename) != "":
                self.called.append(f"torch: {what.__name__}")
                return
            module = getattr(what, "__module__", None) or type(getattr(what, "__self__", None)).__module__
            package = str(module).partition(".")[0]
            if package in sys.stdlib_module_names or package in FREE:
                return
            if _package(frame.f_code.co_filename) is None and package in _packages():
                self.called.append(f"{package}.{what.__name__}")
        elif event == "call":
            package = _package(frame.f_code.co_filename) or ""
            if not package or package in FREE:
                return
            caller = frame.f_back
            if caller is None or _package(caller.f_code.co_filename) is None:
                self.called.append(f"{package}: {frame.f_code.co_name}")


@functools.lru_cache(maxsize=4096)
def _package(file: str) -> str | None:
    """The installed package that a source file belongs to; "" for the harness and for what a backend's variants share,
    None for all else: a variant's own file, the standard library, code from a string."""
    path = Path(file)
    for root in owners.ROOTS:
        if path.is_relative_to(root / "bench"):
            return ""
        if path.is_relative_to(root / "kernels"):
            return "" if len(path.relative_to(root).parts) <= 3 else None
    for name, folder in owners.LIBRARIES.items():
        if path.is_relative_to(folder):
            compiles = name == "torch" and path.relative_to(folder).parts[0] in COMPILERS
            return "torch.compile" if compiles else name
    for site in SITE:
        if site in path.parts:
            return path.parts[path.parts.index(site) + 1].removesuffix(".py")
    return None


@functools.cache
def _packages() -> frozenset[str]:
    """Top-level names of what is installed beside the standard library."""
    found = set()
    for entry in map(Path, sys.path):
        if entry.name in SITE and entry.is_dir():
            found |= {p.name.partition(".")[0] for p in entry.iterdir()}
    return frozenset(found)


def start() -> None:
    """Start the profiler once, for nothing: it leaves a thread behind, which then belongs to the harness.

    For before the state of the world is taken.
    """
    with Operators():
        pass


def attested(call: Callable[[], object], modes: bool = True) -> tuple[object, Seen]:
    """Make one call under all witnesses: what it returned, and what they saw. Raises what the call raises.

    Not for a first call: it may compile, and is seen compiling. `modes`: without it only the profiler looks, for what
    would compile anew under a mode (torch.compile).
    """
    seen = Seen()
    operators = Operators()
    if not modes:
        with operators:
            returned = call()
    else:
        # The modes are innermost, so that the other witnesses' own doings are not seen by them.
        with operators, Libraries() as libraries, Handovers() as handovers, Attestation() as attestation:
            returned = call()
        seen.handed = [f"Tensor.{name}" for name in handovers.called]
        seen.libraries = libraries.called
        seen.operators = attestation.called
    seen.operators = [*seen.operators, *operators.called]
    seen.blinded = operators.blinded
    return returned, seen


def judge_calls(variant: Variant, seen: Seen) -> Fault | None:
    """Own code may only make views; a variant that pins a kernel (KERNELS) must have run it."""
    called = set(seen.operators)
    if variant.own_code:
        home = _package(str(variant.path))
        libraries = {name for name in seen.libraries if not home or name.partition(":")[0] != home}
        allocated = sorted(called & ALLOCATES)
        computed = sorted((called - ALLOWED - ALLOCATES) | set(seen.handed) | libraries)
        if computed:
            return Fault("library", f"says it is its own code, yet called {_some(computed)}")
        if seen.blinded:
            return Fault("library", f"kept the harness from seeing what it calls: {seen.blinded}")
        if allocated:
            return Fault("allocates", f"allocated inside the call: {_some(allocated)}")
    elif variant.kernels and not any(fnmatch.fnmatch(c, k) for c in called for k in variant.kernels):
        return Fault("library", f"none of {', '.join(variant.kernels)} ran, but {_some(sorted(called))}")
    return None


def judge_loaded(variant: Variant) -> Fault | None:
    """Own code may load what it built itself; of somebody else's library it has, by ctypes, no need. For any time after
    the variant was imported: `deeds.guard` has listened since before."""
    if variant.own_code and deeds.LOADED:
        return Fault("library", f"says it is its own code, yet loaded {_some(sorted(set(deeds.LOADED)))}")
    return None


def judge_linked(variant: Variant, before: set[str]) -> Fault | None:
    """What a CPU kernel's own library is linked against: for after the first call, with what `facts.mapped` answered
    before the variant was imported. Its story is in its symbols: what it sets and resets leaves no other trace."""
    if not variant.own_code or variant.gpu_code:
        return None
    for library in ran.brought(before):
        try:
            wants = ran.borrowed(library)
        except (OSError, ValueError):  # it is gone, or of another kind
            continue
        if names := wants.get("library"):
            return Fault("library", f"{library.name} calls {_some(names)}, which are not its own")
        if names := wants.get("global_state"):
            return Fault("global_state", f"{library.name} calls {_some(names)}, which set what is not a call's")
        if names := wants.get("source"):
            return Fault("source", f"{library.name} calls {_some(names)}, of which no kernel has any need")
    return None


def judge_kernels(variant: Variant, names: list[str], allocated: int) -> Fault | None:
    """Own code runs its own kernels, in memory that it was given."""
    if not variant.own_code:
        return None
    if alien := ran.foreign(variant, names):
        return Fault("library", f"says it is its own code, yet ran {_some(alien)}")
    if allocated:
        return Fault("allocates", f"allocated {allocated} bytes inside the call")
    return None


def _some(names: list[str], most: int = 8) -> str:
    """The first of them, and how many more there are: evidence is one line."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
