"""For all tests of the harness: a machine as tests want it, commands that end at once, a small vocabulary."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest

from bench import cli
from reference.models import MODELS
from tests import machine as machine  # of this process
from tests import on_machine

on_machine.install()


@pytest.fixture
def ended(capsys) -> Callable[..., tuple[int, str]]:
    """Runs a command's main() with arguments; its exit code and what it said on stderr. For what ends before anything
    is begun: a process of its own would import torch for that."""

    def run(command: ModuleType, *arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        try:
            code = cli._run(lambda: command.main([*map(str, arguments)]))
        except SystemExit as stop:  # argparse's
            assert isinstance(stop.code, int)
            code = stop.code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.err

    return run


@pytest.fixture
def few_tokens(monkeypatch) -> int:
    """gpt2-tiny with so many tokens, for commands in this process: with all of them the head is most of a step."""
    size = 1000
    monkeypatch.setitem(MODELS, "gpt2-tiny", replace(MODELS["gpt2-tiny"], v=size))  # type: ignore[type-var]
    return size
