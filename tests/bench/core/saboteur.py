"""A room whose commands are accidents and sabotage; it loads next to nothing, so that its process starts at once."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import TypedDict

from bench.core import replies
from bench.core.process import Room
from bench.core.replies import Seconds


@dataclass
class Pair:
    left: int
    right: float


class Duration(TypedDict):
    seconds: Seconds


class Saboteur(Room):
    """What a variant may do to the process it lives in, the pipe included. It need not be the worst."""

    def pipe(self) -> Connection:
        return next(o for o in gc.get_objects() if isinstance(o, Connection) and not o.closed and o.writable)

    def well(self) -> str:
        return "well"

    def lie(self, what: object) -> int:
        return what  # type: ignore[return-value]

    def time(self, seconds: float) -> Duration:
        return Duration(seconds=seconds)

    def pair(self, left: int) -> Pair:
        return Pair(left, 0.5)

    def count(self) -> list[float]:
        import numpy as np

        return [np.float64(0.5), np.float32(0.25)]

    def garbage(self, data: bytes) -> None:
        os.write(self.pipe().fileno(), data)
        time.sleep(60)

    def pickled(self, message: bytes) -> None:
        self.pipe().send_bytes(message)
        time.sleep(60)

    def answer_first(self, number: int) -> str:
        self.pipe().send_bytes(replies.packed((number, "done", "mine")))
        return "well"

    def close_all(self) -> None:
        os.closerange(3, 1000)

    def fork_and_die(self) -> None:
        if os.fork() == 0:
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGSEGV)

    def fork_and_return(self) -> str:
        os.fork()
        return "well"

    def leave_a_child(self) -> int:
        child = os.fork()
        if child == 0:
            time.sleep(60)
        return child

    def kill(self, pid: int, number: int) -> None:
        os.kill(pid, number)

    def leave_for_the_end(self, file: str) -> str:
        def late() -> None:
            with open(file, "w") as left:
                left.write("late")

        self.semaphore = multiprocessing.get_context("spawn").Semaphore()  # is let go of, else a warning says so
        util.Finalize(None, late, exitpriority=1)
        threading._register_atexit(late)  # type: ignore[attr-defined]
        return "well"

    def flood(self) -> None:
        while True:
            self.tell("again")

    def large(self) -> bytes:
        return bytes(replies.MOST_BYTES + 1)

    def unsendable(self) -> object:
        return lambda: None

    def raise_(self, size: int, text: str) -> None:
        raise ValueError(text * size)

    def unspeakable(self) -> None:
        raise Unspeakable


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Runs:
    """Unpickled by pickle itself, it runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)
