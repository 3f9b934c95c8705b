"""Triton without a GPU: a driver for Triton's own runtime that compiles for a chosen GPU and launches in the simulator.

Plain Triton code runs unchanged: `kernel[grid](tensors…)` binds, specializes and compiles as it does on a card, and
what would go to the CUDA driver comes here. Triton 3.6 to 3.9. Compilation ends at PTX: nothing here needs ptxas.
"""

import hashlib
import os
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

import kernels.triton  # noqa: F401  sets the environment that Triton reads
from bench.simulate import ptx
from bench.simulate.launcher import run_ptx
from kernels import cuda
from kernels.cuda import Argument
from kernels.cuda.tensor_map import tensor_map

SCALARS = {"i1": "<?", "u1": "<?", "i8": "<b", "u8": "<B", "i16": "<h", "u16": "<H", "i32": "<i", "u32": "<I"}
SCALARS |= {"i64": "<q", "u64": "<Q", "fp32": "<f", "f32": "<f", "fp64": "<d"}
SWIZZLE_BYTES = (0, 32, 64, 128)  # by the number that Triton passes to cuTensorMapEncodeTiled
# What a card of the architecture has: shared memory a block, multiprocessors (A100, H100/H200 SXM, B200).
MULTIPROCESSORS = {"sm_80": 108, "sm_90a": 132, "sm_100a": 148}
MOST_THREADS = 1024
Kind = str | tuple["Kind", ...]  # of an argument, as Triton signs it


@dataclass(frozen=True)
class Build:
    """A kernel as Triton compiled it: told apart by the hash of all that it was made from."""

    name: str
    label: str  # the name with its dtypes and constants, for people
    hash: str
    arch: str
    ptx: str = field(compare=False, repr=False)


@dataclass(frozen=True)
class Launch:
    """A call as Triton's runtime hands it to a driver."""

    build: Build
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[Argument, ...]
    cooperative: bool = False
    cluster: tuple[int, int, int] | None = None


WGMMA = "wgmma.fence.sync.aligned;"
PROXY_FENCE = "fence.proxy.async.shared::cta;"


def run(launch: Launch) -> None:
    """Run a launch in the simulator. Raises SimulationError with what was found."""
    build = launch.build
    code, place = with_fences(build.ptx), (launch.grid, launch.block, launch.shared)
    cooperative, cluster = launch.cooperative, launch.cluster
    arguments = launch.arguments
    run_ptx(code, build.name, *place, arguments, build.arch, cooperative=cooperative, cluster=cluster, any_cluster=True)


def with_fences(code: str) -> str:
    """What Triton 3.6 and 3.7 leave out where wgmma reads what cp.async brought, and the PTX manual wants: put in, so
    that what the simulator finds is the kernel's own."""
    if triton_version() >= (3, 8) or "cp.async" not in code:
        return code
    return code.replace(WGMMA, f"{PROXY_FENCE}\n\t{WGMMA}")


def triton_version() -> tuple[int, ...]:
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def install(launch: Callable[[Launch], None] = run, arch: str | None = None) -> None:
    """Have Triton's launches go to `launch`, compiled for `arch` ("sm_80", "sm_90a", "sm_100a")."""
    knobs.runtime.add_stages_inspection_hook = stop_at_ptx
    knobs.runtime.jit_cache_hook = about_to_compile
    # A folder of their own: up to Triton 3.6 the key of what it keeps says nothing of the hook, and a card's launch
    # would find a kernel without machine code. Not by TRITON_CACHE_DIR, which processes that are started would inherit.
    vars(knobs.cache)["dir"] = f"{os.environ['TRITON_CACHE_DIR']}-ptx"
    driver.set_active(Driver(launch, arch or cuda.TARGET))


