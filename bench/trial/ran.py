"""What ran on a GPU: the kernels of a call by name, and which of them are a variant's own.

Own code may run the kernels that its own sources define: `__global__` functions of the .cu files that its Python names
or that share its stem, `@triton.jit` functions, and those of the modules that it imports from its backend. What else it
runs (a library's kernel, or one that is compiled elsewhere) must match its KERNELS. Copies and fills are nobody's code.

And what own code on a CPU is linked against: the shared objects that it brought into the process, and the functions
that these want of others. A kernel needs the C and C++ library, OpenMP's runtime, and nothing else.
"""

import ast
import contextlib
import ctypes
import fnmatch
import functools
import re
import struct
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from bench import HOME
from bench.core import owners
from bench.core.variants import Variant
from bench.machine.devices import BUSY, Device, Kernel, busy_seconds
from bench.machine.facts import mapped
from kernels import cache_dir
from kernels.cuda import cplusplus

COPIES = ("Memcpy", "Memset")
# A copy from the device to itself: the driver's, and ATen's kernels for copy_ (the last is the made-up GPU's).
COPY = re.compile(r"^Memcpy (DtoD|Device)|copy_kernel_cuda|\bcopy__kernel\b")
NAME_LENGTH = 100  # of a kernel's name in a record
ANONYMOUS, UNNAMED = "(anonymous namespace)", "\0"


def watch(device: Device, call: Callable[[], object]) -> tuple[list[Kernel], int]:
    """Make one call on a GPU: the kernels it ran, and the bytes of tensors it allocated beyond those there before.

    Raises RuntimeError where the profiler saw no kernel.
    """
    with device.timer(BUSY) as timer:
        device.synchronize()
        device.forget_peak()
        before, _ = device.memory()
        timer.start()
        call()
        timer.stop()
        _, peak = device.memory()
    return timer.kernels[0], peak - before


def last_copies(kernels: list[Kernel]) -> list[Kernel]:
    """The copies on the device that end a call: a library's results on their way to where the contract wants them.
    None where the call is nothing but copies."""
    copies = list(takewhile(lambda k: COPY.search(k.name), sorted(kernels, key=lambda k: -k.start)))
    return [] if len(copies) == len(kernels) else copies[::-1]


def uncopied_seconds(kernels: list[Kernel]) -> float:
    """The busy time of a call without the copies that end it."""
    copies = last_copies(kernels)
    return busy_seconds([k for k in kernels if k not in copies])


def counts(kernels: Iterable[Kernel]) -> dict[str, int]:
    """How often each kernel ran, by its short name: without return type and parameters."""
    return dict(Counter(short(k.name) for k in kernels))


def short(name: str) -> str:
    if not name.startswith(COPIES):
        plain = name.replace(ANONYMOUS, UNNAMED)
        start, end = _function_in(plain)
        name = plain[start:end].replace(UNNAMED, ANONYMOUS)
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def foreign(variant: Variant, names: Iterable[str]) -> list[str]:
    """Of the kernels that ran, the short names of those that are not the variant's own code."""
    own = own_kernels(variant)
    return sorted(
        {
            short(name)
            for name in names
            if qualified(name) not in own
            and not name.startswith(COPIES)
            and not any(fnmatch.fnmatchcase(qualified(name), pattern) for pattern in variant.kernels)
        }
    )


def qualified(name: str) -> str:
    """A demangled name's function with its namespaces: `void a::f<float, 64>(float*)` is `a::f`."""
    plain = name.replace(f"{ANONYMOUS}::", "")
    start, end = _function_in(plain)
    return "".join(c for i, c in _outside_templates(plain) if start <= i < end)


