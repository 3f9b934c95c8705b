"""The world around a call: what makes other code compute otherwise, or seem to take another time.

    before = take()                        then a variant is imported, prepared and called for the first time
    before = settled(before)               what first calls may leave behind (pools of threads) is no change
    difference(before, take())             "" or what changed, in words

`take` reads the settings of torch, of Python and of the process, in about a millisecond, whose functions are still
what they were (bench/core/replaced.py), and what was done meanwhile (bench/core/deeds.py). What native code sets and
resets is not seen; what it leaves set is, and what it does with many more cores than it was given, by `cpu_over_wall`.
"""

import contextlib
import functools
import gc
import os
import resource
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import cast

import torch

from bench.core import deeds, replaced
from bench.core.arena import checksum
from bench.core.deeds import MOST_SHOWN

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
        "replaced functions": replaced.REPLACED(),
        DEEDS: tuple(deeds.DONE),
        NOTES: repr(deeds.NOTED),
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
