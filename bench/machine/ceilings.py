"""How fast this machine was seen to go: bandwidth and matmul ceilings, measured once and remembered.

    c = ceilings()                        # measured the first time (about 10 s), then read from a file
    c.bytes_per_s["copy"], c.flops_per_s["bf16"]
    floor_seconds(bytes, flops, dtype, c)  # the least time that the ceilings allow: what "of ceiling" is against
    impossible(seconds, …)                 # why a time cannot be true, or None

Bandwidths count the bytes that the operation needs: read N, copy 2N, triad 3N (two read, one written). The line that a
plain store fetches before it overwrites it is not counted; streaming stores do not fetch it, and the better of
both is the ceiling. Arrays are at least four times the last-level caches. A matmul counts 2 n^3.

A ceiling is the best repetition (what the machine can do), `spread` the interquartile range over the median of all
repetitions (how often it does). `sustained` is the median matmul rate of back-to-back calls.

On a GPU events time each call (bench.machine.devices), from a cold cache; there `sustained` is over seconds without a
pause, in which clocks and power settle, and the burst is of single calls.
"""

import functools
import hashlib
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from bench.core import files, stats
from bench.machine import facts
from bench.machine.devices import SPAN, Device, open_device
from kernels import Unavailable, cache_dir
from kernels.cpu import CompileError, Kernel, find_compiler
from kernels.cpu.matmul import simd

LOOK_SECONDS = 300.0  # between two looks at the bandwidth
BANDWIDTH_ROUNDS = 12  # at least
BANDWIDTH_SECONDS = 1.5  # and at least: among neighbours, the best of many is what counts
SEEN = 1 << 22  # elements that are seen to be copied
MATMUL_SIZES = (512, 1024, 2048)  # the small one fits between two turns of a neighbour
MATMUL_SECONDS = 0.6  # for each size
MATMUL_DTYPES = ("fp32", "bf16")
GPU_MATMUL_SIZES = (2048, 4096, 8192, 16384)  # those that fit into an eighth of the free memory, the largest two
GPU_ARRAY_BYTES = 1 << 30  # or 20 times the L2 cache, and at most an eighth of the free memory
SUSTAINED_SECONDS, GROUP_SECONDS = 2.0, 0.1  # of back-to-back matmuls, and of those timed together
UNKNOWN_CACHE_BYTES = 64 << 20  # where the machine does not say how large its caches are
FORMAT = 2  # of the file; another one is measured anew


@dataclass
class Ceilings:
    """Bytes/s by operation and flop/s by dtype; all of one device. What could not be measured is missing."""

    device: str  # "cpu", or the GPU's name
    bytes_per_s: dict[str, float]  # read, copy, triad
    flops_per_s: dict[str, float]  # burst: the best call
    sustained_flops_per_s: dict[str, float]
    spread: dict[str, float]  # by all names above: interquartile range / median
    how: dict[str, str]  # which way won (plain or streaming stores), sizes
    cores: int  # usable ones, or streaming multiprocessors
    cache_bytes: int  # last-level cache of the device
    busy: str | None  # what else was going on during the measurement
    measured_at: str  # UTC, ISO 8601
    seconds: float  # what the measurement took
    isa: list[str] = field(default_factory=list)
    looked_at: float = 0.0  # seconds since the epoch: when the bandwidth was looked at again

    @property
    def best_bytes_per_s(self) -> float | None:
        return max(self.bytes_per_s.values(), default=None)

    @property
    def age_seconds(self) -> float:
        return (datetime.now(timezone.utc) - datetime.fromisoformat(self.measured_at)).total_seconds()


_memory: dict[str, Ceilings] = {}  # by device, so that a run asks the file once


def ceilings(refresh: bool = False, device: str = "cpu") -> Ceilings:
    """This machine's ceilings: from the file, or measured now (then a line on stderr says so).

    The file lies in the cache folder ($LAYERBENCH_CACHE) and is keyed by CPU, instruction sets, threads and torch.
    What was measured while other programs were at work is measured again once they are quiet, and until then every
    measurement can only raise it.
    """
    if device in _memory and not refresh:
        return _memory[device]
    known = _recall(device)
    if known is None or refresh or (known.busy and not facts.busy(facts.snapshot())):
        print("measuring the ceilings of this machine (about 10 s, kept for later)", file=sys.stderr, flush=True)
        measured = measure(device)
        known = higher(known, measured) if known and measured.busy else measured
        _keep(device, known)
    _memory[device] = known
    return known


