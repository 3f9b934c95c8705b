"""A process of its own for each variant, commanded over a pipe: a crash, a hang or a flipped flag costs one row.

The parent sends `(command, arguments)` and waits, with a time limit, for the answer. It never imports a variant. The
processes are forked from a server that has imported torch once, so that a fresh one starts in milliseconds.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.cli import deaf_to_ctrl_c
from bench.core.variants import Variant
from kernels import Unavailable

# Inductor's own pool of compiling processes would outlive the compilation and disturb what is timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
GRACE_SECONDS = 3.0
KILLED_SECONDS = 0.5
CONTEXT = multiprocessing.get_context("forkserver")


class WorkerFailed(Exception):
    """`status` is how the row ends (timeout, crash, error, skipped); the message is the evidence."""

    def __init__(self, status: str, evidence: str):
        super().__init__(evidence)
        self.status = status
        self.evidence = evidence


@dataclass
class Setting:
    """How a worker runs its calls."""

    device: str = "cpu"
    threads: int = 0  # 0: torch's own choice
    time_limit: float = 60.0  # seconds for one command
    prepare_limit: float = 300.0  # seconds for compiling and other one-time work
    simulate: bool = False  # run GPU kernels in the simulator, on CPU tensors


class Worker:
    """The parent's end of one worker process: a room there, made of (variant, setting), has a method for each command.

    `variant` None makes it a judge.
    """

    def __init__(self, room: Callable[..., Any], variant: Variant | None, setting: Setting):
        self.variant = variant
        self.setting = setting
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_enter, args=(theirs, room, variant, setting), daemon=True)
        with deaf_to_ctrl_c():
            self.process.start()
        self.idle = True
        theirs.close()

    def ask(self, command: str, limit: float | None = None, **arguments: Any) -> Any:
        """Send a command and wait for its answer. Raises WorkerFailed; the process is gone after a timeout."""
        self.send(command, **arguments)
        return self.answer(limit)

    def send(self, command: str, **arguments: Any) -> None:
        try:
            self.connection.send((command, arguments))
            self.idle = False
        except (BrokenPipeError, OSError) as error:
            raise self._crashed() from error

    def answer(self, limit: float | None = None) -> Any:
        limit = self.setting.time_limit if limit is None else limit
        try:
            if not self.connection.poll(limit):
                self.close()
                raise WorkerFailed("timeout", f"no answer within {limit:g} s (--time-limit); stopped")
            kind, value = self.connection.recv()
            self.idle = True
        except (EOFError, ConnectionResetError) as error:
            raise self._crashed() from error
        if kind == "failed":
            if value[0] == "crash":  # its device is of no more use to it
                self.idle = False
                self.close()
            raise WorkerFailed(*value)
        return value

    def _crashed(self) -> WorkerFailed:
        self.process.join(5)
        code = self.process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerFailed("crash", f"the process died with {how}")

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


def _enter(connection: Connection, make_room: Callable[..., Any], variant: Variant | None, setting: Setting) -> None:
    """A worker's main loop."""
    # What a variant prints must not land in the parent's table or JSON.
    os.dup2(2, 1)
    room: Any = None
    while True:
        try:
            command, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            room = room or make_room(variant, setting)
            answer = ("done", getattr(room, command)(**arguments))
        except BaseException as error:
            status, evidence = _explain(error)
            if status == "error" and room and room.broken():
                status = "crash"
            answer = ("failed", (status, evidence))
        try:
            connection.send(answer)
        except OSError:  # nobody waits for it any more
            return


def _explain(error: BaseException) -> tuple[str, str]:
    """(status, evidence) of an exception: its type and message, and the last line of the variant's own code."""
    if isinstance(error, Unavailable):
        return "skipped", str(error)
    if reports := getattr(error, "reports", ()):  # the simulator's: the kernel is wrong, whatever it computed
        return "wrong", "; ".join(f"{r.kind}: {r.message.removeprefix(r.kind).strip()}" for r in reports[:3])
    if isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error):
        return "error", f"out of memory: {error}"
    if type(error).__name__ == "CompileError":  # tells its own place
        return "error", " ".join(str(error).strip().splitlines()[:3])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/bench/" not in f.filename]
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    lines = str(error).strip().splitlines()
    return "error", f"{type(error).__name__}: {' '.join(lines[:3]) if lines else ''}{where}"


def pause() -> None:
    """Let another process's OpenMP threads fall asleep: they spin for a few milliseconds after a parallel region."""
    time.sleep(0.005)
