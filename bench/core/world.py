"""The world around a call: what makes other code compute otherwise, or seem to take another time.

    guard()                                once a process, before any variant is imported
    before = take()                        then the variant is imported, prepared and called for the first time
    before = settled(before)               what first calls may leave behind (pools of threads) is no change
    with Watch() as watch: …               any calls, the timed ones too: who sets and resets is seen as well
    difference(before, take())             "" or what changed, in words
    watch.evidence()                       "" or what was set meanwhile

`take` reads the settings of torch, of Python and of the process, in about a millisecond. `Watch` costs a call nothing:
`guard` replaces the functions that set the world, in each module that has them, by ones that note the call first; what
Python tells its audit hooks (processes, signals, libraries loaded by ctypes) is noted as well. Native code that sets
and resets something leaves no note; what it leaves set is seen by `take`, what it does with many more cores than it
was given by `cpu_over_wall`.
"""

import _posixsubprocess
import _signal
import _thread
import builtins
import collections
import contextlib
import dataclasses
import functools
import gc
import importlib.util
import itertools
import math
import mmap
import multiprocessing.connection
import operator
import os
import posix
import random
import re
import resource
import secrets
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, cast

import torch

import kernels
from bench import HOME
from bench.core import BACKENDS
from bench.core.arena import checksum
from kernels import cache_dir
from reference import contract

State = dict[str, object]

# Bound before any variant is imported, so that a variant cannot put its own in.
PERF_COUNTER_NS, PROCESS_TIME_NS = time.perf_counter_ns, time.process_time_ns
GET_PROFILE, GET_TRACE, GET_SIGNAL, GET_TIMER = sys.getprofile, sys.gettrace, signal.getsignal, signal.getitimer
GC_ENABLE, GC_DISABLE = gc.enable, gc.disable
MONITORING = getattr(sys, "monitoring", None)  # since Python 3.12
TOOLS = range(6)  # of sys.monitoring
LIST, READ_AFFINITY, READ_POLICY = os.listdir, os.sched_getaffinity, os.sched_getscheduler
READ_PRIORITY, READ_NICE, READ_LIMIT = os.sched_getparam, os.getpriority, resource.getrlimit
GROUP_OF, SESSION_OF, STAT = os.getpgid, os.getsid, os.fstat

TIMERS = {"real": signal.ITIMER_REAL, "virtual": signal.ITIMER_VIRTUAL, "profiling": signal.ITIMER_PROF}
LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
POLICIES = {getattr(os, name): name for name in dir(os) if name.startswith("SCHED_") and name != "SCHED_RESET_ON_FORK"}
# A bound pool is the user's: then each thread has an affinity of its own.
BINDS_THREADS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
# Variables that torch, its compiler and Triton set for themselves.
NOT_THE_VARIANTS = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_", "CUDA_MODULE_LOADING", "KINETO_", "PYTEST_")
PARALLEL = 1 << 15  # elements a thread: as many as torch gives to each, at least, …
SPARSE = 1 << 11  # … of which one in so many is a denormal: each costs a hundred times what another number does
ALONE = 1 << 14  # elements: so few that torch does not
TINY, HALF = sys.float_info.min, 0.5
# Beside one: less than half a unit in its last place, and more than that. Each direction of rounding makes other sums.
ONE, LITTLE, MORE = 1.0, 2.0**-54, 1.5 * 2.0**-53
MOST_TASKS = 64  # looked at one by one
MOST_SHOWN = 4  # changes named in one line of evidence

# What a first call may leave behind: it compiles, and starts the pools that later calls use.
POOLS = "native threads"
DEEDS, NOTES = "what its own code did", "notes of what its own code did"
DENORMALS = "denormals are kept by torch's threads"
OF_FUNCTIONS = ("clock", "clocks of a GPU", "replaced functions", DEEDS, NOTES)  # what nobody changes at any time
HOOKS = ("profile function", "trace function", "monitoring tools")  # nor these
MAY_GROW = ("Python threads", POOLS, "child processes")


def _gpu_clocks() -> tuple[object, ...]:
    events = torch.cuda.Event, torch.cuda.Event.elapsed_time, torch.cuda.synchronize
    return *events, torch.profiler.profile, torch.autograd.profiler.profile


GPU_CLOCKS = _gpu_clocks()

# Settings of torch by a getter of torch._C; a version of torch may lack some.
FLAGS = {
    "mkldnn": "_get_mkldnn_enabled",
    "mkldnn deterministic": "_get_mkldnn_deterministic",
    "mkldnn TF32": "_get_onednn_allow_tf32",
    "NNPACK": "_get_nnpack_enabled",
    "quantized engine": "_get_qengine",
    "fp16 reductions": "_get_cpu_allow_fp16_reduced_precision_reduction",
    "cudnn": "_get_cudnn_enabled",
    "cudnn benchmark": "_get_cudnn_benchmark",
    "cudnn deterministic": "_get_cudnn_deterministic",
    "matmul precision": "_get_float32_matmul_precision",
    "deterministic algorithms": "_get_deterministic_algorithms",
    "deterministic fill": "_get_deterministic_fill_uninitialized_memory",
    "BLAS": "_get_blas_preferred_backend",
    "linear algebra": "_get_linalg_preferred_backend",
    "fp16 reductions of cublas": "_get_cublas_allow_fp16_reduced_precision_reduction",
    "bf16 reductions of cublas": "_get_cublas_allow_bf16_reduced_precision_reduction",
    "fp16 accumulation of cublas": "_get_cublas_allow_fp16_accumulation",
    "flash attention": "_get_flash_sdp_enabled",
    "memory-efficient attention": "_get_mem_efficient_sdp_enabled",
    "cudnn's attention": "_get_cudnn_sdp_enabled",
    "plain attention": "_get_math_sdp_enabled",
    "SMs left to others": "_get_sm_carveout_experimental",
}
GETTERS = {name: getattr(torch._C, getter) for name, getter in FLAGS.items() if hasattr(torch._C, getter)}
FP32_PRECISION = getattr(torch._C, "_get_fp32_precision_getter", None)
PRECISIONS = [("generic", "all"), *((b, op) for b in ("cuda", "mkldnn") for op in ("all", "conv", "rnn", "matmul"))]