def remembered(device: str = "cpu") -> Ceilings | None:
    """This machine's ceilings, of all its cores, where they were measured before; nothing is measured now.

    Whoever asks may have fewer threads than a command that measures has by itself, which is one a usable core, or one
    a physical core where two logical ones share it.
    """
    cpu = facts.cpu()
    found = (_recall(device, threads) for threads in (None, cpu["usable"], cpu["cores"]))
    return _memory.get(device) or next((known for known in found if known), None)


def higher(earlier: Ceilings, now: Ceilings) -> Ceilings:
    """The higher of two measurements in every figure: neighbours only ever take away. Quiet if either was."""
    merged = replace(now, busy=earlier.busy and now.busy, spread=dict(now.spread), how=dict(now.how))
    for name in ("bytes_per_s", "flops_per_s", "sustained_flops_per_s"):
        ours, theirs = getattr(now, name), getattr(earlier, name)
        setattr(merged, name, {k: max(ours.get(k, 0.0), theirs.get(k, 0.0)) for k in {**theirs, **ours}})
        for k in theirs:
            if name != "sustained_flops_per_s" and theirs[k] > ours.get(k, 0.0):
                merged.spread[k], merged.how[k] = earlier.spread[k], earlier.how[k]
    return merged


def look_again() -> None:
    """A short look at the CPU's bandwidth (a second or two): where it is higher than remembered, that counts from now.

    Done before a race, unless somebody looked a few minutes ago. On a shared machine memory is twice as fast at some
    times as at others, and a row must not stand beside a ceiling that was measured in a worse hour.
    """
    known = ceilings()
    ages = known.age_seconds, time.time() - known.looked_at  # below 0 where the clock was set back since
    if any(0 <= age < LOOK_SECONDS for age in ages):
        return
    found = _best_ways(_cpu_bandwidths(rounds=3, seconds=0.2, only={known.how.get(name) for name in known.bytes_per_s}))
    faster = {name: f for name, f in found.items() if f[0] > known.bytes_per_s.get(name, 0.0)}
    for name, (rate, spread, how) in faster.items():
        known.bytes_per_s[name], known.spread[name], known.how[name] = rate, spread, how
    known.looked_at = time.time()
    _keep("cpu", known)


def cache_file() -> Path:
    return cache_dir() / "ceilings.json"


def _key(device: str, threads: int | None = None) -> str:
    """Of what a measurement depends on; threads: of torch, where not those that it has now."""
    c = facts.cpu()
    settings = facts.thread_settings()
    if threads or settings.get("OMP_NUM_THREADS") == str(settings["torch"]):
        settings.pop("OMP_NUM_THREADS", None)  # a command here that sets it for its libraries has torch take as many
    settings["torch"] = threads or settings["torch"]
    parts: list[object] = [FORMAT, c["model"], c["isa"], c["usable"], c["quota"], settings]
    parts += [facts.version("torch"), device]
    if device != "cpu":
        parts += [[gpu["name"] for gpu in facts.gpus()], "events"]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _recall(device: str, threads: int | None = None) -> Ceilings | None:
    """What is remembered. An entry that cannot be understood counts as none: measuring again is cheap."""
    try:
        return Ceilings(**files.recall(cache_file())[_key(device, threads)])
    except (KeyError, TypeError):
        return None


def _keep(device: str, known: Ceilings) -> None:
    try:
        files.remember(cache_file(), {_key(device): asdict(known)})
    except OSError as error:
        print(f"warning: ceilings are not kept: {files.cannot_write(cache_file(), error)}", file=sys.stderr)


# --- measuring ---


