"""Compiles the runtime once, and each translated module once: shared libraries in the cache, found again by hash.

What every kernel needs of the runtime is one library. What few need, for those that their headers name, are others,
which are compiled where a kernel first includes one.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.simulate.translate import translate
from kernels import cache_dir
from kernels.cpu import CompileError, cpu_flags, find_compiler

HERE = Path(__file__).parent
# No contraction: whether a product and a sum are fused was decided when the PTX was made.
# C++17: the standard library's headers take twice as long to compile as C++20.
COMMON = ["-std=c++17", "-march=native", "-fPIC", "-shared", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off"]
RUNTIME_FLAGS = [*COMMON, "-fvisibility=default", "-fno-semantic-interposition"]
# By header, the files of the runtime that it stands for, those before others that they call.
PARTS = {
    "tensor_core.hpp": ("tensor_core",),
    "wmma.hpp": ("tensor_core", "wmma"),
    "hopper.hpp": ("tensor_core", "hopper", "async_copy", "wgmma"),
    "cluster.hpp": ("tensor_core", "hopper", "async_copy", "wgmma", "cluster_async"),
}
OF_FEW = frozenset(name for names in PARTS.values() for name in names)
# Of what all kernels need, these files are compiled as one and all others as another, side by side: a header is read
# twice and not eight times, which was a third of the work. -O2 takes a second more; the first run a sixth faster by it,
# the others no faster.
SCHEDULER = ("cluster", "runtime", "unused", "warp")
INCLUDED = re.compile(rb"layerbench includes:([^\0]*)\0")  # in a kernel's library (translate.py)
# -Og compiles in a third of -O1's time, and runs as fast; -O0 takes hardly less, and runs half as fast.
KERNEL_FLAGS = [*COMMON, "-Og", "-fno-math-errno", "-fno-plt", "-fstack-clash-protection", "-fvisibility=hidden", "-w"]
MOST_WAITING_S = 120.0  # for another process's compiler


def load_runtime() -> ctypes.CDLL:
    return _load_runtime(cache_dir())


@functools.cache
def _load_runtime(folder: Path) -> ctypes.CDLL:
    everyones = [p for p in sorted(HERE.glob("*.cpp")) if p.stem not in OF_FEW]
    scheduler = [p for p in everyones if p.stem in SCHEDULER]
    return _load_global(folder, "runtime", [scheduler, [p for p in everyones if p not in scheduler]])


@functools.cache
def _load_part(folder: Path, name: str) -> ctypes.CDLL:
    """One of those that few kernels need; after the runtime, and what it calls of others."""
    return _load_global(folder, name, [[HERE / f"{name}.cpp"]])


def _load_global(folder: Path, name: str, units: list[list[Path]]) -> ctypes.CDLL:
    """A library whose functions kernels, and those that are loaded later, find by name. units: the files of each."""
    library = _compile(folder, name, units)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def load_module(ptx: str) -> ctypes.CDLL:
    """The library of a PTX module, translated and compiled where it was not yet. Kept for the life of the process."""
    return _load_module(ptx, cache_dir())


@functools.cache
def _load_module(ptx: str, folder: Path) -> ctypes.CDLL:
    _load_runtime(folder)
    library = build_module(ptx, folder)
    included = INCLUDED.search(library.read_bytes())
    for header in included[1].decode().split() if included else ():
        for name in PARTS.get(header, ()):
            _load_part(folder, name)
    return ctypes.CDLL(str(library))


def build_module(ptx: str, folder: Path | None = None) -> Path:
    """Translate and compile without loading. Found again by its PTX, and what that is translated to by its C++: where
    the translator changes, most kernels stay as they are."""
    folder = folder or cache_dir()
    key = _digest("".join(p.read_text() for p in sorted(HERE.glob("*.py"))) + ptx, KERNEL_FLAGS)
    library = folder / "simulate" / f"kernel-{key}.so"

    def build() -> None:
        code = translate(ptx)
        compiled = library.with_name(f"code-{_digest(code, KERNEL_FLAGS)}.so")
        _once(compiled, lambda: _compile_code(code, KERNEL_FLAGS, compiled))
        partial = library.with_suffix(f".{os.getpid()}.part")
        partial.unlink(missing_ok=True)
        try:
            os.link(compiled, partial)
        except OSError:  # not on every file system
            shutil.copyfile(compiled, partial)
        os.replace(partial, library)

    return _once(library, build)


def _compile_code(code: str, flags: list[str], library: Path) -> None:
    source = library.with_suffix(f".{os.getpid()}.cpp")
    try:
        source.write_text(code)
        _run_compiler([source], flags, library)
    finally:
        source.unlink(missing_ok=True)


def _once(library: Path, build: Callable[[], object]) -> Path:
    """A library that is there, or that one of those who want it builds."""
    if not library.exists():
        with only_here(library):
            if not library.exists():
                build()
    return library


@contextmanager
def only_here(library: Path) -> Iterator[None]:
    """Other processes that want the same wait for it: those that share a proof begin with one kernel, all at once. The
    system lets go for who dies; who is only stopped is not waited for long."""
    library.parent.mkdir(parents=True, exist_ok=True)
    patience = time.monotonic() + MOST_WAITING_S
    with library.with_suffix(".lock").open("w") as lock:
        while time.monotonic() < patience:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        yield


def _compile(folder: Path, name: str, units: list[list[Path]]) -> Path:
    texts = ["".join(p.read_text() for p in unit) for unit in units]
    levels = ["-O2" if unit[0].stem in SCHEDULER else "-O1" for unit in units]
    library = folder / "simulate" / f"{name}-{_digest(''.join(texts), [*RUNTIME_FLAGS, *levels])}.so"

    def build() -> None:
        one = partial(_compile_unit, folder)
        if len(units) == 1:  # no thread: a part is first wanted while a call is watched, whose deed it would be
            objects = [one(units[0], texts[0], levels[0])]
        else:  # side by side: one after the other they are most of what the first launch of all takes
            with ThreadPoolExecutor(min(len(units), len(os.sched_getaffinity(0)))) as pool:
                objects = list(pool.map(one, units, texts, levels))
        _run_compiler(objects, RUNTIME_FLAGS, library)

    return _once(library, build)


def _compile_unit(folder: Path, unit: list[Path], text: str, level: str) -> Path:
    flags = [*(f for f in RUNTIME_FLAGS if f != "-shared"), level, "-c"]
    part = folder / "simulate" / f"{unit[0].stem}-{_digest(text, flags)}.o"
    if not part.exists():
        _compile_code("".join(f'#include "{p.name}"\n' for p in unit), flags, part)
    return part


def _digest(text: str, flags: list[str]) -> str:
    digest = hashlib.sha256()
    for header in sorted(HERE.glob("*.hpp")):
        digest.update(header.read_bytes())
    digest.update(repr((text, flags, find_compiler()[1], cpu_flags())).encode())
    return digest.hexdigest()[:20]


def _run_compiler(sources: list[Path], flags: list[str], library: Path) -> Path:
    compiler, _ = find_compiler()
    partial = library.with_suffix(f".{os.getpid()}.part")
    command = [compiler, *map(str, sources), f"-I{HERE}", *flags, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        partial.unlink(missing_ok=True)
        message = done.stderr.replace(f"{HERE}/", "").replace(f"{library.parent}/", "").strip()[:4000]
        raise CompileError(f"{compiler} could not compile the simulator's {library.stem}:\n{message}")
    os.replace(partial, library)  # atomic: two processes may build the same kernel at once
    return library
