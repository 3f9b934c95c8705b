"""Runs as they are read: records and what could not be understood of them, one folder or many."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cli import FAILED, OF_A_RUN, CannotGoOn, cannot, no_such
from bench.core.evidence import harmless
from bench.core.progress import track
from bench.core.replies import Rubbish, Schema, check, schema_of
from bench.records.environment import Environment
from bench.records.record import Record
from bench.records.schema import MEASURED, REQUIRED, SCHEMA, fault

RECORDS, ENVIRONMENT = OF_A_RUN
SUITE = "suite"  # the kind of a run that holds others


@dataclass(frozen=True)
class Problem:
    """A line of a record file that could not be used."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}; the line is skipped"


def read_records(path: Path, required: Sequence[str] = ()) -> tuple[list[Record], list[Problem]]:
    """Records of a run's folder (or of one .jsonl file), and the lines that could not be read.

    required: fields that a record must have beside REQUIRED. A field that is there is of its kind, so that a reader
    need not look.
    """
    file = path / RECORDS if path.is_dir() else path
    records: list[Record] = []
    problems: list[Problem] = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record: Record = harmless(json.loads(line, parse_constant=_no_number))
        except (ValueError, RecursionError) as error:  # json's and unicode's errors are both ValueErrors
            problems.append(Problem(str(file), number, f"damaged ({error})"))
            continue
        if not isinstance(record, dict) or any(name not in record for name in REQUIRED):
            problems.append(Problem(str(file), number, "not a record"))
        elif record.get("schema") != SCHEMA:
            why = f"schema {record.get('schema')}, this program reads {SCHEMA}"
            problems.append(Problem(str(file), number, why))
        elif why := fault(record, required):
            problems.append(Problem(str(file), number, f"damaged ({why})"))
        else:
            records.append(record)
    return records, problems


def documents(file: Path) -> Iterator[dict[str, Any] | None]:
    """Each line of a file of JSON objects; None for one that is none. Raises OSError."""
    for line in filter(str.strip, file.read_text(errors="replace").splitlines()):
        try:
            document = harmless(json.loads(line))
        except (ValueError, RecursionError):
            document = None
        yield document if isinstance(document, dict) else None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """The last record of each case, by case, in the order the cases were first seen."""
    return {record["case_id"]: record for record in records}


def read_environment(folder: Path) -> Environment:
    """A run's env.json; empty where the run ended before writing it. CannotGoOn where it cannot be understood."""
    file = folder / ENVIRONMENT
    try:
        document = harmless(json.loads(file.read_text()))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CannotGoOn(cannot(error)) from error
    except (ValueError, RecursionError) as error:
        raise CannotGoOn(f"{file} is damaged: {error}; mend it, or move it away to do without") from error
    try:
        check(_known(document, _ENVIRONMENT), _ENVIRONMENT, "it")
    except Rubbish as wrong:
        raise CannotGoOn(f"{file} is damaged: {wrong}; mend it, or move it away to do without") from None
    return document


_ENVIRONMENT = schema_of(Environment)


def _known(document: object, schema: Schema) -> object:
    """The part of a document that a schema knows: what another version added is nobody's business here."""
    if schema[0] == "fields" and isinstance(document, dict):
        return {name: _known(document[name], inner) for name, inner in schema[1].items() if name in document}
    if schema[0] == "many" and isinstance(document, list):
        return [_known(part, schema[2]) for part in document]
    return document


@dataclass
class Loaded:
    """One run's folder as read."""

    folder: Path
    kind: str
    environment: Environment
    records: list[Record]
    problems: list[Problem] = field(default_factory=list)


def load(path: Path, code: int = FAILED, strict: bool = True) -> list[Loaded]:
    """The runs in a folder that have a record. CannotGoOn with `code` where there is none."""
    return with_records(runs_in(path, code, strict), path, code)


def with_records(runs: list[Loaded], path: Path, code: int = FAILED) -> list[Loaded]:
    """Those of a folder's runs that have a record. CannotGoOn with `code` where none has."""
    found = [run for run in runs if run.records]
    if not found:
        problems = [problem for run in runs for problem in run.problems]
        why = f"none of its lines can be read ({problems[0].why})" if problems else "the run recorded nothing"
        raise CannotGoOn(f"no records in {path}: {why}", code)
    return found


def runs_in(path: Path, code: int = FAILED, strict: bool = True) -> list[Loaded]:
    """The run in a folder, and those below it. Lines that cannot be read are told on stderr; CannotGoOn with `code`
    where there is no run, or no way to read it. Not `strict`: of several runs those that cannot be read are told on
    stderr, and left out."""
    if not path.is_dir():
        raise CannotGoOn(no_such(path, "folder", f"a run is one, here {path.parent}" if path.is_file() else ""), code)
    files = sorted(path.rglob(RECORDS))
    if not files:
        raise CannotGoOn(f"no run in {path}: neither it nor a folder in it has a {RECORDS}", code)
    runs: list[Loaded] = []
    refused: CannotGoOn | None = None
    for file in track(files, "run", lambda file: f"reading {file.parent}"):
        try:
            environment = read_environment(file.parent)
            of_parts = environment.get("kind") == SUITE  # whose runs lie in folders inside it
            records, problems = read_records(file, () if of_parts else MEASURED)
        except (CannotGoOn, OSError) as error:
            why = cannot(error) if isinstance(error, OSError) else str(error)
            refusal = CannotGoOn(f"cannot read the run in {file.parent}: {why}", code)
            if strict:
                raise refusal from error
            refused = refused or refusal
            print(f"warning: {refusal}; it is left out", file=sys.stderr)
            continue
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        records = [] if of_parts else records
        runs.append(Loaded(file.parent, environment.get("kind") or "", environment, records, problems))
    if refused and not runs:
        raise refused
    return runs
