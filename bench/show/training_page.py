"""The page of training runs: curves of several over one another, their texts, the kernels in use, what differs.

All is read from a run's train.jsonl (bench/trainer/journal.py says what is in it) and env.json, on any machine, also
while it trains.
"""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cli import CannotGoOn
from bench.core.evidence import harmless
from bench.records.read import documents
from bench.records.record import is_number
from bench.show import Point
from bench.show.page import Chart
from bench.show.texts import DASH, duration, percent

TEMPLATE = "training.html.j2"
FILE, ENVIRONMENT, RECORDS = "train.jsonl", "env.json", "records.jsonl"
MOST_POINTS = 600  # of a run's curve: more cannot be told apart
SAMPLES = 3  # of a run that are shown at once, the newest first

Event = Mapping[str, Any]


@dataclass
class Trained:
    """One run, as its journal tells it: of steps that came again after a resume the last time counts."""

    name: str
    folder: Path
    steps: dict[int, Event] = field(default_factory=dict)
    validations: dict[int, Event] = field(default_factory=dict)
    questions: dict[int, Event] = field(default_factory=dict)
    samples: dict[int, Event] = field(default_factory=dict)
    begun: list[Event] = field(default_factory=list)  # start, and every resume
    not_finite: list[Event] = field(default_factory=list)
    end: Event | None = None
    damaged: int = 0  # lines
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> Event:
        """What it was last begun with."""
        return self.begun[-1] if self.begun else {}

    def take(self, event: Event) -> None:
        kind, step = event.get("event"), event.get("step")
        if type(step) is not int or not isinstance(kind, str):
            self.damaged += 1
            return
        by_step = {"step": self.steps, "val": self.validations, "hellaswag": self.questions, "sample": self.samples}
        if kind in ("start", "resume"):
            self.begun.append(event)
            self.end = None
            for found in by_step.values():  # those after the checkpoint were lost
                for lost in [n for n in found if n > step]:
                    del found[lost]
        elif kind in by_step:
            by_step[kind][step] = event
        elif kind == "not-finite":
            self.not_finite.append(event)
        elif kind == "end":
            self.end = event


def is_training(path: Path) -> bool:
    return (path / FILE).is_file()


def runs_in(paths: Iterable[Path]) -> list[Path]:
    """The training runs among these folders, and in those that hold no other runs."""
    found = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() and not is_training(path) else [path]
        if not any((p / RECORDS).exists() and not is_training(p) for p in (path, *inside)):
            found += [p for p in inside if is_training(p)]
    return found


def read(folder: Path, name: str) -> Trained:
    """A run, whatever became of its lines: those that cannot be read are counted. CannotGoOn without a journal."""
    run = Trained(name, folder)
    try:
        events = list(documents(folder / FILE))
    except OSError as error:
        raise CannotGoOn(f"{folder / FILE}: {error.strerror}") from None
    for event in events:
        if event is None:
            run.damaged += 1
        else:
            run.take(event)
    try:
        environment = harmless(json.loads((folder / ENVIRONMENT).read_text()))
        run.environment = environment if isinstance(environment, dict) else {}
    except (OSError, ValueError):
        pass
    return run


# --- the page ---


@dataclass
class Row:
    """One run in the table of all."""

    name: str
    story: str
    cells: list[str]