def take(deep: bool = False) -> State:
    """The state of the world; its keys are words for people. `deep`: also denormals in torch's worker threads, which
    must be woken for it: for a proof, not between timed calls."""
    # First, for it may start those threads, which are counted below.
    deeper: State = {DENORMALS: _workers_keep_denormals()} if deep else {}
    state: State = {
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "number of threads": torch.get_num_threads(),
        "number of interop threads": torch.get_num_interop_threads(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "allow TF32": (torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()),
        "modes of torch": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "random state": checksum(torch.get_rng_state()),
        # Doubles of Python are computed under the same control register.
        "denormals are kept": TINY * HALF != 0,
        "rounding": (ONE + LITTLE, -ONE - LITTLE, ONE + MORE),
        "clock": (time.perf_counter_ns is PERF_COUNTER_NS, time.process_time_ns is PROCESS_TIME_NS),
        "clocks of a GPU": _gpu_clocks() == GPU_CLOCKS,
        "replaced functions": REPLACED(),
        DEEDS: tuple(DONE),
        NOTES: repr(NOTED),
        **{name: _asked(get) for name, get in GETTERS.items()},
        **_of_python(),
        **_of_process(),
        **_of_tasks("self"),
    }
    if FP32_PRECISION:
        state["fp32 precision"] = tuple(_asked(FP32_PRECISION, *which) for which in PRECISIONS)
    if torch.cuda.is_initialized():
        state["current GPU"] = torch.cuda.current_device()
        state["current stream"] = torch.cuda.current_stream().cuda_stream
    return state | deeper


# How the process computes: what a long run itself leaves alone, whatever else it does.
ARITHMETIC = (
    *("default dtype", "number of threads", "number of interop threads", "grad mode", "inference mode", "autocast"),
    *("allow TF32", "modes of torch", "denormals are kept", "rounding", "fp32 precision", *GETTERS),
)

LEFT_ALONE = (*OF_FUNCTIONS, *HOOKS, *ARITHMETIC)  # by any kernel of a step, from before it was loaded on


def of(names: Iterable[str], state: State) -> State:
    """Some of a state, to be compared with a later one."""
    return {name: state[name] for name in names if name in state}


def _asked(get: Callable[..., object], *arguments: object) -> object:
    """A setting; torch raises where it was made in two ways that contradict each other, which is a change as well."""
    try:
        return get(*arguments)
    except RuntimeError as error:
        return f"an error ({str(error)[:60]})"


def _of_python() -> State:
    return {
        "Python threads": threading.active_count(),
        "profile function": (_name(GET_PROFILE()), _name(threading.getprofile())),
        "trace function": (_name(GET_TRACE()), _name(threading.gettrace())),
        "monitoring tools": tuple(MONITORING.get_tool(i) for i in TOOLS) if MONITORING else (),
        "garbage collection": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)),
        "switch interval": sys.getswitchinterval(),
        "working directory": _cwd(),
        "environment": frozenset(
            (k, v) for k, v in ENVIRONMENT.items() if not k.decode(errors="replace").startswith(NOT_THE_VARIANTS)
        ),
        "standard streams": (id(sys.stdin), id(sys.stdout), id(sys.stderr)),
        "signal handlers": tuple(_name(GET_SIGNAL(s)) for s in SIGNALS),
        "timers": tuple((name, *_timer(which)) for name, which in TIMERS.items()),
    }


ENVIRONMENT: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # not decoded each time
SIGNALS = sorted(signal.valid_signals())
# Of /proc/self/status, read as text: a mask in hexadecimal, a number.
STATUS = {"Umask": "umask", "VmLck": "locked memory", "NoNewPrivs": "no new privileges", "Seccomp": "seccomp"}
MASKS = {"SigBlk": "blocked signals", "SigIgn": "ignored signals", "SigCgt": "handled signals"}
# Libraries handle some (faults, a child's end; LLVM SIGUSR1 and 2, as it compiles); timers send these.
INTERRUPT = sum(1 << (s - 1) for s in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF))


def _of_process() -> State:
    state: State = {"limits": tuple((name, READ_LIMIT(which)) for name, which in LIMITS.items())}
    fields = _status()
    state |= {name: fields.get(key, "") for key, name in STATUS.items()}
    state |= {name: int(fields.get(key, "0"), 16) & INTERRUPT for key, name in MASKS.items()}
    state["process group"] = (GROUP_OF(0), SESSION_OF(0))
    state["stdout and stderr"] = tuple(_file_at(number) for number in (1, 2))
    state["POSIX timers"] = _read("/proc/self/timers").count(b"ID:")
    pid = os.getpid()
    state["child processes"] = len(_read(f"/proc/self/task/{pid}/children").split())
    return state


def _file_at(descriptor: int) -> tuple[int, int]:
    """Which file it is: device and inode."""
    with contextlib.suppress(OSError):  # it was closed
        found = STAT(descriptor)
        return found.st_dev, found.st_ino
    return 0, 0


def _of_tasks(pid: int | str) -> State:
    """Scheduling of a process's threads: how many, and the distinct policies, priorities and affinities of them."""
    tasks = [int(t) for t in LIST(f"/proc/{pid}/task")]
    policies, nices, affinities = set(), set(), set()
    for tid in tasks[:MOST_TASKS]:
        with contextlib.suppress(OSError):  # it ended
            policies.add((POLICIES.get(READ_POLICY(tid), READ_POLICY(tid)), READ_PRIORITY(tid).sched_priority))
            nices.add(READ_NICE(os.PRIO_PROCESS, tid))
            affinities.add(frozenset(READ_AFFINITY(tid)))
    state: State = {
        "native threads": len(tasks),
        "scheduler": frozenset(policies),
        "nice": frozenset(nices),
        "affinity": frozenset(affinities),
    }
    if any(name in os.environ for name in BINDS_THREADS):
        del state["affinity"]
    return state


