"""A process of its own for what may crash, hang or flip a flag: it then costs one row, or ends with its name.

    p = Process(SomeRoom, argument, limit=60.0)
    p.ask("command", keyword=…)                what SomeRoom(argument).command(keyword=…) returned there

The parent sends a command and waits, with a time limit, for the answer. It never imports what a room loads: a room may
be named by "module:Class". What comes back is read as if somebody else had written it (bench.core.replies): it is plain
data of the type that the command is annotated with, or that command fails and its process is ended.
"""

import atexit
import functools
import gc
import importlib
import multiprocessing
import os
import resource
import select
import signal
import struct
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import forkserver, reduction, synchronize, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from bench import cli
from bench.cli import ENDING, FAILED, CannotGoOn, deaf_to_ctrl_c
from bench.core import replies
from bench.core.evidence import bounded, line_of, one_line
from bench.core.replies import Rubbish, Schema
from kernels import cache_dir

# Inductor's own pool of compiling processes would outlive the compilation and disturb what is timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# CuPy makes this folder when it is imported: by itself in a home folder, which a container's user may not write to.
with suppress(OSError):
    os.environ.setdefault("CUPY_CACHE_DIR", str(cache_dir() / "cupy"))
GRACE_SECONDS = 3.0
KILLED_SECONDS = 0.5
START_SECONDS = 120.0  # for a process to start, the server's imports included
WAKE_SECONDS = 0.25  # between signals to a server that may have been stopped, …
NUDGE_SECONDS = 5.0  # … and to a process that is waited for
SEAL_SECONDS = 0.05  # between two looks at which functions were replaced
OPEN_FILES = 1 << 16
LONGEST_FOLDER = 70  # bytes, for a socket's path has 107: /pymp-abcdefgh/listener-abcdefgh comes behind it
MOST_TOLD = 100_000  # messages during one command
MOST_EVIDENCE = 4000  # characters of what a failure says
BENCH = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")  # a fork of it starts in milliseconds, with all that it imported
FRESH = multiprocessing.get_context("spawn")

# How a command fails, besides what a room's own `explain` says.
TIMEOUT, CRASH, ERROR, OUT_OF_MEMORY, WRONG = "timeout", "crash", "error", "out of memory", "wrong"
# What a message is: what the room's commands answer; not yet the answer; it; or how the command failed.
HELLO, TOLD, DONE, FAILURE = "hello", "told", "done", "failure"

This = TypeVar("This", bound="Process")


class ProcessFailed(Exception):
    """A command failed. `status` says how, `evidence` what is known of it, `code` what to leave the program with."""

    def __init__(self, status: str, evidence: str, code: int = FAILED):
        super().__init__(status, evidence, code)  # all of them, so that it travels
        self.status, self.evidence, self.code = status, evidence, code

    def __str__(self) -> str:
        return self.evidence


class Gone(ProcessFailed):
    """The process had ended before it was asked: something else killed it, or what an earlier command left behind.
    `Process.restart` makes another."""


class Room:
    """What is inside a process: made when the first command comes; a subclass has a method for each command."""

    tell: Callable[[object], None] = staticmethod(lambda what: None)  # to the parent, while a command runs
    seal: Callable[[], Sequence[str]] | None = None  # names of the functions that somebody replaced (core/world.py)

    def broken(self) -> bool:
        """Whether the process is of no more use after an error."""
        return False

    def idle(self) -> bool:
        """Do a little of what is to be done while nobody asks; whether there was any."""
        return False

    @staticmethod
    def explain(error: BaseException) -> ProcessFailed:
        if isinstance(error, CannotGoOn):
            return ProcessFailed(ERROR, bounded(error), error.code)
        return ProcessFailed(OUT_OF_MEMORY if is_out_of_memory(error) else ERROR, summary(error))


RoomOrName = type[Room] | str  # "module:Class" is imported in the process alone


