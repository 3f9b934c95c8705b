"""A look at this machine: what it is, what can run on it, how fast it goes, how well it measures."""

import atexit
import ctypes
import os
import random
import shutil
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import HOME, simulate
from bench.cli import CannotGoOn
from bench.core import BACKENDS, files, process, stats
from bench.core.evidence import one_line
from bench.core.process import Process, ProcessFailed
from bench.core.shared import ipc_of
from bench.machine import ceilings, facts
from bench.machine.ceilings import Ceilings
from bench.machine.devices import BUSY, Device, open_device
from kernels import Unavailable, cache_dir
from kernels.cpu import CompileError, build

# The A/A probe: one torch operation entered twice, in turns.
PROBE_SECONDS = 1.5
PROBE_TURN_SECONDS = 0.02
PROBE_ELEMENTS = 1 << 20  # 4 MB in, 4 MB out: some hundred microseconds

NEEDED_BYTES = 1 << 30  # results, builds and inductor's cache of a full run
CROWD = 1.5  # times the cores: so high a load is not ours alone, whose threads are no more than they
GOOD_NOISE = 0.05  # above this, only large differences can be told
WINDOW_BYTES, WINDOW_SECONDS = 1 << 20, 120.0


@dataclass
class Ability:
    """Something that can run here, or the reason why not and what would help."""

    name: str
    works: bool
    what: str


@dataclass
class Noise:
    """The A/A probe: how much an operation seems to differ from itself."""

    ratio: float
    low: float
    high: float
    rounds: int
    spread: float  # interquartile range / median of all samples
    median_s: float

    @property
    def floor(self) -> float:
        """The smallest relative difference that means something: the far end of the interval around 1."""
        return max(abs(self.low - 1), abs(self.high - 1))


@dataclass
class Place:
    """A folder that the project writes to."""

    name: str
    path: str
    writable: bool
    free_bytes: int | None


@dataclass
class Report:
    machine: facts.Machine
    state: facts.State
    abilities: list[Ability]
    ceilings: list[Ceilings]  # of the CPU, and of the GPU where there is one
    noise: Noise
    places: list[Place]
    verdict: list[str]  # the first sentence is the verdict, the others say what would help