def from_outside(pid: int) -> State:
    """Scheduling of another process's threads, as its parent sees it: what is said of it in there need not be true.

    Empty where there is no such process any more.
    """
    try:
        return _of_tasks(pid)
    except FileNotFoundError:
        return {}


def difference(before: State, after: State) -> str:
    """What changed, in words; "" for nothing. What only one of them has is not compared.

    Fewer threads or children than before are no change: they came to their end. Native threads are a matter of
    `late_work`: pools grow with the work.
    """
    changed = []
    done = set(cast(tuple[str, ...], after.get(DEEDS, ()))) - set(cast(tuple[str, ...], before.get(DEEDS, ())))
    for name, was in before.items():
        now = after.get(name, was)
        if was == now or name == POOLS or (name in MAY_GROW and now < was):  # type: ignore[operator]
            continue
        if (name == DEEDS and not done) or (name == NOTES and done):
            continue  # what was done says more than that it was noted, unless the note is gone
        changed.append(_told(name, was, now))
    more = f"; and {len(changed) - MOST_SHOWN} more" if len(changed) > MOST_SHOWN else ""
    return "; ".join(changed[:MOST_SHOWN]) + more


def settled(before: State) -> State:
    """`before` with the threads and children that there are now: for after the first calls of a shape."""
    now = {**_of_process(), **_of_tasks("self"), "Python threads": threading.active_count()}
    return {name: now[name] if name in MAY_GROW else value for name, value in before.items()}


def late_work(before: State, after: State) -> str:
    """Of two states, taken before calls and right after the clock stopped: what may still be working, in words.

    Both after `settled`: the calls' own pools are there in both.
    """
    told = []
    for name in MAY_GROW:
        was, now = before[name], after[name]
        if now > was:  # type: ignore[operator]
            told.append(f"{name}: {was} before, {now} after the clock stopped")
    told += [
        _told(name, before[name], after[name]) for name in ("timers", "POSIX timers") if before[name] != after[name]
    ]
    return "; ".join(told)


FEWEST_CALLS, SHORTEST_S, MORE_CORES = 8, 100e-6, 0.5


def cpu_over_wall(cpu_s: Iterable[float], wall_s: Iterable[float], threads: int, runtimes: int = 2) -> str:
    """Evidence that calls used more cores than `threads`; "" for none. `runtimes`: of their process, where it is
    known, the OpenMP runtimes (`trial/ran.py`).

    The rule: of at least 8 calls of at least 0.1 ms each, the median of CPU seconds over wall seconds is above
    threads + (runtimes − 1) · (threads − 1) + ½. Where torch and a kernel share an OpenMP runtime, they share a pool,
    and an honest call keeps `threads` threads busy at most; where each has its own, the other one's threads, which
    filled the outputs just before, may still be spinning. A thread is busy at most one second a second, so an honest
    call cannot reach the bound, whatever else the machine does (WallTimer has its time counted up to now). One more
    thread that works half the time stays below.
    """
    ratios = [c / w for c, w in zip(cpu_s, wall_s, strict=True) if w >= SHORTEST_S]
    if len(ratios) < FEWEST_CALLS:
        return ""
    ratio, bound = statistics.median(ratios), threads + (max(1, runtimes) - 1) * (threads - 1) + MORE_CORES
    if ratio <= bound:
        return ""
    return f"{ratio:.1f} cores were busy in a call (the median of {len(ratios)}), and it was given {threads}"


def _told(name: str, was: object, now: object) -> str:
    if isinstance(was, frozenset) and isinstance(now, frozenset):
        if name == "environment":  # values may be long, or nobody's business
            changed = sorted({k.decode(errors="replace") for k, _ in was ^ now})
            return f"environment variables changed: {', '.join(changed[:MOST_SHOWN])}"
        gone, new = _short(sorted(map(_plain, was - now))), _short(sorted(map(_plain, now - was)))
        return f"{name} went from {gone or 'more'} to {new or 'less'}"
    if isinstance(was, tuple) and isinstance(now, tuple):
        if name == DEEDS:
            return f"its own code called {_short([n for n in now if n not in was])}"
        if name == "replaced functions":
            return f"functions were replaced: {_short([n for n in now if n not in was] or ['back'])}"
        if len(was) == len(now) > 1:
            at = next(i for i, (a, b) in enumerate(zip(was, now, strict=True)) if a != b)
            which = f" ({signal.Signals(SIGNALS[at]).name})" if name == "signal handlers" else ""
            was, now = was[at], now[at]
            return f"{name}{which} went from {was} to {now}"
    return f"{name} went from {was} to {now}"


def _plain(value: object) -> str:
    return str(sorted(value)) if isinstance(value, frozenset) else str(value)


def _short(names: list[str]) -> str:
    return ", ".join(names[:MOST_SHOWN]) + (" …" if len(names) > MOST_SHOWN else "")


def _name(value: object) -> str:
    """Of a handler or hook: which one it is, without an address that the evidence would be full of."""
    if value is None or isinstance(value, int):
        return str(value)
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}".lstrip(".")


def _timer(which: int) -> tuple[bool, float]:
    """Whether it runs, and its interval: the seconds that are left change by themselves."""
    left, interval = GET_TIMER(which)
    return left > 0, interval


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _status() -> dict[str, str]:
    lines = _read("/proc/self/status").decode(errors="replace").splitlines()
    return {key: rest.strip() for key, _, rest in (line.partition(":") for line in lines)}