def _function_in(name: str) -> tuple[int, int]:
    """Where a demangled name's function begins, behind the type of its result, and where its parameters do. The type
    may be a template's: `std::enable_if<!(false), void>::type internal::gemvx::kernel<int>(int)` is one of cuBLAS's."""
    outside = list(_outside_templates(name))
    end = len(name[: next((i for i, c in outside if c == "("), len(name))].rstrip())
    start = max((i + 1 for i, c in outside if c == " " and i < end), default=0)
    return start, end


def _outside_templates(name: str) -> Iterator[tuple[int, str]]:
    """The characters that are no template's arguments, with their places."""
    angles = brackets = 0
    for i, c in enumerate(name):
        if angles:
            brackets += (c == "(") - (c == ")")
            angles += 0 if brackets else (c == "<") - (c == ">")
        elif c == "<":
            angles = 1
        else:
            yield i, c


@functools.cache
def own_kernels(variant: Variant) -> frozenset[str]:
    """Names of all kernels that a variant's sources define, without templates and parameters."""
    modules, sources = _sources(variant.path)
    sources.add(variant.path.with_suffix(".cu"))
    found = {name for path in modules for name in _jit_functions(path)}
    return frozenset(found | {name for path in sources if path.exists() for name in _global_functions(path)})


def _sources(start: Path) -> tuple[set[Path], set[Path]]:
    """The Python files that a variant consists of, its backend's shared ones included, and the .cu files they name."""
    modules: set[Path] = set()
    sources: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in modules:
            continue
        modules.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                waiting += _imported(path, node)
            elif (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith((".cu", ".cuh"))
            ):
                sources.add((path.parent / node.value).resolve())
    return modules, sources


def _imported(path: Path, node: ast.ImportFrom) -> Iterator[Path]:
    """The files of `from kernels.… import …` and of relative imports; other modules are not a variant's own code."""
    parts = (node.module or "").split(".") if node.module else []
    if node.level:
        folder = path.parents[node.level - 1]
    elif parts[0] == "kernels":
        folder = HOME
    else:
        return
    base = folder.joinpath(*parts)
    for file in (base.with_suffix(".py"), base / "__init__.py", *(base / f"{a.name}.py" for a in node.names)):
        if file.is_file():
            yield file


def _jit_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
            yield node.name


def _global_functions(path: Path) -> list[str]:
    """With their namespaces. What loads scalars and goes on as one of them has its name (kernels.cuda.Loaded)."""
    unit = cplusplus.read(path, None, [cplusplus.HERE])
    kernels = (d for d in unit.declarations if d.function and "__global__" in d.function.qualifiers)
    names = ["::".join((*d.scope, d.function.name)) for d in kernels if d.function]
    return names + [f"{name.replace('::', '_')}_loading" for name in names]


# --- what a CPU kernel is linked against ---

SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1")
# Of OpenMP's runtimes, which must not be loaded to ask them; of libatomic and libmvec.
OPENMP = ("GOMP_", "omp_", "__kmpc_")
SYSTEM_NAMES = (*OPENMP, "__atomic_", "_ZGV")
# Functions of those that compute nothing: they find other libraries, or set what a call has no business to set.
FINDS = ("dlopen", "dlmopen", "dlsym", "dlvsym", "dl_iterate_phdr", "system", "popen", "execv", "posix_spawn", "fork")
SETS = (
    *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "pthread_setaffinity_np", "pthread_setschedparam"),
    *("setpriority", "nice", "prctl", "setrlimit", "setitimer", "timer_create", "timerfd_create", "alarm", "ualarm"),
    *("signal", "sigaction", "kill", "ptrace", "syscall", "clock_settime", "mlockall", "omp_set_num_threads"),
    *("fesetround", "fesetenv", "mmap", "mmap64", "mremap", "mprotect", "madvise", "mbind", "userfaultfd", "setenv"),
    *("putenv", "environ", "__environ"),
)
# … that tell the time, wait, or touch files: a source that hides the name by a macro has it here.
NEEDLESS = (
    *("clock_gettime", "gettimeofday", "time", "times", "clock", "timespec_get", "usleep", "nanosleep", "sleep"),
    *("_ZNSt6chrono3_V212steady_clock3nowEv", "_ZNSt6chrono3_V212system_clock3nowEv", "clock_nanosleep"),
    *("open", "open64", "openat", "creat", "fopen", "fopen64", "pwrite", "pwrite64", "unlink", "remove", "rename"),
    *("truncate", "ftruncate", "socket", "connect", "shm_open", "memfd_create", "dup2"),
)
# Weak references of every shared object; of threads, where an older C library has them in one of its own.
LINKERS = ("_ITM_", "__gmon_start__", "_ZGT", "_ZTH", "__tls_init", "pthread_", "__pthread_")
UNDEFINED, WEAK, DYNAMIC_SYMBOLS = 0, 2, 11  # of an ELF file: section index, binding, section type


