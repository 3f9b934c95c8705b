"""Runs on disk: a folder each, written so that a crash, Ctrl-C or a full disk costs at most the case under way.

    env.json       what was measured on: machine, versions, command (an allow-list, see `environment`)
    records.jsonl  one record a line, appended and forced to disk as each case finishes (fields: bench/records.py)
    <kind>.csv     the records, flat, under the same names, written by `Run.write_csv`

What is written may be committed or sent to somebody: absolute paths, the names of host and user, and values that
look secret are replaced in everything that goes through this module (see `scrub`). A full disk ends the run with
exit code 1 (bench.cli.FAILED); everything written before stays readable.
"""

import contextlib
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

from bench.cli import FAILED, CannotGoOn, cannot
from bench.conditions import differences
from bench.schema import MEASURED, OF_ENVIRONMENT, REQUIRED, SCHEMA, STATUSES, fault, of_another_kind

RECORDS = "records.jsonl"
ENVIRONMENT = "env.json"
SUITE = "suite"  # the kind of a run that holds others

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

        argv: arguments of `python -m bench.<kind>`, kept in env.json.
        Raises CannotGoOn where `out` already holds a run or another process writes there.
        """
        now = datetime.now(timezone.utc)
        folder = out or Path("runs") / f"{now:%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(3)}"
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        file = _open_records(folder)
        if os.fstat(file).st_size or (folder / ENVIRONMENT).exists():
            os.close(file)
            also = f", or --resume {folder}" if kind == "layer" else ""
            raise CannotGoOn(f"{folder} already holds a run: choose another --out{also}")
        run = cls(folder, kind, file)
        command = shlex.join(["python", "-m", f"bench.{kind}", *argv])
        header = {"schema": SCHEMA, "kind": kind, "started": _utc(), "command": command}
        run._write_environment({**header, **environment()})
        return run

    @classmethod
    def resume(cls, folder: Path, kind: str = "") -> "Run":
        """Go on with a run that was cut short. A half-written last line is ended, so that what follows is whole.

        Raises CannotGoOn where there is no run (of `kind`), another process writes to it, or another machine or
        version of this program measured it.
        """
        if not (folder / RECORDS).exists():
            raise CannotGoOn(f"no run to resume in {folder}: it has no {RECORDS}")
        file = _open_records(folder)
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
            os.close(file)
            raise
        run = cls(folder, found, file)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            run._write_line(b"\n")
        header = {"schema": SCHEMA, "kind": run.kind, **then}
        run._write_environment({**header, **now, "resumed": [*then.get("resumed", []), _utc()]})
        return run

    def append(self, record: Record) -> Record:
        """Write one finished case and force it to disk; returns the record as written.

        Raises ValueError for a record without a case or with an unknown status, CannotGoOn on a full disk.
        """
        missing = [name for name in REQUIRED if name not in record]
        if missing or record["status"] not in STATUSES:
            raise ValueError(f"not a record: {missing or record['status']!r} (see bench/records.py)")
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

    def write_csv(self, columns: Iterable[str] | None = None) -> Path:
        """<kind>.csv: one row a case, in the order of measurement; what a record lacks is empty.

        columns: names of fields, `shape.T` for one inside another; by default every field that is no list or dict.
        """
        finished = list(self.finished().values())
        columns = list(columns) if columns is not None else _flat_fields(finished)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for record in finished:
            writer.writerow([_cell(record, column) for column in columns])
        return write_atomically(self.folder / f"{self.kind}.csv", text.getvalue())

    def close(self) -> None:
        """Let others write to the folder. The end of the process does the same."""
        os.close(self._file)

    def _write_environment(self, document: Mapping[str, Any]) -> None:
        text = json.dumps(clean(document, free_text=True), indent=1)
        write_atomically(self.folder / ENVIRONMENT, text + "\n")

    def _write_line(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            # Cutting needs no space: without it half a line would stay.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise _cannot_write(self.folder / RECORDS, error) from error


def read_records(path: Path, required: Sequence[str] = ()) -> tuple[list[Record], list[Problem]]:
    """Records of a run's folder (or of one .jsonl file), and the lines that could not be read.

    required: fields that a record must have beside REQUIRED. A field that is there is of its kind (see FIELDS), so
    that a reader need not look.
    """
    file = path / RECORDS if path.is_dir() else path
    records: list[Record] = []
    problems: list[Problem] = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_no_number)
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


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """The last record of each case, by case, in the order the cases were first seen."""
    return {record["case_id"]: record for record in records}


def read_environment(folder: Path) -> dict[str, Any]:
    """A run's env.json; empty where the run ended before writing it. CannotGoOn where it cannot be understood."""
    file = folder / ENVIRONMENT
    try:
        document = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CannotGoOn(cannot(error)) from error
    except (ValueError, RecursionError) as error:
        raise CannotGoOn(f"{file} is damaged: {error}; mend it, or move it away to do without") from error
    wrong = of_another_kind(document, OF_ENVIRONMENT) if isinstance(document, dict) else "it"
    if wrong:
        raise CannotGoOn(
            f"{file} is damaged: {wrong} is not of the kind it must be; mend it, or move it away to do without"
        )
    return document


