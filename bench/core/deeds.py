"""Who sets the world, while it is watched: functions that set it note their calls, and Python's audit hooks are heard.

    guard()                                once a process, before any variant is imported
    with Watch() as watch: …               any calls, the timed ones too: who sets and resets is seen as well
    watch.evidence()                       "" or what was set meanwhile

A watch costs a call nothing: `guard` replaces the functions that set the world, in each module that has them, by ones
that note the call first; what Python tells its audit hooks (processes, signals, files, libraries loaded by ctypes) is
noted as well. Native code that sets and resets something leaves no note.
"""

import _posixsubprocess
import _signal
import _thread
import contextlib
import functools
import gc
import itertools
import os
import posix
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch

from bench.core import owners, replaced
from kernels import cache_dir

MOST_SHOWN = 4  # calls, or changes, named in one line of evidence


@dataclass(frozen=True)
class Event:
    """A function that sets the world was called; `what` with its arguments, as far as they are plain."""

    what: str
    thread: str


EVENTS: list[Event] = []
DONE: dict[str, None] = {}  # in order: what a variant's own file did at any time, its import and first call included
NOTED = itertools.count()  # of such notes: who takes them away cannot count back
SEEN = itertools.count()  # the same of events
LOADED: list[str] = []  # libraries and symbols that a variant's own file asked ctypes for

