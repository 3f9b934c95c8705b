"""One protocol for every process: commands, limits, messages, failures, the end; forked from the server and fresh."""

import os
import signal
import time

import pytest

from bench.cli import CANNOT_RUN, CannotGoOn
from bench.core.process import CRASH, ERROR, OUT_OF_MEMORY, TIMEOUT, Process, ProcessFailed, Room


class Subject(Room):
    def __init__(self, greeting: str):
        self.greeting = greeting

    def greet(self, name: str) -> str:
        self.tell("thinking")
        print(self.greeting)
        return f"{self.greeting} {name}"

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def leave(self) -> None:
        os._exit(3)

    def fail(self, error: Exception) -> None:
        raise error


class Fragile(Subject):
    def broken(self) -> bool:
        return True


@pytest.fixture(params=[None, {"OMP_NUM_THREADS": "3"}], ids=["forked", "fresh"])
def subject(request):
    with Process(Subject, "hello", limit=60.0, environment=request.param) as found:
        yield found


def failure(process: Process, command: str, limit: float | None = None, **arguments: object) -> ProcessFailed:
    with pytest.raises(ProcessFailed) as caught:
        process.ask(command, limit, **arguments)
    return caught.value


def test_a_command_is_answered_and_what_is_told_meanwhile_is_kept(subject, capfd):
    assert subject.ask("greet", name="you") == "hello you" and subject.heard == ["thinking"]
    assert subject.ask("variable", name="HOME") == os.environ.get("HOME") and subject.heard == []
    assert "hello" not in capfd.readouterr().out, "stdout is for the parent's tables and JSON"
    subject.close()
    assert subject.process.exitcode == 0 and not subject.alive, "an idle one leaves by itself"


def test_a_fresh_process_has_its_variables_and_the_parent_keeps_its_own(monkeypatch):
    monkeypatch.setenv("LAYERBENCH_A", "before")
    monkeypatch.delenv("LAYERBENCH_B", raising=False)
    with Process(Subject, "", limit=60.0, environment={"LAYERBENCH_A": "1", "LAYERBENCH_B": "2"}) as fresh:
        assert [fresh.ask("variable", name=f"LAYERBENCH_{x}") for x in "AB"] == ["1", "2"]
    assert os.environ["LAYERBENCH_A"] == "before" and "LAYERBENCH_B" not in os.environ


def test_a_hang_is_stopped(subject):
    subject.ask("greet", name="you")
    found = failure(subject, "sleep", 0.1, seconds=60)
    assert (found.status, found.evidence) == (TIMEOUT, "no answer within 0.1 s; its process was stopped")
    subject.process.join(5)
    assert subject.process.exitcode == -signal.SIGKILL and not subject.alive


def test_a_death_is_told_with_its_signal_or_exit_code(subject):
    found = failure(subject, "die", number=signal.SIGSEGV)
    assert (found.status, found.evidence) == (CRASH, "its process died with signal SIGSEGV")
    again = failure(subject, "greet", name="you")
    assert again.status == CRASH and not subject.alive
    with Process(Subject, "", limit=60.0) as other:
        assert failure(other, "leave").evidence == "its process died with exit code 3"


def test_an_error_is_explained_and_the_process_goes_on(subject):
    found = failure(subject, "fail", error=ValueError("two\nlines"))
    assert found.status == ERROR and found.evidence.startswith("ValueError: two lines (test_process.py line ")
    found = failure(subject, "fail", error=CannotGoOn("no card", CANNOT_RUN))
    assert (found.status, str(found), found.code) == (ERROR, "no card", CANNOT_RUN)
    assert failure(subject, "fail", error=RuntimeError("CUDA out of memory")).status == OUT_OF_MEMORY
    assert subject.ask("greet", name="you") == "hello you"


def test_a_room_that_cannot_be_made_is_an_error():
    with Process(Subject, limit=60.0) as process:
        assert "missing 1 required positional argument" in failure(process, "greet", name="you").evidence


def test_after_an_error_that_broke_its_device_the_process_is_gone():
    with Process(Fragile, "", limit=60.0) as process:
        found = failure(process, "fail", error=ValueError("an illegal address"))
        assert found.status == CRASH and "an illegal address" in found.evidence and not process.alive


def test_a_busy_one_is_killed_when_the_parent_leaves():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Process(Subject, "", limit=60.0, environment={}) as process:
        process.ask("greet", name="you")
        process.send("sleep", seconds=60)
        raise KeyboardInterrupt
    process.process.join(5)
    assert process.process.exitcode == -signal.SIGKILL and time.monotonic() - start < 20