@dataclass
class Loaded:
    """One run's folder as read."""

    folder: Path
    kind: str
    environment: dict[str, Any]
    records: list[Record]
    problems: list[Problem] = field(default_factory=list)


def load(path: Path, code: int = FAILED) -> list[Loaded]:
    """The runs in a folder that have a record. CannotGoOn with `code` where there is none."""
    runs = runs_in(path, code)
    found = [run for run in runs if run.records]
    if not found:
        problems = [problem for run in runs for problem in run.problems]
        why = f"none of its lines can be read ({problems[0].why})" if problems else "the run recorded nothing"
        raise CannotGoOn(f"no records in {path}: {why}", code)
    return found


def runs_in(path: Path, code: int = FAILED) -> list[Loaded]:
    """The run in a folder, and those below it. Lines that cannot be read are told on stderr; CannotGoOn with `code`
    where there is no run, or no way to read it."""
    if not path.is_dir():
        raise CannotGoOn(f"no such folder: {path}", code)
    files = sorted(path.rglob(RECORDS))
    if not files:
        raise CannotGoOn(f"no run in {path}: neither it nor a folder in it has a {RECORDS}", code)
    runs = []
    for file in files:
        try:
            environment = read_environment(file.parent)
            of_parts = environment.get("kind") == SUITE  # whose runs lie in folders inside it
            records, problems = read_records(file, () if of_parts else MEASURED)
        except (CannotGoOn, OSError) as error:
            why = cannot(error) if isinstance(error, OSError) else str(error)
            raise CannotGoOn(f"cannot read the run in {file.parent}: {why}", code) from error
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        records = [] if of_parts else records
        runs.append(Loaded(file.parent, environment.get("kind") or "", environment, records, problems))
    return runs


def _names(text: str) -> dict[str, Any]:
    return dict.fromkeys(text.split(), True)


# What env.json may hold of bench.machine.describe(); everything else stays here. True lets a plain value or a list of
# plain values through; a mapping is an allow-list of its own.
ALLOWED: dict[str, Any] = {
    "cpu": _names("model architecture cores threads usable quota isa max_mhz governor virtual")
    | {"cache_bytes": _names("L1d L2 L3")},
    "memory_bytes": True,
    "gpus": _names("name capability memory_bytes power_cap_w max_sm_mhz max_memory_mhz ecc mig driver"),
    "versions": _names("python os torch torch_cuda triton cupy numpy pandas scipy compiler nvidia-ml-py"),
    "threads": _names(
        "torch OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS OMP_PROC_BIND OMP_PLACES OMP_WAIT_POLICY"
        " GOMP_CPU_AFFINITY KMP_AFFINITY KMP_BLOCKTIME"
    ),
    "git": _names("commit dirty"),
}


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


# --- what may leave this machine ---

# Values of these keys are this project's own words, so a user called "torch" must not change them.
_OWN_WORDS = {
    *("schema", "run", "utc", "case_id", "layer", "variant", "backend", "story", "phase", "dtype", "shape"),
    *("shape_name", "device", "cache", "status", "timer", "baseline", "stopped", "source_hash"),
}
_SECRET_NAME = re.compile(
    r"token|secret|passw|api_?key|access_?key|private|credential|cookie|(^|_)auth|session", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password@ in an address
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|pypi-)[\w-]{10,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
    r"|[\w.+-]+@[\w-]+\.[\w.-]+"  # mail address
)
# An absolute path: a slash that no word, dot or slash precedes, so that "GB/s", "a/b" and "../x" stay. The last
# part is kept where it looks like a file's name, because an error message is useless without it.
_PATH = re.compile(r"(?:(?<![\w./~>\]-])|(?<=-[IL]))/(?:[^\s/:;,'\"()\[\]<>|=]+/)*([^\s/:;,'\"()\[\]<>|=]*)")


