"""Launches on the GPU: a kernel is loaded once, and a call of it packs its arguments into one buffer and has CuPy's
binding of the driver launch it on torch's current stream. Nothing is copied, allocated or waited for.

What CuPy does not bind, or only with a context, is asked of libcuda.so.1 by ctypes.
"""

import contextlib
import ctypes
import functools
import itertools
import math
import re
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from kernels import Unavailable
from kernels.cuda import Build, Launch, bf16_bits, place
from kernels.cuda.compiler import compile_source

DEFAULT_SHARED = 48 * 1024  # static and dynamic: more must be asked for
# CUfunction_attribute, CUdevice_attribute and CUresult (cuda.h)
SHARED_SIZE_BYTES, MAX_DYNAMIC_SHARED_SIZE_BYTES = 1, 8
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14
CLUSTER_DIMENSION, COOPERATIVE = 4, 2  # CUlaunchAttributeID
PORTABLE_CLUSTER = 8  # blocks: more need the attribute above, and a GPU that has them
NOT_CURRENT = (201, 400)  # invalid context, invalid handle: what a thread without this device's context is answered


class LaunchError(RuntimeError):
    """The driver refused a launch; the message names kernel, grid, block and shared memory."""


@functools.cache
def driver() -> ctypes.CDLL:
    """libcuda, initialised; no context is made. Raises Unavailable where there is none."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Unavailable("CUDA kernels need NVIDIA's driver (libcuda.so.1)") from error
    if code := library.cuInit(0):
        raise Unavailable(f"NVIDIA's driver does not start: {_text(library, code)}")
    return library


@functools.cache
def cupy_driver() -> ModuleType:
    """CuPy's binding of the driver. Raises Unavailable where there is none."""
    driver()
    try:
        from cupy_backends.cuda.api import driver as binding
    except ImportError as error:
        raise Unavailable("CUDA kernels need CuPy: pip install cupy-cuda13x") from error
    return binding


def _text(library: ctypes.CDLL, code: int) -> str:
    found = ctypes.c_char_p()
    for ask in (library.cuGetErrorName, library.cuGetErrorString):
        text, found = found.value, ctypes.c_char_p()
        ask(code, ctypes.byref(found))
    return f"{(text or b'').decode()} ({(found.value or b'').decode()})"


def _ok(code: int, what: str) -> None:
    if code:
        raise LaunchError(f"{what}: {_text(driver(), code)}")


@contextlib.contextmanager
def _current(device: int) -> Iterator[None]:
    """The device's primary context, which is torch's too, is this thread's; afterwards what was before."""
    context = ctypes.c_void_p()
    _ok(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "no context")
    _ok(driver().cuCtxPushCurrent_v2(context), "no context")
    try:
        yield
    finally:
        driver().cuCtxPopCurrent_v2(ctypes.byref(context))


# torch's own question, without an object around the answer
current_stream: Callable[[int], int] = getattr(
    torch._C, "_cuda_getCurrentRawStream", lambda device: torch.cuda.current_stream(device).cuda_stream
)