def start_server(*preload: str) -> None:
    """Start the server that processes are forked from, with these modules imported, which the caller then has as well.

    Where this process has one thread, and torch is yet to be imported, the server is a fork of it: a fresh interpreter
    would import torch a second time. Call it before there is anything to hide from processes, or to share with them.
    With other threads, whose locks a fork would keep, or where torch may have computed (OpenMP's threads are not there
    in a fork, which waits for them without end), a fresh one is started and imports them while the caller goes on.
    """
    _make_room()
    if preload:
        SERVER.set_forkserver_preload(list(preload))
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    if alone:
        load(preload)
    with deaf_to_ctrl_c(), _forked_server() if preload and alone else nullcontext():
        forkserver.ensure_running()
    if preload and alone:
        gc.freeze()  # here nobody counts it: the page's thousands of small objects would be a reason to walk all of it


@functools.cache
def _make_room() -> None:
    """Of what the system gives to processes: as many open files as may be, for the judge has two a case of a proof, and
    a shell mostly allows 1024; and sockets in /tmp where the path of temporary files (a job's on a cluster, say) is too
    long for one, as Python 3.14 does by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER:
        return
    usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        forkserver.util.get_temp_dir()  # type: ignore[attr-defined]  # makes it, and keeps to it
    finally:
        tempfile.tempdir = usual


def load(names: Sequence[str]) -> None:
    """Import modules, large ones. Nobody looks for garbage meanwhile: there is none in what torch is made of, and
    looking takes a tenth of the time. Nor afterwards: all of it is put among what is old already, or the first looks of
    this process, and of each fork of it, would walk through it three times. (It does not stay frozen: the state of the
    world counts what is, which walks all of it.)"""
    collects = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        if collects:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
            gc.enable()


@contextmanager
def _forked_server() -> Iterator[None]:
    """A server that is started meanwhile runs its line of Python in a fork, with the files that it would be handed."""
    start = forkserver.util.spawnv_passfds  # type: ignore[attr-defined]

    def fork(path: str, arguments: Sequence[str], files: Sequence[int]) -> int:
        # What a handler raises in Python's own hooks around a fork is lost.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGALRM})
        if pid := os.fork():
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            return pid
        try:
            _close_all_but({0, 1, 2, *files})
            _forget_hooks()
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            with suppress(OSError):
                _be_called("forkserver")
            exec(arguments[-1], {})
        finally:
            os._exit(FAILED)

    forkserver.util.spawnv_passfds = fork  # type: ignore[attr-defined]
    try:
        yield
    finally:
        forkserver.util.spawnv_passfds = start  # type: ignore[attr-defined]


def _be_called(name: str) -> None:
    """By `ps`, and by whoever counts what each process takes (tools/judge_cost.py)."""
    Path("/proc/self/comm").write_text(name)


def _forget_hooks() -> None:
    """Of a debugger, and handlers of signals: none, as in a fresh interpreter. A signal that is ignored stays so."""
    for set_hook in (sys.settrace, sys.setprofile, threading.settrace, threading.setprofile):
        set_hook(None)  # type: ignore[arg-type]
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _close_all_but(kept: set[int]) -> None:
    """Whoever waits for the end of a pipe would wait for this process too."""
    for file in map(int, os.listdir("/proc/self/fd")):
        if file not in kept:
            with suppress(OSError):
                os.close(file)


RUNNING: "weakref.WeakSet[Process]" = weakref.WeakSet()
STARTING = threading.RLock()  # one at a time: multiprocessing knows one server, and variables are the whole process's
SERVERS: dict[tuple[str, ...], Any] = {}  # besides multiprocessing's own: by what they import and their variables


def _server_of(variables: Mapping[str, str], preload: str) -> Any:
    """The server with these variables that has imported this module; it runs once a process is asked of it."""
    with STARTING:
        key = preload, *(f"{name}={value}" for name, value in sorted(variables.items()))
        if key not in SERVERS:
            SERVERS[key] = forkserver.ForkServer()  # type: ignore[attr-defined]
            SERVERS[key].set_forkserver_preload([preload])
        return SERVERS[key]


@contextmanager
def _forking(server: Any) -> Iterator[None]:
    """Processes that are started meanwhile are forks of this server."""
    usual = forkserver.connect_to_new_process
    forkserver.connect_to_new_process = server.connect_to_new_process
    try:
        yield
    finally:
        forkserver.connect_to_new_process = usual


class Process:
    """The parent's end of one process."""

    died: ClassVar[str] = "its process died with {how}"
    timed_out: ClassVar[str] = "no answer within {limit:g} s; its process was stopped"

    def __init__(
        self,
        room: RoomOrName,
        *arguments: object,
        limit: float,
        environment: Mapping[str, str] | None = None,
        preload: str = "",
    ):
        """room: a class, or "module:Class", which the parent then need not import.
        limit: seconds for a command that is given no other. environment: variables for a fresh interpreter, set
        before it loads a library; None forks the server that has imported what its preload names. preload: a module
        that a server of these variables imports once, for all that name it: each is a fork of that one."""
        self.room, self.arguments, self.environment, self.preload = room, arguments, environment, preload
        self.limit = limit
        self.listener: Callable[[Any], None] | None = None  # hears at once what is told while a command runs
        self._start()

    def _start(self) -> None:
        self.heard: list[Any] = []  # what was told during the last command
        self.idle = True
        self.number = 0  # of the last command
        self.command = ""
        self.schemas, self.modules = _known(self.room)
        self.greeted = self.schemas is not None
        self.connection, theirs = SERVER.Pipe()
        try:
            self.process = self._started((theirs, self.room, self.arguments, not self.greeted))
        finally:
            theirs.close()
        os.set_blocking(self.connection.fileno(), False)
        RUNNING.add(self)
        self.pulse = _pulse(self.process)

    def _started(self, arguments: tuple[Any, ...]) -> Any:
        """A running process. One whose server does not answer in time is asked of a new server, then of none."""
        _make_room()
        forked = self.environment is None or self.preload
        error: BaseException | None = None
        for context in (SERVER, SERVER, FRESH) if forked else (FRESH,):
            process = context.Process(target=_serve, args=arguments, daemon=True)
            variables = self.environment or {}
            server = _server_of(variables, self.preload) if self.preload else forkserver._forkserver  # type: ignore[attr-defined]
            try:
                with STARTING, deaf_to_ctrl_c(), with_variables(variables), _forking(server), _answering_server():
                    process.start()
                return process
            except (OSError, EOFError) as failure:
                error = failure
        raise self.raised(ProcessFailed(CRASH, f"no process could be started: {summary(error or EOFError())}"))

    def restart(self) -> None:
        """End the process, and start another of the same room with the same arguments."""
        self.close()
        self._start()

    def __enter__(self: This) -> This:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:  # nobody waits for what it is doing
            self.idle = False
        self.close()

    def ask(self, command: str, limit: float | None = None, **arguments: object) -> Any:
        """Send a command and wait for its answer. Raises what `raised` makes of a failure; after a timeout, a crash,
        an answer of the wrong type or the end of the process there is none any more."""
        self.send(command, **arguments)
        return self.answer(limit)

    def send(self, command: str, **arguments: object) -> None:
        self.heard = []
        if self.connection.closed or self._ended(0):
            raise self._crashed(gone=True)
        if self.greeted and self.idle and self._readable():
            raise self._rubbish("something that nobody asked for")
        self.number, self.command = self.number + 1, command
        self.idle = False
        data = bytes(reduction.ForkingPickler.dumps((self.number, command, arguments)))
        try:
            self._write(_header(len(data)) + data, time.monotonic() + self.limit)
        except TimeoutError as error:
            raise self._late(self.limit) from error
        except OSError as error:
            raise self._crashed() from error

    def answer(self, limit: float | None = None) -> Any:
        """limit: seconds until the process says anything."""
        limit = self.limit if limit is None else limit
        if self.connection.closed:
            raise self._crashed(gone=True)
        try:
            kind, value = self._message(time.monotonic() + limit)
            while kind == TOLD:
                self.heard.append(value)
                if self.listener:
                    self.listener(value)
                if len(self.heard) > MOST_TOLD:
                    raise Rubbish(f"more than {MOST_TOLD:,} messages")
                kind, value = self._message(time.monotonic() + limit)
            if kind == DONE:
                replies.check(value, (self.schemas or {}).get(self.command, replies.ANY))
        except TimeoutError as error:
            raise self._late(limit) from error
        except Rubbish as error:
            raise self._rubbish(str(error)) from error
        except (EOFError, OSError) as error:
            raise self._crashed() from error
        self.idle = True
        if kind == DONE:
            return value
        failure = ProcessFailed(*value)
        if failure.status == CRASH:  # its device is of no more use to it
            self.idle = False
            self.close()
        raise self.raised(failure)

    def raised(self, failure: ProcessFailed) -> Exception:
        """What is raised for a failure."""
        return failure

    # --- how it fails ---

    def _late(self, limit: float) -> Exception:
        self.close()
        return self.raised(ProcessFailed(TIMEOUT, self.timed_out.format(limit=limit)))

    def _rubbish(self, what: str) -> Exception:
        self.idle = False
        self.close()
        return self.raised(ProcessFailed(CRASH, bounded(f"it sent rubbish: {what}; its process was stopped")))

    def _crashed(self, gone: bool = False) -> Exception:
        """The process ended, or closed the pipe. gone: before it was asked."""
        if not self.connection.closed and not self._ended(KILLED_SECONDS):
            self.idle = False
            self.close()
            return self.raised(ProcessFailed(CRASH, "it closed the pipe to its parent; its process was stopped"))
        _signal_server(signal.SIGCONT)  # it hands the exit code on
        self.process.join(5)
        self.close()
        evidence = self.died.format(how=_how(self.process.exitcode))
        return self.raised((Gone if gone else ProcessFailed)(CRASH, evidence))

    # --- messages ---

    def _message(self, end: float) -> tuple[str, Any]:
        """The next message of the running command: kind and content. Raises Rubbish, TimeoutError, EOFError."""
        while True:
            message = replies.unpacked(self._frame(end), self.modules)
            if type(message) is not tuple or len(message) != 3:
                raise Rubbish("something else than a message")
            number, kind, value = message
            if not self.greeted and (number, kind) == (0, HELLO):
                self.greeted = True
                self.schemas = SCHEMAS[str(self.room)] = _schemas(value)
                continue
            if type(number) is not int or number != self.number:
                raise Rubbish("an answer to another command than it was given")
            if kind == FAILURE:
                return kind, _failure(value)
            if kind not in (TOLD, DONE):
                raise Rubbish("a message of an unknown kind")
            return kind, value

    def _frame(self, end: float) -> bytes:
        (size,) = struct.unpack("!i", self._read(4, end))
        if size == -1:
            (size,) = struct.unpack("!Q", self._read(8, end))
        if not 0 <= size <= replies.MOST_BYTES:
            raise Rubbish(f"a message that claims to have {size:,} bytes")
        return self._read(size, end)

    def _read(self, size: int, end: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            try:
                part = os.read(self.connection.fileno(), min(size - len(found), 1 << 20))
            except BlockingIOError:
                self._wait(select.POLLIN, end)
                continue
            if not part:
                raise EOFError
            found += part
        return bytes(found)

    def _write(self, data: bytes, end: float) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.connection.fileno(), rest[: 1 << 20]) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, end)

    def _wait(self, event: int, end: float) -> None:
        """Until the pipe is ready. Raises TimeoutError, and EOFError where the process ended, whoever holds its pipe:
        a child that it forked, say."""
        poll = select.poll()
        poll.register(self.connection.fileno(), event)
        poll.register(self.pulse, select.POLLIN)
        while True:
            left = end - time.monotonic()
            ready = dict(poll.poll(max(0.0, min(left, NUDGE_SECONDS)) * 1e3))
            if self.connection.fileno() in ready:
                return
            if ready:
                raise EOFError
            if left <= NUDGE_SECONDS:
                raise TimeoutError
            self._signal(signal.SIGCONT)  # a neighbour may have stopped it

    def _readable(self) -> bool:
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # --- the end ---

    @property
    def alive(self) -> bool:
        return not self.connection.closed and not self._ended(0)

    def _ended(self, seconds: float) -> bool:
        """Whether it has ended, or does within so many seconds."""
        poll = select.poll()
        poll.register(self.pulse, select.POLLIN)
        return bool(poll.poll(seconds * 1e3))

    def _signal(self, number: signal.Signals) -> None:
        with suppress(OSError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Whoever waits for it hears that it died."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """End the process and what it started: an idle one leaves by itself when the pipe closes, a busy one is killed.

        Nobody waits for a killed one: it may be stuck in a driver, and is gone once that lets go.
        """
        if self.connection.closed:
            return
        self.connection.close()
        if not self._ended(GRACE_SECONDS if self.idle else 0):
            self._signal(signal.SIGKILL)
            self._ended(KILLED_SECONDS)
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what it forked
        if self.pulse != self.process.sentinel:
            os.close(self.pulse)
        self.process.join(KILLED_SECONDS)


def end_all() -> None:
    """Kill every process that runs, whoever waits for it."""
    for one in list(RUNNING):
        one.kill()


def _pulse(process: Any) -> int:
    """What can be waited on for the end of a process: itself, where the system has that, for the sentinel also ends
    with the server."""
    with suppress(AttributeError, OSError):
        return os.pidfd_open(process.pid)
    return process.sentinel


def _how(code: int | None) -> str:
    if code is None:
        return "an exit code that nobody could tell"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        where = ", which the system sends where memory runs out" if -code == signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{where}"
    return f"signal {-code}"


def _header(size: int) -> bytes:
    """As multiprocessing.connection writes it."""
    return struct.pack("!i", size) if size < 1 << 31 else struct.pack("!iQ", -1, size)


SCHEMAS: dict[str, Mapping[str, Schema]] = {}  # by the names of rooms that told them


def _known(room: RoomOrName) -> tuple[Mapping[str, Schema] | None, tuple[str, ...]]:
    """What the commands of a room answer, or None where its process has to tell, before it loads anything else; and
    the modules whose records it may send."""
    if not isinstance(room, str):
        return replies.schemas_of(room), tuple({c.__module__ for c in room.__mro__})
    module, _, name = room.partition(":")
    if module in sys.modules:
        return replies.schemas_of(getattr(sys.modules[module], name)), (module,)
    return SCHEMAS.get(room), (module,)


def _schemas(value: object) -> Mapping[str, Schema]:
    if isinstance(value, dict) and all(type(k) is str and type(v) is tuple for k, v in value.items()):
        return value
    raise Rubbish("a greeting that is none")


def _failure(value: object) -> tuple[str, str, int]:
    replies.check(value, ("tuple", (("str",), ("str",), ("int",))), "the failure")
    status, evidence, code = cast(tuple[str, str, int], value)
    return bounded(status, 40), bounded(evidence, MOST_EVIDENCE), code


# --- the server ---


def _signal_server(number: signal.Signals) -> None:
    for server in (forkserver._forkserver, *SERVERS.values()):  # type: ignore[attr-defined]
        if (pid := server._forkserver_pid) is not None:
            with suppress(OSError):
                os.kill(pid, number)


# Who leaves waits for the server's end, and one that was stopped never comes to it.
atexit.register(_signal_server, signal.SIGCONT)


@contextmanager
def _answering_server() -> Iterator[None]:
    """The server is woken if it was stopped, and killed where a start takes too long: the start then fails."""
    over = threading.Event()
    end = time.monotonic() + START_SECONDS

    def watch() -> None:
        while not over.wait(WAKE_SECONDS):
            _signal_server(signal.SIGCONT if time.monotonic() < end else signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def with_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _serve(connection: Connection, room: RoomOrName, arguments: tuple[Any, ...], describe: bool) -> None:
    """A process's main loop."""
    with suppress(OSError):
        os.setpgid(0, 0)  # so that what a variant forks ends with it
        _be_called(room.rpartition(":")[2] if isinstance(room, str) else room.__name__)
    # What a variant prints must not land in the parent's table or JSON.
    os.dup2(2, 1)
    found = _imported(room)
    if describe:
        schemas = {} if isinstance(found, BaseException) else replies.schemas_of(found)
        connection.send_bytes(replies.packed((0, HELLO, schemas)))
    _Desk(connection, found, arguments).serve()


def _imported(room: RoomOrName) -> "type[Room] | BaseException":
    """The class, or why it cannot be had."""
    if not isinstance(room, str):
        return room
    module, _, name = room.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except BaseException as error:
        return error


UNLINKS = synchronize.SemLock._cleanup  # type: ignore[attr-defined]


def _unlink_semaphores() -> None:
    """Of what multiprocessing leaves for the end of a process this alone: else the tracker of them says that they were
    left behind."""
    for finalizer in list(util._finalizer_registry.values()):  # type: ignore[attr-defined]
        if type(finalizer) is util.Finalize and getattr(finalizer, "_callback", None) is UNLINKS:
            with suppress(Exception):
                finalizer()


class _Desk:
    """Where commands come in and answers go out."""

    def __init__(self, connection: Connection, found: "type[Room] | BaseException", arguments: tuple[Any, ...]):
        self.connection, self.found, self.arguments = connection, found, arguments
        self.room: Room | None = None
        self.number = 0
        self.pid = os.getpid()

    def serve(self) -> None:
        # Whoever replaces functions here replaces those, too, that would tell. What this one holds is out of reach.
        answer, say, leave, clock, seal = self.answer, self.say, os._exit, time.monotonic, None
        flushes = sys.stdout.flush, sys.stderr.flush
        looked = 0.0
        while True:
            try:
                while self.room and not self.connection.poll() and self.room.idle():
                    pass
                self.number, command, keywords = self.connection.recv()
            except (EOFError, OSError):
                break
            kind, value = answer(command, keywords)
            if os.getpid() != self.pid:  # a child that a variant forked and let return
                leave(0)
            seal = seal or (self.room and self.room.seal)
            replaced: Sequence[str] = ()
            if seal and clock() - looked > SEAL_SECONDS:  # not after each of many short calls that are timed
                replaced, looked = seal(), clock()
            if replaced and kind == DONE:
                kind, value = (
                    FAILURE,
                    (WRONG, f"global_state: functions were replaced: {', '.join(replaced[:4])}", cli.WRONG),
                )
            try:
                say(kind, value)
            except Rubbish as error:
                say(FAILURE, (ERROR, bounded(error), FAILED))
            except OSError:  # nobody waits for it any more
                break
            if replaced:  # of no more use; and whoever says otherwise in its place says no more
                leave(FAILED)
        for flush in flushes:
            with suppress(OSError, ValueError):
                flush()
        _unlink_semaphores()
        leave(0)  # at once: nobody would see what a variant left to be done at the end of its process

    def say(self, kind: str, value: object) -> None:
        self.connection.send_bytes(replies.packed((self.number, kind, value)))

    def answer(self, command: str, keywords: dict[str, Any]) -> tuple[str, object]:
        make = Room if isinstance(self.found, BaseException) else self.found
        try:
            if isinstance(self.found, BaseException):
                raise self.found
            if self.room is None:
                self.room = self.found(*self.arguments)
                self.room.tell = lambda what: self.say(TOLD, what)  # type: ignore[method-assign]
            return DONE, getattr(self.room, command)(**keywords)
        except BaseException as error:
            failure = _explained(make, error)
            if failure.status == ERROR and self.room and self.room.broken():
                failure = ProcessFailed(CRASH, failure.evidence)
            return FAILURE, (failure.status, bounded(failure.evidence, MOST_EVIDENCE), int(failure.code))


def _explained(room: type[Room], error: BaseException) -> ProcessFailed:
    """A room's word on an error; where that fails too, the type alone."""
    try:
        return room.explain(error)
    except BaseException:
        return ProcessFailed(ERROR, summary(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out: torch's and CuPy's exception, and what libraries and the driver say."""
    words = ("out of memory", "OUT_OF_MEMORY", "ALLOC_FAILED")
    said = bounded(error, 4000)
    return type(error).__name__ == "OutOfMemoryError" or any(word in said for word in words)


def summary(error: BaseException) -> str:
    """Type, message and the innermost line of an exception."""
    return f"{bounded(type(error).__name__, 60)}: {one_line(error, 400)}{line_of(error)}"


def pause() -> None:
    """Let another process's OpenMP threads fall asleep: they spin for a few milliseconds after a parallel region."""
    time.sleep(0.005)
