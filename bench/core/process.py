"""A process of its own for what may crash, hang or flip a flag: it then costs one row, or ends with its name.

    p = Process(SomeRoom, argument, limit=60.0)
    p.ask("command", keyword=…)                what SomeRoom(argument).command(keyword=…) returned there

The parent sends a command and waits, with a time limit, for the answer. It never imports what a room loads.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bench.cli import FAILED, CannotGoOn, deaf_to_ctrl_c

# Inductor's own pool of compiling processes would outlive the compilation and disturb what is timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
GRACE_SECONDS = 3.0
KILLED_SECONDS = 0.5
BENCH = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")  # a fork of it starts in milliseconds, with all that it imported
FRESH = multiprocessing.get_context("spawn")

# How a command fails, besides what a room's own `explain` says.
TIMEOUT, CRASH, ERROR, OUT_OF_MEMORY = "timeout", "crash", "error", "out of memory"
TOLD, DONE = "told", "done"  # what a message is: not yet the answer, or it; a failure comes as itself

This = TypeVar("This", bound="Process")


class ProcessFailed(Exception):
    """A command failed. `status` says how, `evidence` what is known of it, `code` what to leave the program with."""

    def __init__(self, status: str, evidence: str, code: int = FAILED):
        super().__init__(status, evidence, code)  # all of them, so that it travels
        self.status, self.evidence, self.code = status, evidence, code

    def __str__(self) -> str:
        return self.evidence


class Room:
    """What is inside a process: made when the first command comes; a subclass has a method for each command."""

    tell: Callable[[object], None] = staticmethod(lambda what: None)  # to the parent, while a command runs

    def broken(self) -> bool:
        """Whether the process is of no more use after an error."""
        return False

    @staticmethod
    def explain(error: BaseException) -> ProcessFailed:
        if isinstance(error, CannotGoOn):
            return ProcessFailed(ERROR, str(error), error.code)
        return ProcessFailed(OUT_OF_MEMORY if is_out_of_memory(error) else ERROR, summary(error))


class Process:
    """The parent's end of one process."""

    died: ClassVar[str] = "its process died with {how}"
    timed_out: ClassVar[str] = "no answer within {limit:g} s; its process was stopped"

    def __init__(
        self, room: type[Room], *arguments: object, limit: float, environment: Mapping[str, str] | None = None
    ):
        """limit: seconds for a command that is given no other. environment: variables for a fresh interpreter, set
        before it loads a library; None forks the server that has imported what its preload names."""
        self.limit = limit
        self.heard: list[Any] = []  # what was told during the last command
        self.idle = True
        context = SERVER if environment is None else FRESH
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, room, arguments), daemon=True)
        with deaf_to_ctrl_c(), _environment(environment or {}):
            self.process.start()
        theirs.close()

    def __enter__(self: This) -> This:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:  # nobody waits for what it is doing
            self.idle = False
        self.close()

    def ask(self, command: str, limit: float | None = None, **arguments: object) -> Any:
        """Send a command and wait for its answer. Raises what `raised` makes of a failure; after a timeout, a crash or
        the end of the process there is none any more."""
        self.send(command, **arguments)
        return self.answer(limit)

    def send(self, command: str, **arguments: object) -> None:
        self.heard = []
        try:
            self.connection.send((command, arguments))
            self.idle = False
        except OSError as error:
            raise self._crashed() from error

    def answer(self, limit: float | None = None) -> Any:
        """limit: seconds until the process says anything."""
        limit = self.limit if limit is None else limit
        kind, value = TOLD, None
        try:
            while kind == TOLD:
                if not self.connection.poll(limit):
                    self.close()
                    raise self.raised(ProcessFailed(TIMEOUT, self.timed_out.format(limit=limit)))
                kind, value = self.connection.recv()
                self.heard += [value] if kind == TOLD else []
        except (EOFError, ConnectionResetError) as error:
            raise self._crashed() from error
        self.idle = True
        if not isinstance(value, ProcessFailed):
            return value
        if value.status == CRASH:  # its device is of no more use to it
            self.idle = False
            self.close()
        raise self.raised(value)

    def raised(self, failure: ProcessFailed) -> Exception:
        """What is raised for a failure."""
        return failure

    def _crashed(self) -> Exception:
        self.process.join(5)
        code = self.process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return self.raised(ProcessFailed(CRASH, self.died.format(how=how)))

    @property
    def alive(self) -> bool:
        return not self.connection.closed and self.process.is_alive()

    def close(self) -> None:
        """End the process: an idle one leaves by itself when the pipe closes, a busy one is killed.

        Nobody waits for a killed one: it may be stuck in a driver, and is gone once that lets go.
        """
        self.connection.close()
        self.process.join(GRACE_SECONDS if self.idle else 0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(KILLED_SECONDS)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(connection: Connection, make_room: type[Room], arguments: tuple[Any, ...]) -> None:
    """A process's main loop."""
    # What a variant prints must not land in the parent's table or JSON.
    os.dup2(2, 1)
    room: Room | None = None
    while True:
        try:
            command, keywords = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if room is None:
                room = make_room(*arguments)
                room.tell = lambda what: connection.send((TOLD, what))  # type: ignore[method-assign]
            answer = getattr(room, command)(**keywords)
        except BaseException as error:
            answer = make_room.explain(error)
            if answer.status == ERROR and room and room.broken():
                answer = ProcessFailed(CRASH, answer.evidence)
        try:
            connection.send((DONE, answer))
        except OSError:  # nobody waits for it any more
            return


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out: torch's and CuPy's exception, and what libraries and the driver say."""
    words = ("out of memory", "OUT_OF_MEMORY", "ALLOC_FAILED")
    return type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in words)


def summary(error: BaseException) -> str:
    """Type, message and the innermost line of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{line_of(error)}"


def line_of(error: BaseException, outside: Path | None = None) -> str:
    """The innermost line of an exception's traceback as " (file.py line 3)"; `outside`: leave out this folder's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if outside not in Path(f.filename).parents]
    return f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""


def pause() -> None:
    """Let another process's OpenMP threads fall asleep: they spin for a few milliseconds after a parallel region."""
    time.sleep(0.005)