class Function:
    """A kernel on a device, and how much dynamic shared memory it was allowed so far."""

    def __init__(self, build: Build, device: int):
        binary = compile_source(build.source, (build.name,), arch_of(device), "cubin", build.defines, build.appended)
        self.build, self.device, cuda = build, device, cupy_driver()
        with _current(device), _refusals(f"loading {build.label}"):
            self.module = cuda.moduleLoadData(binary.code)  # never unloaded
            self.handle: int = cuda.moduleGetFunction(self.module, binary.names[build.name])
            self.static: int = cuda.funcGetAttribute(SHARED_SIZE_BYTES, self.handle)
        self.allowed = max(0, DEFAULT_SHARED - self.static)

    def allow(self, shared: int) -> None:
        """Ask for so many bytes of dynamic shared memory. Raises LaunchError where the device does not have them."""
        what = f"{self.build.label}: {shared} bytes of dynamic shared memory beside {self.static} static ones"
        with _current(self.device), _refusals(what):
            cupy_driver().funcSetAttribute(self.handle, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        self.allowed = shared

    def allow_large_clusters(self) -> None:
        """Clusters of more blocks than every GPU has. Raises LaunchError where this one has none."""
        with _current(self.device), _refusals(f"{self.build.label}: clusters of more than {PORTABLE_CLUSTER} blocks"):
            cupy_driver().funcSetAttribute(self.handle, NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What the driver refuses, as LaunchError."""
    try:
        yield
    except cupy_driver().CUDADriverError as error:
        raise LaunchError(f"{what}: {error}") from error


@functools.cache
def _function(build: Build, device: int) -> Function:
    return Function(build, device)


_one_at_a_time = threading.Lock()  # a plan's buffer is its own between packing and the driver's copy of it


class Plan:
    """Launches of one kernel that differ in values and geometry alone: the buffer of their arguments, laid out once."""

    def __init__(self, call: Launch, device: int, function: Any = None):
        """function: what is launched, where somebody else has loaded it."""
        self.build, self.device, self.cooperative = call.build, device, call.cooperative
        self.function = function or _function(call.build, device)
        sizes = [len(a.value) for a in call.arguments]
        formats = "".join(a.format or f"{len(a.value)}s" for a in call.arguments)
        self.bf16 = _places(formats)  # of values that `struct` has no letter for
        self.pack = struct.Struct("<" + formats.replace("W", "H"))
        self.buffer = ctypes.create_string_buffer(max(1, sum(sizes)))
        first = ctypes.addressof(self.buffer)
        places = itertools.accumulate(sizes[:-1], initial=first)
        self.pointers = (ctypes.c_void_p * max(1, len(sizes)))(*places)
        self.address = ctypes.addressof(self.pointers)
        self.cluster = call.cluster
        if call.cluster:
            if math.prod(call.cluster) > PORTABLE_CLUSTER:
                self.function.allow_large_clusters()
            self._launch: Callable[..., None] = functools.partial(_in_clusters, call.cluster, call.cooperative)
        else:
            self._launch = _cooperatively if call.cooperative else cupy_driver().launchKernel
        self._refused = cupy_driver().CUDADriverError

    def launch(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, values: list) -> None:
        """On torch's current stream. Raises struct.error where a value does not fit its parameter, or LaunchError."""
        function = self.function
        if shared > function.allowed:
            function.allow(shared)
        stream = current_stream(self.device)
        for i in self.bf16:
            values[i] = bf16_bits(values[i])
        with _one_at_a_time:
            self.pack.pack_into(self.buffer, 0, *values)
            try:
                self._launch(function.handle, *grid, *block, shared, stream, self.address, 0)
            except self._refused as error:
                if error.status not in NOT_CURRENT:
                    raise LaunchError(f"{self._named(grid, block, shared)}: {error}") from error
                with _current(self.device), _refusals(self._named(grid, block, shared)):
                    self._launch(function.handle, *grid, *block, shared, stream, self.address, 0)

    def _named(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int) -> str:
        return str(Launch(self.build, grid, block, shared, (), self.cooperative, self.cluster))


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: what is asked for, and 64 bytes that say how much of it."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


def _in_clusters(cluster: tuple[int, int, int], cooperative: bool, handle: int, *launch: int) -> None:
    """cuLaunchKernelEx with what cuLaunchKernel is given, which CuPy does not bind."""
    *sizes, shared, stream, parameters, _ = launch
    attributes = (_Attribute * 2)(
        _Attribute(CLUSTER_DIMENSION, 0, (ctypes.c_uint * 16)(*cluster)),
        _Attribute(COOPERATIVE, 0, (ctypes.c_uint * 16)(1)),
    )
    grid, block = (ctypes.c_uint * 3)(*sizes[:3]), (ctypes.c_uint * 3)(*sizes[3:])
    config = _Config(grid, block, shared, stream, attributes, 1 + cooperative)
    code = driver().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(handle), ctypes.c_void_p(parameters), None)
    if code:
        raise cupy_driver().CUDADriverError(code)


def _cooperatively(*launch: int) -> None:
    """cuLaunchCooperativeKernel with what cuLaunchKernel is given; it has no `extra`, the last of it."""
    cupy_driver().launchCooperativeKernel(*launch[:-1])


def _places(formats: str) -> tuple[int, ...]:
    """Which of the values are bf16: `W` in the formats, where `8x` takes no value and `8s` one."""
    values = [f[-1] for f in re.findall(r"\d*[a-zA-Z?]", formats) if f[-1] != "x"]
    return tuple(i for i, letter in enumerate(values) if letter == "W")


def launch(call: Launch) -> None:
    """One launch whose arguments are encoded already, on the GPU that its tensors are on."""
    device = next(place(t) for a in call.arguments for t in a.tensors if place(t) >= 0)
    whole = replace(call, arguments=tuple(replace(a, format="") for a in call.arguments))
    Plan(whole, device).launch(call.grid, call.block, call.shared, [a.value for a in call.arguments])


def upload(device: int, to: int, source: int, size: int, stream: int) -> None:
    """Copy bytes of page-locked memory to the GPU, in the stream; a graph that captures this reads them again."""
    copy = driver().cuMemcpyHtoDAsync_v2
    arguments = ctypes.c_uint64(to), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_void_p(stream)
    code = copy(*arguments)
    if code in NOT_CURRENT:
        with _current(device):
            code = copy(*arguments)
    _ok(code, f"copying {size} bytes")


def wait(device: int, stream: int | None = None) -> None:
    """For a stream, or for all that the GPU does."""
    with _current(device):
        code = driver().cuCtxSynchronize() if stream is None else driver().cuStreamSynchronize(ctypes.c_void_p(stream))
    _ok(code, "waiting")


def capturing(stream: int) -> bool:
    """Whether what is launched on the stream becomes part of a graph."""
    status = ctypes.c_int()
    _ok(driver().cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status)), "asking for a capture")
    return status.value != 0


@functools.cache
def arch_of(device: int) -> str:
    """The architecture to compile for; Hopper and later with their own instructions (sm_90a). Makes no context."""
    major, minor = capability_of(device)
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


@functools.cache
def capability_of(device: int) -> tuple[int, int]:
    """A GPU's compute capability, (9, 0) for Hopper. The driver is asked, which makes no context for that: a context
    costs the asking process some hundred megabytes of the card. Raises Unavailable, LaunchError."""
    library, handle, found = driver(), ctypes.c_int(), []
    _ok(library.cuDeviceGet(ctypes.byref(handle), device), f"GPU {device}")
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        _ok(library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle), f"GPU {device}")
        found.append(value.value)
    return found[0], found[1]


def name_of(device: int) -> str:
    """A GPU's name, as torch tells it too. Makes no context."""
    library, handle, text = driver(), ctypes.c_int(), ctypes.create_string_buffer(256)
    _ok(library.cuDeviceGet(ctypes.byref(handle), device), f"GPU {device}")
    _ok(library.cuDeviceGetName(text, len(text), handle), f"GPU {device}")
    return text.value.decode(errors="replace")
