"""The parts of `bench.suite`: each one of the other commands in a process of its own, within its share of the time."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.status import Status

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.core.case import cases_of
from bench.gpu import TOOLS
from bench.machine import facts
from bench.machine.devices import is_gpu
from bench.records import read, scrub
from bench.records.pack import pack
from bench.records.record import Record
from bench.records.run import Run
from bench.show.report import write_beside
from bench.show.summary import Summary
from bench.trial import STAGES
from reference import contract
from reference.models import MODELS

WEIGHTS = {"doctor": 2.0, "check": 4.0, "sanitize": 3.0, "time": 6.0, "e2e": 6.0}  # shares of the time
GRACE_SECONDS = 8.0  # from SIGINT to SIGKILL: a command writes its CSV and ends its workers
END_SECONDS = 5.0  # of the whole time, for the summary
CORES_A_PROOF = 4  # so many let another proof run beside: nothing is timed then
DONE = ("ok", "wrong", "skipped")  # what --resume does not run again
SECOND_TRY_SECONDS = 30.0  # so much left over at the end is for the parts that were cut short
SHORT_SECONDS = 90.0  # a training step with less than this is compared with eager PyTorch alone

NEWLINE = b"\n"


def choose_device(wanted: str | None) -> str:
    """The device asked for; CannotGoOn where it names a GPU and there is none."""
    there = torch.cuda.is_available()
    if wanted and wanted.startswith("cuda") and not there:
        raise CannotGoOn(f"--device {wanted}: no usable NVIDIA GPU (python -m bench.doctor says why)", cli.CANNOT_RUN)
    return wanted or ("cuda" if there else "cpu")


# --- what runs ---


@dataclass(frozen=True)
class Plan:
    """One run of `bench.suite`."""

    out: Path
    resume: bool
    pack: bool
    device: str
    minutes: float
    stage: str  # of STAGES, or all
    layers: tuple[str, ...]
    model: str
    kernels: tuple[str, ...]  # folders of more variants
    json: bool
    argv: tuple[str, ...]


def plan_of(
    *,
    out: Path,
    resume: bool,
    pack: bool,
    device: str | None,
    minutes: float,
    stage: str,
    layers: str | None,
    model: str,
    kernels: list[str],
    json: bool,
    argv: list[str],
) -> Plan:
    """The plan of a command line. CannotGoOn for what makes no sense, or cannot run here."""
    cli.choose(model, MODELS, "model")
    names = contract.layer_names()
    chosen = [cli.choose(n, names, "layer") for n in layers.split(",")] if layers else names
    device = choose_device(device)
    return Plan(out, resume, pack, device, minutes, stage, tuple(chosen), model, tuple(kernels), json, tuple(argv))


@dataclass(frozen=True)
class Part:
    """One command. Where it writes is added to its arguments."""

    name: str  # and its folder under DIR
    command: Callable[[float], list[str]]  # Python's arguments, fitted to so many seconds
    weight: float = 1.0  # its share of its stage's time
    resumes: bool = False  # has a --resume of its own


@dataclass
class Stage:
    name: str
    parts: list[Part]
    at_once: int = 1


def stages(plan: Plan) -> list[Stage]:
    """The parts in their order, for this device."""
    gpu = is_gpu(plan.device)
    wanted = [s for name, of_it in STAGES.items() if plan.stage in (name, "all") for s in of_it]
    at_once = max(1, facts.usable_cores() // CORES_A_PROOF)
    found = [
        Stage("doctor", [Part("doctor", lambda _: ["-m", "bench.doctor", "--json"])]),
        Stage("check", [check(plan, layer) for layer in plan.layers], at_once),
        Stage("sanitize", [sanitize(plan, tool) for tool in TOOLS], at_once),
        Stage("time", [timings(plan, layer, gpu) for layer in plan.layers]),
        Stage("e2e", training_steps(plan, gpu)),
    ]
    return [s for s in found if s.name == "doctor" or (s.name in wanted and (gpu or s.name != "sanitize"))]


def check(plan: Plan, layer: str) -> Part:
    command = ["-m", "bench.layer", layer, "--check-only", "-a", "dtype=bf16,fp32", *common(plan)]
    return Part(f"check-{layer}", lambda _: command, proof_cases(layer), resumes=True)


def sanitize(plan: Plan, tool: str) -> Part:
    """Its own limit ends it a little before ours would, with a row for every variant."""
    which = "all" if tuple(plan.layers) == contract.layer_names() else ",".join(plan.layers)
    command = ["-m", "bench.sanitize", which, "--tools", tool, "--device", plan.device, *more_kernels(plan)]
    return Part(f"sanitize-{tool}", lambda seconds: [*command, "--time-limit", f"{max(1.0, seconds - 8):.0f}"])


def timings(plan: Plan, layer: str, gpu: bool) -> Part:
    rows = timed_rows(layer, plan.model)
    command = [
        "-m",
        "bench.layer",
        layer,
        "--shape",
        plan.model,
        "-a",
        f"dtype={'bf16' if gpu else 'fp32'}",
        *common(plan),
    ]

    def fitted(seconds: float) -> list[str]:
        # Half of the time is for starting, proving and setting up.
        return [*command, "--seconds", f"{min(12.0, max(0.2, 0.5 * seconds / rows)):.2g}"]

    return Part(f"time-{layer}", fitted, rows, resumes=True)


def training_steps(plan: Plan, gpu: bool) -> list[Part]:
    """On a GPU compiling PyTorch takes minutes, and bench.e2e writes only when it ends: a quick run goes first."""
    command = ["-m", "bench.e2e", plan.model, "--device", plan.device, "--json"]
    quick = [*command, "--baseline", "eager", "--steps", "4"]
    if gpu:  # eager's fp32 logits would have the batch halved for all
        command = [*command, "--baseline", "compile,compile-plain"]
    full = Part("e2e", lambda seconds: quick if seconds < SHORT_SECONDS else command, weight=2.0)
    return [Part("e2e-quick", lambda _: quick), full] if gpu else [full]


def common(plan: Plan) -> list[str]:
    return ["--device", plan.device, "--no-simulate", *more_kernels(plan)]


def more_kernels(plan: Plan) -> list[str]:
    return [part for folder in plan.kernels for part in ("--kernels", str(Path(folder).resolve()))]


def proof_cases(layer: str) -> float:
    phases = contract.phases_of(contract.load(layer))
    return float(sum(len(cases_of(layer, phase, "fp32", [0, 1])) for phase in phases))


def timed_rows(layer: str, model: str) -> float:
    module = contract.load(layer)
    shapes = MODELS[model].shapes(layer, contract.DEFAULT_B, min(contract.DEFAULT_T, MODELS[model].max_t))
    return float(len(contract.phases_of(module)) * len(shapes))


# --- running it ---


@dataclass
class Running:
    """A part under way."""

    part: Part
    command: list[str]
    folder: Path
    process: subprocess.Popen[bytes]
    limit: float
    begin: float = field(default_factory=time.monotonic)
    stopped: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def stop(self) -> None:
        """As Ctrl-C does, so that it keeps what it measured."""
        self.stopped = True
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """It and all that it started: a worker leads a group of its own, and all are of one session."""
        for pid in (self.process.pid, *_of_session(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _of_session(session: int) -> list[int]:
    """The processes of a session, from /proc: state, parent, group and session come behind the name in brackets."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(stat.parent.name))
    return found


