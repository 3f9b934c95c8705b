"""A process that runs one command of bench/ after the other, so that what all of them import is imported once.

    python -m bench.trial.lane      one request a line on stdin, the exit code of each on stdout

A command runs here as it does from a shell: with arguments, an output, Ctrl-C and an exit code of its own. What crashes
takes this process along, which its parent (`Lane`) sees and starts anew; variants have processes of their own anyway.
"""

import contextlib
import gc
import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import HOME, cli

ORPHANED_SECONDS = 10.0  # to end in order once the parent is gone


# --- the parent's end ---


class Lane:
    """A process for commands; `poll` tells what became of the one under way."""

    def __init__(self, environment: Mapping[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.trial.lane"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=HOME,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout
        os.set_blocking(self.answers.fileno(), False)

    def start(self, command: Sequence[str], out: Path, err: Path) -> None:
        """Run Python with these arguments, `-m MODULE …` or `FILE …`; its output goes into two files."""
        out.touch()
        err.touch()
        request = json.dumps({"command": list(command), "out": str(out), "err": str(err)})
        with contextlib.suppress(BrokenPipeError):  # it has died: `poll` says so
            self.requests.write(request.encode() + b"\n")
            self.requests.flush()

    def poll(self) -> int | None:
        """The exit code of the command, negative where a signal ended it; None while it runs."""
        answer = self.answers.read()  # None: nothing yet
        if answer:
            return int(answer)
        ended = self.process.poll()
        return None if ended is None else ended or cli.FAILED

    @property
    def dead(self) -> bool:
        return self.process.poll() is not None

    def interrupt(self) -> None:
        """As Ctrl-C does, so that the command keeps what it has."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """It and all that it started: a worker leads a group of its own, and all are of one session."""
        for pid in (self.process.pid, *_of_session(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()


def _of_session(session: int) -> list[int]:
    """The processes of a session, from /proc: state, parent, group and session come behind the name in brackets."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(stat.parent.name))
    return found


# --- inside ---


def serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between commands there is nothing to end
    answers = os.dup(1)
    requests = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting.put), daemon=True).start()
    while line := waiting.get():
        request = json.loads(line)
        code = run(request["command"], request["out"], request["err"])
        for fd in (1, 2):
            os.dup2(nothing, fd)
        gc.collect()
        os.write(answers, f"{code}\n".encode())


def _listen(requests, put: Callable[[bytes], None]) -> None:
    """Take requests in. At their end nobody waits for an answer any more: what runs is to end too."""
    for line in requests:
        put(line)
    put(b"")
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(ORPHANED_SECONDS)
    for pid in _of_session(os.getpid()):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    os._exit(cli.INTERRUPTED)


def run(command: Sequence[str], out: str, err: str) -> int:
    """The exit code of a command whose stdout and stderr are these files."""
    for fd, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(opened, fd)
        os.close(opened)
    arguments = sys.argv
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.lives_on = True
        if command[0] == "-m":
            sys.argv = list(command[1:])
            runpy.run_module(command[1], run_name="__main__")
        else:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name="__main__")
        return cli.OK
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or cli.OK
        print(end.code, file=sys.stderr)
        return cli.FAILED
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    except BaseException as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return cli.FAILED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.argv = arguments
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


if __name__ == "__main__":
    serve()
