"""Runs on disk: a folder each, written so that a crash, Ctrl-C or a full disk costs at most the case under way.

    env.json       what was measured on: machine, versions, command line (an allow-list, see `environment`)
    records.jsonl  one record a line, appended and forced to disk as each case finishes (see FIELDS)
    <kind>.csv     the records, flat (see COLUMNS), written by `Run.write_csv`

What is written may be committed or sent to somebody: absolute paths, the names of host and user, and values that
look secret are replaced in everything that goes through this module (see `scrub`).
A full disk ends the run with exit code 1 (bench.cli.FAILED); everything written before stays readable.
"""

import csv
import errno
import fcntl
import getpass
import io
import json
import math
import os
import re
import secrets
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from bench.cli import CannotGoOn

SCHEMA = 1
RECORDS = "records.jsonl"
ENVIRONMENT = "env.json"

# What became of a case. `ok` is the only one that is ranked.
STATUSES = ("ok", "wrong", "error", "timeout", "crash", "skipped", "impossible")

# Every field a record may have. Times are seconds, sizes bytes, work floating-point operations; a number that is
# not finite (the unbounded interval of a single round) is written as null.
FIELDS = {
    "schema": "version of this list (added by `append`)",
    "run": "name of the run's folder (added by `append`)",
    "utc": "when the case finished, ISO 8601 (added by `append`)",
    "case": "identity of the case inside a run: what --resume compares; the last record of a case counts",
    "layer": "reference/<layer>.py, or the model in a record of bench.e2e",
    "variant": "<backend>.<name>",
    "story": "the variant's own one-line description",
    "phase": "forward | backward | step",
    "shape_name": "<model>/<call>, or empty for a shape given on the command line",
    "shape": "sizes by symbol and options, see reference/contract.py",
    "dtype": "fp32 | bf16 | fp16",
    "device": "cpu | cuda",
    "status": "one of STATUSES",
    "evidence": "why the status is not ok, in words",
    "error_ratio": "error against fp64 truth / error of plain torch at the same dtype, the worst output",
    "deterministic": "whether two runs on the same input were bitwise equal",
    "seeds": "seeds of the inputs",
    "timer": "wall | cuda_event | cuda_graph | …: the clock of `samples`",
    "cache": "cold (caches flushed before each call) | warm",
    "samples": "wall time of one call: a list of rounds, each a list of seconds",
    "cpu_samples": "CPU time of this process for one call, in the same form",
    "processes": "for each round, the number of the process that measured it",
    "calls_per_sample": "calls between two readings of the clock; samples are already divided by it",
    "median_s": "median of the rounds' medians, seconds",
    "low_s": "lower end of its 95 % bootstrap interval, seconds",
    "high_s": "upper end, seconds",
    "noise": "interquartile range / median of all samples",
    "baseline": "the variant that `speedup` is against",
    "speedup": "baseline's median / this median, same rounds: above 1 is faster than the baseline",
    "speedup_low": "lower end of its 95 % bootstrap interval over rounds",
    "speedup_high": "upper end",
    "stopped": "why sampling ended: precise (the interval is narrow enough) | budget",
    "flops": "useful floating-point operations of one call, from the contract",
    "bytes": "bytes one call must move: each input read once, each output written once",
    "saved_bytes": "bytes forward keeps for backward",
    "workspace_bytes": "scratch memory",
    "compile_s": "seconds of one-time work before the first call",
    "bytes_per_s": "bytes / median_s",
    "flops_per_s": "flops / median_s",
    "of_ceiling": "floor from this machine's measured ceilings / median_s: 1 is as fast as the machine was seen to go",
    "floor_s": "that floor, seconds (bench.ceilings.floor_seconds)",
    "attested": "what ran: ATen operators or kernel names",
    "source_hash": "hash of the variant's source files",
    "reproduce": "command that measures this case again",
    "machine": "bench.machine.snapshot() after the case: load, frequency, throttling, other programs",
}
REQUIRED = ("case", "status")

