"""Servers that have the machine of tests (machine.py), for this process and for commands in processes of their own:

    python -m tests.on_machine bench.layer residual …

is `python -m bench.layer residual …` on it.
"""

import runpy
import sys
from collections.abc import Mapping
from typing import Any

from bench import trial
from bench.core import process

MACHINE = "tests.machine"
_server_of = process._server_of


def install() -> None:
    """From now on a server that is started imports it too. Nothing is imported here: `--help` is to be quick."""
    setattr(trial, "ROOMS", (*trial.ROOMS, MACHINE))  # noqa: B010
    process.SERVER.set_forkserver_preload(list(trial.ROOMS))
    process._server_of = _server_with_it


def _server_with_it(variables: Mapping[str, str], preload: str) -> Any:
    server = _server_of(variables, preload)
    server.set_forkserver_preload([preload, MACHINE])
    return server


def command(name: str, *arguments: object) -> list[str]:
    """The command line of `python -m bench.NAME` on this machine."""
    return [sys.executable, "-m", __name__, f"bench.{name}", *map(str, arguments)]


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