def clean(value: Any, *, free_text: bool = False, key: str = "") -> Any:
    """`value` ready for JSON: strings scrubbed (keys too), numbers that are not finite as None.

    free_text: names of host and user are replaced even where a key usually holds this project's own words.
    """
    if isinstance(value, str):
        return scrub(value, names=free_text or key not in _OWN_WORDS)
    if isinstance(value, Mapping):
        inside = key if key == "shape" else None  # its values are sizes and options
        return {
            scrub(str(k), names=False): clean(v, free_text=free_text, key=inside or str(k)) for k, v in value.items()
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
    text = _PATH.sub(lambda path: _stand_in(path[1]), text)
    if names:
        for word, stand_in in _identifying_names():
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", stand_in, text)
    return text


def _stand_in(last_part: str) -> str:
    """For an absolute path that ends in `last_part`."""
    if not last_part:
        return "/"
    return f"<path>/{last_part}" if "." in last_part[1:-1] else "<path>"


def _secret_values() -> list[str]:
    """Values of variables with a telling name; short ones would blank out ordinary words."""
    values = {v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8}
    return sorted(values, key=len, reverse=True)


@cache
def _own_folders() -> tuple[str, ...]:
    """Folders that paths are written relative to; the longest first."""
    folders = {str(Path(__file__).resolve().parents[2]), os.getcwd()}
    return tuple(sorted((f for f in folders if f != "/"), key=len, reverse=True))


def _identifying_names() -> list[tuple[str, str]]:
    host = socket.gethostname()
    users = {os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    with contextlib.suppress(KeyError, OSError, RuntimeError):  # a user id without an entry in passwd, and no $HOME
        users |= {Path.home().name, getpass.getuser()}
    users -= {"", "root", "home"}  # root names nobody
    hosts = {host, host.partition(".")[0]} - {"", "localhost"}
    found = [(h, "<host>") for h in hosts] + [(u, "<user>") for u in users]
    return sorted(found, key=lambda pair: len(pair[0]), reverse=True)


# --- files ---


def write_atomically(file: Path, text: str) -> Path:
    """Write `file` whole or not at all, its folder made where there is none. Raises CannotGoOn when the disk is full;
    the old file then stays."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # /dev/stdout: a rename would put a file in its place
            file.write_text(text)
            return file
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
        raise CannotGoOn(f"another run is writing to {folder}: wait, or choose another --out") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # a file system without locks
            raise
    return handle


def make_folder(folder: Path) -> None:
    """A folder to write to, made and tried before anything is measured for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _cannot_write(folder, error) from error


def need_cache() -> None:
    """CannotGoOn where the cache, which builds need, cannot be written to."""
    from kernels import cache_dir

    folder = cache_dir()
    try:
        make_folder(folder)
    except CannotGoOn as error:
        raise CannotGoOn(f"{error}: builds are kept there; set LAYERBENCH_CACHE to another folder") from error


def _cannot_write(path: Path, error: OSError) -> CannotGoOn:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CannotGoOn(f"cannot write {path}: {error.strerror}")
    told = f"no space left to write {path} ({error.strerror}). Everything written before is kept: make room"
    run = (path.parent / RECORDS).exists() and read_environment(path.parent).get("kind") == "layer"
    return CannotGoOn(f"{told}, then go on with --resume {path.parent}" if run else told)


def _kind_from_name(folder: Path) -> str:
    return "e2e" if "-e2e-" in folder.name else "layer"


def _utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _look_up(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _flat_fields(records: Iterable[Record]) -> list[str]:
    fields: dict[str, bool] = {}
    for record in records:
        for name, value in record.items():
            fields[name] = fields.get(name, True) and not isinstance(value, (dict, list))
    return [name for name, flat in fields.items() if flat]


def _cell(record: Record, column: str) -> Any:
    value = _look_up(record, column)
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list)) else value
