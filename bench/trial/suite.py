"""A suite under way: pieces in the order of their worth, its clock, its books.

Whatever ends it, and when: what was finished by then is on disk, summed up and packed.
"""

import contextlib
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from bench import cli
from bench.cli import CannotGoOn
from bench.core import progress
from bench.core.files import DiskFull
from bench.records import read, scrub
from bench.records.pack import Pack
from bench.records.record import Record
from bench.records.run import Run
from bench.show.report import write_beside
from bench.show.summary import TOO_LONG, Summary
from bench.trial.lane import Lane
from bench.trial.pieces import CORES_A_PROOF, Estimates, Piece, What, batch_of, piece_named, queue_of
from reference import contract
from reference.models import MODELS

GRACE_SECONDS = 8.0  # from SIGINT to SIGKILL: a command writes its CSV and ends its workers
END_SECONDS = 8.0  # of the whole time, for the last pieces' ends and the books
PAGE_SECONDS = 20.0  # so much must be left over for the report's page
DONE = ("ok", "wrong", "skipped")  # what --resume does not run again
MOST = 2.5  # times its estimate may a piece take; then it makes room, and comes last
LEAST_LIMIT = 45.0  # … but this long in any case: of a kernel that hangs the row is written first
BOOKS_SHARE = 0.03  # of the time, for summing up in between
NEWLINE = b"\n"


def choose_device(wanted: str | None) -> str:
    """The device asked for; CannotGoOn where it names a GPU and there is none."""
    there = torch.cuda.is_available()
    if wanted and wanted.startswith("cuda") and not there:
        raise CannotGoOn(f"--device {wanted}: no usable NVIDIA GPU (python -m bench.doctor says why)", cli.CANNOT_RUN)
    return wanted or ("cuda" if there else "cpu")


@dataclass(frozen=True)
class Plan:
    """One run of `bench.suite`."""

    out: Path
    resume: bool
    minutes: float
    what: What
    pack: Path | None
    json: bool
    argv: tuple[str, ...]


def plan_of(
    *,
    out: Path,
    resume: bool,
    device: str | None,
    minutes: float,
    stage: str,
    layers: str | None,
    model: str,
    batch: int | None,
    kernels: list[str],
    data: Path | None,
    pack: Path | None,
    json: bool,
    argv: list[str],
) -> Plan:
    """The plan of a command line. CannotGoOn for what makes no sense, or cannot run here."""
    cli.choose(model, MODELS, "model")
    names = contract.layer_names()
    chosen = cli.choose_all(layers, names, "layer") if layers else names
    device = choose_device(device)
    b = batch_of(device, batch)
    what = What(device, stage, tuple(chosen), model, b, tuple(kernels), out / "proofs", data and data.resolve())
    return Plan(out, resume, minutes, what, pack, json, tuple(argv))


# --- what it stands on; tests have a clock and processes of their own ---


class Clock(Protocol):
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class Process(Protocol):
    """As bench.trial.lane.Lane: one command after the other."""

    def start(self, command: list[str], out: Path, err: Path) -> None: ...
    def poll(self) -> int | None: ...
    def interrupt(self) -> None: ...
    def kill(self) -> None: ...
    @property
    def dead(self) -> bool: ...


class Opener(Protocol):
    def __call__(self, environment: Mapping[str, str]) -> Process: ...


@dataclass
class Running:
    """A piece under way."""

    piece: Piece
    command: list[str]
    folder: Path
    process: Process
    limit: float  # seconds
    begin: float
    stopped: float | None = None  # when it was asked to end


