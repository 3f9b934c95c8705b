"""The parent's end of a process for each contestant of `bench.generate`."""

from typing import Any

from bench.cli import CannotGoOn
from bench.core.process import ProcessFailed
from bench.machine import compared
from bench.machine.compared import Lost

SETUP_LIMIT_S = 900.0  # compiling, measuring, reading files


class Contestant(compared.Contestant):
    """Each command raises Lost, whatever happened."""

    def set_up(self, command: str, **arguments: object) -> Any:
        """As `ask`, of what may compile."""
        return self.ask(command, limit=SETUP_LIMIT_S, **arguments)

    def raised(self, failure: ProcessFailed) -> CannotGoOn:
        return Lost(f"{self.name}: {failure.evidence}", failure.status, failure.code)