def measure(device: str = "cpu") -> Ceilings:
    """Measure now. On the CPU about 6 to 9 s; the threads are OpenMP's and torch's defaults."""
    start = time.perf_counter()
    busy = facts.busy(facts.snapshot())
    where = open_device(device)
    on_gpu = device != "cpu"
    bandwidths = _best_ways(_gpu_bandwidths(where) if on_gpu else _cpu_bandwidths())
    bytes_per_s = {name: rate for name, (rate, _, _) in bandwidths.items()}
    spread = {name: spread for name, (_, spread, _) in bandwidths.items()}
    how = {name: way for name, (_, _, way) in bandwidths.items()}
    burst, sustained = {}, {}
    for dtype in MATMUL_DTYPES:
        if on_gpu:
            best, calls, longest = "torch matmul", *_gpu_matmul_rates(dtype, where)
        else:
            # A ceiling is the best that anything reaches here, and torch's matmul is not always that.
            found = {name: _matmul_rates(dtype, multiply) for name, multiply in _matmuls().items()}
            best = max(found, key=lambda name: max(map(max, found[name].values())))
            calls = found[best]
            longest = calls[max(calls)]
        burst[dtype] = max(map(max, calls.values()))
        sustained[dtype], spread[dtype] = _median(longest), _spread(longest)
        how[dtype] = f"{best}, n = {', '.join(map(str, calls))}"
    where.release_unused()
    name, cores = where.chip()
    return Ceilings(
        device=name if on_gpu else "cpu",
        bytes_per_s=bytes_per_s,
        flops_per_s=burst,
        sustained_flops_per_s=sustained,
        spread=spread,
        how=how,
        cores=cores,
        cache_bytes=where.cache_bytes() if on_gpu else _cpu_cache_bytes(),
        busy=busy,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - start, 1),
        isa=[] if on_gpu else facts.cpu()["isa"],
    )


def _best_ways(rates: dict[str, list[float]]) -> dict[str, tuple[float, float, str]]:
    """{operation: (best rate, spread, way)} of the rates by way ("copy streaming")."""
    found = {}
    for name in ("read", "copy", "triad"):
        ways = [way for way in rates if way.partition(" ")[0] == name]
        if ways:
            best = max(ways, key=lambda way: max(rates[way]))
            found[name] = max(rates[best]), _spread(rates[best]), best
    return found


def _cpu_cache_bytes() -> int:
    """The largest caches: all L3, or where there is none, the L2 of all cores."""
    caches = facts.cpu()["cache_bytes"]
    return caches["L3"] or (caches["L2"] or 0) * facts.usable_cores() or UNKNOWN_CACHE_BYTES


def _cpu_bandwidths(
    rounds: int = BANDWIDTH_ROUNDS, seconds: float = BANDWIDTH_SECONDS, only: Collection[str | None] = ()
) -> dict[str, list[float]]:
    """Bytes/s of each repetition by way ("copy streaming"); through torch where there is no compiler. only: these ways,
    where there are any of them."""
    memory = facts.memory_bytes() or 2 << 30
    size = min(max(4 * _cpu_cache_bytes(), 64 << 20), memory // 16)
    n = size // 4 // 4096 * 4096
    a, b, out = (torch.empty(n) for _ in range(3))
    one = torch.empty(1)
    kernels = {
        name: Kernel("ceilings.cpp", "ceiling_" + name.replace(" ", "_"))
        for name in ("read", "copy", "copy streaming", "triad", "triad streaming")
    }
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "read": (1, lambda: kernels["read"](one, a, n)),
        "copy": (2, lambda: kernels["copy"](out, a, n)),
        "copy streaming": (2, lambda: kernels["copy streaming"](out, a, n)),
        "triad": (3, lambda: kernels["triad"](out, a, b, 0.5, n)),
        "triad streaming": (3, lambda: kernels["triad streaming"](out, a, b, 0.5, n)),
    }
    try:
        # The kernel that will use them touches the pages first, so that each lies near the thread that works on it.
        for array, other in ((a, out), (b, out), (out, a)):
            kernels["copy"](array, other, n)
        seen = min(n, SEEN)
        torch.arange(seen, out=a[:seen])
        kernels["copy"](out, a, seen)
        if not torch.equal(out[:seen], a[:seen]):
            raise RuntimeError("bench/machine/ceilings.cpp does not copy: its bandwidth means nothing")
    except (Unavailable, CompileError) as error:
        print(f"bandwidth is measured through torch: {str(error).splitlines()[0]}", file=sys.stderr)
        ways = {
            "read torch": (1, lambda: a.sum()),
            "copy torch": (2, lambda: out.copy_(a)),
            "triad torch": (3, lambda: torch.add(a, b, alpha=0.5, out=out)),
        }
    ways = {way: what for way, what in ways.items() if way in only} or ways
    rates: dict[str, list[float]] = {way: [] for way in ways}
    begin, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - begin < seconds:
        for way, (arrays, call) in ways.items():  # in turns: a slow spell must not hit one alone
            rates[way].append(arrays * 4 * n / _cpu_seconds(call))
        done += 1
    return rates


