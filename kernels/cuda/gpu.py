"""A checked launch on the GPU: the cubin is loaded once through CuPy and runs on torch's current stream."""

import ctypes
import functools

import torch

from kernels.cuda import Build, Launch
from kernels.cuda.compiler import compile_source

DEFAULT_SHARED = 48 * 1024  # more dynamic shared memory must be asked for


class LaunchError(RuntimeError):
    """The driver refused a launch; the message names kernel, grid, block and shared memory."""


def launch(call: Launch) -> None:
    """Run `call` on torch's current stream. Nothing is copied; capturable in a CUDA graph once the kernel is loaded.

    Raises CompileError or LaunchError. A fault inside the kernel shows at the next synchronisation, as always.
    """
    from cupy_backends.cuda.api import driver

    device = next(t.device for a in call.arguments for t in a.tensors if t.is_cuda)
    function = _function(call.build, device.index or 0, call.shared if call.shared > DEFAULT_SHARED else 0)
    storage = [ctypes.create_string_buffer(a.value, len(a.value)) for a in call.arguments]
    pointers = (ctypes.c_void_p * len(storage))(*(ctypes.addressof(s) for s in storage))
    stream = torch.cuda.current_stream(device).cuda_stream
    try:
        driver.launchKernel(function, *call.grid, *call.block, call.shared, stream, ctypes.addressof(pointers), 0)
    except driver.CUDADriverError as error:
        raise LaunchError(f"{call}: {error}") from error


@functools.cache
def _function(build: Build, device: int, shared: int) -> int:
    """The driver's handle of a kernel on a device, allowed `shared` bytes of dynamic shared memory."""
    import cupy

    binary = compile_source(build.source, (build.name,), arch_of(device), "cubin", build.defines)
    with cupy.cuda.Device(device):
        module = cupy.cuda.function.Module()
        module.load(binary.code)
        function = module.get_function(binary.names[build.name])
    _loaded.append(module)  # a module unloads its functions when it goes
    if shared:
        from cupy_backends.cuda.api import driver

        driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
    return function.ptr


_loaded: list = []


@functools.cache
def arch_of(device: int) -> str:
    """The architecture to compile for; Hopper and later with their own instructions (sm_90a)."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")
