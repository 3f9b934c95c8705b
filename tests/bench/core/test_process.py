"""One protocol for every process: commands, limits, messages, failures, the end; forked from the server and fresh."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from bench import HOME, cli
from bench.cli import CANNOT_RUN, CannotGoOn
from bench.core import process as process_module
from bench.core.process import (
    CRASH,
    ERROR,
    OUT_OF_MEMORY,
    SEAL_SECONDS,
    TIMEOUT,
    WRONG,
    Gone,
    Process,
    ProcessFailed,
    Room,
    start_server,
)
from tests import on_machine
from tests.bench.core.saboteur import Pair, Runs, Saboteur


@pytest.fixture(autouse=True)
def plain_servers(monkeypatch):
    """Without the machine of tests, which would import torch into each of them."""
    monkeypatch.setattr(process_module, "_server_of", on_machine._server_of)


class Subject(Room):
    def __init__(self, greeting: str):
        self.greeting = greeting

    def greet(self, name: str) -> str:
        self.tell("thinking")
        print(self.greeting)
        return f"{self.greeting} {name}"

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def parent(self) -> int:
        return os.getppid()

    def open_files(self) -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def leave(self) -> None:
        os._exit(3)

    def fail(self, error: Exception) -> None:
        raise error


class Sealed(Subject):
    """Somebody replaced a function after the first command, and answers as before."""

    asked = 0

    def __init__(self, greeting: str):
        super().__init__(greeting)
        self.seal = self.replaced

    def replaced(self) -> tuple[str, ...]:
        self.asked += 1
        return ("math.sqrt",) if self.asked > 1 else ()


class Fragile(Subject):
    def broken(self) -> bool:
        return True


PRELOAD = "bench.core.replies"


@pytest.fixture(
    params=[(None, ""), ({"OMP_NUM_THREADS": "3"}, ""), ({"OMP_NUM_THREADS": "3"}, PRELOAD)],
    ids=["forked", "fresh", "forked of its own"],
)
def subject(request):
    environment, preload = request.param
    with Process(Subject, "hello", limit=60.0, environment=environment, preload=preload) as found:
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


def test_those_of_the_same_variables_are_forks_of_one_server_that_has_imported():
    def started(value: str) -> Process:
        return Process(Subject, "", limit=60.0, environment={"LAYERBENCH_A": value}, preload=PRELOAD)

    with started("1") as one, started("1") as same, started("2") as other, Process(Subject, "", limit=60.0) as usual:
        assert [p.ask("variable", name="LAYERBENCH_A") for p in (one, same, other, usual)] == ["1", "1", "2", None]
        servers = [p.ask("parent") for p in (one, same, other, usual)]
        assert servers[0] == servers[1] and len(set(servers)) == 3 and os.getpid() not in servers
        assert "LAYERBENCH_A" not in os.environ
        os.kill(servers[0], signal.SIGKILL)  # a start then takes another server
        with started("1") as again:
            assert again.ask("variable", name="LAYERBENCH_A") == "1" and again.ask("parent") not in servers


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


def test_who_replaces_functions_is_not_believed_any_more():
    """Whatever its commands answer; and a room cannot put another seal in the place of the first."""
    with Process(Sealed, "hello", limit=20) as process:
        assert process.ask("greet", name="you") == "hello you"
        assert process.ask("greet", name="you") == "hello you", "asked again in a moment"
        time.sleep(2 * SEAL_SECONDS)
        with pytest.raises(ProcessFailed) as failed:
            process.ask("greet", name="you")
        assert (failed.value.status, failed.value.code) == (WRONG, cli.WRONG)
        assert failed.value.evidence == "global_state: functions were replaced: math.sqrt"
        with pytest.raises(ProcessFailed) as failed:
            process.ask("greet", name="you")
        assert failed.value.status == CRASH


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


# --- accidents and sabotage: the guilty command fails with a word on why, everybody else goes on ---


@pytest.fixture
def saboteur():
    with Process(Saboteur, limit=20.0) as found:
        yield found


def test_plain_answers_of_the_right_type_come_through(saboteur):
    assert saboteur.ask("pair", left=3) == Pair(3, 0.5) and saboteur.ask("time", seconds=2.0) == {"seconds": 2.0}
    assert saboteur.ask("count") == [0.5, 0.25] and {type(x) for x in saboteur.ask("count")} == {float}


@pytest.mark.parametrize(
    "command, arguments, evidence",
    [
        ("lie", {"what": "text"}, "the answer is of type str, not int"),
        ("lie", {"what": None}, "the answer is of type NoneType, not int"),
        ("pair", {"left": "three"}, "the answer.left is of type str, not int"),
        ("time", {"seconds": float("nan")}, "the answer.seconds is nan, which is not a duration"),
        ("time", {"seconds": -1.0}, "the answer.seconds is -1.0, which is not a duration"),
        ("garbage", {"data": b"\xff\xff\xff\xfe" + b"x" * 50}, "a message that claims to have -2 bytes"),
        ("garbage", {"data": b"\x7f\xff\xff\xff"}, "a message that claims to have 2,147,483,647 bytes"),
        ("garbage", {"data": b"\x00\x00\x00\x04oops"}, "4 bytes that are no message"),
        ("pickled", {"message": pickle.dumps(("not", "one"))}, "something else than a message"),
        ("pickled", {"message": pickle.dumps((7, "done", None))}, "an answer to another command"),
        ("pickled", {"message": pickle.dumps((1, "odd", None))}, "a message of an unknown kind"),
        ("pickled", {"message": pickle.dumps((1, "failure", "x"))}, "the failure is of type str"),
        ("flood", {}, "more than"),
    ],
)
def test_rubbish_is_the_failure_of_its_command_and_ends_its_process(
    saboteur, command, arguments, evidence, monkeypatch
):
    monkeypatch.setattr("bench.core.process.MOST_TOLD", 100)
    with Process(Saboteur, limit=20.0) as neighbour:
        found = failure(saboteur, command, **arguments)
        assert found.status == CRASH and found.evidence.startswith("it sent rubbish: ") and evidence in found.evidence
        assert not saboteur.alive and neighbour.ask("well") == "well"
        again = failure(saboteur, "well")
        assert isinstance(again, Gone) and not saboteur.alive
    saboteur.restart()
    assert saboteur.ask("well") == "well"


def test_a_message_that_would_run_code_in_the_parent_does_not(saboteur, tmp_path):
    message = pickle.dumps((1, "done", Runs(f"touch {tmp_path}/ran")), 4)
    found = failure(saboteur, "pickled", message=message)
    assert "a message that asks for posix.system" in found.evidence and not (tmp_path / "ran").exists()


def test_a_message_that_never_ends_is_a_timeout(saboteur):
    start = time.monotonic()
    assert failure(saboteur, "garbage", 0.5, data=b"\x00\x00\x10\x00half").status == TIMEOUT
    assert time.monotonic() - start < 5


def test_an_answer_before_the_answer_is_found_at_the_next_command(saboteur):
    assert (
        saboteur.ask("answer_first", number=1) == "mine"
    )  # of the right type: whether it is true is the judge's question
    time.sleep(0.3)
    found = failure(saboteur, "well")
    assert found.status == CRASH and "nobody asked for" in found.evidence


def test_an_answer_that_cannot_be_sent_is_an_error_and_the_process_goes_on(saboteur):
    assert "cannot be sent" in failure(saboteur, "unsendable").evidence
    assert "more than" in failure(saboteur, "large").evidence
    assert saboteur.ask("well") == "well"


def test_a_closed_pipe_is_told_at_once(saboteur):
    start = time.monotonic()
    found = failure(saboteur, "close_all")
    assert found.status == CRASH and time.monotonic() - start < 10


def test_a_forked_child_that_holds_the_pipe_hides_no_death(saboteur):
    start = time.monotonic()
    found = failure(saboteur, "fork_and_die")
    assert (found.status, found.evidence) == (CRASH, "its process died with signal SIGSEGV")
    assert time.monotonic() - start < 10


def test_a_forked_child_that_returns_does_not_answer_too(saboteur):
    assert saboteur.ask("fork_and_return") == "well"
    time.sleep(0.2)
    assert saboteur.ask("well") == "well"


def test_what_a_command_forked_ends_with_its_process(saboteur):
    child = saboteur.ask("leave_a_child")
    assert is_running(child)
    saboteur.close()
    end = time.monotonic() + 5
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(child)


def test_nothing_that_was_left_for_the_end_of_a_process_is_done(saboteur, tmp_path):
    before = set(os.listdir("/dev/shm"))
    assert saboteur.ask("leave_for_the_end", file=str(tmp_path / "late")) == "well"
    made = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("sem.mp-")}
    saboteur.close()
    assert not (tmp_path / "late").exists()
    assert made and not made & set(os.listdir("/dev/shm"))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_killed_neighbour_says_so_and_is_started_again(saboteur):
    with Process(Saboteur, limit=20.0) as neighbour:
        assert neighbour.ask("well") == "well"
        saboteur.ask("kill", pid=neighbour.process.pid, number=signal.SIGKILL)
        neighbour.process.join(5)
        found = failure(neighbour, "well")
        assert isinstance(found, Gone) and "SIGKILL, which the system sends where memory runs" in found.evidence
        neighbour.restart()
        assert neighbour.ask("well") == "well"
    assert saboteur.ask("well") == "well"


def test_a_stopped_neighbour_is_woken(saboteur, monkeypatch):
    monkeypatch.setattr("bench.core.process.NUDGE_SECONDS", 0.2)
    with Process(Saboteur, limit=20.0) as neighbour:
        assert neighbour.ask("well") == "well"
        saboteur.ask("kill", pid=neighbour.process.pid, number=signal.SIGSTOP)
        assert neighbour.ask("well") == "well"


def test_a_stopped_process_that_takes_no_command_is_a_timeout(saboteur, monkeypatch):
    monkeypatch.setattr("bench.core.process.Process._signal", lambda self, number: None)
    assert saboteur.ask("well") == "well"
    os.kill(saboteur.process.pid, signal.SIGSTOP)
    saboteur.limit = 0.5
    assert failure(saboteur, "lie", what=bytes(1 << 23)).status == TIMEOUT


def server_pid() -> int:
    return forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]


def test_a_stopped_server_is_woken(saboteur):
    assert saboteur.ask("well") == "well"
    saboteur.ask("kill", pid=server_pid(), number=signal.SIGSTOP)
    with Process(Saboteur, limit=20.0) as another:
        assert another.ask("well") == "well"


def test_a_server_that_does_not_answer_is_replaced(saboteur, monkeypatch):
    send = process_module._signal_server
    monkeypatch.setattr(process_module, "START_SECONDS", 0.3)
    monkeypatch.setattr(process_module, "_signal_server", lambda n: send(n) if n == signal.SIGKILL else None)
    before = server_pid()
    saboteur.ask("kill", pid=before, number=signal.SIGSTOP)
    threading.Timer(1.5, lambda: monkeypatch.setattr(process_module, "START_SECONDS", 60.0)).start()
    with Process(Saboteur, limit=20.0) as another:
        assert another.ask("well") == "well"
    assert server_pid() != before or not is_running(before)


def test_without_its_server_a_process_goes_on_and_ends(saboteur):
    assert saboteur.ask("well") == "well"
    os.kill(server_pid(), signal.SIGKILL)
    time.sleep(0.2)
    assert saboteur.alive and saboteur.ask("well") == "well"
    saboteur.send("garbage", data=b"")
    saboteur.close()
    time.sleep(0.2)
    assert not is_running(saboteur.process.pid)
    with Process(Saboteur, limit=20.0) as another:
        assert another.ask("well") == "well"


def test_evidence_is_bounded_and_plain_where_it_arises(saboteur):
    start = time.monotonic()
    found = failure(saboteur, "raise_", size=10 << 20, text="a@")
    assert found.evidence.startswith("ValueError: a@a@") and len(found.evidence) < 600
    found = failure(saboteur, "raise_", size=1, text="\x1b[31mred\udc80 \x1b]0;title\x07end")
    assert found.evidence.startswith("ValueError: red\ufffd end")
    assert "Unspeakable" in failure(saboteur, "unspeakable").evidence
    assert time.monotonic() - start < 10 and saboteur.ask("well") == "well"


def test_a_room_can_be_named_and_its_types_are_held_all_the_same(tmp_path, monkeypatch):
    """The parent imports nothing: the process tells what its commands answer, before it loads anything else."""
    (tmp_path / "far_room.py").write_text(FAR)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):  # the second time they are known
        with Process("far_room:Far", 3, limit=20.0, environment={"PYTHONPATH": str(tmp_path)}) as far:
            assert far.ask("good") == 3 and "far_room" not in sys.modules
            assert "the answer is of type str, not int" in failure(far, "bad").evidence
    with Process("far_room:Missing", limit=20.0, environment={"PYTHONPATH": str(tmp_path)}) as missing:
        assert "has no attribute 'Missing'" in failure(missing, "good").evidence


FAR = """
from bench.core.process import Room

