"""A driver that launches nothing, in libcuda's place (libcuda.c): what the real launch paths ask of it is read here.

It is for a process of its own, which afterwards finds it wherever it asks for libcuda. Tensors are on the CPU: the
driver does not touch them, and `use` has the launchers take them for a GPU's.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("libcuda.c")
STREAM = 0x5000  # what torch's current stream is said to be


def missing() -> str:
    """Why there can be none here; "" where it can."""
    if importlib.util.find_spec("cupy") is None:
        return "no CuPy, by which CUDA kernels are launched"
    try:
        _headers()
        subprocess.run(["cc", "--version"], check=True, capture_output=True)
    except (ImportError, OSError, subprocess.CalledProcessError) as error:
        return f"no compiler, or no cuda.h: {error}"
    return ""


def _headers() -> Path:
    import triton.backends.nvidia as backend

    return Path(backend.__file__).parent / "include"


@functools.cache
def library() -> Path:
    """The folder with the stand-in's libcuda.so.1, built once for its source."""
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"layerbench-stand-in-{key}"
    built = folder / "libcuda.so.1"
    if not built.exists():
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial:
            pass
        command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1", f"-I{_headers()}"]
        subprocess.run([*command, str(SOURCE), "-o", partial.name], check=True)
        Path(partial.name).rename(built)
    return folder


@dataclass(frozen=True)
class Launched:
    """One launch as the driver was asked for it: the bytes of each parameter, as the kernel would find them."""

    name: str  # the symbol
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    attributes: int
    stream: int
    captured: bool
    parameters: tuple[bytes, ...]


COUNTS = ("recorded", "launches", "refused", "maps", "synchronizations", "attributes_set", "copies")


class StandIn:
    """The library in this process."""

    def __init__(self) -> None:
        # By its soname this is from now on the process's libcuda.
        os.environ["TRITON_LIBCUDA_PATH"] = str(library())
        self.lib = ctypes.CDLL(str(library() / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        self.device = 0  # that tensors are said to be on; -1: the CPU
        self.lib.stand_in_name.restype = ctypes.c_char_p
        self.lib.stand_in_geometry.restype = ctypes.POINTER(ctypes.c_uint)
        self.lib.stand_in_stream.restype = ctypes.c_uint64
        self.lib.stand_in_values.restype = ctypes.c_void_p
        self.lib.stand_in_capture.argtypes = [ctypes.c_void_p]

    def record(self, on: bool) -> None:
        """Without it launches are counted, and nothing of them is kept."""
        self.lib.stand_in_record(int(on))

    def forget(self) -> None:
        self.lib.stand_in_forget()

    def capture(self, stream: int | None) -> None:
        """Say that this stream is being captured."""
        self.lib.stand_in_capture(2**64 - 1 if stream is None else stream)

    def contexts(self) -> int:
        """How many contexts this thread has on its stack, torch's own included."""
        found = ctypes.c_void_p()
        self.lib.cuCtxGetCurrent(ctypes.byref(found))
        return found.value or 0

    def counts(self) -> dict[str, int]:
        return {name: self.lib.stand_in_count(i) for i, name in enumerate(COUNTS)}

    def launched(self) -> list[Launched]:
        return [self._launched(i) for i in range(self.counts()["recorded"])]

    def _launched(self, i: int) -> Launched:
        sizes = (ctypes.c_int * 512)()
        count = self.lib.stand_in_sizes(i, sizes)
        parameters, at = [], self.lib.stand_in_values(i)
        for size in sizes[:count]:
            parameters.append(ctypes.string_at(at, size))
            at += size
        told = self.lib.stand_in_geometry(i)
        return Launched(
            name=self.lib.stand_in_name(i).decode(),
            grid=tuple(told[0:3]),
            block=tuple(told[3:6]),
            shared=told[6],
            attributes=told[7],
            stream=self.lib.stand_in_stream(i),
            captured=bool(self.lib.stand_in_captured(i)),
            parameters=tuple(parameters),
        )


def use() -> StandIn:
    """Have the launchers of CUDA and Triton take the CPU's tensors for those of a GPU."""
    import torch

    from kernels import cuda
    from kernels.cuda import gpu, packing

    there = StandIn()
    there.lib.cuCtxSetCurrent(None)  # as torch does, once a tensor is on a GPU
    cuda.place = packing.place = lambda tensor: there.device
    gpu.current_stream = lambda device: STREAM
    torch._C._cuda_getCurrentRawStream = lambda device: STREAM
    use_triton()
    return there


def use_triton() -> None:
    """Triton's own driver for NVIDIA, where torch cannot tell it a device."""
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver

    class Driver(nvidia.CudaDriver):
        def __init__(self) -> None:
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_device_capability = lambda device: (9, 0)
            self.get_current_stream = lambda device: STREAM
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None

    driver.set_active(Driver())
