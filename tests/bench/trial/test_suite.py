"""The suite: nine made-up minutes of the whole queue on a made-up GPU, its lanes with scripts of a few lines, its
summary with made-up records, and one run of the real thing on the CPU."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bench import HOME
from bench import suite as suite_command
from bench.cli import TIMED_OUT, CannotGoOn
from bench.core.files import DiskFull
from bench.core.progress import MARK
from bench.records import PACK_BYTES, PACK_FILES, read
from bench.show.summary import TOO_LONG, Summary
from bench.suite import parser
from bench.trial import pieces, suite
from bench.trial.lane import Lane
from bench.trial.pieces import Estimates, Piece
from bench.trial.suite import Suite
from tests import commands

GPU = "tests.fake_gpu:FakeGpu"
OVER_SECONDS = 15  # a suite may be late by so much


def planned(*arguments: str) -> suite.Plan:
    return suite.plan_of(**_without_archive(parser().parse_args(arguments)), argv=list(arguments))


def _without_archive(args) -> dict:
    return {k: v for k, v in vars(args).items() if k not in ("prepare", "prepared")}


@pytest.fixture(autouse=True)
def signals():
    """Handlers that a suite changes are put back."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


# --- nine made-up minutes ---


@dataclass
class MadeUpClock:
    """Time that passes only where somebody waits. each_minute: called when one is over."""

    now: float = 0.0
    each_minute: Callable[[int], None] = lambda minute: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        minute = int(self.now // 60)
        self.now += max(seconds, 0.25)
        if int(self.now // 60) > minute:
            self.each_minute(minute + 1)


@dataclass
class MadeUp:
    """Opens processes whose pieces take as long as `seconds` says and leave a record of half and one of all of it."""

    clock: MadeUpClock
    seconds: Callable[[str], float]
    codes: dict[str, int] = field(default_factory=dict)  # of those that do not end well
    deaf: bool = False  # to Ctrl-C
    started: list[tuple[str, list[str]]] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)  # when, by name
    most_at_once: int = 0
    beside_a_clock: int = 0
    open: list["MadeUpProcess"] = field(default_factory=list)

    def __call__(self, environment) -> "MadeUpProcess":
        self.open.append(MadeUpProcess(self))
        return self.open[-1]


class MadeUpProcess:
    def __init__(self, of: MadeUp):
        self.of, self.name, self.killed = of, "", False

    def start(self, command: list[str], out: Path, err: Path) -> None:
        clock = self.of.clock
        self.folder = Path(command[-1]) if "--out" in command or "--resume" in command else None
        self.name = re.sub(r"-\d+$", "", self.folder.name) if self.folder else "doctor"
        self.begin, self.interrupted, self.half = clock.now, False, False
        self.of.started.append((self.name, command))
        busy = [p.name for p in self.of.open if p.name]
        self.of.most_at_once = max(self.of.most_at_once, len(busy))
        self.of.beside_a_clock += len(busy) > 1 and any(n.startswith(("time", "e2e", "generate")) for n in busy)
        out.write_text('{"abilities": []}\n')
        err.write_text("")
        self.record("begun")

    def record(self, what: str) -> None:
        if self.folder:
            self.folder.mkdir(exist_ok=True)
            (self.folder / "env.json").touch()
            row = {"schema": 1, "case_id": what, "status": "ok", "layer": "gelu", "variant": "cuda.x", "dtype": "bf16"}
            with (self.folder / "records.jsonl").open("a") as file:
                print(json.dumps(row | {"phase": "forward"}), file=file)

    def poll(self) -> int | None:
        if self.of.clock.now - self.begin >= self.of.seconds(self.name):
            code = self.of.codes.get(self.name, 0)
        elif self.interrupted and not self.of.deaf:
            code = 130
        else:
            return None
        self.record("done" if code == 0 else "so far")
        self.of.ended[self.name] = self.of.clock.now
        self.killed, self.name = code < 0, ""
        return code

    def interrupt(self) -> None:
        self.interrupted = True

    def kill(self) -> None:
        self.killed, self.name = True, ""

    @property
    def dead(self) -> bool:
        return self.killed


FEW = ("--layers", "attention,gelu,matmul")  # where all would say no more


def run_all(out: Path, made_up: MadeUp, *more: str, minutes: float = 9.0) -> Suite:
    plan = planned("--out", str(out), "--device", GPU, "--minutes", str(minutes), *more)
    one = Suite(plan, pieces.queue_of(plan.what), made_up.clock, made_up)
    try:
        one.run()
    finally:
        one.records.close()
    assert made_up.clock.now <= minutes * 60 + OVER_SECONDS
    assert not any(p.name for p in made_up.open), "nothing runs on"
    return one


GUESSES = {p.name: p.guess for p in pieces.queue_of(planned("--out", "nowhere", "--device", GPU).what)}


def quick(name: str) -> float:
    return GUESSES[name] * 0.2


def slow(name: str) -> float:
    return GUESSES[name] * 1.3


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(pieces.facts, "usable_cores", lambda: 16)


def test_nine_made_up_minutes_are_complete_and_in_order(tmp_path, cores):
    made_up = MadeUp(MadeUpClock(), quick)
    one = run_all(tmp_path / "out", made_up)
    started = [name for name, _ in made_up.started]
    assert started == [p.name for p in one.pieces] and len(set(started)) == len(started)
    statuses = {r["case_id"]: r["status"] for r in read.read_records(tmp_path / "out")[0]}
    assert set(statuses.values()) == {"ok"} and list(statuses) != [] and len(statuses) == len(started)
    assert made_up.most_at_once == 4 and not made_up.beside_a_clock
    assert len(made_up.open) <= 4 + 1 + 4, "four lanes, one for clocks, and four that want their own"


def test_the_order_is_that_of_worth(cores):
    names = list(GUESSES)
    at = {
        "look": max(names.index(n) for n in names if n.startswith("smoke")),
        "quick": names.index("e2e-quick"),
        "attention": names.index("time-attention-forward"),
        "matmul": names.index("time-matmul-forward"),
        "machine": names.index("doctor"),
        "memory": names.index("time-residual_layernorm-forward"),
        "proofs": names.index("check-gelu-fp32"),
        "step": names.index("e2e"),
        "text": names.index("generate"),
        "rest": names.index("sanitize-memcheck"),
    }
    assert list(at.values()) == sorted(at.values())
    for name in names:
        if name.startswith("time"):
            layer = name.split("-")[1]
            assert names.index(f"check-{layer}-bf16") < names.index(name), "proved before it is timed"


def test_what_does_not_fit_is_the_least_worth_and_is_said(tmp_path, cores):
    made_up = MadeUp(MadeUpClock(), slow)
    one = run_all(tmp_path / "out", made_up)
    assert made_up.clock.now > 9 * 60 - 40, "the time is used"
    names = [p.name for p in one.pieces]
    records = read.read_records(tmp_path / "out")[0]
    done = [r["case_id"] for r in records if r["status"] == "ok"]
    assert {"time-attention-backward", "time-matmul-forward", "e2e-quick"} <= set(done)
    assert len(done) < len(names) == len({r["case_id"] for r in records})
    over = [r for r in records if r["status"] == "timeout"]
    assert all(re.search("not started: about [0-9]+ s|stopped after", r["evidence"]) for r in over)
    assert max(map(names.index, done)) <= min(names.index(r["case_id"]) for r in over) + 8


def snapshots(
    tmp_path: Path, seconds: Callable[[str], float], *more: str, minutes: float = 9.0
) -> tuple[MadeUp, list[Path]]:
    """A suite, and copies of its folder as a kill at the end of each minute would leave it."""
    found: list[Path] = []

    def copy(minute: int) -> None:
        found.append(tmp_path / f"minute {minute}")
        shutil.copytree(tmp_path / "out", found[-1])

    made_up = MadeUp(MadeUpClock(each_minute=copy), seconds)
    run_all(tmp_path / "out", made_up, *more, minutes=minutes)
    return made_up, found


def unpacked(pack: Path, to: Path) -> Path:
    files = list(pack.iterdir())
    assert len(files) <= PACK_FILES and all(f.stat().st_size <= PACK_BYTES for f in files)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", f.name) for f in files)
    for file in files:
        with tarfile.open(file) as archive:
            archive.extractall(to, filter="data")
    return to


def test_killed_at_any_minute_it_leaves_a_valid_packed_result(tmp_path, cores):
    made_up, found = snapshots(tmp_path, slow)
    assert len(found) >= 8
    for minute, folder in enumerate(found, start=1):
        home = unpacked(folder / "pack", tmp_path / f"home {minute}")
        finished = {name for name, when in made_up.ended.items() if when < minute * 60 - 1}
        records, problems = read.read_records(home)
        assert finished <= {r["case_id"] for r in records} and not problems
        for name in finished - {"doctor"}:
            assert "done" in {r["case_id"] for r in read.read_records(home / name)[0]}, (minute, name)
        assert (home / "env.json").exists() and Summary.of(home).parts


def test_a_resumed_suite_runs_nothing_twice_from_any_minute_on(tmp_path, cores):
    _, found = snapshots(tmp_path, slow, *FEW, minutes=5.0)
    gone_on, beside = 0, 0
    for folder in found:
        begun = {f.name for f in folder.iterdir() if (f / "records.jsonl").exists()}
        finished = {r["case_id"] for r in read.read_records(folder)[0] if r["status"] == "ok"}
        again = MadeUp(MadeUpClock(), quick)
        one = run_all(folder, again, "--resume", *FEW)
        started = [name for name, _ in again.started]
        assert not finished & set(started) and len(set(started)) == len(started)
        assert set(started) | finished == {p.name for p in one.pieces}
        for name, command in again.started:
            if name in begun and name.startswith(("check", "time")):
                assert command[-2] == "--resume", "what had begun goes on where it was"
                gone_on += 1
            elif name in begun:
                assert command[-1].endswith(f"{name}-2"), "what cannot go on begins beside"
                beside += 1
    assert gone_on and beside


@pytest.mark.parametrize("deaf", [False, True])
def test_a_hang_costs_its_own_piece_and_is_tried_once_more(tmp_path, cores, deaf):
    hangs = "check-matmul-bf16"
    made_up = MadeUp(MadeUpClock(), lambda name: 1e9 if name == hangs else quick(name), deaf=deaf)
    one = run_all(tmp_path / "out", made_up, *FEW)
    statuses = {r["case_id"]: r["status"] for r in read.read_records(tmp_path / "out")[0]}
    assert statuses.pop(hangs) == "timeout" and set(statuses.values()) == {"ok"}
    assert len(statuses) == len(one.pieces) - 1
    assert [name for name, _ in made_up.started].count(hangs) == 2


def test_a_crash_costs_its_own_piece_and_its_process(tmp_path, cores):
    made_up = MadeUp(MadeUpClock(), quick, codes={"smoke-gelu": -11, "check-gelu-bf16": 1, "time-gelu-forward": 2})
    run_all(tmp_path / "out", made_up, *FEW)
    statuses = {r["case_id"]: r["status"] for r in read.read_records(tmp_path / "out")[0]}
    assert statuses.pop("smoke-gelu") == "crash" and statuses.pop("check-gelu-bf16") == "error"
    assert statuses.pop("time-gelu-forward") == "wrong" and set(statuses.values()) == {"ok"}


@pytest.mark.parametrize(("minutes", "factor"), [(0.5, 6), (2, 0.1), (2, 6), (4, 1)])
def test_minutes_are_kept_whatever_the_guesses_are_worth(tmp_path, cores, minutes, factor):
    made_up = MadeUp(MadeUpClock(), lambda name: GUESSES[name] * factor)
    run_all(tmp_path / "out", made_up, *FEW, minutes=minutes)
    assert made_up.ended or minutes < 1


def test_a_step_that_would_take_most_of_a_short_time_comes_last(tmp_path, cores):
    made_up = MadeUp(MadeUpClock(), lambda name: min(10.0, GUESSES[name]))
    run_all(tmp_path / "out", made_up, "--layers", "gelu", minutes=1.8)
    names = [name for name, _ in made_up.started]
    assert names.index("time-gelu-forward") < names.index("e2e-quick"), "it keeps nothing where it is cut short"
    assert {"check-gelu-bf16", "time-gelu-backward"} <= set(made_up.ended)


def test_estimates_are_learned_by_kind():
    def piece(kind: str, guess: float) -> Piece:
        return Piece(f"{kind}-{guess}", kind, lambda _: [], guess)

    known = Estimates()
    assert known.of(piece("time", 10)) == 10
    known.learn(piece("time", 10), 30)
    known.learn(piece("time", 20), 30)
    assert known.of(piece("time", 6)) == 12 and known.of(piece("check", 6)) == 6
    known.learn(piece("time", 10), 5, cut_short=True)
    assert known.of(piece("time", 6)) == 12, "it would have taken longer than that"
    known.learn(piece("time", 10), 60, cut_short=True)
    assert known.of(piece("time", 6)) == 18


# --- real processes ---

# A piece: `keep` writes a record into the folder it is given, as the real commands do.
STUB = """
import json, os, pathlib, signal, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[-1])
def keep(**fields):
    out.mkdir(parents=True, exist_ok=True)
    (out / "env.json").touch()
    record = dict(schema=1, case_id=name, status="ok", layer="gelu", variant="cpu.simd", phase="forward", dtype="fp32")
    with (out / "records.jsonl").open("a") as file:
        print(json.dumps(record | fields), file=file)
with open({journal!r}, "a") as file:
    print(" ".join([name, *sys.argv[2:-1], out.name, str(os.getpid())]), file=file)
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Makes suites of stubs that write to the same folder."""
    monkeypatch.setattr(suite, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(suite, "END_SECONDS", 0.0)
    monkeypatch.setattr(suite, "LEAST_LIMIT", 2.0)
    return Bench(tmp_path)


class Bench:
    def __init__(self, folder: Path):
        self.folder, self.out, self.journal = folder, folder / "out", folder / "journal"

    def piece(self, name: str, code: str = "keep()", guess: float = 1.0, **how) -> Piece:
        script = self.folder / f"{name}.py"
        script.write_text(STUB.format(journal=str(self.journal)) + code)
        return Piece(name, name.split("-")[0], lambda seconds: [str(script), name], guess, **how)

    def run(self, *queue: Piece, seconds: float = 60.0, resume: bool = False, device: str = "cpu") -> int:
        arguments = ["--out", str(self.out), "--minutes", str(seconds / 60), "--device", device]
        one = Suite(planned(*arguments, *(["--resume"] if resume else [])), list(queue))
        try:
            return one.run()
        finally:
            one.records.close()

    def statuses(self) -> dict[str, str]:
        return {r["case_id"]: r["status"] for r in read.read_records(self.out)[0]}

    def evidence(self, name: str) -> str:
        return next(r["evidence"] for r in read.read_records(self.out)[0] if r["case_id"] == name)

    def started(self) -> list[str]:
        return [line.split()[0] for line in self.journal.read_text().splitlines()]


def test_a_piece_that_fails_in_any_way_leaves_the_others(bench, capsys):
    queue = [
        bench.piece("check-crash", "os.abort()"),
        bench.piece("check-error", "sys.exit('error: no space left')"),
        bench.piece("check-raises", "raise ValueError('odd')"),
        bench.piece("check-leaves", "os._exit(0)"),
        bench.piece("check-wrong", "keep(status='wrong', evidence='unwritten'); sys.exit(2)"),
        bench.piece("check-none", "print('error: no compute-sanitizer', file=sys.stderr); sys.exit(3)"),
        bench.piece("check-good"),
    ]
    assert bench.run(*queue) == 2
    assert bench.statuses() == {
        "check-crash": "crash",
        "check-error": "error",
        "check-raises": "error",
        "check-leaves": "error",
        "check-wrong": "wrong",
        "check-none": "skipped",
        "check-good": "ok",
    }
    assert bench.evidence("check-crash") == "died with signal SIGABRT"
    assert bench.evidence("check-error") == "error: no space left"
    assert bench.evidence("check-raises") == "error: ValueError: odd"
    assert bench.evidence("check-none") == "error: no compute-sanitizer"
    pids = [line.split()[-1] for line in bench.journal.read_text().splitlines()]
    assert pids[1] == pids[2] == pids[3] and pids[4] == pids[5] == pids[6], "what lives goes on with the next"
    assert len(set(pids)) == 3
    said = capsys.readouterr()
    assert "check-good: ok" in said.err and "unwritten" in said.out
    assert bench.run(*queue, resume=True) == 2, "what was wrong stays wrong"


def test_without_a_wrong_result_a_crash_is_exit_code_1(bench):
    assert bench.run(bench.piece("check-a"), bench.piece("check-crash", "os.abort()")) == 1


def test_a_variant_that_never_ends_is_no_wrong_result(bench):
    """A command whose exit code says that nothing worse happened than a timeout."""
    assert bench.run(bench.piece("check-slow", f"keep(status='timeout'); sys.exit({TIMED_OUT})")) == TIMED_OUT
    assert (bench.statuses()["check-slow"], bench.evidence("check-slow")) == ("wrong", TOO_LONG)


def test_a_page_that_finds_the_disk_full_ends_no_suite_well(bench, monkeypatch):
    def full(_: Path) -> str:
        raise DiskFull("no space left to write report.html")

    monkeypatch.setattr(suite, "write_beside", full)
    with pytest.raises(DiskFull):
        bench.run(bench.piece("check-a"), seconds=120)
    assert bench.statuses() == {"check-a": "ok"} and list((bench.out / "pack").iterdir())


def test_how_far_a_command_was_is_no_reason_for_its_failure(bench):
    said = f"print('error: the reason', file=sys.stderr); print('{MARK}case 3 of 4', file=sys.stderr); sys.exit(1)"
    bench.run(bench.piece("check-a", said))
    assert bench.evidence("check-a") == "error: the reason"


def test_a_piece_that_takes_too_long_is_stopped_and_keeps_its_records(bench):
    obeys = "keep()\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    keep(case_id='at the end'); raise"
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN); keep(); time.sleep(60)"
    begin = time.monotonic()
    queue = [bench.piece("check-obeys", obeys), bench.piece("time-deaf", deaf, guess=0.5), bench.piece("e2e")]
    assert bench.run(*queue, seconds=9) == 0
    assert time.monotonic() - begin < 20
    assert bench.statuses() == {"check-obeys": "timeout", "time-deaf": "timeout", "e2e": "ok"}
    assert "records kept: 2" in bench.evidence("check-obeys")
    assert "records kept: 1" in bench.evidence("time-deaf")


def test_a_resumed_suite_runs_only_what_has_not_finished(bench):
    good, bad = bench.piece("check-good"), "sys.exit(1) if not os.path.exists({0!r}) else keep()"
    flag = bench.journal.with_name("flag")
    queue = [good, bench.piece("check-bad", bad.format(str(flag)))]
    assert bench.run(*queue) == 1
    flag.touch()
    assert bench.run(*queue, resume=True) == 0
    assert bench.started() == ["check-good", "check-bad", "check-bad"]
    with pytest.raises(CannotGoOn, match="measured with --device cpu, not tests"):
        bench.run(*queue, resume=True, device=GPU)
    with pytest.raises(CannotGoOn, match="already holds a run"):
        bench.run(*queue)


def test_ctrl_c_keeps_everything_and_sums_up(bench, capsys):
    queue = [bench.piece("check-a"), bench.piece("check-slow", "keep(status='wrong'); time.sleep(60)", guess=10)]

    def interrupt() -> None:
        while not (bench.out / "check-slow" / "records.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    assert bench.run(*queue, bench.piece("check-never")) == 130
    assert time.monotonic() - begin < 20
    assert bench.statuses() == {"check-a": "ok", "check-slow": "timeout"}
    assert "interrupted; records kept: 1" in bench.evidence("check-slow")
    assert json.loads((bench.out / "summary.json").read_text())["failed"]
    assert list((bench.out / "pack").iterdir())


def test_logs_hold_what_a_piece_said_without_paths_of_this_machine(bench):
    bench.run(bench.piece("check-a", "print('built', '/somewhere/secret/lib.so'); keep()"))
    assert (bench.out / "logs" / "check-a.out").read_text() == "built <path>/lib.so\n"


def test_a_lane_whose_parent_is_gone_ends_what_it_runs(tmp_path):
    script = tmp_path / "sleeps.py"
    script.write_text("import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(60)")
    lane = Lane({})
    try:
        lane.start([str(script), str(tmp_path / "begun")], tmp_path / "out", tmp_path / "err")
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        lane.requests.close()  # as the system does for a process that was killed
        lane.process.wait(15)
    finally:
        lane.kill()


# --- the pieces ---


def of(device: str, *arguments: str) -> dict[str, Piece]:
    plan = planned("--out", "nowhere", "--layers", "gelu,matmul", "--device", device, *arguments)
    return {p.name: p for p in pieces.queue_of(plan.what)}


def test_a_gpu_gets_all_kinds_and_a_cpu_its_half():
    def kinds(found: dict[str, Piece]) -> set[str]:
        return {p.kind for p in found.values()}

    assert kinds(of(GPU)) == {"doctor", "smoke", "check", "time", "e2e", "generate", "sanitize"}
    assert kinds(of("cpu")) == {"doctor", "check", "time", "e2e"}
    assert kinds(of(GPU, "--stage", "check")) == {"doctor", "smoke", "check", "sanitize"}
    assert kinds(of(GPU, "--stage", "time")) == {"doctor", "check", "time"}
    assert "check-gelu-fp32" not in of(GPU, "--stage", "time"), "what is not timed need not be proved for it"
    assert kinds(of(GPU, "--stage", "e2e")) == {"doctor", "e2e", "generate"}


def test_commands_are_those_of_the_project_and_fit_their_time():
    from bench import e2e, generate, layer, sanitize

    found = of(GPU, "--model", "gpt2-tiny", "--kernels", "tests/evil")
    readers = {"bench.layer": layer.parser(), "bench.sanitize": sanitize.parser(), "bench.e2e": e2e.parser()}
    readers["bench.generate"] = generate.parser()
    for piece in [p for p in found.values() if p.kind != "doctor"]:
        m, module, *arguments = piece.command(100.0)
        readers[module].parse_args(arguments)
        assert m == "-m" and GPU in arguments
        assert ("--kernels" in arguments) == (module not in ("bench.e2e", "bench.generate"))
        assert piece.alone == (piece.kind in ("time", "e2e", "generate")), "nothing runs beside a clock"
    timed, proved = (
        layer.parser().parse_args(found[n].command(9.0)[2:]) for n in ("time-matmul-forward", "check-matmul-bf16")
    )
    assert timed.axis == proved.axis == ["B=64", "dtype=bf16"] and timed.shape == proved.shape and proved.check_only
    assert timed.proofs == proved.proofs and timed.seconds < pieces.ROUNDS[True]
    assert layer.parser().parse_args(of("cpu")["time-gelu-forward"].command(9.0)[2:]).axis == ["B=4", "dtype=fp32"]
    quick, full = (e2e.parser().parse_args(found[n].command(1000.0)[2:]) for n in ("e2e-quick", "e2e"))
    assert quick.baseline == "eager" and full.baseline == "compile-plain,compile" and quick.minutes < 2 < full.minutes
    short = e2e.parser().parse_args(found["e2e"].command(60.0)[2:])
    assert short.minutes == pytest.approx(55 / 60, abs=0.01), "it ends by itself before it is stopped"
    text = generate.parser().parse_args(found["generate"].command(60.0)[2:])
    assert text.model == "gpt2-tiny" and text.race_limit == 18
    assert "llama2-15m" in of(GPU)["generate"].command(60.0), "a small one"


@pytest.mark.slow
def test_the_text_is_written_on_a_made_up_gpu(tmp_path):
    """The very command of the queue, of a small model."""
    piece = of(GPU, "--model", "gpt2-tiny")["generate"]
    module, *arguments = piece.command(40.0)[1:]
    done = commands.run(module.removeprefix("bench."), *arguments, "--out", tmp_path / "generate")
    assert done.returncode == 0, done.stderr
    rows = [r for r in read.read_records(tmp_path / "generate")[0] if r["status"] == "ok" and r.get("tokens_per_s")]
    assert {(r["variant"], r["phase"]) for r in rows} == {
        (name, phase) for name in ("ours", "torch.eager") for phase in ("prefill", "decode")
    }


def test_the_step_takes_the_kernels_that_were_chosen_for_this_gpu(tmp_path, monkeypatch):
    about = {"utc": "2026-11-28", "run": "e2e", "model": "gpt2-124m", "dtype": "bf16", "B": 64, "T": 1024}
    for name, chip, utc in (("a", "A", "2026-11-27"), ("b", "A", "2026-11-28"), ("c", "B", "2026-11-29")):
        file = tmp_path / "results" / name / "kernels.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"schema": 1, **about, "chip": chip, "utc": utc, "kernels": {}}))
    (tmp_path / "results" / "kernels.json").write_text("damaged")
    monkeypatch.setattr(pieces, "HOME", tmp_path)
    monkeypatch.setattr(pieces.facts, "gpus", lambda: [{"name": "A"}])
    step = of(GPU)["e2e"].command(100.0)
    assert step[step.index("--kernels") + 1] == str(tmp_path / "results" / "b" / "kernels.json")
    monkeypatch.setattr(pieces.facts, "gpus", lambda: [{"name": "C"}, {"name": "B"}])
    assert "--kernels" not in of(GPU)["e2e"].command(100.0)
    assert "--kernels" not in of(GPU, "--model", "gpt2-tiny")["e2e"].command(100.0)
    second = pieces.chosen_beforehand(replace(planned("--out", "nowhere", "--device", GPU).what, device="cuda:1"))
    assert second == tmp_path / "results" / "c" / "kernels.json"


def test_what_is_missing_is_said_and_nothing_is_installed(monkeypatch, capsys):
    from bench import suite as command

    monkeypatch.setattr(command, "found", lambda name: name not in ("rich", "triton"))
    with pytest.raises(CannotGoOn, match=r"not installed for .*: rich; `make setup`") as error:
        command.tell_missing("cuda")
    assert error.value.code == 3
    monkeypatch.setattr(command, "found", lambda name: name != "triton")
    command.tell_missing("cpu")
    assert "triton" not in capsys.readouterr().err
    command.tell_missing("cuda")
    assert "not installed: triton; triton.* are skipped" in capsys.readouterr().err


# --- what came out ---


def write(folder: Path, *records: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records.jsonl").open("a") as file:
        for n, record in enumerate(records):
            print(json.dumps({"schema": 1, "case_id": f"{n}", **record}), file=file)


def timed(variant: str, median: float, **fields) -> dict:
    row = {"status": "ok", "layer": "gelu", "phase": "forward", "shape_name": "gpt2-124m", "dtype": "bf16"}
    return row | {"variant": variant, "median_s": median, "cache": "cold", "timer": "busy"} | fields


def made_up(out: Path) -> None:
    bad = {"status": "wrong", "evidence": "unwritten: poison survived | in out"}
    write(out, {"case_id": "time-gelu", "status": "ok"}, {"case_id": "e2e", "status": "timeout", "evidence": "cut"})
    write(
        out / "time-gelu",
        timed("torch.eager", 4e-6),
        timed("torch.compile", 3e-6),
        timed("cuda.fast", 2e-6),
        timed("cuda.fast", 1e-6, cache="warm"),
        timed("torch.eager", 1e-7, control=True),
        timed("cuda.none", 1e-9, status="skipped"),
        timed("cuda.bad", 1e-9, **bad),
        timed("cuda.bad", 1e-9, shape_name="gpt2-124m/other", **bad),
    )
    write(out / "check-gelu", timed("cuda.bad", 1e-9, **bad))
    step = {"layer": "gpt2-124m", "phase": "step", "dtype": "bf16", "shape": {"B": 64, "T": 1024}, "status": "ok"}
    ours = {"variant": "ours", "median_s": 0.05, "tokens_per_s": 1.3e6, "speedup": 1.25, "baseline": "torch.compile"}
    write(out / "e2e-quick", step | ours | {"median_s": 99.0})
    write(out / "e2e", step | ours | {"mfu_palm_of_ceiling": 0.45}, step | {"variant": "torch.compile"})


def test_the_summary_ranks_what_is_right_and_tells_each_failure_once(tmp_path, capsys):
    made_up(tmp_path)
    summary = Summary.of(tmp_path)
    (best,) = summary.fastest
    assert (best["variant"], best["median_s"], best["fastest_torch_s"], best["variants"]) == (
        "cuda.fast",
        2e-6,
        3e-6,
        3,
    )
    assert [f["variant"] for f in summary.failed] == ["cuda.bad"]
    assert [(r["variant"], r["median_s"]) for r in summary.training] == [("ours", 0.05), ("torch.compile", None)]
    assert summary.exit_code() == 2
    summary.write(tmp_path)
    summary.print()
    text, printed = (tmp_path / "summary.md").read_text(), capsys.readouterr().out
    for shown in ("cuda.fast", "1.50x", "poison survived", "1.25x torch.compile", "e2e", "45%"):
        assert shown in text and shown in printed, shown
    lines = [line for line in text.splitlines() if line.startswith("| gelu | cuda.bad")]
    assert len(lines) == 1 and lines[0].count("|") == 7, "a bar in the evidence is no new cell"
    assert json.loads((tmp_path / "summary.json").read_text())["fastest"] == summary.fastest


def test_of_what_was_begun_anew_the_later_counts(tmp_path):
    made_up(tmp_path)
    write(tmp_path / "time-gelu-2", timed("torch.eager", 4e-6), timed("cuda.fast", 2.5e-6, case_id="2"))
    step = {"layer": "gpt2-124m", "phase": "step", "dtype": "bf16", "shape": {"B": 64, "T": 1024}, "status": "ok"}
    write(tmp_path / "e2e-2", step | {"variant": "ours", "median_s": 0.04})
    write(tmp_path / "e2e-10", step | {"variant": "ours", "median_s": 0.03})
    summary = Summary.of(tmp_path)
    assert [(f["variant"], f["median_s"]) for f in summary.fastest] == [("cuda.fast", 2.5e-6)]
    assert [r["median_s"] for r in summary.training if r["variant"] == "ours"] == [0.03]


def test_a_summary_of_nothing_says_so(tmp_path, capsys):
    write(tmp_path, {"case_id": "doctor", "status": "ok"})
    summary = Summary.of(tmp_path)
    summary.write(tmp_path)
    summary.print()
    assert "fastest variant, caches cold: none" in capsys.readouterr().out and summary.exit_code() == 0


def run(*args: str, timeout: float = 800) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.suite", *args]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--device", "cuda"], 3, "no usable NVIDIA GPU"),
        (["--layers", "gelu,atention"], 64, "did you mean 'attention'"),
        (["--stage", "chek"], 64, "did you mean 'check'"),
    ],
)
def test_mistakes_are_one_line(args, code, says, tmp_path, ended):
    found, errors = ended(suite_command, "--out", tmp_path / "out", *args)
    assert found == code and says in errors
    assert not (tmp_path / "out").exists()


