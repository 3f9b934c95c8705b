"""A sweep: a command over a grid of its options, one job a case, here or on Slurm's machines.

What a case came to is said by files of its own, which nobody else writes: its run folder, its log, and how it ended.
Whoever reads the folder later, or goes on with it, needs nothing else.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import CannotGoOn
from bench.core.evidence import plain
from bench.core.files import make_folder, write_atomically
from bench.records import DASH
from bench.records.read import RECORDS, latest, read_records
from bench.records.record import is_number
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console
from bench.show.texts import duration
from bench.trainer.journal import FILE, events

LONGEST = 150  # characters of a case's name
POLL_S = 0.05
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # by which a scheduler says that it will end a job
PATIENCE_S = 60.0  # for cases that were asked to end, to write a checkpoint
LOOK_S = 10.0  # between two looks at Slurm's queue


@dataclass(frozen=True)
class Case:
    """One job. name: of its folder. words: the command line, without where results go."""

    kind: str
    name: str
    words: tuple[str, ...]

    def command(self, folder: Path, resume: bool) -> list[str]:
        """The command line, for a run in `folder`; with `resume` it goes on if it has begun there."""
        line = [sys.executable, "-m", f"bench.{self.kind}", *self.words]
        if self.kind == "layer" and resume and (folder / RECORDS).is_file():
            return [*line, "--resume", str(folder)]
        goes_on = ["--resume"] if self.kind == "train" and resume else []
        return [*line, "--out", str(folder), *goes_on]


@dataclass(frozen=True)
class Wishes:
    """How cases are run. minutes, ranks, gpus, cpus and partition are Slurm's; jobs: at a time."""

    minutes: int = 60
    ranks: int = 1
    gpus: int | None = None
    cpus: int | None = None
    partition: str | None = None
    jobs: int | None = None
    wait: bool = True


def cases(kind: str, targets: Sequence[str], axes: Iterable[str], rest: Sequence[str]) -> list[Case]:
    """All combinations, targets first. CannotGoOn for an axis that is none, or is given twice."""
    values: dict[str, list[str]] = {}
    for text in axes:
        name, equals, given = text.partition("=")
        name = name.lstrip("-")
        found = [v.strip() for v in given.split(";" if ";" in given else ",")]
        if not equals or not name or not all(found):
            raise CannotGoOn(f"-a {text!r}: NAME=VALUE,VALUE is wanted", cli.USAGE)
        if name in values:
            raise CannotGoOn(f"-a {name}: given twice; write all its values at once", cli.USAGE)
        values[name] = list(dict.fromkeys(found))
    made = []
    for target, *chosen in itertools.product(dict.fromkeys(targets), *values.values()):
        pairs = list(zip(values, chosen, strict=True))
        words = [target]
        for name, value in pairs:
            words += ["-a", f"{name}={value}"] if kind == "layer" else [f"--{name}={value}"]
        parts = [target] * (len(set(targets)) > 1 or not pairs) + [f"{n}={v}" for n, v in pairs]
        made.append(Case(kind, re.sub(r"[^\w.=,+@-]", "_", ",".join(parts)), (*words, *rest)))
    longest = max(len(case.name) for case in made)
    if len({case.name for case in made}) < len(made) or longest > LONGEST:  # what a file's name cannot hold, or tell
        made = [Case(case.kind, f"{number:03}-{case.name[:LONGEST]}", case.words) for number, case in enumerate(made)]
    return made


def command(out: Path, wanted: list[Case], executor: str, wishes: Wishes, resume: bool, as_json: bool) -> int:
    """`python -m bench.sweep`: run what is to be run, say what all came to. The exit code is the first bad one."""
    todo = begin(out, wanted, resume)
    cli.say(f"{len(todo)} of {len(wanted)} cases to run, {executor}", as_json)
    jobs = [(case, case.command(out / case.name, resume)) for case in todo]
    if executor == "slurm":
        on_slurm(out, jobs, wishes)
    else:
        here(out, jobs, wishes.jobs or 1)
    found = [summary(out, case) for case in wanted]
    if as_json:
        cli.print_json({"out": str(out), "cases": found})
    else:
        table(found, "lost" if executor == "slurm" and wishes.wait else "not yet").print(console())
    if executor == "slurm" and not wishes.wait:
        return cli.OK
    codes = [cli.FAILED if case["code"] is None else case["code"] for case in found]
    return next(filter(None, codes), cli.OK)