@contextmanager
def launching_with(launch: Callable[[Launch], None], arch: str | None = None, whole: bool = False) -> Iterator[None]:
    """`install` for as long as the context lasts; then as before. whole: compile as for a card, down to the cubin, and
    where that looks for it."""
    runtime = knobs.runtime
    before = driver._active, runtime.add_stages_inspection_hook, vars(knobs.cache).get("dir"), runtime.jit_cache_hook
    install(launch, arch)
    if whole:
        _compile_with(None, None)
    try:
        yield
    finally:
        driver._active, hook, folder, knobs.runtime.jit_cache_hook = before
        _compile_with(hook, folder)


def _compile_with(hook: Any, folder: str | None) -> None:
    knobs.runtime.add_stages_inspection_hook = hook
    vars(knobs.cache).pop("dir", None)
    if folder is not None:
        vars(knobs.cache)["dir"] = folder


def stop_at_ptx(*stages_of: Any) -> tuple[str, str] | None:
    """Triton's hook into its stages: without arguments the key of this pipeline, else (backend, stages, …)."""
    if not stages_of:
        key = f"layerbench-ptx {_read_by(_compiled)}"
        return key, key
    _, stages, *_ = stages_of
    stages["cubin"] = lambda code, metadata: b""
    return None


_compiled: Any = None  # the function that Triton is about to compile


def about_to_compile(*, fn: Any, **_: Any) -> bool:
    """Triton's hook before it looks into its cache; False: go on."""
    global _compiled
    _compiled = fn.jit_function
    return False


