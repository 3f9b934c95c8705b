"""What this machine is (`describe`, once a run) and what state it is in (`snapshot`, once a row).

Everything is read from /proc, /sys, NVML and package metadata. What cannot be read is None, never a guess, and never an
error: containers and virtual machines hide much of it. torch is imported only by `describe`.
"""

import contextlib
import ctypes
import functools
import math
import os
import platform
import re
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from bench import HOME
from kernels import Unavailable

CPUS = Path("/sys/devices/system/cpu")
PROCESS, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")

# Instruction sets that kernels here care about, as /proc/cpuinfo spells them.
ISA = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16", "avx512_vnni"),
    *(
        "avx_vnni",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
        "amx_fp16",
        "asimd",
        "asimdhp",
        "bf16",
        "i8mm",
        "sve",
        "sve2",
    ),
)
PACKAGES = ("torch", "triton", "numpy", "pandas", "scipy", "nvidia-ml-py")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
THREAD_SETTINGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES"),
    *("OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME"),
)
# How variables begin by which libraries compute otherwise than by themselves: most slow PyTorch down and not our code
# (ATEN_CPU_CAPABILITY=default: its GELU takes four times as long), so whoever reads a ratio must know.
LIBRARY_SETTINGS = (
    *("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "GOMP_", "KMP_", "TORCH_COMPILE", "TORCHDYNAMO_", "TORCHINDUCTOR_"),
    *("PYTORCH_", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_", "TORCH_BLAS_", "TORCH_CUDNN_", "CUDA_LAUNCH_BLOCKING"),
    *("CUDA_DEVICE_MAX_CONNECTIONS", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"),
)
# … and what begins so and changes no time: where something lies, which version an image has, what a command here sets.
NO_SETTING = re.compile(r".*(_DIR|_PATH|_HOME|_ROOT|_VERSION|_VERBOSE|_NUMBER)|TORCHINDUCTOR_COMPILE_THREADS")

OLDEST_TORCH = (2, 11)  # as pyproject.toml asks for: an image brings what it likes
# Other programs may take this much of the usable cores before a row says that the machine is busy. One idle desktop's
# background is 1 to 3 %.
BUSY_SHARE = 0.10
STOLEN_SHARE = 0.03
WINDOW_SECONDS = 0.3  # the kernel counts in hundredths of a second: less says nothing


# --- what it is ---


class Caches(TypedDict, total=False):
    """Bytes of one core's L1d and L2, and of all L3 of the usable cores together."""

    L1d: int | None
    L2: int | None
    L3: int | None


class Cpu(TypedDict, total=False):
    """`cores` are physical, `threads` logical, `usable` the logical ones this process may run on."""

    model: str | None
    architecture: str
    cores: int | None
    threads: int | None
    usable: int
    quota: float | None
    isa: list[str]
    cache_bytes: Caches
    max_mhz: float | None
    governor: str | None
    virtual: bool | None


class Gpu(TypedDict, total=False):
    """As its driver names it."""

    name: str
    capability: str | None
    memory_bytes: int | None
    power_cap_w: float | None
    max_sm_mhz: int | None
    max_memory_mhz: int | None
    ecc: bool | None
    mig: bool | None
    driver: str | None


class Git(TypedDict, total=False):
    commit: str | None
    dirty: bool | None


class Machine(TypedDict, total=False):
    """Everything about a machine that a time depends on. Sizes in bytes, frequencies in MHz, power in W."""

    cpu: Cpu
    memory_bytes: int | None
    gpus: list[Gpu]
    versions: dict[str, str | None]
    threads: dict[str, str | int]
    settings: list[str]
    git: Git


def describe() -> Machine:
    return {
        "cpu": cpu(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus(),
        "versions": versions(),
        "threads": thread_settings(),
        "settings": library_settings(),
        "git": git(),
    }


def one_line() -> str:
    """The machine in one line for a table's header."""
    c = cpu()
    cache = c["cache_bytes"]["L3"]
    limit = f" (a time limit of {c['quota']:g})" if c["quota"] else ""
    parts = [c["model"] or c["architecture"], f"{c['usable']} cores{limit}"]
    if cache:
        parts.append(f"{cache / 2**20:.0f} MiB L3")
    parts.append(_best_isa(c["isa"]))
    parts += [f"{gpu['name']}" for gpu in gpus()]
    parts += [f"torch {version('torch')}", *(f"{k}={os.environ[k]}" for k in THREAD_SETTINGS if k in os.environ)]
    parts += library_settings()
    return ", ".join(p for p in parts if p)


def _best_isa(isa: list[str]) -> str:
    """The widest vectors, and what multiplies bf16."""
    widest = next((name for name in ("avx512f", "avx2", "sve2", "sve", "neon") if name in isa), "")
    bf16 = next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in isa), "")
    return " + ".join(name for name in (widest, bf16) if name)


@functools.cache
def cpu() -> Cpu:
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "model": info.get("model name") or info.get("Model") or None,
        "architecture": platform.machine(),
        "cores": _physical_cores(),
        "threads": os.cpu_count(),
        "usable": usable_cores(),
        "quota": cpu_quota(),
        "isa": ["neon" if name == "asimd" else name for name in ISA if name in flags],
        "cache_bytes": {"L1d": _cache_bytes(1), "L2": _cache_bytes(2), "L3": _cache_bytes(3)},
        "max_mhz": _khz_in_mhz(CPUS / "cpu0/cpufreq/cpuinfo_max_freq"),
        "governor": _text(CPUS / "cpu0/cpufreq/scaling_governor"),
        "virtual": "hypervisor" in flags if flags else None,
    }


@functools.cache
def last_level_cache_bytes() -> int:
    """What a flush must exceed: the last data cache's size in bytes; 32 MiB where it cannot be read."""
    return _cache_bytes(3) or _cache_bytes(2) or 32 * 2**20


def usable_cores() -> int:
    """Logical cores this process may run on."""
    return len(usable_cpus())


def usable_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_quota() -> float | None:
    """Cores' worth of time that a container, a job or a service may use (cgroup v2 or v1); None without a limit."""
    found = []
    for group in _groups("cpu"):
        limit = (_text(group / "cpu.max") or "").split()
        limit = limit or [_text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        if all(text.isdigit() for text in limit):
            found.append(int(limit[0]) / int(limit[1]))
    return min(found, default=None)


def memory_bytes() -> int | None:
    """Memory this process may use: the machine's, or the limit of a container, a job or a service."""
    found = re.search(r"MemTotal:\s+(\d+) kB", _text(Path("/proc/meminfo")) or "")
    return min([int(found[1]) * 1024 if found else None, *_memory_limits()], key=_none_last)


def available_bytes() -> int | None:
    """Memory that can be had now without swapping, and without being killed for it; None where nobody says."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(Path("/proc/meminfo")) or "")
    free = [max(limit - used, 0) for limit, used in _memory_limits().items()]
    return min([int(found[1]) * 1024 if found else memory_bytes(), *free], key=_none_last)


def _none_last(size: int | None) -> float:
    return math.inf if size is None else size


def _memory_limits() -> dict[int, int]:
    """Each limit of memory that this process has, and what is used of it, without files that can be read again."""
    found = {}
    for group in _groups("memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        stat = dict(line.split() for line in (_text(group / "memory.stat") or "").splitlines())
        files = [int(stat.get(f"total_{name}") or stat.get(name) or 0) for name in ("active_file", "inactive_file")]
        if limit is not None:
            found[limit] = used - sum(files)
    return found


def _groups(controller: str) -> Iterator[Path]:
    """The folders of what limits this process: its control group and those around it, of cgroup v2 and v1. The last is
    the root, which is a container's own where it has a view of its own."""
    for line in (_text(PROCESS / "cgroup") or "0::/").splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            for group in (Path(path), *Path(path).parents):
                yield CGROUPS / (controller if names else "") / group.relative_to("/")


def versions() -> dict[str, str | None]:
    """Versions of what produces the numbers; None where something is not installed."""
    import torch

    found = {name: version(name) for name in PACKAGES}
    found["torch"] = torch.__version__  # with its build: 2.11.0+cu130, which its metadata need not tell
    found["cupy"] = next((v for name in CUPY if (v := version(name))), None)
    found["torch_cuda"] = torch.version.cuda
    found["python"] = platform.python_version()
    found["os"] = _operating_system()
    found["compiler"] = compiler()
    return found


def too_old_a_torch() -> str:
    """That this torch is older than any that was tried; "" where it is not."""
    found = re.match(r"(\d+)\.(\d+)", version("torch") or "")
    if not found or (int(found[1]), int(found[2])) >= OLDEST_TORCH:
        return ""
    return f"torch {version('torch')} is older than {'.'.join(map(str, OLDEST_TORCH))}: rows may end in errors"


def version(package: str) -> str | None:
    """An installed package's version, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiler() -> str | None:
    """The version line of the compiler that builds kernels/cpu."""
    from kernels.cpu import find_compiler  # loads torch

    try:
        return find_compiler()[1]
    except Unavailable:
        return None


def thread_settings() -> dict[str, str | int]:
    """Threads torch uses, and the environment's settings that are set."""
    import torch

    threads: dict[str, str | int] = {"torch": torch.get_num_threads()}
    return threads | {k: os.environ[k] for k in THREAD_SETTINGS if k in os.environ}


def library_settings() -> list[str]:
    """The environment's other settings of libraries, as "NAME=value"."""
    return [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if value
        and name.startswith(LIBRARY_SETTINGS)
        and name not in THREAD_SETTINGS
        and not NO_SETTING.fullmatch(name)
    ]


@functools.cache
def git() -> Git:
    """The checked-out commit and whether files differ from it; None outside a checkout."""
    # No optional locks: looking must not write the index under somebody's hands.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def ask(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(HOME), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if not commit:
        return {"commit": None, "dirty": None}
    status = ask("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


# --- GPUs ---


@functools.cache
def nvml() -> tuple[Any, str]:
    """(NVIDIA's management library, "") where a driver answers, else (None, the reason)."""
    try:
        import pynvml
    except ImportError:
        return None, "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"no NVIDIA driver answers ({error})"
    return pynvml, ""


def _gpu_handles() -> list[object]:
    """Of all GPUs that may be asked: of some of a machine's a container's user may not."""
    found = [_ask_gpu("nvmlDeviceGetHandleByIndex", i) for i in range(_ask_gpu("nvmlDeviceGetCount") or 0)]
    return [handle for handle in found if handle is not None]


def _gpu_handle(told: str, index: int) -> object | None:
    """Of the GPU that torch calls by this UUID and number."""
    return _by_uuid(told) or next(iter(_cuda_handles()[index : index + 1]), None)


def _by_uuid(told: str) -> object | None:
    for kind in ("GPU", "MIG") if told else ():
        if (handle := _ask_gpu("nvmlDeviceGetHandleByUUID", f"{kind}-{told}")) is not None:
            return handle
    return None


VISIBLE = "CUDA_VISIBLE_DEVICES"


def _cuda_handles() -> list[object]:
    """Of the GPUs that CUDA has here, in its order, so that number 1 is `cuda:1`: NVML numbers all of a machine's by
    their place on the bus, and knows a GPU that is in parts (MIG) as a whole. Where all are of one kind, whole and not
    hidden, CUDA is not asked: that takes seconds where there are many."""
    handles = _gpu_handles()
    kinds = {_ask_gpu("nvmlDeviceGetName", handle) for handle in handles}
    in_parts = any((mode := _ask_gpu("nvmlDeviceGetMigMode", handle)) and mode[0] for handle in handles)
    if not handles or (len(kinds) == 1 and not in_parts and VISIBLE not in os.environ):
        return handles
    told = _cuda_uuids()
    found = [handle for one in told or () if (handle := _by_uuid(one)) is not None]
    return handles if told is None or len(found) < len(told) else found


UUID_BYTES, NO_DEVICE = 16, 100  # of a CUuuid; CUDA_ERROR_NO_DEVICE


def _cuda_uuids(driver: Any = None) -> list[str] | None:
    """Of CUDA's devices, as NVML spells them; None where its driver does not answer. No context is made."""
    try:
        driver = driver or ctypes.CDLL("libcuda.so.1")
        of_part = getattr(driver, "cuDeviceGetUuid_v2", driver.cuDeviceGetUuid)  # of a GPU's part its own
    except (OSError, AttributeError):
        return None
    count, found = ctypes.c_int(), list[str]()
    if code := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return [] if code == NO_DEVICE else None
    for i in range(count.value):
        device, told = ctypes.c_int(), ctypes.create_string_buffer(UUID_BYTES)
        if driver.cuDeviceGet(ctypes.byref(device), i) or of_part(told, device):
            return None
        found.append(str(uuid.UUID(bytes=told.raw)))
    return found


def _ask_gpu(function: str, *arguments: object) -> Any:
    """The answer of an NVML function, or None where there is none, or this card or driver does not support it."""
    library, _ = nvml()
    if library is None:
        return None
    try:
        answer = getattr(library, function)(*arguments)
    except (library.NVMLError, AttributeError):
        return None
    return answer.decode() if isinstance(answer, bytes) else answer


@functools.cache
def gpus() -> list[Gpu]:
    """NVIDIA GPUs that CUDA has here, in its order, as the driver names them; empty without a driver."""
    library, _ = nvml()
    found: list[Gpu] = []
    for handle in _cuda_handles():
        memory = _ask_gpu("nvmlDeviceGetMemoryInfo", handle)
        limit = _ask_gpu("nvmlDeviceGetPowerManagementLimit", handle)
        ecc = _ask_gpu("nvmlDeviceGetEccMode", handle)
        mig = _ask_gpu("nvmlDeviceGetMigMode", handle)
        capability = _ask_gpu("nvmlDeviceGetCudaComputeCapability", handle)
        found.append(
            {
                "name": _ask_gpu("nvmlDeviceGetName", handle),
                "capability": ".".join(map(str, capability)) if capability else None,
                "driver": _ask_gpu("nvmlSystemGetDriverVersion"),
                "memory_bytes": memory.total if memory else None,
                "power_cap_w": limit / 1000 if limit else None,
                "max_sm_mhz": _ask_gpu("nvmlDeviceGetMaxClockInfo", handle, library.NVML_CLOCK_SM),
                "max_memory_mhz": _ask_gpu("nvmlDeviceGetMaxClockInfo", handle, library.NVML_CLOCK_MEM),
                "ecc": bool(ecc[0]) if ecc else None,
                "mig": bool(mig[0]) if mig else None,
            }
        )
    return found


OPEN = 0  # NVML_COMPUTEMODE_DEFAULT


def closed_gpus() -> list[str]:
    """GPUs that let one process in at a time, or none, by name and number."""
    closed = []
    for i, handle in enumerate(_cuda_handles()):
        if _ask_gpu("nvmlDeviceGetComputeMode", handle) not in (OPEN, None):
            closed.append(f"{_ask_gpu('nvmlDeviceGetName', handle)} ({i})")
    return closed


def too_old_a_driver(compiler: tuple[int, int] | None) -> str:
    """Why the driver does not load machine code of this version of CUDA's; "" where it does, or nobody knows. One of
    the same major version does, as long as there is nothing left to compile (CUDA Compatibility, minor versions)."""
    answer = _ask_gpu("nvmlSystemGetCudaDriverVersion")
    if not compiler or not answer or compiler[0] <= answer // 1000:
        return ""
    return (
        f"it is of CUDA {compiler[0]}.{compiler[1]}, the driver of {answer // 1000}.{answer % 1000 // 10}; update that"
    )


class GpuState(TypedDict, total=False):
    """Of one GPU; None where its driver does not tell."""

    sm_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttle_reasons: int | None  # NVML's bits


def gpu_states() -> list[GpuState]:
    """Of all GPUs, in NVML's order."""
    return [_state_of(handle) for handle in _gpu_handles()]


def gpu_state(told: str, index: int) -> GpuState:
    """Of the GPU that torch calls by this UUID and number; empty where NVML does not answer."""
    handle = _gpu_handle(told, index)
    return GpuState() if handle is None else _state_of(handle)


def _state_of(handle: object) -> GpuState:
    library, _ = nvml()
    power = _ask_gpu("nvmlDeviceGetPowerUsage", handle)
    return GpuState(
        sm_mhz=_ask_gpu("nvmlDeviceGetClockInfo", handle, library.NVML_CLOCK_SM),
        temperature_c=_ask_gpu("nvmlDeviceGetTemperature", handle, library.NVML_TEMPERATURE_GPU),
        power_w=power / 1000 if power else None,
        throttle_reasons=_ask_gpu("nvmlDeviceGetCurrentClocksThrottleReasons", handle),
    )


def gpu_energy_joules(told: str, index: int) -> float | None:
    """What a GPU has used since its driver was loaded; None where the card does not count it."""
    handle = _gpu_handle(told, index)
    millijoules = None if handle is None else _ask_gpu("nvmlDeviceGetTotalEnergyConsumption", handle)
    return None if millijoules is None else millijoules / 1e3


# --- what state it is in ---


class State(TypedDict):
    """Of this machine. Shares are of the usable cores; None where it does not tell."""

    cores: int
    load: float  # 1-minute average, our own threads included
    mhz: float | None  # mean of the usable cores
    throttled: int | None  # times a core has slowed down for heat since it was started
    others: float | None  # CPU share of programs that this one did not start
    stolen: float | None  # share the hypervisor gave to other machines
    gpus: list[GpuState]


def snapshot() -> State:
    """The machine's state now. Shares are of the time since the snapshot before; the first call may wait 0.3 s."""
    others, stolen = _METER.shares()
    return State(
        cores=usable_cores(),
        load=round(os.getloadavg()[0], 2),
        mhz=_current_mhz(),
        throttled=_throttle_count(),
        others=others,
        stolen=stolen,
        gpus=gpu_states(),
    )


def tells(state: State) -> bool:
    """Whether a state that was read from a file, of another version perhaps, says how busy its machine was."""
    return {"others", "stolen"} <= state.keys() and None not in (state.get("cores"), state.get("load"))


def busy(state: State) -> str | None:
    """A sentence where something else slows this machine down, else None."""
    cores, load = state["cores"], state["load"]
    if state["stolen"] is not None and state["stolen"] > STOLEN_SHARE:
        return f"the hypervisor gives {state['stolen']:.0%} of this machine's CPU time to others"
    if state["others"] is None:  # no /proc/stat: the load average is all there is, and it counts our threads too
        return f"load {load} on {cores} cores" if load > 1.5 * cores else None
    if state["others"] > BUSY_SHARE:
        return f"other programs use {state['others']:.0%} of {cores} cores (load {load})"
    return None


@dataclass
class _Counters:
    """Seconds of CPU time since boot, summed over the usable cores; `own` of this process and all it started."""

    when: float
    total: float
    busy: float
    stolen: float
    own: float


class _Meter:
    """Shares of CPU time between two readings. A reading younger than the window is not enough for new shares."""

    def __init__(self) -> None:
        self._before = _read_counters()
        self._shares: tuple[float | None, float | None] | None = None

    def shares(self) -> tuple[float | None, float | None]:
        """(others, stolen), each of all usable cores' time; None where /proc/stat cannot be read."""
        if self._before is None:
            return None, None
        wait = self._before.when + WINDOW_SECONDS - time.monotonic()
        if wait > 0 and self._shares:
            return self._shares
        time.sleep(max(wait, 0))
        now, before = _read_counters(), self._before
        if now is None or now.total <= before.total:
            return None, None
        span = now.total - before.total
        others = (now.busy - before.busy) - (now.own - before.own)
        # Rounding to hundredths of a second can make a little less than nothing.
        self._shares = round(max(others / span, 0.0), 3), round((now.stolen - before.stolen) / span, 3)
        self._before = now
        return self._shares


def _read_counters() -> _Counters | None:
    text = _text(Path("/proc/stat"))
    own = _own_seconds()
    if text is None or own is None:
        return None
    wanted = {f"cpu{i}" for i in usable_cpus()}
    tick = os.sysconf("SC_CLK_TCK")
    total = idle = stolen = 0.0
    for line in text.splitlines():
        name, *numbers = line.split()
        if name in wanted:
            ticks = [int(n) for n in numbers[:8]]  # user nice system idle iowait irq softirq steal
            total += sum(ticks) / tick
            idle += (ticks[3] + ticks[4]) / tick
            stolen += ticks[7] / tick
    return _Counters(time.monotonic(), total, total - idle - stolen, stolen, own)


def _own_seconds() -> float | None:
    """CPU time of this process and all its descendants, living or waited for."""
    times: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for name in _entries(Path("/proc")):
        if not name.isdigit():
            continue
        text = _text(Path("/proc") / name / "stat")
        if text is None:
            continue  # it has ended meanwhile
        # After the command's name, which may hold blanks: state, parent, … and from the 12th on utime, stime,
        # cutime, cstime (the last two: children that were waited for).
        fields = text.rpartition(")")[2].split()
        children.setdefault(int(fields[1]), []).append(int(name))
        times[int(name)] = sum(int(ticks) for ticks in fields[11:15]) / tick
    if os.getpid() not in times:
        return None
    ours, pending = 0.0, [os.getpid()]
    while pending:
        process = pending.pop()
        ours += times.get(process, 0.0)
        pending += children.get(process, [])
    return ours


# --- reading files ---


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdigit() else None


def _khz_in_mhz(path: Path) -> float | None:
    khz = _number(path)
    return khz / 1000 if khz else None


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo."""
    first = (_text(Path("/proc/cpuinfo")) or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _physical_cores() -> int | None:
    """Physical cores of the machine, by the topology that the kernel shows."""
    cores = {
        (_text(CPUS / name / "topology/physical_package_id"), _text(CPUS / name / "topology/core_id"))
        for name in _entries(CPUS)
        if re.fullmatch(r"cpu\d+", name)
    }
    cores = {core for core in cores if None not in core}
    return len(cores) or None


def _cache_bytes(level: int) -> int | None:
    """Size of one core's data cache (levels 1, 2), or of all caches that the usable cores share (level 3)."""
    caches: dict[str, int] = {}  # by the processors that share it
    for processor in usable_cpus() if level == 3 else usable_cpus()[:1]:
        folder = CPUS / f"cpu{processor}/cache"
        for name in _entries(folder):
            if _text(folder / name / "level") != str(level) or _text(folder / name / "type") == "Instruction":
                continue
            found = re.fullmatch(r"(\d+)([KMG]?)", _text(folder / name / "size") or "")
            if found:
                unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]]
                caches[_text(folder / name / "shared_cpu_list") or str(processor)] = int(found[1]) * unit
    return sum(caches.values()) or None


def _current_mhz() -> float | None:
    """Mean frequency of the usable cores now (of the first 16: each reading costs a little)."""
    cores = usable_cpus()[:16]
    readings: Iterable[float | None] = [_khz_in_mhz(CPUS / f"cpu{i}/cpufreq/scaling_cur_freq") for i in cores]
    known = [mhz for mhz in readings if mhz]
    if not known:  # a virtual machine: what the kernel prints, often a constant
        known = [float(m) for m in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(Path("/proc/cpuinfo")) or "", re.M)]
    return round(sum(known) / len(known), 1) if known else None