def begin(out: Path, wanted: list[Case], resume: bool) -> list[Case]:
    """The sweep's folder and what it is to hold; which cases have not ended well in it. CannotGoOn where it holds
    something else."""
    make_folder(out)
    file = out / "sweep.json"
    said = [{"name": case.name, "command": ["bench." + case.kind, *case.words]} for case in wanted]
    if file.exists():
        try:
            recorded = json.loads(file.read_text())["cases"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CannotGoOn(f"{file} is damaged: {error}; choose another --out") from error
        if recorded != said:
            raise CannotGoOn(f"{out} holds another sweep: choose another --out, or say what it was begun with")
        if not resume:
            raise CannotGoOn(f"{out} already holds this sweep: choose another --out, or go on with it: --resume")
    write_atomically(file, json.dumps({"cases": said}, indent=1) + "\n")
    (out / "logs").mkdir(exist_ok=True)
    return [case for case in wanted if outcome(out, case) != cli.OK]


def outcome(out: Path, case: Case) -> int | None:
    """The exit code that a case ended with; None where it has not ended, or was cut off."""
    ended = _read_ended(out, case.name)
    return ended["code"] if ended else None


def _read_ended(out: Path, name: str) -> dict[str, Any] | None:
    try:
        said = json.loads(_ended(out, name).read_text())
        return {"code": int(said["code"]), "seconds": float(said["seconds"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _ended(out: Path, name: str) -> Path:
    return out / "logs" / f"{name}.json"


def _log(out: Path, name: str, rank: int = 0) -> Path:
    return out / "logs" / (f"{name}.log" if rank == 0 else f"{name}.{rank}.log")


# ---- here ----------------------------------------------------------------------------------------------------------


def here(out: Path, jobs: Iterable[tuple[Case, list[str]]], at_once: int) -> None:
    """Run cases as processes of this machine, `at_once` of them at a time.

    Ctrl-C and SIGTERM are for the sweep: it asks every case under way to end, which keeps what each has, waits for
    them, and begins no other.
    """
    waiting, running = list(jobs), dict[str, tuple[subprocess.Popen[bytes], float]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                case, line = waiting.pop(0)
                cli.say(f"begun: {case.name}")
                running[case.name] = _start(out, case.name, line), time.monotonic()
            _gather(out, running)
            time.sleep(POLL_S)
    except BaseException:
        for process, _ in running.values():
            process.terminate()
        until = time.monotonic() + PATIENCE_S
        while running and time.monotonic() < until:
            _gather(out, running)
            time.sleep(POLL_S)
        raise
    finally:
        for process, _ in running.values():
            process.kill()


def _start(out: Path, name: str, line: list[str]) -> "subprocess.Popen[bytes]":
    """In a session of its own: Ctrl-C at a terminal is for the sweep, and is passed on once."""
    _ended(out, name).unlink(missing_ok=True)
    with _log(out, name).open("ab") as log:
        return subprocess.Popen(line, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def _gather(out: Path, running: "dict[str, tuple[subprocess.Popen[bytes], float]]") -> None:
    for name, (process, began) in list(running.items()):
        if process.poll() is not None:
            del running[name]
            _write_ended(out, name, process.returncode, time.monotonic() - began)


def _write_ended(out: Path, name: str, code: int, seconds: float) -> None:
    code = cli.FAILED if code < 0 else code  # by a signal
    write_atomically(_ended(out, name), json.dumps({"code": code, "seconds": round(seconds, 3)}) + "\n")
    _say_ended(out, name, code, seconds)


def _say_ended(out: Path, name: str, code: int, seconds: float) -> None:
    """With what the case itself said of its end, where that was a bad one."""
    log = _log(out, name, 0)
    why = ""
    if code not in (cli.OK, cli.INTERRUPTED):
        with contextlib.suppress(OSError):
            lines = log.read_text(errors="replace").splitlines()
            why = next(
                (f": {line.removeprefix('error: ')}" for line in reversed(lines) if line.startswith("error: ")), ""
            )
        why = why or f"; see {log}"
    cli.say(f"ended: {name}, exit code {code}, {duration(seconds)}{plain(why)}")


# ---- on Slurm ------------------------------------------------------------------------------------------------------


def on_slurm(out: Path, jobs: list[tuple[Case, list[str]]], wishes: Wishes) -> None:
    """Hand cases to Slurm as one array of jobs, and wait for them unless that is not wished. CannotGoOn where submitit
    or Slurm is missing, or refuses."""
    if importlib.util.find_spec("submitit") is None:
        raise CannotGoOn("--executor slurm needs submitit: pip install 'layerbench[sweep]', or take --executor local")
    import submitit

    folder = out.resolve()
    lines = [(str(folder), case, line) for case, line in jobs]
    if not lines:
        return
    for case, _ in jobs:
        _ended(out, case.name).unlink(missing_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=str(folder / "slurm"), cluster="slurm")
        executor.update_parameters(
            name="bench-sweep",
            timeout_min=wishes.minutes,
            tasks_per_node=wishes.ranks,
            gpus_per_node=wishes.gpus,
            cpus_per_task=wishes.cpus,
            slurm_partition=wishes.partition,
            slurm_array_parallelism=wishes.jobs,
        )
        submitted = executor.map_array(job, *zip(*lines, strict=True))
    except (RuntimeError, ValueError, NameError, OSError, subprocess.CalledProcessError) as error:
        raise CannotGoOn(f"Slurm does not take the sweep: {' '.join(str(error).split())[:300]}") from error
    cli.say(
        "submitted: " + ", ".join(f"{case.name} {each.job_id}" for (case, _), each in zip(jobs, submitted, strict=True))
    )
    try:
        if wishes.wait:
            _await(out, {case.name: str(each.job_id) for (case, _), each in zip(jobs, submitted, strict=True)})
    except KeyboardInterrupt:
        for each in submitted:
            each.cancel(check=False)
        raise


def _await(out: Path, waiting: dict[str, str]) -> None:
    """Until every case has ended, which it says itself. waiting: jobs by the case's name.

    A job that Slurm no longer has at two looks, and that has not said how it ended, never will: it was cancelled while
    it waited, or killed. submitit's own wait asks sacct, and never returns then where Slurm keeps no accounts.
    """
    missing: set[str] = set()
    look = time.monotonic() + LOOK_S
    while waiting:
        time.sleep(POLL_S)
        for name in list(waiting):
            if ended := _read_ended(out, name):
                del waiting[name]
                _say_ended(out, name, ended["code"], ended["seconds"])
        if time.monotonic() < look:
            continue
        queue = _queue()
        gone = {name for name, number in waiting.items() if number not in queue} if queue is not None else set()
        for name in sorted(gone & missing):
            cli.say(
                f"lost: {name}: job {waiting.pop(name)} is no longer in Slurm's queue and did not say how it ended "
                f"(cancelled before it began, or killed); see {out / 'slurm'}, and --resume runs it again"
            )
        missing, look = gone, time.monotonic() + LOOK_S


def _queue() -> set[str] | None:
    """The numbers of our jobs that Slurm has not ended yet, N or ARRAY_N; None where it does not answer."""
    line = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        return set(subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    except (OSError, subprocess.SubprocessError):
        return None


def job(out: str, case: Case, line: list[str]) -> int:
    """What a process of one of Slurm's jobs does: the case, or its part of it. The exit code. A job that Slurm starts
    again, having put it back into its queue, goes on.

    Slurm sends every signal to all processes of a job. SIGTERM is the case's own matter: once is enough. The warning
    that time is nearly up (submitit asks for it 90 s ahead) becomes SIGTERM, so that the case keeps what it has.
    """
    rank, name = int(os.environ.get("SLURM_PROCID", "0")), case.name
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        line = case.command(Path(out) / name, resume=True)
    began = time.monotonic()
    started: list[subprocess.Popen[bytes]] = []
    warned: list[int] = []

    def warn(number: int, _: Any) -> None:
        warned.append(number)
        for process in started:
            process.terminate()

    for number in WARNINGS:
        signal.signal(number, warn)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with _log(Path(out), name, rank).open("ab") as log:
        started.append(subprocess.Popen(line, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_deaf))
    if warned:
        started[0].terminate()
    code = started[0].wait()
    if rank == 0:
        _write_ended(Path(out), name, code, time.monotonic() - began)
    return code


def _deaf() -> None:
    """To warnings, of which a program that knows none dies; and not to SIGTERM."""
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# ---- what it came to -----------------------------------------------------------------------------------------------


def summary(out: Path, case: Case) -> dict[str, Any]:
    """A case's name and exit code, None where it has not ended; the last of its losses, or how many records it has."""
    folder = out / case.name
    said: dict[str, Any] = {"name": case.name, **(_read_ended(out, case.name) or {"code": None, "seconds": None})}
    if (folder / FILE).is_file():
        for event in events(folder):
            if event["event"] == "step":
                said |= {key: event.get(key) for key in ("step", "loss", "tokens_per_s")}
            if event["event"] == "val":
                said["val_loss"] = event.get("loss")
    elif (folder / RECORDS).is_file():
        records, _ = read_records(folder)
        statuses = [record["status"] for record in latest(records).values()]
        said["records"] = {status: statuses.count(status) for status in sorted(set(statuses))}
    return said


def table(found: list[dict[str, Any]], without_end: str = "not yet") -> Sheet:
    """What the cases came to. without_end: said of those that did not tell."""
    numbers = [Col(name, right=True) for name in ("ended", "after", "step", "loss", "val loss", "tok/s")]
    made = Sheet("what the cases came to", [Col("case"), *numbers, Col("records", rank=1, below=True)])
    for case in found:
        code, seconds = case["code"], case["seconds"]
        ended = without_end if code is None else "ok" if code == cli.OK else f"exit code {code}"
        cells = [case["name"], ended, DASH if seconds is None else duration(seconds)]
        cells += [_told(case.get(key), form) for key, form in (("step", "d"), ("loss", ".4f"), ("val_loss", ".4f"))]
        cells += [_told(case.get("tokens_per_s"), ",.0f")]
        cells.append(", ".join(f"{count} {status}" for status, count in case.get("records", {}).items()))
        made.add(*cells, label=case["name"])
    return made


def _told(value: object, form: str) -> str:
    """A number of a file, which may hold anything."""
    return format(value, form) if is_number(value) and (form != "d" or isinstance(value, int)) else DASH