def _read_by(function: Any) -> str:
    """A digest of the modules that a kernel's own can reach: Triton's key has the functions that a kernel calls and the
    constants that it names, but not what it takes out of another module, as in `tiles.WIDTH`."""
    waiting: list[Any] = [getattr(function, "__module__", None)]
    seen: set[str] = set()
    digest = hashlib.sha256()
    while waiting:
        name = waiting.pop()
        name = name if isinstance(name, str) else ""
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None) or ""
        if not module or name in seen or not path.endswith(".py") or path.startswith(_INSTALLED):
            continue
        seen.add(name)
        for value in vars(module).values():
            waiting.append(getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", None))
    for path in sorted({str(sys.modules[name].__file__) for name in seen}):
        with suppress(OSError), open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()[:20]


# Of the standard library and of packages: Triton's key has its own version, and torch does not change what it compiles.
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Driver:
    """What Triton's runtime asks of a driver (triton.backends.driver.DriverBase)."""

    def __init__(self, launch: Callable[[Launch], None], arch: str):
        self.arch = arch
        self.capability = int("".join(c for c in arch if c.isdigit()))
        self.launch = launch
        self.utils = Utilities(arch)
        self.launcher_cls = lambda source, metadata: Launcher(source, metadata, arch)

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by this number: one set an architecture

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_benchmarker(self):
        """For `triton.autotune`: here nothing has a time, so nothing is run for one, and the first config is taken."""

        def time_of(call, *args, quantiles=(), **options):
            return [0.0] * len(quantiles) if quantiles else 0.0

        return time_of


class Utilities:
    """`driver.utils`: there is nothing to load, and the properties are the architecture's."""

    def __init__(self, arch: str):
        self.arch = arch

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": cuda.MOST_SHARED[self.arch],
            "multiprocessor_count": MULTIPROCESSORS[self.arch],
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        return "module", "function", 0, 0, MOST_THREADS

    def unload_module(self, module: object) -> None:
        pass


class Launcher:
    """One compiled kernel, called by Triton's runtime with the grid and all arguments of the Python function."""

    def __init__(self, source: Any, metadata: Any, arch: str):
        self.metadata = metadata
        self.signature = tuple(source.signature.values())
        self.names = tuple(source.fn.arg_names)
        self.maps = list(getattr(metadata, "tensordesc_meta", None) or [])
        path = get_cache_manager(metadata.hash).get_file(f"{source.name[:150]}.ptx")
        with open(path) as file:
            self.build = Build(metadata.name, _label(source, metadata), metadata.hash, arch, file.read())
        (self.kernel,) = ptx.parse(self.build.ptx).kernels

    def __call__(self, x: int, y: int, z: int, stream: int, function: object, *rest: Any) -> None:
        # Before the function's own arguments come two kinds of metadata and two hooks.
        values = rest[-len(self.signature) :]
        maps = iter(self.maps)
        arguments: list[Argument] = []
        for name, kind, value in zip(self.names, self.signature, values, strict=True):
            arguments += self._arguments(name, kind, value, maps)
        scratch = self.metadata.global_scratch_size * x * y * z * getattr(self.metadata, "num_ctas", 1)
        if scratch:
            size = scratch + self.metadata.global_scratch_align
            arguments.append(_pointer("scratch", torch.empty(size, dtype=torch.uint8)))
        # Scratch that is not used has a parameter all the same.
        arguments += [Argument("scratch", bytes(8))] * (len(self.kernel.parameters) - len(arguments))
        block = (self.metadata.num_warps * 32, 1, 1)
        # A program is a cluster of so many blocks.
        ctas = getattr(self.metadata, "num_ctas", 1)
        grid, cluster = (x * ctas, y, z), (ctas, 1, 1) if ctas > 1 else None
        cooperative = bool(getattr(self.metadata, "launch_cooperative_grid", False))
        if x * y * z:
            # Triton keeps this object: the driver may be another one by now.
            shared = self.metadata.shared
            driver.active.launch(Launch(self.build, grid, block, shared, tuple(arguments), cooperative, cluster))

    def _arguments(self, name: str, kind: Kind, value: Any, maps: Iterator[dict]) -> Iterator[Argument]:
        if isinstance(kind, tuple):
            for i, (k, v) in enumerate(zip(kind, value, strict=True)):
                yield from self._arguments(f"{name}[{i}]", k, v, maps)
        elif kind == "constexpr":
            return
        elif kind.startswith("tensordesc"):
            yield from self._descriptor(name, value, next(maps, None))
        elif kind.startswith("*"):
            yield _pointer(name, value)
        else:
            yield Argument(name, struct.pack(SCALARS[kind], value))

    def _descriptor(self, name: str, value: Any, facts: dict | None) -> Iterator[Argument]:
        """A tensor descriptor: its map where the GPU has them, else a pointer; then sizes and strides."""
        sizes = [Argument(name, struct.pack("<i", n)) for n in value.shape]
        strides = [Argument(name, struct.pack("<q", n)) for n in value.strides]
        if facts is None:
            yield _pointer(name, value.base)
            yield from [Argument(name, struct.pack("<q", n)) for n in (*value.shape, *value.strides)]
            yield Argument(name, struct.pack("<?", value.padding == "nan"))
            if hasattr(value, "round_f32_to_tf32"):
                yield Argument(name, struct.pack("<?", value.round_f32_to_tf32))
        else:
            whole = value.base.as_strided(value.shape, value.strides)
            swizzle = SWIZZLE_BYTES[facts["swizzle"]]
            yield tensor_map(whole, facts["block_size"], swizzle, name=name, const=False)
        yield from sizes + strides


def _label(source: Any, metadata: Any) -> str:
    """`kernel<bf16, BLOCK=1024, 4 warps>`: element types, constants by name, warps, and stages of the pipeline."""
    kinds = {k.lstrip("*k").partition("[")[0].removeprefix("tensordesc<"): None
             for k in _flat(source.signature.values()) if k[0] in "*t"}  # fmt: skip
    names = source.fn.arg_names
    given = [p.num for p in source.fn.params if p.is_constexpr]
    constants = [f"{names[i]}={value}" for (i, *_), value in source.constants.items() if i in given]
    parts = [*kinds, *constants, f"{metadata.num_warps} warps", f"{metadata.num_stages} stages"]
    return f"{metadata.name}<{', '.join(parts)}>"


def _flat(kinds: Iterable[Kind]) -> Iterator[str]:
    for kind in kinds:
        yield from _flat(kind) if isinstance(kind, tuple) else (kind,)


def _pointer(name: str, tensor: torch.Tensor) -> Argument:
    pointed = getattr(tensor, "tensors", ())  # of a table of addresses (kernels.triton.lists)
    return Argument(name, struct.pack("<Q", tensor.data_ptr()), (tensor, *pointed))