def _throttle_count() -> int | None:
    counts = [_number(CPUS / f"cpu{i}/thermal_throttle/core_throttle_count") for i in usable_cpus()]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _operating_system() -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(Path("/etc/os-release")) or "", re.MULTILINE)
    kernel = re.match(r"[\d.]+", platform.release())
    return f"{found[1] if found else platform.system()}, {platform.system()} {kernel[0] if kernel else ''}".strip()


_METER = _Meter()


# --- processes ---


def wanted_s(pid: int) -> float:
    """Seconds that all threads of a process and its children together have run, or been ready to run without a core to
    run on: on a busy machine, too, who does nothing wants nothing. 0 where the system does not count it."""
    wanted = 0.0
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            children = _text(Path(f"/proc/{pid}/task/{task}/children")) or ""
            wanted += sum(scheduled_ns(task)) / 1e9 + sum(wanted_s(int(child)) for child in children.split())
    return wanted


def scheduled_ns(task: int | str) -> tuple[int, int]:
    """Nanoseconds that a thread ran, and that it waited for a core (Linux: schedstat); zeros where nobody counts."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        file = os.open(f"/proc/{task}/schedstat", os.O_RDONLY)
        try:
            ran, waited = os.read(file, 100).split()[:2]
            return int(ran), int(waited)
        finally:
            os.close(file)
    return 0, 0


def mapped(pid: int | str = "self") -> set[str]:
    """The shared objects in a process's memory, by path; none where nobody may see them."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        return {path for line in lines if ".so" in (path := line[73:].strip())}
    return set()


def openmp_runtimes(pid: int | str = "self") -> int:
    """How many OpenMP runtimes a process has loaded, each with a pool of its own."""
    names = {Path(file).name for file in mapped(pid)}
    return sum(name.startswith(("libgomp", "libiomp", "libomp")) for name in names)