WRONG = '''\
"""Forgets to add."""

def forward(a, b, *, out):
    out.copy_(a)
'''


@pytest.mark.slow
def test_the_whole_of_it_on_the_cpu_with_a_broken_variant(tmp_path):
    variant = tmp_path / "kernels" / "torch" / "residual" / "forgets.py"
    variant.parent.mkdir(parents=True)
    variant.write_text(WRONG)
    out = tmp_path / "out"
    args = ["--out", str(out), "--device", "cpu", "--layers", "residual", "--model", "gpt2-tiny", "--minutes", "12"]
    args += ["--kernels", str(tmp_path / "kernels"), "--batch", "1"]
    done = run(*args, "--json")
    assert done.returncode == 2, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert {p["case_id"]: p["status"] for p in document["parts"]} == {
        "doctor": "ok",
        "e2e": "ok",
        "check-residual-fp32": "wrong",
        "time-residual-forward": "wrong",
        "check-residual-bf16": "wrong",
    }
    for name in ("check-residual-fp32", "time-residual-forward", "e2e"):
        assert read.read_records(out / name)[0], name
    assert json.loads((out / "doctor.json").read_text())["abilities"]
    assert [f["variant"] for f in document["failed"]] == ["torch.forgets"] * 2, (
        "once for each dtype, however often it was tried"
    )
    (best,) = document["fastest"]
    assert best["layer"] == "residual" and best["variant"] != "torch.forgets" and best["fastest_torch_s"]
    assert {r["variant"] for r in document["training"]} >= {"ours", "torch.eager"}
    proved, timed = (read.read_records(out / name)[0] for name in ("check-residual-fp32", "time-residual-forward"))
    seeds = {r["variant"]: r["seeds"] for r in proved if r["status"] in ("ok", "wrong")}
    assert len(seeds) > 2 and all(r["seeds"] == seeds.get(r["variant"], r["seeds"]) for r in timed), "proved once"
    home = unpacked(out / "pack", tmp_path / "home")
    assert {f.relative_to(home) for f in home.rglob("*.jsonl")} == {f.relative_to(out) for f in out.rglob("*.jsonl")}
    before = (out / "records.jsonl").read_text()
    again = run(*args, "--resume")
    assert again.returncode == 2 and again.stderr.count("finished before") == 5
    assert (out / "records.jsonl").read_text() == before
    shutil.rmtree(out)


def test_ctrl_c_while_a_piece_is_started_ends_it_and_is_written_down(bench, monkeypatch):
    start = suite.Lane.start

    def interrupted(lane, *arguments):
        start(lane, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(suite.Lane, "start", interrupted)
    assert bench.run(bench.piece("check-slow", "time.sleep(60)")) == 130
    assert bench.statuses() == {"check-slow": "timeout"}
