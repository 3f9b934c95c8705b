"""python -m bench.suite --out DIR: everything this project measures on a machine, within a given time.

In this order: what the machine is (bench.doctor); every variant proved, in bf16 and fp32, and on a GPU looked at by
compute-sanitizer; all layers timed at the model's shapes; the training step against PyTorch (bench.e2e). Each part is
one of the other commands in a process of its own, with a folder of its own under DIR. A part that crashes or takes
longer than its share of the time is written down and the next goes on; what a part leaves over is for those after it.

    DIR/records.jsonl       what became of each part; DIR/logs/ holds what it printed
    DIR/doctor.json         the machine
    DIR/check-LAYER/ …      results of the parts: runs like any other (bench.report, bench.compare)
    DIR/summary.md, .json   the fastest variant of each layer, what failed and why, the training step

python -m bench.suite --out runs/here                       nine minutes, on the GPU where there is one
python -m bench.suite --out runs/here --resume              go on with what is missing
python -m bench.suite --out runs/quick --layers gelu,residual --model gpt2-tiny --minutes 2
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import CannotGoOn
from bench.records.queries import races
from bench.texts import DASH, duration, percent

if TYPE_CHECKING:
    from argparse import Namespace


HOME = Path(__file__).parent.parent
STAGES = {"check": ("check", "sanitize"), "time": ("time",), "e2e": ("e2e",)}  # by --stage; the doctor always comes
WEIGHTS = {"doctor": 2.0, "check": 4.0, "sanitize": 3.0, "time": 6.0, "e2e": 6.0}  # shares of the time
GRACE_SECONDS = 8.0  # from SIGINT to SIGKILL: a command writes its CSV and ends its workers
END_SECONDS = 5.0  # of the whole time, for the summary
CORES_A_PROOF = 4  # so many let another proof run beside: nothing is timed then
DONE = ("ok", "wrong", "skipped")  # what --resume does not run again
SECOND_TRY_SECONDS = 30.0  # so much left over at the end is for the parts that were cut short
SHORT_SECONDS = 90.0  # a training step with less than this is compared with eager PyTorch alone

SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
NEWLINE = b"\n"
PACK_FILES, PACK_BYTES = 8, 16 << 20


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.suite", description=__doc__)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    p.add_argument("--resume", action="store_true", help="go on in DIR: run what has not finished there")
    p.add_argument("--pack", action="store_true", help=f"also DIR/pack: at most {PACK_FILES} .tar.gz files of 16 MiB")
    what = p.add_argument_group("what to run")
    what.add_argument("--device", help="default cuda where torch sees a GPU, else cpu")
    what.add_argument("--minutes", type=cli.above_zero, default=9.0, metavar="M", help="for everything, default 9")
    what.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="default all")
    what.add_argument("--layers", metavar="A,B", help="these layers alone")
    what.add_argument("--model", default="gpt2-124m", help="whose shapes and training step, default gpt2-124m")
    what.add_argument(
        "--kernels", action="append", default=[], metavar="DIR", help="more variants, for all but the training step"
    )
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    from reference import contract
    from reference.models import MODELS

    cli.choose(args.model, MODELS, "model")
    names = contract.layer_names()
    layers = [cli.choose(n, names, "layer") for n in args.layers.split(",")] if args.layers else names
    args.device = choose_device(args.device)
    return Suite(args, argv, stages(args, layers)).run()


def choose_device(wanted: str | None) -> str:
    """The device asked for; CannotGoOn where it names a GPU and there is none."""
    import torch

    there = torch.cuda.is_available()
    if wanted and wanted.startswith("cuda") and not there:
        raise CannotGoOn(f"--device {wanted}: no usable NVIDIA GPU (python -m bench.doctor says why)", cli.CANNOT_RUN)
    return wanted or ("cuda" if there else "cpu")


# --- what runs ---


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


def stages(args: "Namespace", layers: list[str]) -> list[Stage]:
    """The parts in their order, for this device."""
    from bench import machine
    from bench.devices import is_gpu

    gpu = is_gpu(args.device)
    wanted = [s for name, of_it in STAGES.items() if args.stage in (name, "all") for s in of_it]
    at_once = max(1, machine.usable_cores() // CORES_A_PROOF)
    found = [
        Stage("doctor", [Part("doctor", lambda _: ["-m", "bench.doctor", "--json"])]),
        Stage("check", [check(args, layer) for layer in layers], at_once),
        Stage("sanitize", [sanitize(args, layers, tool) for tool in SANITIZER_TOOLS], at_once),
        Stage("time", [timings(args, layer, gpu) for layer in layers]),
        Stage("e2e", training_steps(args, gpu)),
    ]
    return [s for s in found if s.name == "doctor" or (s.name in wanted and (gpu or s.name != "sanitize"))]


def check(args: "Namespace", layer: str) -> Part:
    command = ["-m", "bench.layer", layer, "--check-only", "-a", "dtype=bf16,fp32", *common(args)]
    return Part(f"check-{layer}", lambda _: command, proof_cases(layer), resumes=True)


def sanitize(args: "Namespace", layers: list[str], tool: str) -> Part:
    """Its own limit ends it a little before ours would, with a row for every variant."""
    from reference import contract

    which = "all" if layers == contract.layer_names() else ",".join(layers)
    command = ["-m", "bench.sanitize", which, "--tools", tool, "--device", args.device, *more_kernels(args)]
    return Part(f"sanitize-{tool}", lambda seconds: [*command, "--time-limit", f"{max(1.0, seconds - 8):.0f}"])


def timings(args: "Namespace", layer: str, gpu: bool) -> Part:
    rows = timed_rows(layer, args.model)
    command = [
        "-m",
        "bench.layer",
        layer,
        "--shape",
        args.model,
        "-a",
        f"dtype={'bf16' if gpu else 'fp32'}",
        *common(args),
    ]

    def fitted(seconds: float) -> list[str]:
        # Half of the time is for starting, proving and setting up.
        return [*command, "--seconds", f"{min(12.0, max(0.2, 0.5 * seconds / rows)):.2g}"]

    return Part(f"time-{layer}", fitted, rows, resumes=True)


def training_steps(args: "Namespace", gpu: bool) -> list[Part]:
    """On a GPU compiling PyTorch takes minutes, and bench.e2e writes only when it ends: a quick run goes first."""
    command = ["-m", "bench.e2e", args.model, "--device", args.device, "--json"]
    quick = [*command, "--baseline", "eager", "--steps", "4"]
    if gpu:  # eager's fp32 logits would have the batch halved for all
        command = [*command, "--baseline", "compile,compile-plain"]
    full = Part("e2e", lambda seconds: quick if seconds < SHORT_SECONDS else command, weight=2.0)
    return [Part("e2e-quick", lambda _: quick), full] if gpu else [full]


def common(args: "Namespace") -> list[str]:
    return ["--device", args.device, "--no-simulate", *more_kernels(args)]


def more_kernels(args: "Namespace") -> list[str]:
    return [part for folder in args.kernels for part in ("--kernels", str(Path(folder).resolve()))]


def proof_cases(layer: str) -> float:
    from reference import contract

    module = contract.load(layer)
    return float(len(contract.phases_of(module)) * (2 * len(module.RAGGED) + len(module.CASES)))


def timed_rows(layer: str, model: str) -> float:
    from reference import contract
    from reference.models import MODELS

    module = contract.load(layer)
    shapes = module.shapes(MODELS[model], contract.DEFAULT_B, min(contract.DEFAULT_T, MODELS[model].max_t))
    return float(len(contract.phases_of(module)) * len(shapes))


# --- running it ---


@dataclass
class Running:
    """A part under way."""

    part: Part
    command: list[str]
    folder: Path
    process: "subprocess.Popen[Any]"
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Suite:
    """One command: its stages, its clock, and what became of each part."""

    def __init__(self, args: "Namespace", argv: list[str], stages: list[Stage]):
        from bench.records.run import SUITE, Run

        self.args, self.stages, self.out = args, stages, args.out
        self.begin = time.monotonic()
        self.seconds = args.minutes * 60
        if args.resume:
            self.records: Run = Run.resume(self.out, SUITE)
            self.check_that_it_is_the_same()
        else:
            self.records = Run.create(SUITE, self.out, argv)
        self.finished = [name for name, r in self.records.finished().items() if r["status"] in DONE]
        self.cut_short: set[str] = set()
        self.logs = self.out / "logs"
        self.logs.mkdir(exist_ok=True)
        self.running: list[Running] = []
        self.status: Any = None

    def check_that_it_is_the_same(self) -> None:
        for r in self.records.records():
            for what in ("device", "model"):
                if (then := r.get(what)) != (now := getattr(self.args, what)):
                    self.records.close()
                    raise CannotGoOn(f"{self.out} was measured with --{what} {then}, not {now}: take another --out")

    @property
    def left(self) -> float:
        return self.seconds - END_SECONDS - (time.monotonic() - self.begin)

    def run(self) -> int:
        from bench.report import write_beside

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
        if self.args.pack:
            pack(self.out)
        if self.args.json:
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
        from bench.records.run import scrub

        self.records.append(
            {
                "case_id": part.name,
                "status": status,
                "evidence": evidence,
                "seconds": round(seconds, 1),
                "device": self.args.device,
                "model": self.args.model,
                "command": shlex.join(["python", *command[1:]]),
            }
        )
        if status == "timeout":
            self.cut_short.add(part.name)
        for log in self.logs.glob(f"{part.name}.*"):
            log.write_text(scrub(log.read_text(errors="replace")))
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
        from rich.console import Console

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


# --- what came out ---

BAD = ("wrong", "impossible", "crash", "error", "timeout")


@dataclass
class Summary:
    """What a folder's parts found; made from their records alone, so that it can be made again."""

    parts: list[dict[str, Any]]
    fastest: list[dict[str, Any]]  # of each layer, pass and shape
    failed: list[dict[str, Any]]  # each variant once for each thing it fails of
    training: list[dict[str, Any]]  # the contestants of the training step

    @classmethod
    def of(cls, out: Path) -> "Summary":
        from bench.records.run import latest, read_records

        parts = list(latest(read_records(out)[0]).values())
        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted(out.glob("*-*/records.jsonl")) + sorted(out.glob("e2e/records.jsonl")):
            rows = latest(read_records(file)[0]).values()
            found.setdefault(file.parent.name.partition("-")[0], []).extend(rows)
        measured = [r for rows in found.values() for r in rows]
        return cls(parts, fastest(found.get("time", [])), failures(measured), training(found.get("e2e", [])))

    def exit_code(self) -> int:
        statuses = {p["status"] for p in self.parts} | {f["status"] for f in self.failed}
        if statuses & {"wrong", "impossible"}:
            return cli.WRONG
        return cli.FAILED if statuses & {"crash", "error"} else cli.OK

    def document(self) -> dict[str, Any]:
        return {"parts": self.parts, "fastest": self.fastest, "failed": self.failed, "training": self.training}

    def write(self, out: Path) -> None:
        from bench.records.run import write_atomically

        write_atomically(out / "summary.json", json.dumps(self.document(), indent=1) + "\n")
        text = "\n\n".join(
            f"## {title}\n\n{markdown(columns, rows) if rows else 'none'}" for title, columns, rows in self.tables()
        )
        write_atomically(out / "summary.md", f"# What was measured\n\n{text}\n")

    def print(self) -> None:
        from rich.text import Text

        from bench.table import console, new_table

        screen = console()
        for title, columns, rows in self.tables():
            if not rows:
                screen.print(f"{title}: none")
                continue
            table = new_table(title)
            for i, column in enumerate(columns):
                table.add_column(column, overflow="fold", justify="right" if i in RIGHT.get(title, ()) else "left")
            for row in rows:
                table.add_row(*map(Text, row))
            screen.print(table)

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        unfinished = [p for p in self.parts if p["status"] not in ("ok", "wrong")]
        return [
            (
                FASTEST,
                ("layer", "pass", "shape", "variant", "time", "vs torch"),
                [fastest_cells(r) for r in self.fastest],
            ),
            (
                FAILURES,
                ("layer", "variant", "pass", "dtype", "status", "evidence"),
                [failed_cells(r) for r in self.failed],
            ),
            (
                TRAINING,
                ("step by", "time", "tok/s", "vs PyTorch", "MFU, PaLM", "status"),
                [step_cells(r) for r in self.training],
            ),
            (
                UNFINISHED,
                ("part", "status", "evidence"),
                [(p["case_id"], p["status"], p["evidence"]) for p in unfinished],
            ),
        ]