@dataclass
class Suite:
    """One command: its pieces, its clock, and what became of each."""

    plan: Plan
    pieces: list[Piece]
    clock: Clock = time
    open_process: Opener = Lane
    running: list[Running] = field(default_factory=list)
    idle: dict[bool, list[Process]] = field(default_factory=lambda: {True: [], False: []})  # by whether undisturbed
    at_the_end: bool = False  # every piece has had its turn

    def __post_init__(self) -> None:
        plan = self.plan
        self.out, self.begin, self.seconds = plan.out, self.clock.monotonic(), plan.minutes * 60
        if plan.resume:
            self.records: Run = Run.resume(self.out, read.SUITE)
            self.check_that_it_is_the_same()
        else:
            self.records = Run.create(read.SUITE, self.out, plan.argv)
        before = self.records.finished()
        self.finished = [name for name, r in before.items() if r["status"] in DONE]
        self.estimates = Estimates()
        for name, r in before.items():
            if (piece := piece_named(name, self.pieces)) and r["status"] in DONE and r.get("seconds"):
                self.estimates.learn(piece, r["seconds"])
        self.again: set[str] = set()  # that were cut short and had, or wait for, a second try
        self.pack = Pack(self.out, plan.pack)
        self.books_s = 0.0  # spent on summing up
        self.logs = self.out / "logs"
        self.logs.mkdir(exist_ok=True)

    def check_that_it_is_the_same(self) -> None:
        for r in self.records.records():
            for what in ("device", "model"):
                if (then := r.get(what)) != (now := getattr(self.plan.what, what)):
                    self.records.close()
                    raise CannotGoOn(f"{self.out} was measured with --{what} {then}, not {now}: take another --out")

    @property
    def elapsed(self) -> float:
        return self.clock.monotonic() - self.begin

    @property
    def left(self) -> float:
        return self.seconds - END_SECONDS - self.elapsed

    def run(self) -> int:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit from outside is like Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's `&` had it ignored
        interrupted = False
        try:
            with self.live_line():
                self.run_queue()
        except KeyboardInterrupt:
            interrupted = True
            self.end_all()
        finally:
            for process in [r.process for r in self.running] + self.idle[True] + self.idle[False]:
                process.kill()
        summary = self.sum_up()
        summary.print()
        print(f"results: {self.out}")
        full: CannotGoOn | None = None
        if self.left > PAGE_SECONDS:
            try:
                print(write_beside(self.out))
            except DiskFull as error:
                full = error
        else:
            print(f"the page: python -m bench.report {self.out}")
        packed = self.pack.update()
        size = sum(p.stat().st_size for p in packed) / 1e6
        cli.say(f"packed: {self.pack.folder}, {len(packed)} files, {size:.1f} MB")
        if self.plan.json:
            cli.print_json({"run": str(self.out), **summary.document()})
        if full:
            raise full
        return cli.INTERRUPTED if interrupted else summary.exit_code()

    # --- the queue ---

    def run_queue(self) -> None:
        """Every piece in turn, as far as it fits; what was cut short comes once more, last."""
        for name in self.finished:
            self.say(f"{name}: finished before")
        waiting = [p for p in self.pieces if p.name not in self.finished]
        passed: list[Piece] = []  # over, for want of time
        while waiting or self.running:
            if not self.start_next(waiting, passed):
                self.update(waiting)
                self.clock.sleep(0.05)
            for r in list(self.running):
                self.look_after(r, waiting)
            if not waiting and not self.running:  # estimates have changed meanwhile
                self.at_the_end = True
                waiting = [p for p in passed if self.limit_of(p)]
                passed = [p for p in passed if p not in waiting]
        passed = [p for p in passed if p.name not in self.again]  # of those it is written what they were cut short at
        for piece in passed:
            why = f"not started: about {self.estimates.of(piece):.0f} s, {max(0.0, self.left):.0f} s were left"
            self.keep(piece, "timeout", why, [], 0.0)
        if passed:
            self.books()

    def start_next(self, waiting: list[Piece], passed: list[Piece]) -> bool:
        """Start the first piece that fits into the time, if it may run beside what runs."""
        while waiting:
            piece = waiting[0]
            limit = self.limit_of(piece)
            if not limit:
                passed.append(waiting.pop(0))
                continue
            at_once = 1 if piece.alone or any(r.piece.alone for r in self.running) else self.plan.what.at_once
            if len(self.running) >= at_once:
                return False
            self.start(waiting.pop(0), limit)
            return True
        return False

    def limit_of(self, piece: Piece) -> float:
        """How many seconds a piece may take from now on; 0 where it is not worth a start.

        What keeps nothing when it is cut short is not started for most of what is left before the end.
        """
        left, expected = self.left, self.estimates.of(piece)
        if left < min(expected, expected if piece.least is None else piece.least):
            return 0.0
        if not (piece.resumes or self.at_the_end or expected <= left / 2):
            return 0.0
        return min(left, max(LEAST_LIMIT, MOST * expected))

    def start(self, piece: Piece, limit: float) -> None:
        """It runs before it is started: whatever interrupts this, now too, has it ended and written down."""
        folder, where = self.folder(piece)
        command = [*piece.command(limit), *where]
        process = self.process_for(piece)
        self.running.append(Running(piece, command, folder, process, limit, self.clock.monotonic()))
        process.start(command, self.logs / f"{piece.name}.out", self.logs / f"{piece.name}.err")

    def process_for(self, piece: Piece) -> Process:
        if not piece.fresh and self.idle[self.undisturbed(piece)]:
            return self.idle[self.undisturbed(piece)].pop()
        environment = {"LAYERBENCH_REPORT": "0"}  # one page of all in the end
        if not self.undisturbed(piece):
            environment["OMP_NUM_THREADS"] = str(CORES_A_PROOF)
        return self.open_process(environment)

    def undisturbed(self, piece: Piece) -> bool:
        """Whether all cores are this piece's."""
        return piece.alone or self.plan.what.at_once == 1

    def folder(self, piece: Piece) -> tuple[Path, list[str]]:
        """Where a piece writes, and how to tell it: what was cut short goes on, or begins anew beside."""
        folder = (self.out / piece.name).resolve()
        if piece.kind == "doctor":
            return folder, []
        if piece.resumes and (folder / read.RECORDS).exists() and (folder / read.ENVIRONMENT).exists():
            return folder, ["--resume", str(folder)]
        number = 1
        while (folder / read.ENVIRONMENT).exists() or (folder / read.RECORDS).exists():
            number += 1
            folder = (self.out / f"{piece.name}-{number}").resolve()
        return folder, ["--out", str(folder)]

    def look_after(self, r: Running, waiting: list[Piece]) -> None:
        code, now = r.process.poll(), self.clock.monotonic()
        if code is None and r.stopped is None and now - r.begin >= r.limit:
            r.stopped = now
            r.process.interrupt()
            return
        if code is None and (r.stopped is None or now - r.stopped < GRACE_SECONDS):
            return
        self.running.remove(r)
        if code is None or r.process.dead or r.piece.fresh:
            r.process.kill()
        else:
            self.idle[self.undisturbed(r.piece)].append(r.process)
        seconds = now - r.begin
        self.keep(r.piece, *self.outcome(r, code), r.command, seconds)
        self.estimates.learn(r.piece, seconds, cut_short=r.stopped is not None)
        if r.stopped is not None and r.piece.name not in self.again:
            self.again.add(r.piece.name)
            waiting.append(r.piece)
        self.books()

    def outcome(self, r: Running, code: int | None) -> tuple[str, str]:
        """(status, evidence) of a piece that has ended."""
        last = last_line(self.logs / f"{r.piece.name}.err")
        if r.stopped is not None and code != cli.OK:
            return "timeout", f"stopped after {r.limit:.0f} s{self.kept(r)}"
        if r.piece.kind == "doctor" and code == cli.OK:
            (self.out / "doctor.json").write_text(last_line(self.logs / "doctor.out") + "\n")
        if code is not None and code < 0:
            return "crash", f"died with signal {signal.Signals(-code).name}{self.kept(r)}"
        skipped = dict.fromkeys((cli.CANNOT_RUN, cli.NOTHING_TRIED), "skipped")
        status = {cli.OK: "ok", cli.WRONG: "wrong", cli.TIMED_OUT: "wrong", **skipped}.get(code or 0, "error")
        failed = TOO_LONG if code == cli.TIMED_OUT else "a variant is wrong, or fails"
        return status, {"ok": "", "wrong": failed}.get(status, last or f"exit code {code}")

    def kept(self, r: Running) -> str:
        file = r.folder / read.RECORDS
        return f"; records kept: {file.read_bytes().count(NEWLINE)}" if file.exists() else ""

    # --- its books ---

    def keep(self, piece: Piece, status: str, evidence: str, command: list[str], seconds: float) -> None:
        self.records.append(
            Record(
                case_id=piece.name,
                status=status,
                evidence=evidence,
                seconds=round(seconds, 1),
                device=self.plan.what.device,
                model=self.plan.what.model,
                command=shlex.join(["python", *command]),
            )
        )
        for log in (self.logs / f"{piece.name}.out", self.logs / f"{piece.name}.err"):
            if log.exists():
                log.write_text(scrub.scrub(log.read_text(errors="replace")))
        told = f": {evidence}" if evidence else ""
        self.say(f"{piece.name}: {status}{told}" + (f", {seconds:.0f} s" if seconds else ""))

    def books(self) -> None:
        """Sum up, where that is cheap, and pack what there is."""
        if self.books_s <= BOOKS_SHARE * self.elapsed:
            begin = self.clock.monotonic()
            self.sum_up()
            self.books_s += self.clock.monotonic() - begin
        self.pack.update()

    def sum_up(self) -> Summary:
        summary = Summary.of(self.out)
        summary.write(self.out)
        return summary

    def end_all(self) -> None:
        """After Ctrl-C: all pieces end as after their time, and are written down."""
        for r in self.running:
            r.process.interrupt()
        deadline = self.clock.monotonic() + GRACE_SECONDS
        for r in list(self.running):
            while r.process.poll() is None and self.clock.monotonic() < deadline:
                self.clock.sleep(0.05)
            r.process.kill()
            self.running.remove(r)
            self.keep(r.piece, "timeout", f"interrupted{self.kept(r)}", r.command, self.clock.monotonic() - r.begin)

    # --- what a person sees meanwhile ---

    @contextlib.contextmanager
    def live_line(self) -> Iterator[None]:
        """What runs, and how much time is left."""
        with progress.Progress():
            yield

    def update(self, waiting: list[Piece]) -> None:
        names = ", ".join(r.piece.name for r in self.running)
        progress.tell(f"{names}; {len(waiting)} more; {clock(max(0.0, self.left))} left")

    def say(self, text: str) -> None:
        cli.say(f"[{clock(self.elapsed)} of {clock(self.seconds)}] {text}")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def last_line(file: Path) -> str:
    try:
        lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    lines = [line for line in lines if not line.startswith(progress.MARK)]  # how far it was is no reason
    return lines[-1] if lines else ""


def suite_of(plan: Plan) -> Suite:
    return Suite(plan, queue_of(plan.what))
