"""What a C++ or CUDA source says that no kernel needs: processes, libraries, clocks, files, threads that stay.

Comments and texts are blanked first, so that a word in them is none. A thread that is joined is a way to compute, and
is not named. Macros can hide what they like: this is a look at a source, no sandbox.
"""

import bisect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# By whatever use of the name, …
NEVER = words(
    "dlopen dlmopen dlsym dlvsym dl_iterate_phdr fork vfork posix_spawn posix_spawnp popen execl execlp execle execv"
    " execvp execve ptrace process_vm_readv process_vm_writev mprotect pthread_detach pthread_setaffinity_np"
    " pthread_setschedparam sched_setscheduler sched_setparam sched_setattr sched_setaffinity setpriority setitimer"
    " timer_create timer_settime timerfd_create clock_gettime clock_settime gettimeofday settimeofday adjtimex"
    " clock64 __rdtsc __rdtscp _rdtsc __builtin_ia32_rdtsc __builtin_ia32_rdtscp __builtin_readcyclecounter"
    " sigaction fopen freopen openat shm_open memfd_create setenv putenv unsetenv ifstream ofstream"
    " mmap mmap64 mremap madvise mlock mlock2 mlockall userfaultfd mbind set_mempolicy fesetround fesetenv"
    " usleep nanosleep clock_nanosleep sleep_for sleep_until pwrite pread creat unlink ftruncate environ timespec_get"
)
# … and where they are called, and are no function of the source's own: words that kernels use too.
CALLED = words("system signal kill clone syscall alarm ualarm nice open execveat clock")
PATTERNS = {
    r"(?<!\w)std\s*::\s*(async|system|signal|fstream|chrono)\b": "std::{}",
    r"::\s*(async)\b": "std::{}",
    r"(?:\.|->)\s*(detach)\s*\(": "a thread's {}()",
    r"\b(cblas_\w+|[sdcz]gemm_)\s*\(": "{}()",
    r"__attribute__\s*\(\([^)]{0,200}\b(constructor|destructor|ifunc)\b": "what runs when it is loaded: {}",
    r"\[\[\s*gnu\s*::\s*(constructor|destructor|ifunc)\b": "what runs when it is loaded: {}",
    r"__attribute__\s*\(\([^)]{0,200}\b(section|weak|weakref)\b": "what the linker is told: {}",
    r"\[\[\s*gnu\s*::\s*(section|weak|weakref)\b": "what the linker is told: {}",
    r"^[ \t]*#[ \t]*pragma[ \t]+(weak)\b": "what the linker is told: {}",
}
LIBRARIES = re.compile(r"torch/|ATen/|c10/|caffe2/|mkl|cblas|lapacke|Eigen/|dnnl|oneapi/|Python\.h|cublas|cudnn|dlfcn")
INCLUDES = re.compile(r'^[ \t]*#[ \t]*(?:include|include_next|import)\b[ \t]*(?:[<"](?P<file>[^>"\n]+)[>"])?', re.M)
PATHS = re.compile(r"/(proc|sys|dev)/")
CLOCKS = re.compile(r"%(clock(?:64|_hi)?|globaltimer(?:_lo|_hi)?)\b|\brdtscp?\b")  # in assembly
# In assembly of a CPU: what asks the system, and bytes in the place of instructions.
SYSTEM = re.compile(
    r"(?<![\w.])(syscall|sysenter|svc)\b|\b(int\s+\$0x80)"
    r"|(\.(?:byte|[248]byte|long|quad|octa|incbin|pushsection|section))\b"
)
ASSEMBLY = re.compile(r"\b(?:asm|__asm|__asm__)\b[^;{}]*$")
# A function of its own of this name.
DEFINED = r"[\w>&*]\s{{1,99}}{}\s{{0,9}}\([^;{{}}]{{0,999}}\)\s{{0,99}}(?:const\s{{1,9}}|noexcept\s{{0,9}})?\{{"
# Comments, raw texts, texts, characters; what is not closed goes on to the end, so that each is looked at once.
TOKENS = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|\Z)|R\"([^()\\\s]{0,16})\((.*?)(?:\)\1\"|\Z)|\"((?:\\.|[^\"\\\n])*)\"|'(?:\\.|[^'\\\n])'",
    re.S,
)
NAME = re.compile(r"\b(?P<name>[A-Za-z_]\w*)(?P<call>\s*\()?")
MOST_BEFORE = 2000  # characters between `asm` and one of its texts
LONGEST = 2 << 20  # characters of a source that is read
MOST_FILES = 500


def foreign(text: str) -> Iterator[tuple[int, str]]:
    """(line, what) of each thing in a source that no kernel needs."""
    if len(text) > LONGEST:
        yield 1, "is too long to be read"
        return
    ends = [found.start() for found in re.finditer("\n", text)]
    yield from ((bisect.bisect_left(ends, at) + 1, what) for at, what in _found(text))


def _found(text: str) -> Iterator[tuple[int, str]]:
    """The same by their places."""
    code, texts = stripped(text)
    own = {name for name in CALLED if name in code and re.search(DEFINED.format(name), code)}
    for found in NAME.finditer(code):
        name = found["name"]
        if name not in NEVER | CALLED:
            continue
        before = code[max(0, found.start() - 20) : found.start()].rstrip()
        called = found["call"] and (name not in own or before.endswith("::"))
        if not before.endswith((".", "->")) and (name in NEVER or called):
            yield found.start(), f"{name}()"
    for pattern, said in PATTERNS.items():
        for found in re.finditer(pattern, code, re.M):
            yield found.start(1), said.format(found[1])
    for found in INCLUDES.finditer(text):
        if not found["file"]:
            yield found.end(), "includes what a macro names"
        elif LIBRARIES.search(found["file"]):
            yield found.end(), f"includes {found['file']}"
    yield from ((at, f"a path: {literal[:40]}") for at, literal in texts if PATHS.search(literal))
    yield from ((at, f"a clock: {clock[0]}") for at, literal in texts if (clock := CLOCKS.search(literal)))
    for at, literal in texts:
        if (asks := SYSTEM.search(literal)) and ASSEMBLY.search(code[max(0, at - MOST_BEFORE) : at]):
            yield at, f"assembly: {asks[0]}"


def sources(start: Iterable[Path], folder: Path) -> Iterator[tuple[Path, str]]:
    """Sources that exist, and what they include, from beside them or from their backend's folder: (path, text)."""
    waiting, done = list(start), set[Path]()
    while waiting and len(done) < MOST_FILES:
        path = waiting.pop().resolve()
        if path in done or not path.is_file():
            continue
        done.add(path)
        text = path.read_text(errors="replace")
        yield path, text
        for found in INCLUDES.finditer(text):
            if found["file"]:
                waiting += [path.parent / found["file"], folder / found["file"]]


def stripped(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The code with its comments and texts blank, of the same length and lines; and the texts with their places."""
    texts: list[tuple[int, str]] = []

    def blank(found: re.Match[str]) -> str:
        literal = found[2] if found[2] is not None else found[3]
        if literal is not None:
            texts.append((found.start(), literal))
        return re.sub(r"[^\n]", " ", found[0])

    return TOKENS.sub(blank, text), texts