FASTEST, FAILURES, TRAINING = "fastest variant, caches cold", "what failed", "training step"
UNFINISHED = "parts that did not finish"
RIGHT = {FASTEST: (4, 5), TRAINING: (1, 2, 3, 4)}


def fastest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The record with the smallest median of each layer, pass, shape and dtype, and how it compares with torch's."""
    kept = ("layer", "phase", "shape_name", "dtype", "variant", "timer", "median_s", "low_s", "high_s", "reproduce")
    found = []
    for race in races(rows):
        torch_s = race.torch["median_s"] if race.torch else None
        found.append({k: race.first.get(k) for k in kept} | {"fastest_torch_s": torch_s, "variants": len(race.rows)})
    return found


def failures(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each way in which a variant fails, once: its timings repeat what its proof found, for every shape."""
    kept = ("layer", "variant", "phase", "dtype", "status", "evidence", "reproduce")
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for r in rows:
        cut_short = r.get("tool") and r["status"] == "timeout"  # compute-sanitizer's time was over, for all of them
        if r["status"] in BAD and not cut_short:
            found.setdefault(tuple(str(r.get(k)) for k in (*kept[:5], "tool")), {k: r.get(k) for k in kept})
    return list(found.values())


def training(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = (
        *("layer", "variant", "dtype", "shape", "status", "evidence", "median_s", "tokens_per_s", "speedup"),
        *("baseline", "mfu_palm_of_ceiling", "mfu_palm_of_datasheet", "peak_bytes"),
    )
    # Of a quick run and the full one after it, the later.
    steps = {(r["layer"], r["variant"], r["dtype"], str(r.get("shape"))): r for r in rows}
    return [{k: r.get(k) for k in kept} for r in steps.values()]


def fastest_cells(r: dict[str, Any]) -> tuple[str, ...]:
    against = f"{r['fastest_torch_s'] / r['median_s']:.2f}x" if r["fastest_torch_s"] else DASH
    return r["layer"], r["phase"], f"{r['shape_name']} {r['dtype']}", r["variant"], duration(r["median_s"]), against


def failed_cells(r: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(r[k] or "") for k in ("layer", "variant", "phase", "dtype", "status", "evidence"))


def step_cells(r: dict[str, Any]) -> tuple[str, ...]:
    shape = r["shape"] or {}
    name = f"{r['variant']} ({r['layer']} {r['dtype']}, B={shape.get('B')} T={shape.get('T')})"
    if not r["median_s"]:
        return name, DASH, DASH, DASH, DASH, r["status"]
    speedup = f"{r['speedup']:.2f}x {r['baseline']}" if r["speedup"] else DASH
    mfu = percent(r["mfu_palm_of_ceiling"])
    return name, duration(r["median_s"]), f"{r['tokens_per_s']:.0f}", speedup, mfu, r["status"]


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(c.replace('|', '/').replace(chr(10), ' ') for c in cells)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])


# --- taking it home ---


def pack(out: Path) -> list[Path]:
    """DIR/pack/*.tar.gz: the whole folder in a few files of limited size, by stage, the most important first.

    What does not fit is named on stderr. `tar xzf` of each in one place puts the folder together again.
    """
    import tarfile
    import zlib

    folder = out / "pack"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.tar.gz"):
        old.unlink()
    bins: list[tuple[str, list[Path]]] = []
    left_out: list[Path] = []
    room = 0
    for stage, files in by_stage(out).items():
        fresh = True
        for file in files:
            # Compressed alone a file is hardly smaller than in the archive; headers come on top.
            size = len(zlib.compress(file.read_bytes(), 6)) + 1024
            if size > PACK_BYTES or ((fresh or size > room) and len(bins) == PACK_FILES):
                left_out.append(file)
                continue
            if fresh or size > room:
                bins.append((stage, []))
                fresh, room = False, PACK_BYTES - 4096
            bins[-1][1].append(file)
            room -= size
    packed = []
    for number, (stage, files) in enumerate(bins, start=1):
        packed.append(folder / f"{number}-{stage}.tar.gz")
        with tarfile.open(packed[-1], "w:gz", compresslevel=6) as archive:
            for file in files:
                archive.add(file, file.relative_to(out))
    for file in left_out:
        cli.say(f"not packed, too large: {file.relative_to(out)}")
    cli.say(f"packed: {folder}, {len(packed)} files, {sum(p.stat().st_size for p in packed) / 1e6:.1f} MB")
    return packed


def by_stage(out: Path) -> dict[str, list[Path]]:
    """All files of a suite's folder: its own, then those of each stage, the small ones first."""
    found: dict[str, list[Path]] = {name: [] for name in ("suite", "e2e", "time", "check", "sanitize")}
    for file in sorted(out.rglob("*"), key=lambda f: f.stat().st_size):
        if file.is_file() and file.parent != out / "pack":
            top = file.relative_to(out).parts[0].partition("-")[0]
            found[top if top in found else "suite"].append(file)
    return {name: files for name, files in found.items() if files}


if __name__ == "__main__":
    cli.run(main)