# Attributes of modules that hold a function that sets the world. A function is replaced wherever it is found here.
PLACES: dict[ModuleType, tuple[str, ...]] = {
    torch: ("set_num_threads", "set_num_interop_threads", "set_flush_denormal", "to_dlpack", "from_dlpack"),
    torch._C: (
        "set_num_threads",
        "set_num_interop_threads",
        "set_flush_denormal",
        "_to_dlpack",
        "_to_dlpack_versioned",
        "_dispatch_library",
    ),
    torch.utils.dlpack: ("to_dlpack", "from_dlpack"),
    torch._C._autograd: ("_enable_record_function", "_disable_profiler"),
    torch.autograd: ("_enable_record_function",),
    os: (
        *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "setpriority", "nice", "umask", "chdir"),
        *("fork", "forkpty", "kill", "killpg", "posix_spawn", "posix_spawnp", "setpgid", "setsid"),
    ),
    _posixsubprocess: ("fork_exec",),  # which starts a program and asks no audit hook
    subprocess: ("_fork_exec",),
    signal: (
        *("setitimer", "alarm", "pthread_kill", "pthread_sigmask", "set_wakeup_fd", "raise_signal", "siginterrupt"),
        "pidfd_send_signal",
    ),
    _signal: (
        *("signal", "setitimer", "alarm", "pthread_kill", "set_wakeup_fd", "raise_signal", "siginterrupt"),
        "pidfd_send_signal",
    ),
    resource: ("setrlimit", "prlimit"),
    gc: ("enable", "disable", "freeze", "set_threshold"),
    sys: ("setswitchinterval", "setrecursionlimit"),
    time: ("clock_settime", "clock_settime_ns", "tzset"),
    _thread: ("start_new_thread", "start_new", "start_joinable_thread"),
    threading: ("_start_new_thread", "_start_joinable_thread"),
}
PLACES[posix] = PLACES[os]
# Those that open a file without Python, so that no audit hook hears of it: a path is the first of their arguments.
OPENERS: tuple[tuple[Any, str], ...] = (
    *((torch._C, "PyTorchFileWriter"), (torch, "from_file"), (torch.UntypedStorage, "from_file")),
)
# Setters of torch._C whose name has one of these; what only chooses among kernels (sdp) is the variant's own business.
SETS = (
    *("precision", "dtype", "deterministic", "tf32", "cudnn", "cublas", "mkldnn", "onednn", "nnpack", "qengine"),
    *("preferred_backend", "tensor_type", "carveout"),
)
AUDITED = {
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.kill", "os.killpg", "subprocess.Popen", "signal.pthread_kill"),
    *("os.system", "os.exec", "fcntl.flock", "fcntl.lockf"),  # programs, and locks that others wait for
    *(
        "sys.setprofile",
        "sys.settrace",
        "sys._current_frames",
        "sys.addaudithook",
        "gc.get_objects",
        "gc.get_referrers",
    ),
    *("resource.setrlimit", "resource.prlimit", "sys.monitoring.register_callback"),
}
SETS_AN_ATTRIBUTE, READS_AN_ATTRIBUTE = "object.__setattr__", "object.__getattr__"  # told of few of them
OF_CODE = ("__code__", "__defaults__", "__kwdefaults__", "__bases__")
OF_FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
BY_ADDRESS = ("ctypes.cdata", "ctypes.cdata/buffer", "ctypes.string_at", "ctypes.wstring_at", "ctypes.call_function")
TO_BUILD = ("subprocess.Popen", "os.posix_spawn", "fcntl.flock", "fcntl.lockf")
LOOKS_UP, LOOK_UP_FOR_OTHERS = "sys._getframe", (f"{os.sep}inspect.py", f"{os.sep}traceback.py")
STARTS_THREADS = ("start_new", "start_new_thread", "start_joinable_thread")
STARTS_PROGRAMS = ("fork_exec",)
THREAD = "a thread's start (torch's threads, OpenMP's, or C++ that joins its own may compute; Python's may not)"
PROGRAM = "a program's start (torch.utils.cpp_extension and the launchers in kernels/ may start compilers)"
# That can be done to another process: nobody's business at any time, while a variant prepares too.
TO_OTHERS = ("sched_setaffinity", "sched_setscheduler", "sched_setparam", "setpriority", "pidfd_send_signal")
REGISTERS, OF_TORCH = "dispatch_library", ("aten", "prims", "_")  # operators, in these namespaces of torch's
OPENS, MOVES = (
    "open",
    ("os.rename", "os.remove", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown", "os.utime"),
)
OPENS_A_DATABASE = "sqlite3.connect"
HEARD = frozenset(
    AUDITED
    | {LOOKS_UP, SETS_AN_ATTRIBUTE, READS_AN_ATTRIBUTE, OPENS, OPENS_A_DATABASE, *MOVES}
    | {"ctypes.dlopen", "ctypes.dlsym", "ctypes.dlsym/handle", *BY_ADDRESS}
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MADE: set[str] = set()  # files that this process was seen to make
SETS_HOOKS = (threading.__file__, *(f"{root}{os.sep}bench{os.sep}" for root in owners.ROOTS))
MARK = "_notes_its_calls"


def _see(what: str) -> None:
    next(SEEN)
    EVENTS.append(Event(what, _thread_name()))


def _note(what: str) -> None:
    next(NOTED)
    DONE[what] = None


def guard() -> None:
    """Replace the functions that set the world by ones that note it first, and bind what there is then.

    Once a process, before a variant is imported; again does no harm, and binds anew.
    """
    _listen()
    for module, names in PLACES.items():
        for name in names:
            _note_calls(module, name)
    for name in dir(torch._C):
        if name.startswith("_set_") and any(word in name for word in SETS):
            _note_calls(torch._C, name)
    for owner, name in OPENERS:
        setattr(owner, name, _telling_files(getattr(owner, name)))
    for place, name, prop in _properties():
        prop.setter = _noting(prop.setter, f"{place}.{name}")
    replaced.bind()


def _properties() -> Iterator[tuple[str, str, Any]]:
    """The settings of torch.backends that are attributes and hold the setter they were given: (module, name, it)."""
    for module in [m for n, m in sorted(sys.modules.items()) if n.startswith("torch.backends.")]:
        for name, value in vars(type(module)).items():
            if isinstance(value, torch.backends.ContextProp):
                yield module.__name__, name, value


@functools.cache
def _listen() -> None:
    # Python writes what it compiled of a module that a variant imports for the first time: that would be the variant's.
    sys.dont_write_bytecode = True
    sys.addaudithook(_hook())  # there is no way to take it back


def _note_calls(module: ModuleType, name: str) -> None:
    if callable(function := getattr(module, name, None)):
        place = module.__name__.lstrip("_").replace("posix", "os").replace("torch._C", "torch")
        setattr(module, name, _noting(function, f"{place}.{name}"))


def _noting(function: Callable[..., object], what: str) -> Callable[..., object]:
    """The function, but each call of it is noted; the same one where it is so already."""
    if hasattr(function, MARK):
        return function

    name = what.rpartition(".")[2].lstrip("_")
    starts = THREAD if name in STARTS_THREADS else PROGRAM if name in STARTS_PROGRAMS else ""

    def noting(*arguments: object, **keywords: object) -> object:
        if name == REGISTERS:
            _registers(arguments, sys._getframe(1))
            return function(*arguments, **keywords)
        if starts == PROGRAM and owners.trusted(owners.asks(sys._getframe(1))):
            return function(*arguments, **keywords)  # a launcher builds for a shape that it meets for the first time
        _see(f"{what}({_arguments(arguments)})")
        if (starts or _to_another(name, arguments)) and not owners.trusted(owners.asks(sys._getframe(1))):
            _note(starts or f"{what} of another process")
        return function(*arguments, **keywords)

    noting.__name__ = noting.__qualname__ = what.rpartition(".")[2]
    noting.__doc__ = getattr(function, "__doc__", None)
    setattr(noting, MARK, True)
    return noting


def _telling_files(function: Callable[..., object]) -> Callable[..., object]:
    """The function, but of the file that it opens is heard as of Python's own."""
    if hasattr(function, MARK):
        return function

    def opening(*arguments: object, **keywords: object) -> object:
        if arguments and isinstance(arguments[0], str | bytes | os.PathLike):
            shared = keywords.get("shared", arguments[1] if len(arguments) > 1 else False)
            flags = os.O_RDONLY if opening.__name__ == "from_file" and not shared else os.O_RDWR
            if _of_interest(told := (arguments[0], None, flags)):
                _heard(OPENS, told, sys._getframe(1))
        return function(*arguments, **keywords)

    opening.__name__ = opening.__qualname__ = getattr(function, "__name__", "")
    setattr(opening, MARK, True)
    return opening


def _to_another(name: str, arguments: tuple[object, ...]) -> bool:
    """Whether a function that sets a process's scheduling, or sends it a signal, is asked to do so to another one."""
    if name not in TO_OTHERS:
        return False
    whom = arguments[1:2] if name == "setpriority" else arguments[:1]
    if name == "pidfd_send_signal" or not whom or not isinstance(whom[0], int):
        return True
    return whom[0] != 0 and not os.path.exists(f"/proc/self/task/{whom[0]}")


def _registers(arguments: tuple[object, ...], frame: types.FrameType | None) -> None:
    """Note who puts operators of its own in the place of torch's, which the harness computes with too. Torch's own
    files do, when they are imported."""
    while frame and frame.f_code.co_filename == torch.library.__file__:
        frame = frame.f_back
    theirs = frame is not None and not frame.f_code.co_filename.startswith(str(Path(torch.__file__).parent) + os.sep)
    if theirs and str(arguments[0]) == "IMPL" and str(arguments[1]) in OF_TORCH:
        _note(f"torch.library to replace operators of {arguments[1]}")


def _arguments(values: tuple[object, ...]) -> str:
    plain = (bool, int, float, str, type(None), torch.dtype)
    return ", ".join(repr(v)[:40] if isinstance(v, plain) else type(v).__name__ for v in values[:4])


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    """What it does itself is audited as well: such a call of it, inside the first, is over at once."""
    inside: set[int] = set()  # threads that are in it; nobody else can say that they are

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in HEARD or (event == OPENS and not _of_interest(arguments)):
            return
        thread = _thread.get_ident()
        if thread in inside:
            return
        inside.add(thread)
        try:
            _heard(event, arguments, sys._getframe(1))
        finally:
            inside.discard(thread)

    return audited


def _heard(event: str, arguments: tuple[Any, ...], frame: types.FrameType) -> None:
    """Note an event of Python's that `frame` raised: for `Watch`, and for good where a variant's own file did it."""
    if event == OPENS_A_DATABASE:
        event, arguments = OPENS, (arguments[0], None, os.O_RDWR)
    asks, what = owners.asks(frame), event
    if event.startswith("ctypes."):
        return _loads(event, arguments, asks)
    if event == OPENS or event in MOVES:
        if not owners.trusted(asks):
            _touches(event, arguments)
        elif not owners.trusted(owners.asks(frame, through=True)):
            _touches(event, arguments, through=True)
        return None
    if event == READS_AN_ATTRIBUTE and arguments[1] not in OF_FRAMES:
        return None
    if event in (LOOKS_UP, READS_AN_ATTRIBUTE):  # Python's library does for its own ends, named tuples say
        file = frame.f_code.co_filename
        if owners.trusted(file) or (owners.of_python_itself(file) and not file.endswith(LOOK_UP_FOR_OTHERS)):
            return None
    elif event.startswith("sys.set") and frame.f_code.co_filename.startswith(SETS_HOOKS):
        return None  # a thread that starts under a profile function sets it; so does the harness, to look
    elif event == SETS_AN_ATTRIBUTE:  # told of few attributes only
        owner, name = arguments[:2]
        if name not in OF_CODE and not (name == "__class__" and isinstance(owner, torch.Tensor | ModuleType)):
            return None
        of = getattr(owner, "__qualname__", "a module" if isinstance(owner, ModuleType) else "a tensor")
        what = f"{name} of {of} replaced"
    elif event == READS_AN_ATTRIBUTE:
        what = f"looks at frames by {arguments[1]}"
    if event in TO_BUILD and owners.trusted(asks):
        return None  # a launcher builds for a shape that it meets for the first time
    if event not in (LOOKS_UP, READS_AN_ATTRIBUTE):
        _see(what)
    if not owners.trusted(asks):
        _note(what)
    return None


def _of_interest(arguments: tuple[Any, ...]) -> bool:
    """Of a file that is opened: whether it is written to, or may be another process's. Most are neither."""
    path, _, flags = arguments
    if isinstance(path, int) or not isinstance(flags, int):
        return False
    return bool(flags & WRITES) or os.fsdecode(path).startswith(owners.OF_OTHERS)


def _touches(event: str, arguments: tuple[Any, ...], through: bool = False) -> None:
    """Note for good what a variant's own file does to files that are not its own: those of other processes, and any
    that it writes to, other than what it makes itself in the folders for that (temporary ones, the cache). through: it
    asked a package to, which may keep what it likes, but nothing where the harness or Python looks for its own."""
    for path in _paths(event, arguments):
        if event == OPENS and not arguments[2] & WRITES:
            if not through and owners.of_another_process(path):
                _note(f"open({'/'.join(path.split('/')[:3])}…), which is another process's")
            continue
        if path == os.devnull or path in MADE:
            continue
        real = os.path.realpath(path)
        if owners.believed(real) if through else os.path.lexists(path) or not owners.free_to_make(real):
            _note(f"{event} to change {os.path.basename(path)[:60]}, which is not its own")
        else:
            MADE.add(path)


# Of what moves: how many paths are told, and at which places the descriptors of the folders that they are in.
MOVED = {"os.rename": (2, (2, 3)), "os.link": (2, (2, 3)), "os.symlink": (2, ()), "os.remove": (1, (1,))}


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Absolute ones."""
    count, places = MOVED.get(event, (1, ()))
    found = []
    for i, told in enumerate(arguments[:count]):
        if isinstance(told, str | bytes | os.PathLike):
            folder = arguments[places[i]] if i < len(places) and places[i] < len(arguments) else -1
            inside = isinstance(folder, int) and folder >= 0
            found.append(os.path.abspath(os.path.join(_folder_of(folder) if inside else "", os.fsdecode(told))))
    return found


def _folder_of(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


def _thread_name() -> str:
    return "main" if _thread.get_ident() == threading.main_thread().ident else "another"


# Functions of the system's own libraries that nobody needs to compute.
SETS_THE_SYSTEM = (
    *("sched_", "setpriority", "nice", "prctl", "setrlimit", "mlock", "omp_set", "pthread_", "fork", "kill", "ptrace"),
    *("setitimer", "timer_", "alarm", "clock_", "signal", "sigaction", "PyEval", "PyThreadState"),
)
SYSTEMS = ("libc.", "libm.", "libgomp.", "libpthread.", "libdl.", "librt.", "libstdc++.", "libgcc_s.")


def _loads(event: str, arguments: tuple[Any, ...], asks: str) -> None:
    """Note a library, or a function of one, that code of nobody's asked ctypes for: it is neither the harness's nor an
    installed package's. A library built by `kernels` or lying beside the file that asks is the variant's own."""
    if owners.trusted(asks):
        return
    if event in BY_ADDRESS:
        _note(f"{event}: memory by its address")
    elif event == "ctypes.dlopen":
        name = os.fsdecode(arguments[0]) if arguments[0] else ""
        folders = (str(cache_dir()), os.path.dirname(asks))
        own = os.path.isabs(name) and any(os.path.realpath(name).startswith(os.path.realpath(f) + "/") for f in folders)
        if name and not own and not os.path.basename(name).startswith(SYSTEMS):
            LOADED.append(f"{os.path.basename(name)} by ctypes")
    elif event == "ctypes.dlsym" and len(arguments) > 1 and str(arguments[1]).startswith(SETS_THE_SYSTEM):
        LOADED.append(f"{arguments[1]} by ctypes")
        _note(LOADED[-1])


@dataclass
class Watch:
    """Notes who sets the world between its beginning and its end, in all threads; it can be read meanwhile."""

    events: list[Event] = field(default_factory=list)

    def __enter__(self) -> "Watch":
        self._start, self._seen = len(EVENTS), repr(SEEN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.events = EVENTS[self._start :]
        if not self.events and repr(SEEN) != self._seen:
            self.events = [Event("took away what was noted of it", _thread_name())]
        if threading.current_thread() is threading.main_thread():
            del EVENTS[self._start :]  # a call that sets something each time would fill the memory

    def evidence(self) -> str:
        """What was set, in words; "" for nothing."""
        what = list(dict.fromkeys(e.what for e in self.events))
        more = f" and {len(what) - MOST_SHOWN} more" if len(what) > MOST_SHOWN else ""
        # An honest author puts it back, as `with sdpa_kernel(...)` does.
        why = "; it is set for the whole process, whose it stays: call an operator that needs no setting"
        why = why if any(one.startswith("torch.") for one in what) else ""
        return f"called {', '.join(what[:MOST_SHOWN])}{more}{why}" if what else ""
