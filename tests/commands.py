"""Commands of bench/ as from a shell, but in this process: one of its own begins with two seconds of importing torch.

What is about signals, the process's end or a stream that breaks has a process of its own all the same, and so has one
run of each command.
"""

import contextlib
import importlib
import io
import os
import signal
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver
from typing import NamedTuple

import pytest
import torch

from bench import cli
from bench.core import process


class Done(NamedTuple):
    """As subprocess.CompletedProcess has it."""

    returncode: int
    stdout: str
    stderr: str


def run(name: str, *arguments: object) -> Done:
    """`python -m bench.NAME ARGUMENTS`: its exit code and what it said. Threads that it sets are gone with it, as a
    process's are."""
    module = importlib.import_module(f"bench.{name}")
    out, err = io.StringIO(), io.StringIO()
    with threads_as_they_were(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli._run(lambda: module.main([*map(str, arguments)]))
        except SystemExit as stop:  # argparse's
            assert isinstance(stop.code, int)
            code = stop.code
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def threads_as_they_were() -> Iterator[None]:
    """What a command does to its own process, it does to this one where a test runs it here."""
    variable, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("OMP_NUM_THREADS", None)
        if variable is not None:
            os.environ["OMP_NUM_THREADS"] = variable


@contextlib.contextmanager
def with_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process and, by a server of their own, of those that it forks."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        _stop_servers()
        try:
            yield
        finally:
            _stop_servers()


def _stop_servers() -> None:
    """The next process that is started starts one anew."""
    for server in (forkserver._forkserver, *process.SERVERS.values()):  # type: ignore[attr-defined]
        if server._forkserver_pid is not None:
            # It leaves when nobody holds its pipe any more; what a test forked may still do so.
            with contextlib.suppress(ProcessLookupError):
                os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()
