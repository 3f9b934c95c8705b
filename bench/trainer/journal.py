"""What a training run writes down: train.jsonl, one event a line, TensorBoard's files where that is installed, and,
when it ends, train.csv, a row a step.

    {"event": "step", "step": 12, "loss": 9.1, "loss_z": null, "norm": 1.2, …}

Events: start, resume, step, baseline, parity, spot, val, hellaswag, sample, not-finite, checkpoint, end. A line is with
the system as soon as it is written, so that a kill loses nothing; it is forced to disk once a second, before every
checkpoint and at the end. After a resume the steps since the last checkpoint come again: a step's last line counts.
"""

import contextlib
import csv
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.cli import CannotGoOn
from bench.core.files import Lines, put
from bench.records.read import documents
from bench.records.scrub import clean

FILE, TABLE = "train.jsonl", "train.csv"
FORCE_S = 1.0
EVALUATED = {"val": ("loss", "val_loss"), "hellaswag": ("accuracy", "hellaswag")}  # event: its number, its column
CURVES = {  # event: {its numbers: their names in TensorBoard}
    "step": {"loss": "train/loss", "norm": "train/norm", "lr": "train/lr", "tokens_per_s": "speed/tokens_per_s"},
    "val": {"loss": "val/loss"},
    "hellaswag": {"accuracy": "val/hellaswag"},
}


class Journal:
    """The events of the run in a folder, held by this process alone until `close`. Raises CannotGoOn where another
    one writes there, or where nothing can be written."""

    def __init__(self, folder: Path):
        self._lines = Lines(folder / FILE)
        self._forced = time.monotonic()
        self._curves = curves(folder)
        self._lines.end_half_a_line()

    def write(self, event: str, **fields: Any) -> None:
        """Append an event. Raises DiskFull or CannotGoOn."""
        # Numbers alone give nothing away, and scrubbing text takes longer than a small step may.
        told = _numbers(fields) if _is_numbers(fields) else clean(fields)
        self._lines.write(json.dumps({"event": event, **told}).encode(), force=False)
        if time.monotonic() - self._forced > FORCE_S:
            self.force()
        for field, name in CURVES.get(event, {}).items():
            if self._curves and isinstance(value := fields.get(field), (int, float)):
                self._curves.add_scalar(name, value, fields["step"])
        if event == "sample" and self._curves:
            self._curves.add_text("sample", fields["text"], fields["step"])

    def force(self) -> None:
        """To disk, whatever happens to the machine."""
        self._lines.force()
        self._forced = time.monotonic()

    def close(self) -> None:
        with contextlib.suppress(CannotGoOn):
            self.force()
        self._lines.close()
        if self._curves:
            self._curves.close()
        with contextlib.suppress(OSError):  # all of it is in the other file
            write_table(self._lines.file.parent)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_numbers, value.values()))
    return value is None or isinstance(value, (int, float))


def _numbers(value: Any) -> Any:
    """As JSON has them: what is not finite is None."""
    if isinstance(value, Mapping):
        return {name: _numbers(inside) for name, inside in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves(folder: Path) -> Any:
    """TensorBoard's writer into the folder, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def events(folder: Path) -> list[Mapping[str, Any]]:
    """All whole lines of a run's train.jsonl, in their order; none where there is no such file."""
    file = folder / FILE
    lines = documents(file) if file.exists() else ()
    return [event for event in lines if event and isinstance(event.get("event"), str)]


def write_table(folder: Path) -> None:
    """train.csv of a run's train.jsonl: a row a step (its last line), with what was evaluated after it; what is not
    known is empty. Nothing where no step was taken. Raises OSError."""
    rows: dict[int, dict[str, Any]] = {}
    for event in events(folder):
        kind, step = event["event"], event.get("step")
        if not isinstance(step, int):
            continue
        if kind == "step":
            rows[step] = _flat({name: value for name, value in event.items() if name != "event"})
        elif kind in EVALUATED:
            number, column = EVALUATED[kind]
            rows.setdefault(step, {"step": step})[column] = event.get(number)
    if not rows:
        return
    ordered = [rows[step] for step in sorted(rows)]
    fullest = max(ordered, key=len)
    columns = list(dict.fromkeys([*fullest, *(name for row in ordered for name in row)]))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(ordered)
    put(folder / TABLE, text.getvalue().encode())


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is inside a field as fields of their own: mfu_palm."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found |= {f"{name}_{inner}": number for inner, number in value.items()}
        else:
            found[name] = value
    return found