@functools.cache
def _denormals(threads: int) -> torch.Tensor:
    """So many numbers that each of the threads has a share, and denormals in it."""
    made = torch.ones(max(2, threads) * PARALLEL)
    made[::SPARSE] = 1e-40
    return made


def _workers_keep_denormals() -> bool:
    """All threads halve their share; this one looks at the results: threads are woken once."""
    halved = _denormals(torch.get_num_threads()) * HALF
    return all(bool(part.ne(0).all()) for part in halved.split(ALONE))


# --- whose functions they are ---


@dataclass(frozen=True)
class Names:
    """A namespace and what was in it that matters, in parallel tuples, so that comparing them is quick."""

    of: str
    owner: object
    names: tuple[str, ...]
    things: tuple[object, ...]
    now: Callable[[Any], tuple[object, ...]]  # of the namespace: what is under those names. Raises KeyError
    known: frozenset[str]  # all names that were there


REPLACED: Callable[[], tuple[str, ...]] = tuple  # names of what is not what it was at `bind`
CALLABLE = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
CALLABLE += (types.MethodType, types.GetSetDescriptorType, type, property, staticmethod, classmethod)  # type: ignore[assignment]
# Whoever puts a list of its own class in the place of one is called when the harness looks into it.
HELD = (*CALLABLE, dict, list, set, itertools.count)


# Of Python's own library what the harness calls around a call: whoever replaces one of these is called after the clock
# stopped, and before anybody looks. With the classes of its own, of those that have some.
STANDARD = (
    time,
    os,
    posix,
    signal,
    _signal,
    threading,
    gc,
    zlib,
    builtins,
    math,
    operator,
    itertools,
    mmap,
    statistics,
)
WITH_CLASSES = (contextlib, functools, random, secrets, collections, dataclasses)


def bind() -> None:
    """Note which functions the harness, and what it stands on, are made of now. Whatever is replaced later shows."""
    global REPLACED
    owners: list[tuple[str, object]] = [(m.__name__, m) for m in (*STANDARD, *WITH_CLASSES, sys)]
    owners += [(f"{m.__name__}.{c.__qualname__}", c) for m in WITH_CLASSES for c in _classes(m)]
    owners += [("pathlib.Path", Path), ("torch", torch)]
    owners += [("Connection", multiprocessing.connection.Connection), ("torch.Tensor", torch.Tensor)]
    owners += [("torch.Tensor", torch._C.TensorBase)]
    for name, module in sorted(sys.modules.items()):
        if name == "bench" or name.startswith("bench."):
            owners += [(name, module), *((f"{name}.{c.__qualname__}", c) for c in _classes(module))]
    REPLACED = _comparer([names for names in itertools.starmap(_names, owners) if names.names])


def sealed() -> Callable[[], tuple[str, ...]]:
    """`REPLACED` as it is now. Whoever holds it where others cannot get at it, in a function that runs, asks what
    cannot be silenced: what `take` and `difference` say is worth as much as they are."""
    return REPLACED


def _classes(module: ModuleType) -> list[type]:
    return [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]


def _names(of: str, owner: object) -> Names:
    found = {n: v for n, v in vars(owner).items() if isinstance(v, HELD)}
    if of == "torch":  # its compiler replaces one, and what is private comes and goes
        found = {n: v for n, v in found.items() if n[0] != "_" and n != "manual_seed" and isinstance(v, CALLABLE)}
    if of == "sys":  # what shows errors is anybody's
        found = {n: v for n, v in found.items() if not n.endswith("hook")}
    if of == __name__:  # the one that is made here
        found.pop("REPLACED", None)
    names = tuple(found)
    # Of one name itemgetter would answer no tuple.
    now = operator.itemgetter(*names) if len(names) > 1 else lambda space: tuple(space[n] for n in names)
    return Names(of, owner, names, tuple(found.values()), now, frozenset(vars(owner)))


def _comparer(bound: list[Names]) -> Callable[[], tuple[str, ...]]:
    """What answers the names of all that is not what it was. It calls only what is bound here, and looks up nothing: a
    function that was replaced cannot be asked whether it was."""
    same, each, every, pair, sort, size = operator.is_, map, all, zip, type, len
    missing, modules, join = KeyError, sys.modules, tuple
    spaces = [(b, vars(b.owner), type(b.owner), len(b.known)) for b in bound]
    imported = [(b.of, b.owner) for b in bound if isinstance(b.owner, ModuleType) and b.of in sys.modules]
    functions = [(f"{b.of}.{n}", f) for b in bound for n, f in zip(b.names, b.things, strict=True)]
    cells = [(name, cell, held) for name, f in functions for cell, held in _cells(f)]
    hides = _hider()

    def replaced() -> tuple[str, ...]:
        found = []
        for names, space, kind, count in spaces:
            if sort(names.owner) is not kind:
                found.append(f"the class of {names.of}")
            if size(space) != count:
                found += [
                    f"{names.of}.{name}" for name in space if name not in names.known and hides(names.owner, name)
                ]
            try:
                if every(each(same, names.now(space), names.things)):  # == would ask whoever was put there
                    continue
            except missing:
                pass
            pairs = pair(names.names, names.things)
            found += [f"{names.of}.{name}" for name, thing in pairs if space.get(name) is not thing]
        found += [f"sys.modules[{name}]" for name, module in imported if modules.get(name) is not module]
        found += [f"what {name} closes over" for name, cell, held in cells if cell.cell_contents is not held]
        return join(found)

    return replaced


def _cells(function: object) -> list[tuple[types.CellType, object]]:
    """What a function closes over, and what is in it; a cell may still be empty."""
    found = []
    for cell in (function.__closure__ or ()) if isinstance(function, types.FunctionType) else ():
        with contextlib.suppress(ValueError):
            found.append((cell, cell.cell_contents))
    return found


