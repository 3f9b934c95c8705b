"""Whose a file is: the harness's, Python's own, an installed package's, another process's, or somebody's.

asks(frame)             the file that asks for what happens in a frame
trusted(file)           whether it is the harness's, what a backend's variants share, or a package's
free_to_make(path)      whether a file that is made there is nobody's
believed(path)          whether the harness, or Python as it starts, would take it for its own
"""

import contextlib
import functools
import importlib.util
import os
import re
import sys
import sysconfig
import tempfile
import types
from pathlib import Path

import kernels
from bench import HOME
from bench.core import BACKENDS
from kernels import cache_dir
from reference import contract

STANDARD_LIBRARY, SITE = sysconfig.get_path("stdlib") + os.sep, ("site-packages", "dist-packages")
# Where PyTorch and Triton lie: who builds them by hand, or names them by PYTHONPATH, does not have them among the
# installed packages.
LIBRARIES = {
    name: Path(found.origin).parent
    for name in ("torch", "triton")
    if (found := importlib.util.find_spec(name)) and found.origin
}
# Folders of the cache that the harness, its launchers and compilers alone write to: what is found there is believed.
OURS = frozenset({"yards", "cpu", "cuda", "cupy", "core", "simulate", "resources", "messages", "data"})
OURS_BEGIN = ("shards-", "triton")
# Files that are believed wherever they lie: records, and what Python runs at its start.
BELIEVED = ("records.jsonl", "env.json", "train.jsonl", "sitecustomize.py", "usercustomize.py")
ROOTS = (HOME, Path(__file__).parents[2])  # as Python names files, which a link may lead to
# Where packages are installed, not any folder of such a name; and what a variant's file is called, wherever it lies.
PACKAGES = tuple(f"{p}{os.sep}" for p in dict.fromkeys(p for p in sys.path if os.path.basename(p) in SITE))
VARIANT = re.compile(rf"/(?:{'|'.join(BACKENDS)})/(?:{'|'.join(contract.layer_names())})/[^/]*$")
OF_OTHERS = ("/proc/", "/dev/shm/", "/dev/mem")
LISTENER = os.path.join(os.path.dirname(__file__), "deeds.py")  # whose functions ask for others


def _temporary_folder() -> str:
    with contextlib.suppress(OSError):  # there may be none to write to
        return os.path.realpath(tempfile.gettempdir())
    return ""


# Found before anybody listens: to find it Python opens files, under a lock that whoever hears of it would wait for.
TEMPORARY = _temporary_folder()


def free_to_make(path: str) -> bool:
    """Whether a file that is made there is nobody's: a temporary one, or in the cache, in a folder of its own."""
    if inside := _in_the_cache(path):
        return len(inside) > 1 and inside[0] not in OURS and not inside[0].startswith(OURS_BEGIN)
    temporary = bool(TEMPORARY) and path.startswith(f"{TEMPORARY}{os.sep}")
    return temporary and not _in_the_program(path)


def believed(path: str) -> bool:
    """Whether a file is one that the harness, or Python as it starts, would take for its own."""
    if inside := _in_the_cache(path):
        return len(inside) == 1 or inside[0] in OURS or inside[0].startswith("shards-")
    own = _in_the_program(path) and not path.startswith(PACKAGES)
    return own or path.endswith(".pth") or os.path.basename(path) in BELIEVED


def _in_the_cache(path: str) -> list[str]:
    """The parts of a path below the cache; none of another."""
    cache = os.path.realpath(cache_dir()) + os.sep
    return path.removeprefix(cache).split(os.sep) if path.startswith(cache) else []


def _in_the_program(path: str) -> bool:
    return any(path.startswith(f"{root}{os.sep}") for root in ROOTS)


def of_another_process(path: str) -> bool:
    """/proc/<a number>, but for its own, and there too memory and open files; shared memory by its name."""
    parts = path.split("/")
    if parts[1] != "proc":
        return path.startswith(OF_OTHERS)
    if parts[2] in ("self", "thread-self", str(os.getpid())):
        return bool({"mem", "fd", "map_files"} & set(parts[3:]))
    return parts[2].isdigit()


def asks(frame: types.FrameType | None, through: bool = False) -> str:
    """The file that asks for what happens in `frame`: the innermost that is not Python's own library's; "" for none.
    through: nor an installed package's, nor what `kernels` offers all variants to write files with."""
    while frame and _asks_for_others(frame.f_code.co_filename, through):
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""


@functools.lru_cache(maxsize=4096)
def _asks_for_others(file: str, through: bool) -> bool:
    return of_python_itself(file) or file == LISTENER or (through and (installed(file) or file == kernels.__file__))


@functools.lru_cache(maxsize=1024)
def of_python_itself(file: str) -> bool:
    return file.startswith((STANDARD_LIBRARY, "<frozen ")) and not any(f"{os.sep}{s}{os.sep}" in file for s in SITE)


@functools.lru_cache(maxsize=1024)
def trusted(file: str) -> bool:
    """Whether a file is the harness's, what a backend's variants share, or an installed package's; "" is nobody's."""
    if not file:
        return True
    for root in ROOTS:
        if file.startswith(f"{root}{os.sep}kernels{os.sep}"):
            return len(Path(file).relative_to(root).parts) <= 3
        if file.startswith(f"{root}{os.sep}bench{os.sep}"):
            return True
    return installed(file)


def installed(file: str) -> bool:
    """Whether a file is an installed package's, and no variant that one brings: that is somebody's own."""
    packages = file.startswith(PACKAGES) or any(map(Path(file).is_relative_to, LIBRARIES.values()))
    return packages and not VARIANT.search(file)