def examine(refresh: bool = False) -> Report:
    """Look at everything, and measure: about 15 s the first time."""
    facts.snapshot()
    description = facts.describe()
    places = [look_at(*place) for place in folders()]
    try:
        files.need_cache()
    except CannotGoOn:  # this is where people look for the reason, so it goes on without
        places[-1].writable = False
        os.environ["LAYERBENCH_CACHE"] = folder = tempfile.mkdtemp(prefix="layerbench-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    noise = measure_noise()
    state = facts.snapshot()  # anew: what else ran while it was measured
    abilities = list_abilities()
    devices = ["cpu", "cuda"] if cuda_works().works else ["cpu"]
    found = [ceilings.ceilings(refresh, device) for device in devices]
    advice = verdict(state, noise, abilities, places, found[0], facts.cpu()["quota"])
    return Report(description, state, abilities, found, noise, places, advice)


# --- what can run ---


def list_abilities() -> list[Ability]:
    """Each backend and peer: whether it works here, and why not."""
    return [
        torch_works(),
        compile_works(),
        compiler_works(),
        vectors_work(),
        cuda_works(),
        *([profiler_works(open_device("cuda")), windows_work("cuda")] if cuda_works().works else []),
        triton_works(),
        cupy_works(),
        simulator_works(),
    ]


def torch_works() -> Ability:
    backends = "MKL" if torch.backends.mkl.is_available() else ""
    if torch.backends.mkldnn.is_available():
        backends = f"{backends}, oneDNN".strip(", ")
    if old := facts.too_old_a_torch():
        return Ability("torch", False, old)
    return Ability("torch", True, f"torch {torch.__version__}, {torch.get_num_threads()} threads, {backends}")


def compile_works() -> Ability:
    """torch.compile on the CPU needs a C++ compiler."""
    if not facts.compiler():
        return Ability("torch.compile", False, "needs a C++ compiler: apt-get install g++, or set CXX")
    return Ability("torch.compile", True, "inductor with the C++ compiler")


def compiler_works() -> Ability:
    """kernels/cpu: the compiler must not only exist but build something that loads."""
    compiler = facts.compiler()
    if not compiler:
        return Ability("cpu (C++)", False, "no C++ compiler: apt-get install g++, or set CXX")

    try:
        ctypes.CDLL(str(build(HOME / "bench" / "machine" / "ceilings.cpp", "-DT_FP32")))
    except (CompileError, OSError) as error:
        return Ability("cpu (C++)", False, f"{compiler} cannot build kernels: {str(error).strip().splitlines()[-1]}")
    return Ability("cpu (C++)", True, compiler)


def vectors_work() -> Ability:
    isa = facts.cpu()["isa"]
    wide = [name for name in isa if name in ("avx2", "avx512f", "neon", "sve", "sve2")]
    bf16 = [name for name in isa if name in ("amx_bf16", "avx512_bf16", "bf16")]
    if not wide:
        return Ability(
            "SIMD", False, "no AVX2, AVX-512 or NEON: vectorised kernels fall back to what the compiler makes"
        )
    return Ability("SIMD", True, f"{wide[-1]}; bf16 products by {bf16[0] if bf16 else 'widening to fp32'}")


def cuda_works() -> Ability:
    library, reason = facts.nvml()
    if library is None:
        return Ability("cuda", False, reason)
    names = ", ".join(gpu["name"] for gpu in facts.gpus())
    if not torch.cuda.is_available():
        return Ability("cuda", False, f"{names} is there, but this torch ({torch.__version__}) cannot use it")
    closed = facts.closed_gpus()
    if closed and len(closed) == len(facts.gpus()):
        told = f"{', '.join(closed)} lets one process in, and we are several: nvidia-smi -c DEFAULT"
        return Ability("cuda", False, told)
    try:
        open_device("cuda").synchronize()
    except RuntimeError as error:
        return Ability("cuda", False, f"{names} is there, and refuses: {one_line(error)}")
    return Ability("cuda", True, names)


def profiler_works(device: Device) -> Ability:
    """CUPTI says when kernels run, which GPU rows are ranked by, and whose they are."""
    try:
        with device.timer(BUSY) as timer:
            timer.start()
            torch.ones(1 << 20, device=device.place)
            timer.stop()
    except RuntimeError as error:
        return Ability("profiler", False, f"no row of a GPU can be had without it: {one_line(error)}")
    return Ability("profiler", True, f"sees kernels: {timer.kernels[0][0].name[:40]}, {timer.seconds[0] * 1e6:.1f} us")


class Other(process.Room):
    """A process that is shown memory of this one's on a GPU."""

    def total(self, device: str, name: str, size: int) -> int:
        ipc = ipc_of(open_device(device))
        assert ipc
        with ipc.opened(name, size) as memory:
            return int(memory.sum())


def windows_work(device: str) -> Ability:
    """Whether two processes can share the GPU's memory: the judge's way to what variants are given and leave."""
    slower = "inputs and outputs go through the host's memory, which takes longer"
    ipc = ipc_of(open_device(device))
    try:
        if ipc is None:
            return Ability("shared windows", False, f"no libcuda to ask; {slower}")
        window = ipc.window(WINDOW_BYTES)
        window.bytes.fill_(1)
        open_device(device).synchronize()
        with Process(Other, limit=WINDOW_SECONDS) as other:
            total = other.ask("total", device=device, name=window.name, size=len(window.bytes))
        right = total == len(window.bytes)
        window.close()
    except (OSError, ProcessFailed) as error:
        return Ability("shared windows", False, f"{one_line(error)}; {slower}")
    told = "another process reads this one's memory on the GPU"
    return Ability(
        "shared windows", right, told if right else "another process reads something else: CUDA IPC is broken"
    )


def triton_works() -> Ability:
    version = facts.version("triton")
    if not version:
        return Ability("triton", False, "not installed; it comes with `make setup` on Linux")
    if not cuda_works().works:
        return Ability("triton", False, f"triton {version} compiles, but needs an NVIDIA GPU to run")
    if not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
        return Ability("triton", False, f"triton {version} needs a C compiler for its launchers: apt-get install gcc")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return Ability(
            "triton", False, f"triton {version} compiles its launchers with Python.h: apt-get install python3-dev"
        )
    return Ability("triton", True, f"triton {version}")


def cupy_works() -> Ability:
    version = next((v for name in facts.CUPY if (v := facts.version(name))), None)
    if not version:
        return Ability("cupy", False, "not installed; kernels/cuda needs it: pip install '.[gpu]'")
    try:
        import cupy
    except (ImportError, OSError) as error:
        return Ability("cupy", False, f"cupy {version} cannot be imported: {one_line(error)}")

    # cupy imports without a driver and fails at first use.
    if not cupy.cuda.is_available():
        return Ability("cupy", False, f"cupy {version} is installed, but no NVIDIA driver answers")
    if reason := facts.too_old_a_driver(nvrtc_version()):
        return Ability("cupy", False, f"cupy {version} cannot load what NVRTC makes: {reason}")
    return Ability("cupy", True, f"cupy {version}")


def nvrtc_version() -> tuple[int, int] | None:
    """What compiles kernels/cuda; None where it is not installed."""
    from kernels.cuda import compiler

    try:
        major, minor = compiler.version().partition(" ")[0].split(".")
    except Unavailable:
        return None
    return int(major), int(minor)


def simulator_works() -> Ability:
    """Whether GPU kernels are proved and counted without a GPU, backend by backend."""
    reasons = {backend: simulate.unavailable(backend, ()) for backend, b in BACKENDS.items() if b.gpu_code}
    able = [backend for backend, reason in reasons.items() if reason is None]
    unable = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items() if reason)
    told = f"proves and counts {' and '.join(able)} kernels without a GPU, times nothing" if able else ""
    return Ability("simulator", bool(able), "; ".join(part for part in (told, unable) if part))