def _hider() -> Callable[[object, str], bool]:
    look, has, are, kind, some, called = vars, hasattr, isinstance, type, any, callable
    module, of_python = ModuleType, builtins

    def hides(owner: object, name: str) -> bool:
        """Whether a new name hides what was found before: of a module a builtin; of a class an inherited one or, as a
        property does, one of its objects' own. Or whether Python itself looks for it, as for a destructor."""
        special = name[:2] == "__" == name[-2:]
        if are(owner, module):
            return has(of_python, name) and not special
        value = look(owner).get(name)
        if special:  # Python itself adds lists and dictionaries
            return called(value)
        return has(kind(value), "__set__") or some(has(base, name) for base in owner.__mro__[1:])  # type: ignore[attr-defined]

    return hides


# --- who sets what, while it is watched ---


@dataclass(frozen=True)
class Event:
    """A function that sets the world was called; `what` with its arguments, as far as they are plain."""

    what: str
    thread: str


EVENTS: list[Event] = []
DONE: dict[str, None] = {}  # in order: what a variant's own file did at any time, its import and first call included
NOTED = itertools.count()  # of such notes: who takes them away cannot count back
SEEN = itertools.count()  # the same of events
LOADED: list[str] = []  # libraries and symbols that a variant's own file asked ctypes for

