"""Launches on the GPU, through the driver itself: a kernel is loaded once, and a call of it packs its arguments into
one buffer and asks the driver to launch on torch's current stream. Nothing is copied, allocated or waited for.

`libcuda.so.1` is called by ctypes: no other library stands between a launch and the driver, and the host's time of one
is some microseconds.
"""

import contextlib
import ctypes
import functools
import itertools
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from kernels import Unavailable
from kernels.cuda import Build, Launch, place
from kernels.cuda.compiler import compile_source

DEFAULT_SHARED = 48 * 1024  # static and dynamic: more must be asked for
# CUfunction_attribute, CUdevice_attribute and CUresult (cuda.h)
SHARED_SIZE_BYTES, MAX_DYNAMIC_SHARED_SIZE_BYTES = 1, 8
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
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
    sizes = [ctypes.c_uint] * 7  # grid, block, dynamic shared memory
    library.cuLaunchKernel.argtypes = [ctypes.c_void_p, *sizes, *[ctypes.c_void_p] * 3]
    if code := library.cuInit(0):
        raise Unavailable(f"NVIDIA's driver does not start: {_text(library, code)}")
    return library


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
        binary = compile_source(build.source, (build.name,), arch_of(device), "cubin", build.defines)
        module, handle, static = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self.build, self.device = build, device
        with _current(device):
            _ok(driver().cuModuleLoadData(ctypes.byref(module), binary.code), f"loading {build.label}")
            symbol = binary.names[build.name].encode()
            _ok(driver().cuModuleGetFunction(ctypes.byref(handle), module, symbol), f"loading {build.label}")
            _ok(driver().cuFuncGetAttribute(ctypes.byref(static), SHARED_SIZE_BYTES, handle), build.label)
        self.handle = handle.value
        self.static = static.value
        self.allowed = max(0, DEFAULT_SHARED - self.static)

    def allow(self, shared: int) -> None:
        """Ask for so many bytes of dynamic shared memory. Raises LaunchError where the device does not have them."""
        with _current(self.device):
            code = driver().cuFuncSetAttribute(ctypes.c_void_p(self.handle), MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        _ok(code, f"{self.build.label}: {shared} bytes of dynamic shared memory beside {self.static} static ones")
        self.allowed = shared


@functools.cache
def _function(build: Build, device: int) -> Function:
    return Function(build, device)


_one_at_a_time = threading.Lock()  # a plan's buffer is its own between packing and the driver's copy of it


class Plan:
    """Launches of one kernel that differ in values and geometry alone: the buffer of their arguments, laid out once."""

    def __init__(self, call: Launch, device: int):
        self.build, self.device = call.build, device
        self.function = _function(call.build, device)
        sizes = [len(a.value) for a in call.arguments]
        self.pack = struct.Struct("<" + "".join(a.format or f"{len(a.value)}s" for a in call.arguments))
        self.buffer = ctypes.create_string_buffer(max(1, sum(sizes)))
        first = ctypes.addressof(self.buffer)
        places = itertools.accumulate(sizes[:-1], initial=first)
        self.pointers = (ctypes.c_void_p * max(1, len(sizes)))(*places)
        self.address = ctypes.addressof(self.pointers)
        self._launch = driver().cuLaunchKernel

    def launch(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, values: list) -> None:
        """On torch's current stream. Raises struct.error where a value does not fit its parameter, or LaunchError."""
        function = self.function
        if shared > function.allowed:
            function.allow(shared)
        stream = current_stream(self.device)
        with _one_at_a_time:
            self.pack.pack_into(self.buffer, 0, *values)
            code = self._launch(function.handle, *grid, *block, shared, stream, self.address, None)
            if code in NOT_CURRENT:
                with _current(self.device):
                    code = self._launch(function.handle, *grid, *block, shared, stream, self.address, None)
        if code:
            raise LaunchError(f"{Launch(self.build, grid, block, shared, ())}: {_text(driver(), code)}")


def launch(call: Launch) -> None:
    """One launch whose arguments are encoded already, on the GPU that its tensors are on."""
    device = next(place(t) for a in call.arguments for t in a.tensors if place(t) >= 0)
    whole = replace(call, arguments=tuple(replace(a, format="") for a in call.arguments))
    Plan(whole, device).launch(call.grid, call.block, call.shared, [a.value for a in call.arguments])


def upload(device: int, to: int, what: bytes, stream: int) -> None:
    """Copy bytes to the GPU, in the stream; they must live as long as a graph that captures this."""
    copy = driver().cuMemcpyHtoDAsync_v2
    arguments = ctypes.c_uint64(to), ctypes.c_char_p(what), ctypes.c_size_t(len(what)), ctypes.c_void_p(stream)
    code = copy(*arguments)
    if code in NOT_CURRENT:
        with _current(device):
            code = copy(*arguments)
    _ok(code, f"copying {len(what)} bytes")


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