# Columns of layer.csv: a field, or symbol.of.a.nested one. Units as in FIELDS.
COLUMNS = (
    *("layer", "phase", "variant", "shape_name", "dtype", "cache", "status", "evidence", "error_ratio"),
    *("deterministic", "median_s", "low_s", "high_s", "noise", "baseline", "speedup", "speedup_low", "speedup_high"),
    *("bytes", "flops", "bytes_per_s", "flops_per_s", "floor_s", "of_ceiling", "saved_bytes", "workspace_bytes"),
    *("timer", "source_hash", "utc", "run", "reproduce"),
)

Record = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A line of a record file that could not be used."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}; the line is skipped"


@dataclass
class Run:
    """One run's folder, held by this process alone until `close` or the end of the process."""

    folder: Path
    kind: str
    _file: int = field(repr=False)

    @classmethod
    def create(cls, kind: str, out: Path | None = None, argv: Sequence[str] = ()) -> "Run":
        """Start a run of `kind` ("layer", "e2e") in `out`, by default runs/<utc>-<kind>-<random>.

        argv: the command that reproduces it (`python -m …`), kept in env.json.
        Raises CannotGoOn where `out` already holds a run or another process writes there.
        """
        folder = out or Path("runs") / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(3)}"
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        file = _open_records(folder)
        if os.fstat(file).st_size or (folder / ENVIRONMENT).exists():
            os.close(file)
            raise CannotGoOn(f"{folder} already holds a run: choose another --out, or go on with --resume {folder}")
        run = cls(folder, kind, file)
        header = {"schema": SCHEMA, "kind": kind, "started": _utc(), "command": shlex.join(argv)}
        run._write_environment({**header, **environment()})
        return run

    @classmethod
    def resume(cls, folder: Path) -> "Run":
        """Go on with a run that was cut short. A half-written last line is closed, so that what follows is whole.

        Raises CannotGoOn where there is no run, another process writes to it, or it was measured on another machine.
        """
        if not (folder / RECORDS).exists():
            raise CannotGoOn(f"no run to resume in {folder}: it has no {RECORDS}")
        file = _open_records(folder)
        now = environment()
        then = read_environment(folder)
        if changed := differing_hardware(then, now):
            os.close(file)
            raise CannotGoOn(
                f"{folder} was measured on another machine or with another torch ({changed}): start a new run"
            )
        run = cls(folder, then.get("kind") or _kind_from_name(folder), file)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            run._write_line(b"\n")
        header = {"schema": SCHEMA, "kind": run.kind, **then}
        run._write_environment({**header, **now, "resumed": [*then.get("resumed", []), _utc()]})
        return run

    def append(self, record: Record) -> Record:
        """Write one finished case and force it to disk; returns the record as written.

        Raises ValueError for a record without a case or with an unknown status, CannotGoOn when the disk is full.
        """
        missing = [name for name in REQUIRED if name not in record]
        if missing or record["status"] not in STATUSES:
            raise ValueError(f"not a record: {missing or record['status']!r} (see bench.results.FIELDS)")
        whole = clean({"schema": SCHEMA, "run": self.folder.name, "utc": _utc(), **record})
        self._write_line(json.dumps(whole, default=str, allow_nan=False).encode() + b"\n")
        return whole

    def records(self) -> list[Record]:
        """All readable records so far, in order; problems are told on stderr."""
        records, problems = read_records(self.folder)
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        return records

    def finished(self) -> dict[str, Record]:
        """The last record of each case, by case: what need not be measured again."""
        return latest(self.records())

    def write_csv(self, columns: Iterable[str] = COLUMNS) -> Path:
        """<kind>.csv: one row a case, in the order of measurement. Columns as in COLUMNS; what is missing is empty."""
        columns = list(columns)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for record in self.finished().values():
            writer.writerow([_cell(record, column) for column in columns])
        return write_atomically(self.folder / f"{self.kind}.csv", text.getvalue())

    def close(self) -> None:
        """Let others write to the folder. The end of the process does the same."""
        os.close(self._file)

    def _write_environment(self, document: Mapping[str, Any]) -> None:
        write_atomically(self.folder / ENVIRONMENT, json.dumps(clean(document, free_text=True), indent=1) + "\n")

    def _write_line(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            # Cutting needs no space: without it half a line would stay.
            try:
                os.ftruncate(self._file, size)
            except OSError:
                pass
            raise _cannot_write(self.folder / RECORDS, error) from error


def read_records(path: Path) -> tuple[list[Record], list[Problem]]:
    """Records of a run's folder (or of one .jsonl file), and the lines that could not be read."""
    file = path / RECORDS if path.is_dir() else path
    records: list[Record] = []
    problems: list[Problem] = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # json's and unicode's errors are both
            problems.append(Problem(str(file), number, f"damaged ({error})"))
            continue
        if not isinstance(record, dict) or any(name not in record for name in REQUIRED):
            problems.append(Problem(str(file), number, "not a record"))
        elif record.get("schema") != SCHEMA:
            problems.append(Problem(str(file), number, f"schema {record.get('schema')}, this program reads {SCHEMA}"))
        else:
            records.append(record)
    return records, problems


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """The last record of each case, by case, in the order the cases were first seen."""
    return {record["case"]: record for record in records}


def read_environment(folder: Path) -> dict[str, Any]:
    """A run's env.json; empty where the run ended before writing it."""
    file = folder / ENVIRONMENT
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CannotGoOn(f"{file} is damaged: {error}") from error


# What env.json may hold of bench.machine.describe(): everything else stays here. True takes a plain value or a list of
# plain values; a mapping is a list of its own.
ALLOWED: dict[str, Any] = {
    "cpu": dict.fromkeys(
        ("model", "architecture", "sockets", "cores", "threads", "usable", "quota", "isa", "cache_bytes")
        + ("max_mhz", "governor", "virtual"),
        True,
    ),
    "memory_bytes": True,
    "gpus": dict.fromkeys(
        ("name", "memory_bytes", "power_cap_w", "max_sm_mhz", "max_memory_mhz", "ecc", "mig", "capability"), True
    ),
    "driver": True,
    "versions": dict.fromkeys(
        ("python", "os", "torch", "torch_cuda", "triton", "cupy", "numpy", "pandas", "compiler", "nvidia-ml-py"), True
    ),
    "threads": dict.fromkeys(
        ("torch", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES")
        + ("OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME"),
        True,
    ),
    "git": {"commit": True, "dirty": True},
}
ALLOWED["cpu"]["cache_bytes"] = dict.fromkeys(("L1d", "L2", "L3"), True)


def environment() -> dict[str, Any]:
    """What bench.machine says about this machine, through the allow-list."""
    from bench import machine  # imports torch

    return clean(allowed(machine.describe(), ALLOWED), free_text=True)


def allowed(document: Any, rules: Any) -> Any:
    """The part of `document` that `rules` names."""
    if isinstance(document, list):
        return [allowed(entry, rules) for entry in document]
    if isinstance(document, Mapping):
        if rules is True:  # a mapping where a plain value was expected has keys nobody looked at
            return None
        return {key: allowed(document[key], rule) for key, rule in rules.items() if key in document}
    return document if rules is True else None


def differing_hardware(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two environments so that their times must not be mixed; "" where nothing does."""
    keys = ("cpu.model", "cpu.isa", "cpu.usable", "gpus", "versions.torch")
    if not then:
        return ""
    differing = [key for key in keys if _look_up(then, key) != _look_up(now, key)]
    return ", ".join(f"{key}: {_look_up(then, key)} then, {_look_up(now, key)} now" for key in differing)


# --- what may leave this machine ---

# Values of these keys are this project's own words, so a user called "torch" must not change them.
_OWN_WORDS = {"schema", "run", "case", "layer", "variant", "phase", "shape_name", "shape", "dtype", "device", "status"}
_OWN_WORDS |= {"timer", "cache", "baseline", "stopped", "source_hash", "utc", "attested"}

_SECRET_NAME = re.compile(r"token|secret|passw|api_?key|access_?key|private|credential|cookie|(^|_)auth|session", re.I)
_SECRET_TEXT = re.compile(
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password@ in an address
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|pypi-)[\w-]{10,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
    r"|[\w.+-]+@[\w-]+\.[\w.-]+"  # mail address
)
# An absolute path: a slash that no word, dot or slash precedes, so that "GB/s", "a/b" and "../x" stay. The last part
# is kept where it looks like a file's name, because an error message is useless without it.
_PATH = re.compile(r"(?<![\w./~>\]-])/(?:[^\s/:;,'\"()\[\]<>|=]+/)*([^\s/:;,'\"()\[\]<>|=]*)")


def clean(value: Any, *, free_text: bool = False, key: str = "") -> Any:
    """`value` ready for JSON: strings scrubbed (keys too), numbers that are not finite as None.

    free_text: names of host and user are replaced even where a key usually holds this project's own words.
    """
    if isinstance(value, str):
        return scrub(value, names=free_text or key not in _OWN_WORDS)
    if isinstance(value, Mapping):
        return {
            scrub(str(k), names=False): clean(v, free_text=free_text, key="shape" if key == "shape" else str(k))
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple, set)):
        return [clean(v, free_text=free_text, key=key) for v in value]
    if isinstance(value, Path):
        return scrub(str(value))
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return clean(value.tolist(), free_text=free_text, key=key)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def scrub(text: str, *, names: bool = True) -> str:
    """`text` without secrets, absolute paths and, with `names`, the names of host and user.

    Paths inside the working folder or the repository become relative; others keep a file's name at most.
    """
    for secret in _secret_values():
        text = text.replace(secret, "<secret>")
    text = _SECRET_TEXT.sub("<secret>", text)
    for folder in _own_folders():
        text = re.sub(rf"(?<![\w.~-]){re.escape(folder)}(?:/|(?![\w.-]))", "", text)
    text = _PATH.sub(lambda path: f"<path>/{path[1]}" if "." in path[1][1:-1] else "<path>" if path[1] else "/", text)
    if names:
        for word, stand_in in _identifying_names():
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", stand_in, text)
    return text


def _secret_values() -> list[str]:
    # Short values would blank out ordinary words; a real secret is longer.
    values = {v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8 and not v.startswith("/")}
    return sorted(values, key=len, reverse=True)


@cache
def _own_folders() -> tuple[str, ...]:
    """Folders that paths are written relative to; the longest first."""
    folders = {str(Path(__file__).resolve().parent.parent), os.getcwd()}
    return tuple(sorted((f for f in folders if f != "/"), key=len, reverse=True))


def _identifying_names() -> list[tuple[str, str]]:
    host = socket.gethostname()
    users = {os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), Path.home().name}
    try:
        users.add(getpass.getuser())
    except (KeyError, OSError):  # a user id without an entry in passwd
        pass
    users -= {"", "root", "home"}  # root names nobody
    hosts = {host, host.partition(".")[0]} - {"", "localhost"}
    found = [(h, "<host>") for h in hosts] + [(u, "<user>") for u in users]
    return sorted(found, key=lambda pair: len(pair[0]), reverse=True)


# --- files ---


def write_atomically(file: Path, text: str) -> Path:
    """Write `file` whole or not at all. Raises CannotGoOn when the disk is full; the old file then stays."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "w") as temporary:
                temporary.write(text)
                temporary.flush()
                os.fsync(temporary.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private
            os.replace(name, file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(file, error) from error
    return file


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _open_records(folder: Path) -> int:
    """Open a run's records for appending and lock them against a second run."""
    file = folder / RECORDS
    try:
        handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise _cannot_write(file, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise CannotGoOn(f"another run is writing to {folder}: wait for it, or choose another --out") from None
    except OSError:
        pass  # a file system without locks
    return handle


def _cannot_write(path: Path, error: OSError) -> CannotGoOn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CannotGoOn(
            f"no space left to write {path} ({error.strerror}). Everything written before is kept: "
            f"make room, then go on with --resume {path.parent}"
        )
    return CannotGoOn(f"cannot write {path}: {error.strerror}")


def _kind_from_name(folder: Path) -> str:
    return "e2e" if "-e2e-" in folder.name else "layer"


def _utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _look_up(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _cell(record: Record, column: str) -> Any:
    value = _look_up(record, column)
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list)) else value
