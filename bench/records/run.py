"""Runs on disk: a folder each, written so that a crash, Ctrl-C or a full disk costs at most the case under way.

    env.json       what was measured on: machine, versions, command (an allow-list, see `environment`)
    records.jsonl  one record a line (see bench/records/record.py), appended and forced to disk as each case finishes
    <kind>.csv     the records, flat, under the same names, written by `Run.write_csv`

What is written may be committed or sent to somebody: absolute paths, the names of host and user, and values that
look secret are replaced in everything that goes through this module (see `scrub`). A full disk ends the run with
exit code 1 (bench.cli.FAILED); everything written before stays readable.
"""

import contextlib
import csv
import io
import json
import secrets
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from bench.cli import CannotGoOn
from bench.core.files import DiskFull, Lines, cannot_write, write_atomically
from bench.machine import facts
from bench.records.conditions import differences
from bench.records.environment import Environment, environment
from bench.records.queries import flat
from bench.records.read import ENVIRONMENT, RECORDS, Loaded, latest, read_environment, read_records
from bench.records.record import Record
from bench.records.schema import REQUIRED, SCHEMA, STATUSES
from bench.records.scrub import clean


def new_folder(kind: str) -> Path:
    """runs/<utc>-<kind>-<random>, where no --out is given: of no two runs the same."""
    return Path("runs") / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(3)}"


def spanning(then: facts.Git | None, now: facts.Git | None) -> facts.Git | None:
    """Of a run that goes on, the commit that it was begun at: its records are of that one. Where it goes on at another,
    or with changes, it is "dirty" as a run with changes is."""
    if not then or not now or not then.get("commit"):
        return now
    changed = then.get("dirty") or now.get("dirty") or then.get("commit") != now.get("commit")
    return {"commit": then.get("commit"), "dirty": bool(changed)}