class Page:
    """What training.html.j2 shows. Raises CannotGoOn where no step is known of any run."""

    shown_samples = SAMPLES
    columns = ("steps", "tokens", "loss", "best validation", "a step", "tokens/s", "MFU", "memory", "begun", "ended")

    def __init__(self, folders: list[Path], title: str | None = None):
        names = _names(folders)
        self.runs = [read(folder, name) for folder, name in zip(folders, names, strict=True)]
        if not any(run.steps or run.validations for run in self.runs):
            raise CannotGoOn(f"nothing to report: no step is known of {', '.join(map(str, folders))}")
        models = " and ".join(dict.fromkeys(str(run.said.get("model", "?")) for run in self.runs))
        self.title = title or f"Training {models}"
        self.rows = [_row(run) for run in self.runs]
        self.data: dict[str, Chart] = {}
        validated = any(run.validations for run in self.runs)
        for name, spec, what, kinds in (
            ("loss", f"training_loss{'es' if validated else ''}", "loss", [("loss", "steps"), ("loss", "validations")]),
            ("norm", "training_norm", "gradient norm", [("norm", "steps")]),
            ("lr", "training_lr", "learning rate", [("lr", "steps")]),
            ("speed", "training_speed", "tokens a second", [("tokens_per_s", "steps")]),
            ("mfu", "training_mfu", "model FLOPs utilisation", [("mfu", "steps")]),
        ):
            rows = [p for run in self.runs for key, of in kinds for p in _points(run, key, of, what == "gradient norm")]
            if rows and len({row["run"] for row in rows}) < len(names):
                rows = [_nowhere(name, rows[0]) for name in names] + rows
            if rows:
                self.data[name] = Chart(spec, rows, f"{what} over steps of {', '.join(names)}")
        self.kernels = _by_run(self.runs, "kernels")
        self.options = _by_run(self.runs, "options", with_same=len(self.runs) == 1)
        self.same_options = {k: v[0] for k, v in _by_run(self.runs, "options").items() if len(set(v)) == 1}
        self.samples = [(run.name, _samples(run)) for run in self.runs if run.samples]
        self.troubles = [line for run in self.runs for line in _troubles(run)]
        self.machines = list(dict.fromkeys(filter(None, (_machine(run) for run in self.runs))))
        self.commands = [str(run.environment["command"]) for run in self.runs if "command" in run.environment]