class Far(Room):
    def __init__(self, number: int):
        self.number = number

    def good(self) -> int:
        return self.number

    def bad(self) -> int:
        return "bad"
"""


class Diligent(Room):
    def __init__(self) -> None:
        self.done = 0

    def idle(self) -> bool:
        self.done += 1
        time.sleep(0.01)
        return self.done < 5

    def count(self) -> int:
        return self.done


def test_while_nobody_asks_a_room_does_a_little_at_a_time():
    with Process(Diligent, limit=20.0) as process:
        assert process.ask("count") == 0
        time.sleep(0.5)
        assert process.ask("count") == 5, "until there is nothing left"


def test_a_shell_that_allows_few_open_files_is_no_limit_of_ours():
    """The judge has two for each case of a proof: attention at a few shapes comes near the 1024 of most shells."""
    code = "import resource; from tests.bench.core.test_process import Process, Subject"
    code += "; p = Process(Subject, 'x', limit=60)"
    code += "; print(p.ask('open_files') == resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 200); p.close()"
    line = ["bash", "-c", 'ulimit -S -n 200; ulimit -H -n 1500; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(line, cwd=HOME, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_where_the_path_of_temporary_files_is_too_long_for_a_socket(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = "from bench.core.process import Process, Room, tempfile; p = Process(Room, limit=60)"
    code += "; print(p.ask('idle'), tempfile.gettempdir()); p.close()"
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", str(folder)], done.stderr


def test_the_server_can_be_started_early():
    start = time.monotonic()
    start_server()
    assert time.monotonic() - start < 5 and is_running(server_pid())


def test_a_command_imports_once_for_itself_and_the_server(tmp_path):
    """The server is a fork, with signals as a fresh interpreter has them, and nothing of the caller's open; where
    there are other threads, Python's or those that torch computes with, it is a fresh one. What was imported is old:
    no process looks through it for garbage."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    (tmp_path / "large.py").write_text("imported = [[] for _ in range(200_000)]")
    for had, (forked, open_file) in {
        "nothing": (True, False),
        "thread": (False, False),
        "torch": (False, False),
    }.items():
        line = [sys.executable, str(script), had]
        done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(HOME)})
        assert done.returncode == 0, done.stderr
        (young, *found), frozen = json.loads(done.stdout)
        assert found == [forked, forked, open_file, ["SIG_DFL", "default_int_handler"], None]
        assert young < 100_000 and frozen is forked, had