@dataclass
class Run:
    """One run's folder, held by this process alone until `close` or the end of the process."""

    folder: Path
    kind: str
    _lines: Lines = field(repr=False)

    @classmethod
    def create(cls, kind: str, out: Path | None = None, argv: Sequence[str] = ()) -> "Run":
        """Start a run of `kind` ("layer", "e2e") in `out`, by default runs/<utc>-<kind>-<random>.

        argv: arguments of `python -m bench.<kind>`, kept in env.json.
        Raises CannotGoOn where `out` already holds a run or another process writes there.
        """
        folder = out or new_folder(kind)
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
        except OSError as error:
            raise cannot_write(folder, error) from error
        lines = Lines(folder / RECORDS, keep=True)
        if lines.size or (folder / ENVIRONMENT).exists():
            lines.close()
            also = f", or --resume {folder}" if kind == "layer" else ""
            raise CannotGoOn(f"{folder} already holds a run: choose another --out{also}")
        run = cls(folder, kind, lines)
        with run._going_on():
            write_environment(folder, begun(kind, argv))
        return run

    @classmethod
    def resume(cls, folder: Path, kind: str = "") -> "Run":
        """Go on with a run that was cut short. A half-written last line is ended, so that what follows is whole.

        Raises CannotGoOn where there is no run (of `kind`), another process writes to it, or another machine or
        version of this program measured it.
        """
        if not (folder / RECORDS).exists():
            raise CannotGoOn(f"no run to resume in {folder}: it has no {RECORDS}")
        lines = Lines(folder / RECORDS, keep=True)
        now = environment()
        try:
            then = read_environment(folder)
            found = then.get("kind") or _kind_from_name(folder)
            if kind not in ("", found):
                raise CannotGoOn(f"{folder} is a run of bench.{found}, not of bench.{kind}")
            if (schema := then.get("schema", SCHEMA)) != SCHEMA:
                raise CannotGoOn(f"{folder} has schema {schema}, this program writes {SCHEMA}: start a new run")
            if then and (differing := differences(then, now)):
                changed = ", ".join(f"{key}: {was} then, {is_} now" for key, (was, is_) in differing.items())
                raise CannotGoOn(f"{folder} was measured under other conditions ({changed}): start a new run")
        except CannotGoOn:
            lines.close()
            raise
        run = cls(folder, found, lines)
        header = {"schema": SCHEMA, "kind": run.kind, **then}
        with run._going_on():
            lines.end_half_a_line()
            again: Environment = {"resumed": [*then.get("resumed", []), _utc()]}
            if git := spanning(then.get("git"), now.get("git")):
                again["git"] = git
            write_environment(folder, {**header, **now, **again})
        return run

    def append(self, record: Record) -> Record:
        """Write one finished case and force it to disk; returns the record as written.

        Raises ValueError for a record without a case or with an unknown status, CannotGoOn on a full disk.
        """
        missing = [name for name in REQUIRED if name not in record]
        if missing or record["status"] not in STATUSES:
            raise ValueError(f"not a record: {missing or record['status']!r} (see bench/records/record.py)")
        whole: Record = clean({"schema": SCHEMA, "run": self.folder.name, "utc": _utc(), **record})
        self._restore()
        with self._going_on():
            self._lines.write(json.dumps(whole, default=str, allow_nan=False).encode())
        return whole

    def records(self) -> list[Record]:
        """All readable records so far, in order; problems are told on stderr."""
        self._restore()
        records, problems = read_records(self.folder)
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        return records

    def finished(self) -> dict[str, Record]:
        """The last record of each case, by case: what need not be measured again."""
        return latest(self.records())

    def write_csv(self, columns: Iterable[str] | None = None) -> Path:
        """<kind>.csv: one row a case, in the order of measurement; what a record lacks is empty.

        columns: names of fields, `shape.T` for one inside another; by default all that `queries.flat` has.
        """
        finished = list(self.finished().values())
        run = Loaded(self.folder, self.kind, read_environment(self.folder), finished)
        rows = [flat(run, record) for record in finished]
        columns = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for record, row in zip(finished, rows, strict=True):
            writer.writerow([row[column] if column in row else _cell(record, column) for column in columns])
        with self._going_on():
            return write_atomically(self.folder / f"{self.kind}.csv", text.getvalue())

    def close(self) -> None:
        """Let others write to the folder. The end of the process does the same."""
        self._restore()
        self._lines.close()

    def _restore(self) -> None:
        """What is read of this run is what it measured, whatever the kernels that it ran wrote there."""
        with self._going_on():
            try:
                changed = self._lines.restore()
            except OSError as error:
                raise cannot_write(self.folder / RECORDS, error) from error
        if changed:
            print(f"warning: somebody else changed {self.folder / RECORDS}: this run's own is back", file=sys.stderr)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Where the disk is full and the run can be resumed, say how."""
        try:
            yield
        except DiskFull as full:
            if self.kind != "layer" or not (self.folder / ENVIRONMENT).exists():
                raise
            raise CannotGoOn(f"{full}, then go on with --resume {self.folder}", full.code) from full


def begun(kind: str, argv: Sequence[str]) -> dict[str, object]:
    """What env.json says of a run of `python -m bench.<kind>` that begins now."""
    command = shlex.join(["python", "-m", f"bench.{kind}", *argv])
    return {"schema": SCHEMA, "kind": kind, "started": _utc(), "command": command, **environment()}


def write_environment(folder: Path, document: Mapping[str, object]) -> None:
    """A run's env.json. Raises DiskFull or CannotGoOn."""
    write_atomically(folder / ENVIRONMENT, json.dumps(clean(document, free_text=True), indent=1) + "\n")


def _kind_from_name(folder: Path) -> str:
    return "e2e" if "-e2e-" in folder.name else "layer"


def _utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _look_up(record: Record, path: str) -> object:
    value: object = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _cell(record: Record, column: str) -> object:
    value = _look_up(record, column)
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list)) else value