def _gpu_bandwidths(device: Device) -> dict[str, list[float]]:
    """The same on a GPU, through torch; arrays so large that nothing of them is cached when their turn comes again."""
    size = min(max(GPU_ARRAY_BYTES, 20 * device.cache_bytes()), device.free_bytes() // 8)
    a, b, out = (torch.randn(size // 4, device=device.place) for _ in range(3))
    total = torch.empty((), device=device.place)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "read": (1, lambda: torch.sum(a, dim=0, out=total)),
        "copy": (2, lambda: out.copy_(a)),
        "triad": (3, lambda: torch.add(a, b, alpha=0.5, out=out)),
    }
    for _, call in ways.values():
        call()
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(BANDWIDTH_ROUNDS):
        for way, (arrays, call) in ways.items():
            rates[way].append(arrays * a.nbytes / _gpu_seconds(device, call))
    return rates


def _gpu_matmul_rates(dtype: str, device: Device) -> tuple[dict[int, list[float]], list[float]]:
    """Flop/s of single calls by size, and of groups of back-to-back calls at the largest size."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    fitting = [n for n in GPU_MATMUL_SIZES if 3 * 4 * n * n <= device.free_bytes() // 8]
    burst: dict[int, list[float]] = {}
    sustained: list[float] = []
    for n in fitting[-2:] or GPU_MATMUL_SIZES[:1]:
        x, y = (torch.randn(n, n, device=device.place).to(kind) for _ in range(2))
        multiply = functools.partial(torch.matmul, x, y, out=torch.empty_like(x))
        multiply()
        device.synchronize()
        start = time.perf_counter()
        multiply()
        device.synchronize()
        group = max(1, int(GROUP_SECONDS / (time.perf_counter() - start)))
        calls: list[float] = []
        start = time.perf_counter()
        while len(calls) < 3 or time.perf_counter() - start < MATMUL_SECONDS:
            device.flush()
            calls.append(2 * n**3 / _gpu_seconds(device, multiply))
        burst[n], sustained = calls, []
        start = time.perf_counter()
        while len(sustained) < 3 or time.perf_counter() - start < SUSTAINED_SECONDS:
            sustained.append(2 * n**3 * group / _gpu_seconds(device, multiply, group))
    return burst, sustained[len(sustained) // 2 :]  # once it is as warm as it gets


Matmul = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]  # x (n, n), y (n, n), out (n, n)


def _matmuls() -> dict[str, Matmul]:
    """Ways to multiply on a CPU: torch's, and with a compiler this project's own."""
    ways: dict[str, Matmul] = {"torch matmul": lambda x, y, out: torch.matmul(x, y, out=out)}
    try:
        find_compiler()
    except Unavailable:
        return ways
    scratch: dict[tuple, torch.Tensor] = {}

    def own(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        n, dtype = len(x), {torch.float32: "fp32", torch.bfloat16: "bf16"}[x.dtype]
        if (n, dtype) not in scratch:
            shape = dict(M=n, N=n, K=n, epilogue="none", dgelu=False, dtype=dtype)
            scratch[n, dtype] = torch.empty(simd.workspace(shape, "forward"), dtype=torch.uint8)
        simd.forward(x, y, None, "none", out=out, pre_gelu=None, workspace=scratch[n, dtype])

    return {**ways, "cpu.simd matmul": own}


def _matmul_rates(dtype: str, matmul: Matmul) -> dict[int, list[float]]:
    """Flop/s of back-to-back calls by size. Values are normal: zeros would be faster than anything real."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    rates: dict[int, list[float]] = {}
    for n in MATMUL_SIZES:
        x, y = (torch.randn(n, n).to(kind) for _ in range(2))
        out = torch.empty_like(x)
        multiply = functools.partial(matmul, x, y, out)
        multiply()
        calls: list[float] = []
        start = time.perf_counter()
        while len(calls) < 3 or time.perf_counter() - start < MATMUL_SECONDS:
            calls.append(2 * n**3 / _cpu_seconds(multiply))
            if time.perf_counter() - start > 5 * MATMUL_SECONDS:  # a dtype that this CPU only emulates
                break
        rates[n] = calls
        if time.perf_counter() - start > 2 * MATMUL_SECONDS:
            break
    return rates


def _cpu_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _gpu_seconds(device: Device, call: Callable[[], object], calls: int = 1) -> float:
    with device.timer(SPAN) as timer:
        timer.start()
        for _ in range(calls):
            call()
        timer.stop()
    return timer.seconds[0]


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _spread(values: list[float]) -> float:
    return stats.noise(values)