def _names(folders: list[Path]) -> list[str]:
    """What each is called: its folder's name, with as much before it as tells them apart."""
    whole = [folder.resolve().parts for folder in folders]
    for parts in range(1, max(map(len, whole), default=1) + 1):
        names = ["/".join(p[-parts:]) for p in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def _number(value: object) -> float | None:
    """A finite number, else None."""
    return float(value) if is_number(value) else None


def _value(event: Event, key: str) -> float | None:
    found = event.get(key)
    return _number(found.get("palm") if isinstance(found, Mapping) else found)


def _points(run: Trained, key: str, of: str, above_zero: bool) -> list[Point]:
    """A curve's rows; of a long run neighbours are put together, with the least and the largest beside their mean."""
    known = [(step, _value(event, key)) for step, event in sorted(getattr(run, of).items())]
    found = [(step, value) for step, value in known if value is not None and (value > 0 or not above_zero)]
    kind = "val" if of == "validations" else "train"
    together = -(-len(found) // MOST_POINTS)
    rows = []
    for start in range(0, len(found), together or 1):
        piece = found[start : start + together]
        values = [value for _, value in piece]
        mean, last = statistics.fmean(values), piece[-1][0]
        text = _text(key, mean) if together == 1 else f"{_text(key, mean)} on average of {len(piece)} steps"
        row = dict(step=last, value=mean, low=min(values), high=max(values), run=run.name, kind=kind, text=text)
        rows.append(row)
    return rows


def _nowhere(name: str, row: Point) -> Point:
    """A row that shows nothing, so that a run has its colour in each chart, also where others are not."""
    return row | dict(run=name, value=None, low=None, high=None, text="")


def _text(key: str, value: float) -> str:
    if key == "mfu":
        return percent(value)
    return f"{value:,.0f}" if key == "tokens_per_s" else f"{value:.3g}" if key == "lr" else f"{value:.4f}"


def _row(run: Trained) -> Row:
    said, last = run.said, run.steps[max(run.steps)] if run.steps else {}
    of, parameters = said.get("steps"), _number(said.get("parameters"))
    # The first step of every start warms up: it is none of the median.
    first = {_number(event.get("step")) or 0 for event in run.begun}
    times = [ms for n, e in run.steps.items() if n - 1 not in first and (ms := _value(e, "ms")) is not None]
    validations = {n: loss for n, e in run.validations.items() if (loss := _value(e, "loss")) is not None}
    best = min(validations, key=lambda n: validations[n], default=None)
    mfu, speed = _value(last, "mfu"), _value(last, "tokens_per_s")
    memory = max((m for e in run.steps.values() if (m := _value(e, "memory_bytes")) is not None), default=None)
    tokens, loss = _value(last, "tokens"), _value(last, "loss")
    resumes = sum(e.get("event") == "resume" for e in run.begun)
    size = f"{parameters / 1e6:,.1f} M parameters" if parameters else ""
    ranks = said.get("ranks")
    many = f"{ranks} processes" if isinstance(ranks, int) and ranks > 1 else ""
    batch = said.get("tokens_per_step")
    tokens_text = f"{batch:,} tokens a step" if isinstance(batch, int) else ""
    cells = [
        f"{max(run.steps, default=0):,}" + (f" of {of:,}" if isinstance(of, int) else ""),
        DASH if tokens is None else f"{tokens:,.0f}",
        DASH if loss is None else f"{loss:.4f}",
        DASH if best is None else f"{validations[best]:.4f} at {best:,}",
        duration(statistics.median(times) / 1e3) if times else DASH,
        DASH if speed is None else f"{speed:,.0f}",
        percent(mfu),
        DASH if memory is None else f"{memory / 1e9:.2f} GB",
        f"once, {resumes} resume{'s' if resumes > 1 else ''}" if resumes else "once",
        str(run.end.get("why", "")) if run.end else "not yet, or killed",
    ]
    story = ", ".join(filter(None, (str(said.get("model", "")), size, tokens_text, many)))
    return Row(run.name, story, cells)


def _by_run(runs: list[Trained], key: str, with_same: bool = True) -> dict[str, list[str]]:
    """{entry: what each run has there} of a table that start and resume tell of."""
    tables = [run.said.get(key) for run in runs]
    known = [t if isinstance(t, Mapping) else {} for t in tables]
    entries = dict.fromkeys(str(entry) for t in known for entry in t)
    found = {e: [_said(t[e]) if e in t else DASH for t in known] for e in entries}
    return found if with_same else {e: v for e, v in found.items() if len(set(v)) > 1}


def _said(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {"None": "not given", "True": "yes", "False": "no"}.get(str(value), str(value))


def _samples(run: Trained) -> list[tuple[int, str]]:
    return [(step, str(run.samples[step].get("text", ""))) for step in sorted(run.samples, reverse=True)]


def _troubles(run: Trained) -> list[str]:
    """What a reader of the curves should know."""
    found = []
    if skipped := [n for n, e in sorted(run.steps.items()) if e.get("skipped")]:
        why = ", ".join(dict.fromkeys(str(run.steps[n]["skipped"]) for n in skipped))
        found.append(f"{run.name}: {len(skipped)} updates were left out, the first at step {skipped[0]:,} ({why})")
    for event in run.not_finite[:1]:
        more = f", and {len(run.not_finite) - 1} more" if len(run.not_finite) > 1 else ""
        found.append(f"{run.name}: step {event['step']:,} was not finite, first in {event.get('where')}{more}")
    if run.damaged:
        found.append(f"{run.name}: {run.damaged} lines of {FILE} cannot be read")
    return found


def _machine(run: Trained) -> str:
    gpus, cpu = run.environment.get("gpus") or [], run.environment.get("cpu") or {}
    on_gpu = str((run.said.get("options") or {}).get("device", "cpu")) != "cpu"
    if on_gpu and gpus and isinstance(gpus[0], Mapping):
        return str(gpus[0].get("name", "unknown GPU"))
    return f"{cpu['model']}, {cpu.get('usable', '?')} cores" if isinstance(cpu, Mapping) and "model" in cpu else ""