COMMAND = """
import gc, json, os, signal, sys, threading, time
from pathlib import Path
from bench.core.process import Process, Room, start_server

class Inside(Room):
    def look(self, file: int) -> list[object]:
        server = Path(f"/proc/{os.getppid()}")
        handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
        assert Path("/proc/self/comm").read_text() == "Inside\\n"
        return [
            sum(len(gc.get_objects(generation)) for generation in (0, 1)),
            b"command.py" in (server / "cmdline").read_bytes(), (server / "comm").read_text() == "forkserver\\n",
            (server / "fd" / str(file)).exists(), [getattr(h, "name", None) or h.__name__ for h in handlers],
            sys.getprofile(),
        ]

    def compute(self) -> float:
        import torch
        return float(torch.ones(1 << 22).add(1).sum())

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    if sys.argv[1] == "torch":
        import torch
        torch.ones(1 << 22).add(1)
    if sys.argv[1] == "thread":
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 77)
    sys.setprofile(lambda *_: None)
    start_server("bench.core.replies", "large")
    with Process(Inside, limit=60.0) as process:
        print(json.dumps([process.ask("look", file=77), gc.get_freeze_count() > 200_000]))
        # In a fork of one that has computed it would wait without end; others would import torch for nothing.
        assert sys.argv[1] != "torch" or process.ask("compute") == 2 << 22
"""