class Suite:
    """One command: its stages, its clock, and what became of each part."""

    def __init__(self, plan: Plan, stages: list[Stage]):
        self.plan, self.stages, self.out = plan, stages, plan.out
        self.begin = time.monotonic()
        self.seconds = plan.minutes * 60
        if plan.resume:
            self.records: Run = Run.resume(self.out, read.SUITE)
            self.check_that_it_is_the_same()
        else:
            self.records = Run.create(read.SUITE, self.out, plan.argv)
        self.finished = [name for name, r in self.records.finished().items() if r["status"] in DONE]
        self.cut_short: set[str] = set()
        self.logs = self.out / "logs"
        self.logs.mkdir(exist_ok=True)
        self.running: list[Running] = []
        self.status: Status | None = None

    def check_that_it_is_the_same(self) -> None:
        for r in self.records.records():
            for what in ("device", "model"):
                if (then := r.get(what)) != (now := getattr(self.plan, what)):
                    self.records.close()
                    raise CannotGoOn(f"{self.out} was measured with --{what} {then}, not {now}: take another --out")

    @property
    def left(self) -> float:
        return self.seconds - END_SECONDS - (time.monotonic() - self.begin)

    def run(self) -> int:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit from outside is like Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's `&` had it ignored
        interrupted = False
        try:
            with self.live_line():
                self.run_stages()
        except KeyboardInterrupt:
            interrupted = True
            self.end_all()
        finally:
            for r in self.running:
                r.kill()
        summary = Summary.of(self.out)
        summary.write(self.out)
        summary.print()
        print(f"results: {self.out}")
        print(write_beside(self.out))
        if self.plan.pack:
            pack(self.out)
        if self.plan.json:
            cli.print_json({"run": str(self.out), **summary.document()})
        return cli.INTERRUPTED if interrupted else summary.exit_code()

    def run_stages(self) -> None:
        """Every part once; then, if time is left, those again that were cut short."""
        for name in self.finished:
            self.say(f"{name}: finished before")
        self.run_round(lambda part: part.name not in self.finished)
        if self.left > SECOND_TRY_SECONDS:
            self.run_round(lambda part: part.name in self.cut_short)

    def run_round(self, wanted: Callable[[Part], bool]) -> None:
        todo = [(s, parts) for s in self.stages if (parts := [p for p in s.parts if wanted(p)])]
        for i, (stage, parts) in enumerate(todo):
            later = sum(WEIGHTS[s.name] for s, _ in todo[i:])
            self.run_stage(stage, parts, self.left * WEIGHTS[stage.name] / later)

    def run_stage(self, stage: Stage, waiting: list[Part], seconds: float) -> None:
        """A part's limit is its share of what the stage has left when it starts."""
        deadline = time.monotonic() + seconds
        while waiting or self.running:
            while waiting and len(self.running) < stage.at_once:
                left = deadline - time.monotonic()
                weights = sum(p.weight for p in waiting) + sum(r.part.weight for r in self.running)
                part = waiting.pop(0)
                limit = min(left, left * stage.at_once * part.weight / weights)
                if limit < 1:
                    self.keep(part, "timeout", "no time was left for it", [], 0.0)
                else:
                    self.running.append(self.start(part, limit, stage.at_once))
            self.update(stage)
            time.sleep(0.1)
            for r in list(self.running):
                self.look_after(r)

    def start(self, part: Part, limit: float, at_once: int) -> Running:
        folder, where = self.folder(part)
        command = [sys.executable, *part.command(limit), *where]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "LAYERBENCH_REPORT": "0"}  # one page of all in the end
        if at_once > 1:  # the cores are shared
            environment["OMP_NUM_THREADS"] = str(CORES_A_PROOF)
        with (self.logs / f"{part.name}.out").open("w") as out, (self.logs / f"{part.name}.err").open("w") as err:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=HOME, env=environment, start_new_session=True
            )
        return Running(part, command, folder, process, limit)

    def folder(self, part: Part) -> tuple[Path, list[str]]:
        """Where a part writes, and how to tell it: what was cut short goes on, or begins anew beside."""
        folder = (self.out / part.name).resolve()
        if part.name == "doctor":
            return folder, []
        if part.resumes and (folder / "records.jsonl").exists():
            return folder, ["--resume", str(folder)]
        number = 1
        while (folder / "env.json").exists():
            number += 1
            folder = (self.out / f"{part.name}-{number}").resolve()
        return folder, ["--out", str(folder)]

    def look_after(self, r: Running) -> None:
        if r.process.poll() is None and r.seconds < r.limit:
            return
        if r.process.poll() is None and not r.stopped:
            r.stop()
            return
        if r.process.poll() is None and r.seconds < r.limit + GRACE_SECONDS:
            return
        if r.stopped:
            r.kill()
        self.running.remove(r)
        self.keep(r.part, *self.outcome(r), r.command, r.seconds)

    def outcome(self, r: Running) -> tuple[str, str]:
        """(status, evidence) of a part that has ended."""
        code = r.process.returncode
        last = last_line(self.logs / f"{r.part.name}.err")
        if r.stopped:
            return "timeout", f"stopped after its share of the time, {r.limit:.0f} s{self.kept(r)}"
        if r.part.name == "doctor" and code == cli.OK:
            (self.out / "doctor.json").write_text(last_line(self.logs / "doctor.out") + "\n")
        if code < 0:
            return "crash", f"died with signal {signal.Signals(-code).name}"
        status = {cli.OK: "ok", cli.WRONG: "wrong", cli.CANNOT_RUN: "skipped"}.get(code, "error")
        return status, {"ok": "", "wrong": "a variant is wrong, or fails"}.get(status, last or f"exit code {code}")

    def kept(self, r: Running) -> str:
        file = r.folder / "records.jsonl"
        return f"; records kept: {file.read_bytes().count(NEWLINE)}" if file.exists() else ""

    def keep(self, part: Part, status: str, evidence: str, command: list[str], seconds: float) -> None:
        self.records.append(
            Record(
                case_id=part.name,
                status=status,
                evidence=evidence,
                seconds=round(seconds, 1),
                device=self.plan.device,
                model=self.plan.model,
                command=shlex.join(["python", *command[1:]]),
            )
        )
        if status == "timeout":
            self.cut_short.add(part.name)
        for log in self.logs.glob(f"{part.name}.*"):
            log.write_text(scrub.scrub(log.read_text(errors="replace")))
        told = f": {evidence}" if evidence else ""
        self.say(f"{part.name}: {status}{told}" + (f", {seconds:.0f} s" if seconds else ""))

    def end_all(self) -> None:
        """After Ctrl-C: all parts end as after theirs, and are written down."""
        for r in self.running:
            r.stop()
        deadline = time.monotonic() + GRACE_SECONDS
        for r in list(self.running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                r.process.wait(max(0.0, deadline - time.monotonic()))
            r.kill()
            self.running.remove(r)
            self.keep(r.part, "timeout", f"interrupted{self.kept(r)}", r.command, r.seconds)

    # --- what a person sees meanwhile ---

    @contextlib.contextmanager
    def live_line(self) -> Iterator[None]:
        """On a terminal, a line that moves: what runs, and how much time is left."""
        if not sys.stderr.isatty():
            yield
            return
        self.status = Console(stderr=True).status("starting")
        with self.status:
            yield

    def update(self, stage: Stage) -> None:
        if self.status:
            names = ", ".join(r.part.name for r in self.running)
            self.status.update(f"{stage.name}: {names}; {clock(max(0.0, self.left))} left")

    def say(self, text: str) -> None:
        cli.say(f"[{clock(time.monotonic() - self.begin)} of {clock(self.seconds)}] {text}")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