# Attributes of modules that hold a function that sets the world. A function is replaced wherever it is found here.
PLACES: dict[ModuleType, tuple[str, ...]] = {
    torch: ("set_num_threads", "set_num_interop_threads", "set_flush_denormal", "to_dlpack", "from_dlpack"),
    torch._C: (
        "set_num_threads",
        "set_num_interop_threads",
        "set_flush_denormal",
        "_to_dlpack",
        "_to_dlpack_versioned",
        "_dispatch_library",
    ),
    torch.utils.dlpack: ("to_dlpack", "from_dlpack"),
    torch._C._autograd: ("_enable_record_function", "_disable_profiler"),
    torch.autograd: ("_enable_record_function",),
    os: (
        *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "setpriority", "nice", "umask", "chdir"),
        *("fork", "forkpty", "kill", "killpg", "posix_spawn", "posix_spawnp", "setpgid", "setsid"),
    ),
    _posixsubprocess: ("fork_exec",),  # which starts a program and asks no audit hook
    subprocess: ("_fork_exec",),
    signal: (
        *("setitimer", "alarm", "pthread_kill", "pthread_sigmask", "set_wakeup_fd", "raise_signal", "siginterrupt"),
        "pidfd_send_signal",
    ),
    _signal: (
        *("signal", "setitimer", "alarm", "pthread_kill", "set_wakeup_fd", "raise_signal", "siginterrupt"),
        "pidfd_send_signal",
    ),
    resource: ("setrlimit", "prlimit"),
    gc: ("enable", "disable", "freeze", "set_threshold"),
    sys: ("setswitchinterval", "setrecursionlimit"),
    time: ("clock_settime", "clock_settime_ns", "tzset"),
    _thread: ("start_new_thread", "start_new", "start_joinable_thread"),
    threading: ("_start_new_thread", "_start_joinable_thread"),
}
PLACES[posix] = PLACES[os]
# Those that open a file without Python, so that no audit hook hears of it: a path is the first of their arguments.
OPENERS: tuple[tuple[Any, str], ...] = (
    *((torch._C, "PyTorchFileWriter"), (torch, "from_file"), (torch.UntypedStorage, "from_file")),
)
# Setters of torch._C whose name has one of these; what only chooses among kernels (sdp) is the variant's own business.
SETS = (
    *("precision", "dtype", "deterministic", "tf32", "cudnn", "cublas", "mkldnn", "onednn", "nnpack", "qengine"),
    *("preferred_backend", "tensor_type", "carveout"),
)
AUDITED = {
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.kill", "os.killpg", "subprocess.Popen", "signal.pthread_kill"),
    *("os.system", "os.exec", "fcntl.flock", "fcntl.lockf"),  # programs, and locks that others wait for
    *(
        "sys.setprofile",
        "sys.settrace",
        "sys._current_frames",
        "sys.addaudithook",
        "gc.get_objects",
        "gc.get_referrers",
    ),
    *("resource.setrlimit", "resource.prlimit", "sys.monitoring.register_callback"),
}
STANDARD_LIBRARY, SITE = sysconfig.get_path("stdlib") + os.sep, ("site-packages", "dist-packages")
# Where PyTorch and Triton lie: who builds them by hand, or names them by PYTHONPATH, does not have them among the
# installed packages.
LIBRARIES = {
    name: Path(found.origin).parent
    for name in ("torch", "triton")
    if (found := importlib.util.find_spec(name)) and found.origin
}
SETS_AN_ATTRIBUTE, READS_AN_ATTRIBUTE = "object.__setattr__", "object.__getattr__"  # told of few of them
OF_CODE = ("__code__", "__defaults__", "__kwdefaults__", "__bases__")
OF_FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
BY_ADDRESS = ("ctypes.cdata", "ctypes.cdata/buffer", "ctypes.string_at", "ctypes.wstring_at", "ctypes.call_function")
TO_BUILD = ("subprocess.Popen", "os.posix_spawn", "fcntl.flock", "fcntl.lockf")
LOOKS_UP, LOOK_UP_FOR_OTHERS = "sys._getframe", (f"{os.sep}inspect.py", f"{os.sep}traceback.py")
STARTS_THREADS = ("start_new", "start_new_thread", "start_joinable_thread")
STARTS_PROGRAMS = ("fork_exec",)
THREAD = "a thread's start (torch's threads, OpenMP's, or C++ that joins its own may compute; Python's may not)"
PROGRAM = "a program's start (torch.utils.cpp_extension and the launchers in kernels/ may start compilers)"
# That can be done to another process: nobody's business at any time, while a variant prepares too.
TO_OTHERS = ("sched_setaffinity", "sched_setscheduler", "sched_setparam", "setpriority", "pidfd_send_signal")
REGISTERS, OF_TORCH = "dispatch_library", ("aten", "prims", "_")  # operators, in these namespaces of torch's
OPENS, MOVES = (
    "open",
    ("os.rename", "os.remove", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown", "os.utime"),
)
OPENS_A_DATABASE = "sqlite3.connect"
HEARD = frozenset(
    AUDITED
    | {LOOKS_UP, SETS_AN_ATTRIBUTE, READS_AN_ATTRIBUTE, OPENS, OPENS_A_DATABASE, *MOVES}
    | {"ctypes.dlopen", "ctypes.dlsym", "ctypes.dlsym/handle", *BY_ADDRESS}
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MADE: set[str] = set()  # files that this process was seen to make
# Folders of the cache that the harness, its launchers and compilers alone write to: what is found there is believed.
OURS = frozenset({"yards", "cpu", "cuda", "cupy", "core", "simulate", "resources", "messages", "data"})
OURS_BEGIN = ("shards-", "triton")
# Files that are believed wherever they lie: records, and what Python runs at its start.
BELIEVED = ("records.jsonl", "env.json", "train.jsonl", "sitecustomize.py", "usercustomize.py")
ROOTS = (HOME, Path(__file__).parents[2])  # as Python names files, which a link may lead to
# Where packages are installed, not any folder of such a name; and what a variant's file is called, wherever it lies.
PACKAGES = tuple(f"{p}{os.sep}" for p in dict.fromkeys(p for p in sys.path if os.path.basename(p) in SITE))
VARIANT = re.compile(rf"/(?:{'|'.join(BACKENDS)})/(?:{'|'.join(contract.layer_names())})/[^/]*$")
SETS_HOOKS = (threading.__file__, *(f"{root}{os.sep}bench{os.sep}" for root in ROOTS))
MARK = "_notes_its_calls"


def _see(what: str) -> None:
    next(SEEN)
    EVENTS.append(Event(what, _thread_name()))


def _note(what: str) -> None:
    next(NOTED)
    DONE[what] = None


def guard() -> None:
    """Replace the functions that set the world by ones that note it first, and bind what there is then.

    Once a process, before a variant is imported; again does no harm, and binds anew.
    """
    _listen()
    for module, names in PLACES.items():
        for name in names:
            _note_calls(module, name)
    for name in dir(torch._C):
        if name.startswith("_set_") and any(word in name for word in SETS):
            _note_calls(torch._C, name)
    for owner, name in OPENERS:
        setattr(owner, name, _telling_files(getattr(owner, name)))
    for place, name, prop in _properties():
        prop.setter = _noting(prop.setter, f"{place}.{name}")
    bind()


def _properties() -> Iterator[tuple[str, str, Any]]:
    """The settings of torch.backends that are attributes and hold the setter they were given: (module, name, it)."""
    for module in [m for n, m in sorted(sys.modules.items()) if n.startswith("torch.backends.")]:
        for name, value in vars(type(module)).items():
            if isinstance(value, torch.backends.ContextProp):
                yield module.__name__, name, value


@functools.cache
def _listen() -> None:
    # Python writes what it compiled of a module that a variant imports for the first time: that would be the variant's.
    sys.dont_write_bytecode = True
    sys.addaudithook(_hook())  # there is no way to take it back


def _note_calls(module: ModuleType, name: str) -> None:
    if callable(function := getattr(module, name, None)):
        place = module.__name__.lstrip("_").replace("posix", "os").replace("torch._C", "torch")
        setattr(module, name, _noting(function, f"{place}.{name}"))


def _noting(function: Callable[..., object], what: str) -> Callable[..., object]:
    """The function, but each call of it is noted; the same one where it is so already."""
    if hasattr(function, MARK):
        return function

    name = what.rpartition(".")[2].lstrip("_")
    starts = THREAD if name in STARTS_THREADS else PROGRAM if name in STARTS_PROGRAMS else ""

    def noting(*arguments: object, **keywords: object) -> object:
        if name == REGISTERS:
            _registers(arguments, sys._getframe(1))
            return function(*arguments, **keywords)
        if starts == PROGRAM and _trusted(_asks(sys._getframe(1))):
            return function(*arguments, **keywords)  # a launcher builds for a shape that it meets for the first time
        _see(f"{what}({_arguments(arguments)})")
        if (starts or _to_another(name, arguments)) and not _trusted(_asks(sys._getframe(1))):
            _note(starts or f"{what} of another process")
        return function(*arguments, **keywords)

    noting.__name__ = noting.__qualname__ = what.rpartition(".")[2]
    noting.__doc__ = getattr(function, "__doc__", None)
    setattr(noting, MARK, True)
    return noting


def _telling_files(function: Callable[..., object]) -> Callable[..., object]:
    """The function, but of the file that it opens is heard as of Python's own."""
    if hasattr(function, MARK):
        return function

    def opening(*arguments: object, **keywords: object) -> object:
        if arguments and isinstance(arguments[0], str | bytes | os.PathLike):
            shared = keywords.get("shared", arguments[1] if len(arguments) > 1 else False)
            flags = os.O_RDONLY if opening.__name__ == "from_file" and not shared else os.O_RDWR
            if _of_interest(told := (arguments[0], None, flags)):
                _heard(OPENS, told, sys._getframe(1))
        return function(*arguments, **keywords)

    opening.__name__ = opening.__qualname__ = getattr(function, "__name__", "")
    setattr(opening, MARK, True)
    return opening


def _to_another(name: str, arguments: tuple[object, ...]) -> bool:
    """Whether a function that sets a process's scheduling, or sends it a signal, is asked to do so to another one."""
    if name not in TO_OTHERS:
        return False
    whom = arguments[1:2] if name == "setpriority" else arguments[:1]
    if name == "pidfd_send_signal" or not whom or not isinstance(whom[0], int):
        return True
    return whom[0] != 0 and not os.path.exists(f"/proc/self/task/{whom[0]}")


def _registers(arguments: tuple[object, ...], frame: types.FrameType | None) -> None:
    """Note who puts operators of its own in the place of torch's, which the harness computes with too. Torch's own
    files do, when they are imported."""
    while frame and frame.f_code.co_filename == torch.library.__file__:
        frame = frame.f_back
    theirs = frame is not None and not frame.f_code.co_filename.startswith(str(Path(torch.__file__).parent) + os.sep)
    if theirs and str(arguments[0]) == "IMPL" and str(arguments[1]) in OF_TORCH:
        _note(f"torch.library to replace operators of {arguments[1]}")


def _arguments(values: tuple[object, ...]) -> str:
    plain = (bool, int, float, str, type(None), torch.dtype)
    return ", ".join(repr(v)[:40] if isinstance(v, plain) else type(v).__name__ for v in values[:4])


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    """What it does itself is audited as well: such a call of it, inside the first, is over at once."""
    inside: set[int] = set()  # threads that are in it; nobody else can say that they are

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in HEARD or (event == OPENS and not _of_interest(arguments)):
            return
        thread = _thread.get_ident()
        if thread in inside:
            return
        inside.add(thread)
        try:
            _heard(event, arguments, sys._getframe(1))
        finally:
            inside.discard(thread)

    return audited


def _heard(event: str, arguments: tuple[Any, ...], frame: types.FrameType) -> None:
    """Note an event of Python's that `frame` raised: for `Watch`, and for good where a variant's own file did it."""
    if event == OPENS_A_DATABASE:
        event, arguments = OPENS, (arguments[0], None, os.O_RDWR)
    asks, what = _asks(frame), event
    if event.startswith("ctypes."):
        return _loads(event, arguments, asks)
    if event == OPENS or event in MOVES:
        if not _trusted(asks):
            _touches(event, arguments)
        elif not _trusted(_asks(frame, through=True)):
            _touches(event, arguments, through=True)
        return None
    if event == READS_AN_ATTRIBUTE and arguments[1] not in OF_FRAMES:
        return None
    if event in (LOOKS_UP, READS_AN_ATTRIBUTE):  # Python's library does for its own ends, named tuples say
        file = frame.f_code.co_filename
        if _trusted(file) or (_of_python_itself(file) and not file.endswith(LOOK_UP_FOR_OTHERS)):
            return None
    elif event.startswith("sys.set") and frame.f_code.co_filename.startswith(SETS_HOOKS):
        return None  # a thread that starts under a profile function sets it; so does the harness, to look
    elif event == SETS_AN_ATTRIBUTE:  # told of few attributes only
        owner, name = arguments[:2]
        if name not in OF_CODE and not (name == "__class__" and isinstance(owner, torch.Tensor | ModuleType)):
            return None
        of = getattr(owner, "__qualname__", "a module" if isinstance(owner, ModuleType) else "a tensor")
        what = f"{name} of {of} replaced"
    elif event == READS_AN_ATTRIBUTE:
        what = f"looks at frames by {arguments[1]}"
    if event in TO_BUILD and _trusted(asks):
        return None  # a launcher builds for a shape that it meets for the first time
    if event not in (LOOKS_UP, READS_AN_ATTRIBUTE):
        _see(what)
    if not _trusted(asks):
        _note(what)
    return None


OF_OTHERS = ("/proc/", "/dev/shm/", "/dev/mem")


def _of_interest(arguments: tuple[Any, ...]) -> bool:
    """Of a file that is opened: whether it is written to, or may be another process's. Most are neither."""
    path, _, flags = arguments
    if isinstance(path, int) or not isinstance(flags, int):
        return False
    return bool(flags & WRITES) or os.fsdecode(path).startswith(OF_OTHERS)


def _touches(event: str, arguments: tuple[Any, ...], through: bool = False) -> None:
    """Note for good what a variant's own file does to files that are not its own: those of other processes, and any
    that it writes to, other than what it makes itself in the folders for that (temporary ones, the cache). through: it
    asked a package to, which may keep what it likes, but nothing where the harness or Python looks for its own."""
    for path in _paths(event, arguments):
        if event == OPENS and not arguments[2] & WRITES:
            if not through and _of_another_process(path):
                _note(f"open({'/'.join(path.split('/')[:3])}…), which is another process's")
            continue
        if path == os.devnull or path in MADE:
            continue
        real = os.path.realpath(path)
        if _believed(real) if through else os.path.lexists(path) or not _free_to_make(real):
            _note(f"{event} to change {os.path.basename(path)[:60]}, which is not its own")
        else:
            MADE.add(path)


# Of what moves: how many paths are told, and at which places the descriptors of the folders that they are in.
MOVED = {"os.rename": (2, (2, 3)), "os.link": (2, (2, 3)), "os.symlink": (2, ()), "os.remove": (1, (1,))}


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Absolute ones."""
    count, places = MOVED.get(event, (1, ()))
    found = []
    for i, told in enumerate(arguments[:count]):
        if isinstance(told, str | bytes | os.PathLike):
            folder = arguments[places[i]] if i < len(places) and places[i] < len(arguments) else -1
            inside = isinstance(folder, int) and folder >= 0
            found.append(os.path.abspath(os.path.join(_folder_of(folder) if inside else "", os.fsdecode(told))))
    return found


def _folder_of(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


def _temporary_folder() -> str:
    with contextlib.suppress(OSError):  # there may be none to write to
        return os.path.realpath(tempfile.gettempdir())
    return ""


# Found before anybody listens: to find it Python opens files, under a lock that whoever hears of it would wait for.
TEMPORARY = _temporary_folder()


def _free_to_make(path: str) -> bool:
    """Whether a file that is made there is nobody's: a temporary one, or in the cache, in a folder of its own."""
    if inside := _in_the_cache(path):
        return len(inside) > 1 and inside[0] not in OURS and not inside[0].startswith(OURS_BEGIN)
    temporary = bool(TEMPORARY) and path.startswith(f"{TEMPORARY}{os.sep}")
    return temporary and not _in_the_program(path)


def _believed(path: str) -> bool:
    """Whether a file is one that the harness, or Python as it starts, would take for its own."""
    if inside := _in_the_cache(path):
        return len(inside) == 1 or inside[0] in OURS or inside[0].startswith("shards-")
    own = _in_the_program(path) and not path.startswith(PACKAGES)
    return own or path.endswith(".pth") or os.path.basename(path) in BELIEVED


def _in_the_cache(path: str) -> list[str]:
    """The parts of a path below the cache; none of another."""
    cache = os.path.realpath(cache_dir()) + os.sep
    return path.removeprefix(cache).split(os.sep) if path.startswith(cache) else []


def _in_the_program(path: str) -> bool:
    return any(path.startswith(f"{root}{os.sep}") for root in ROOTS)


def _of_another_process(path: str) -> bool:
    """/proc/<a number>, but for its own, and there too memory and open files; shared memory by its name."""
    parts = path.split("/")
    if parts[1] != "proc":
        return path.startswith(OF_OTHERS)
    if parts[2] in ("self", "thread-self", str(os.getpid())):
        return bool({"mem", "fd", "map_files"} & set(parts[3:]))
    return parts[2].isdigit()


def _thread_name() -> str:
    return "main" if _thread.get_ident() == threading.main_thread().ident else "another"


# Functions of the system's own libraries that nobody needs to compute.
SETS_THE_SYSTEM = (
    *("sched_", "setpriority", "nice", "prctl", "setrlimit", "mlock", "omp_set", "pthread_", "fork", "kill", "ptrace"),
    *("setitimer", "timer_", "alarm", "clock_", "signal", "sigaction", "PyEval", "PyThreadState"),
)
SYSTEMS = ("libc.", "libm.", "libgomp.", "libpthread.", "libdl.", "librt.", "libstdc++.", "libgcc_s.")


def _loads(event: str, arguments: tuple[Any, ...], asks: str) -> None:
    """Note a library, or a function of one, that code of nobody's asked ctypes for: it is neither the harness's nor an
    installed package's. A library built by `kernels` or lying beside the file that asks is the variant's own."""
    if _trusted(asks):
        return
    if event in BY_ADDRESS:
        _note(f"{event}: memory by its address")
    elif event == "ctypes.dlopen":
        name = os.fsdecode(arguments[0]) if arguments[0] else ""
        folders = (str(cache_dir()), os.path.dirname(asks))
        own = os.path.isabs(name) and any(os.path.realpath(name).startswith(os.path.realpath(f) + "/") for f in folders)
        if name and not own and not os.path.basename(name).startswith(SYSTEMS):
            LOADED.append(f"{os.path.basename(name)} by ctypes")
    elif event == "ctypes.dlsym" and len(arguments) > 1 and str(arguments[1]).startswith(SETS_THE_SYSTEM):
        LOADED.append(f"{arguments[1]} by ctypes")
        _note(LOADED[-1])


def _asks(frame: types.FrameType | None, through: bool = False) -> str:
    """The file that asks for what happens in `frame`: the innermost that is not Python's own library's; "" for none.
    through: nor an installed package's, nor what `kernels` offers all variants to write files with."""
    while frame and _asks_for_others(frame.f_code.co_filename, through):
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""


@functools.lru_cache(maxsize=4096)
def _asks_for_others(file: str, through: bool) -> bool:
    return _of_python_itself(file) or file == __file__ or (through and (_installed(file) or file == kernels.__file__))


@functools.lru_cache(maxsize=1024)
def _of_python_itself(file: str) -> bool:
    return file.startswith((STANDARD_LIBRARY, "<frozen ")) and not any(f"{os.sep}{s}{os.sep}" in file for s in SITE)


@functools.lru_cache(maxsize=1024)
def _trusted(file: str) -> bool:
    """Whether a file is the harness's, what a backend's variants share, or an installed package's; "" is nobody's."""
    if not file:
        return True
    for root in ROOTS:
        if file.startswith(f"{root}{os.sep}kernels{os.sep}"):
            return len(Path(file).relative_to(root).parts) <= 3
        if file.startswith(f"{root}{os.sep}bench{os.sep}"):
            return True
    return _installed(file)


def _installed(file: str) -> bool:
    """Whether a file is an installed package's, and no variant that one brings: that is somebody's own."""
    packages = file.startswith(PACKAGES) or any(map(Path(file).is_relative_to, LIBRARIES.values()))
    return packages and not VARIANT.search(file)


@dataclass
class Watch:
    """Notes who sets the world between its beginning and its end, in all threads; it can be read meanwhile."""

    events: list[Event] = field(default_factory=list)

    def __enter__(self) -> "Watch":
        self._start, self._seen = len(EVENTS), repr(SEEN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.events = EVENTS[self._start :]
        if not self.events and repr(SEEN) != self._seen:
            self.events = [Event("took away what was noted of it", _thread_name())]
        if threading.current_thread() is threading.main_thread():
            del EVENTS[self._start :]  # a call that sets something each time would fill the memory

    def evidence(self) -> str:
        """What was set, in words; "" for nothing."""
        what = list(dict.fromkeys(e.what for e in self.events))
        more = f" and {len(what) - MOST_SHOWN} more" if len(what) > MOST_SHOWN else ""
        # An honest author puts it back, as `with sdpa_kernel(...)` does.
        why = "; it is set for the whole process, whose it stays: call an operator that needs no setting"
        why = why if any(one.startswith("torch.") for one in what) else ""
        return f"called {', '.join(what[:MOST_SHOWN])}{more}{why}" if what else ""