def brought(before: set[str]) -> list[Path]:
    """Shared objects that came into the process since `mapped` answered `before`, and that no installed package, no
    Python and no system brought: those that a variant built."""
    return sorted(Path(p).resolve() for p in mapped() - before if not _installed(p))


@functools.cache
def _installed(path: str) -> bool:
    p = Path(path).resolve()
    stays = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    stays += ["/usr", "/lib", "/lib64", "/opt", *(str(folder.resolve()) for folder in owners.LIBRARIES.values())]
    if p.is_relative_to(cache_dir().resolve()):
        return False
    return "site-packages" in p.parts or any(p.is_relative_to(s) for s in stays)


@functools.cache
def borrowed(library: Path) -> dict[str, list[str]]:
    """What a shared object wants of others, beyond the C and C++ library and OpenMP's runtime, by the check it fails.

    "library": functions of others, or that find others; "global_state": functions that set what is not a call's;
    "source": functions that no kernel needs.

    Raises ValueError where the file is no 64-bit little-endian ELF.
    """
    wants = undefined(library)
    found = {
        "library": [name for name in wants if name.startswith(FINDS) or not _of_the_system(name)],
        "global_state": [name for name in wants if name in SETS],
        "source": [name for name in wants if name in NEEDLESS],
    }
    return {check: names for check, names in found.items() if names}


def wants_openmp(library: Path) -> bool:
    """Whether a shared object asks an OpenMP runtime for its threads."""
    with contextlib.suppress(OSError, ValueError):
        return any(name.startswith(OPENMP) for name in undefined(library))
    return False


def undefined(library: Path) -> list[str]:
    """Names of the functions and data that a shared object wants of others; those that every one asks for, and can do
    without, are left out.

    System V ABI, ELF-64: the section of dynamic symbols, 24 bytes each, and that of their names.
    """
    data = library.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{library.name} is no 64-bit little-endian ELF file")
    start, size, count = struct.unpack_from("<Q10xHH", data, 40)
    # Of each section: type, offset, size and the section that belongs to it.
    sections = [struct.unpack_from("<4xI16xQQI", data, start + i * size) for i in range(count)]
    found = []
    for kind, offset, length, strings in sections:
        if kind != DYNAMIC_SYMBOLS:
            continue
        names = sections[strings][1]
        for name, info, section in struct.iter_unpack("<IBxH16x", data[offset : offset + length]):
            if not name or section != UNDEFINED:
                continue
            told = data[names + name : data.index(b"\0", names + name)].decode()
            if info >> 4 != WEAK or told in SETS or not told.startswith(LINKERS):
                found.append(told)
    return sorted(found)


def _of_the_system(name: str) -> bool:
    libraries = _system()
    return name.startswith(SYSTEM_NAMES) or not libraries or any(hasattr(library, name) for library in libraries)


@functools.cache
def _system() -> list[ctypes.CDLL]:
    found = []
    for name in SYSTEM:
        try:
            found.append(ctypes.CDLL(name))
        except OSError:  # another C library: then nothing can be said of its functions
            return []
    return found
