"""C++ kernels on the CPU: compiled at first use, cached, and called on torch tensors without a copy.

    forward_kernel = Kernel("naive.cpp", "layernorm_forward")
    forward_kernel(out, mean, rstd, x, weight, bias, B * T, C, eps)

The dtype of the first tensor argument chooses the build: `T` is `float` or `bf16` (see common.hpp). Tensors (and
lists of tensors) arrive as pointers, ints and bools as int64_t, floats as float, lists of ints or floats as arrays of
those, None as nullptr. The .cpp exports its entry points with `extern "C"`.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch

from kernels import Unavailable, cache_dir
from kernels.includes import sources

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", f"-I{HERE}"]
DTYPE_FLAGS = {torch.float32: "-DT_FP32", torch.bfloat16: "-DT_BF16"}


class CompileError(RuntimeError):
    """The system's compiler refused a kernel; the message is the compiler's own."""


class Kernel:
    """One entry point of a .cpp file that lies beside the calling Python file."""

    # Where a harness that calls with the same memory again and again keeps what C was called with.
    recorded: ClassVar["list[tuple[Callable, list]] | None"] = None

    def __init__(self, source: str, entry: str, tiles: bool = False):
        """`tiles`: the kernel uses AMX's registers, for which a process has to ask."""
        caller = sys._getframe(1).f_globals["__file__"]
        self.source = Path(caller).parent / source
        self.entry = entry
        self.tiles = tiles
        self._functions: dict[torch.dtype, Callable] = {}

    def __call__(self, *args) -> None:
        first = next(a[0] if isinstance(a, list) else a for a in args if _holds_tensor(a))
        function = self._functions.get(first.dtype)
        if function is None:
            function = self._functions[first.dtype] = self._load(first.dtype)
        # `keep` holds the converted arrays until the call is over.
        keep = [_argument(a) for a in args]
        function(*keep)
        if Kernel.recorded is not None:
            Kernel.recorded.append((function, keep))

    def _load(self, dtype: torch.dtype) -> Callable:
        if dtype not in DTYPE_FLAGS:
            raise Unavailable(f"CPU kernels are built for fp32 and bf16, not {dtype}")
        if self.tiles:
            ask_for_tiles()
        library = ctypes.CDLL(str(build(self.source, DTYPE_FLAGS[dtype])))
        function = getattr(library, self.entry)
        function.restype = None
        return function


@functools.cache
def ask_for_tiles() -> None:
    """Linux gives a process the 8 KB of AMX's tiles only when it has asked, by arch_prctl (the kernel's documentation,
    arch/x86/xstate). Raises Unavailable where it does not."""
    ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18
    if ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST, TILE_DATA):
        raise Unavailable("Linux does not give this process AMX's tiles (5.16 or later does)")


def _holds_tensor(arg) -> bool:
    return isinstance(arg, torch.Tensor) or (isinstance(arg, list) and bool(arg) and isinstance(arg[0], torch.Tensor))


def _argument(arg):
    if isinstance(arg, torch.Tensor):
        if not arg.is_cpu:
            raise ValueError(f"a CPU kernel was handed a tensor on {arg.device}")
        return ctypes.c_void_p(arg.data_ptr())
    if isinstance(arg, list):
        if not arg or isinstance(arg[0], torch.Tensor):
            return (ctypes.c_void_p * len(arg))(*[t.data_ptr() for t in arg])
        kind = ctypes.c_float if isinstance(arg[0], float) else ctypes.c_int64
        return (kind * len(arg))(*arg)
    if isinstance(arg, float):
        return ctypes.c_float(arg)
    return None if arg is None else ctypes.c_int64(arg)


def build(source: Path, *extra_flags: str) -> Path:
    """Compile `source` to a shared library, or find it in the cache; returns the library's path.

    Cached by the source with all that it may include (kernels/includes.py), flags, compiler and CPU, so a stale
    build is never loaded. What the compiler says it has read must be among that, else the build is this process's
    alone. Raises Unavailable without a compiler, CompileError with the compiler's message.
    """
    compiler, version = find_compiler()
    flags = [*FLAGS, *extra_flags]
    read = sources(source, [HERE, *_searched()])
    text = repr((read.digest, flags, version, cpu_flags())).replace(str(HERE), "")
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    library = cache_dir() / "cpu" / f"{source.parent.name}-{source.stem}-{key}.so"
    if kept := _unkept.get(library):
        return kept
    if read.whole and library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.part")
    told = library.with_suffix(f".{os.getpid()}.d")
    command = [compiler, str(source), *flags, "-MMD", "-MF", str(told), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        if done.returncode:
            raise CompileError(f"{compiler} could not compile {source.name}:\n{done.stderr.strip()}")
        if not read.whole or not _dependencies(told) <= {p.resolve() for p in read.files}:
            atexit.register(partial.unlink, missing_ok=True)
            return _unkept.setdefault(library, partial)
        os.replace(partial, library)  # atomic: two processes may build the same kernel at once
        return library
    finally:
        told.unlink(missing_ok=True)
        if done.returncode:
            partial.unlink(missing_ok=True)


_unkept: dict[Path, Path] = {}  # builds that read what their key does not cover: for this process alone


def _dependencies(file: Path) -> set[Path]:
    """The files of a make rule that the compiler wrote, without those of the system."""
    rule = re.sub(r"\\\n", " ", file.read_text())
    names = re.findall(r"(?:\\ |\S)+", rule.partition(": ")[2])
    return {Path(name.replace("\\ ", " ").replace("$$", "$")).resolve() for name in names}


def _searched() -> list[Path]:
    """Folders that the environment adds to what the compiler searches."""
    told = (os.environ.get(name, "") for name in ("CPATH", "CPLUS_INCLUDE_PATH"))
    return [Path(folder or ".") for text in told if text for folder in text.split(os.pathsep)]


@functools.cache
def find_compiler() -> tuple[str, str]:
    """The C++ compiler ($CXX, g++ or clang++) and its version line."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            line = subprocess.run([name, "--version"], capture_output=True, text=True).stdout.splitlines()
            return name, line[0] if line else name
    raise Unavailable("no C++ compiler: install g++ (apt-get install g++) or set CXX")


@functools.cache
def cpu_flags() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))), "")