# --- how well it measures ---


def measure_noise() -> Noise:
    """Time one torch operation as two contestants, in turns of random order, and compare them."""
    x = torch.randn(PROBE_ELEMENTS)
    out = torch.empty_like(x)
    order = random.Random(0)
    rounds: tuple[list[list[float]], list[list[float]]] = ([], [])
    torch.mul(x, 1.5, out=out)
    begin = time.perf_counter()
    while len(rounds[0]) < 3 or time.perf_counter() - begin < PROBE_SECONDS:
        turns = [0, 1]
        order.shuffle(turns)
        for turn in turns:
            rounds[turn].append([])
            turn_begin = time.perf_counter()
            while not rounds[turn][-1] or time.perf_counter() - turn_begin < PROBE_TURN_SECONDS:
                start = time.perf_counter()
                torch.mul(x, 1.5, out=out)
                rounds[turn][-1].append(time.perf_counter() - start)
    ratio, low, high = stats.paired_ratio_ci(*rounds)
    both = [*rounds[0], *rounds[1]]
    return Noise(ratio, low, high, len(rounds[0]), stats.noise(both), stats.median_ci(both)[0])


# --- where it writes ---


def folders() -> list[tuple[str, Path]]:
    return [("results", Path("runs")), ("cache of builds and ceilings", cache_dir())]


def look_at(name: str, folder: Path) -> Place:
    """Whether `folder` can be made and written to, tried on the nearest folder that exists."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        free = None
    return Place(name, str(folder), writable, free)


# --- what to make of it ---


def verdict(
    state: facts.State,
    noise: Noise,
    abilities: list[Ability],
    places: list[Place],
    found: Ceilings,
    quota: float | None = None,
) -> list[str]:
    """Sentences to act on; the first one says what this machine is good for now. quota: cores' worth of time."""
    busy = facts.busy(state) or crowded(state)
    floor = f"±{noise.floor:.1%}" if noise.floor < 0.1 else f"±{noise.floor:.0%}"
    load = f"load {state['load']}"
    seen = f"{load} on {state['cores']} cores"
    if busy:
        seen = busy if load in busy else f"{busy}; {seen}"
    if noise.floor > 0.5:
        first = f"no good for comparisons now: an operation differs from itself by {floor}; {seen}"
    elif busy:
        first = f"good only for differences above {floor} now: {seen}"
    elif noise.floor > GOOD_NOISE:
        first = f"good only for differences above {floor}: nothing else seems to run ({seen}), but the times spread"
    else:
        first = f"good for differences above {floor}; {seen}"
    sentences = [first]
    if busy:
        sentences.append("close the other programs or wait, and run this again; ratios inside one run stay usable")
    elif noise.floor > GOOD_NOISE:
        sentences.append(
            "fix the frequency (cpupower frequency-set -g performance) or use --processes 2 and more --seconds"
        )
    if quota and quota < state["cores"]:
        may = f"a time limit lets {state['cores']} cores work for {quota:g}, and stops them all when that is used up"
        sentences.append(f"{may}: --threads {max(int(quota), 1)}")
    if found.busy and not busy:
        sentences.append("the ceilings were measured on a busy machine: python -m bench.doctor --refresh")
    if state["throttled"]:
        sentences.append(f"the CPU has slowed down for heat {state['throttled']} times since it was started")
    broken = [a for a in abilities if not a.works and a.name in ("cpu (C++)", "torch.compile")]
    if broken:
        sentences.append("rows that need C++ are skipped: install g++ (apt-get install g++) or set CXX")
    for place in places:
        if not place.writable:
            sentences.append(f"{place.path} ({place.name}) cannot be written: {remedy(place)}")
        elif place.free_bytes is not None and place.free_bytes < NEEDED_BYTES:
            sentences.append(f"{place.path} ({place.name}) has {place.free_bytes / 1e9:.1f} GB left: make room")
    return sentences


def crowded(state: facts.State) -> str | None:
    """A sentence where more programs want the cores than there are, though just now they did not get them."""
    load, cores = state["load"], state["cores"]
    return f"more wants to run than there are cores: load {load} on {cores} cores" if load > CROWD * cores else None


def remedy(place: Place) -> str:
    return "use --out" if place.name == "results" else "set LAYERBENCH_CACHE to another folder"
