"""Who is fastest at what: of each case the fastest kernel of this project, and the fastest PyTorch entry."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bench.records.read import Loaded
from bench.records.record import Record, Times
from bench.records.schema import GOOD

Row = tuple[Loaded, Record]
TEXTS = ("not_supported", "notes")  # that a table tells too


class Case(NamedTuple):
    """What is compared with what: everything but the source and the machine."""

    layer: str
    phase: str
    shape_name: str
    sizes: tuple[tuple[str, str], ...]
    dtype: str
    device: str
    threads: int
    cache: str
    variant: str

    @property
    def any_cache(self) -> "Case":
        return self._replace(cache="")

    @property
    def race(self) -> "Case":
        """What the variants that were timed in turns have in common."""
        return self._replace(variant="")


def case_of(record: Record) -> Case:
    sizes = tuple(sorted((name, str(size)) for name, size in (record.get("shape") or {}).items()))
    names = ("layer", "phase", "shape_name", "dtype", "cache", "variant")
    words = {name: str(record.get(name) or "") for name in names}
    # A record of a proof alone names no device; those that had none were all the CPU's.
    return Case(**words, sizes=sizes, device=record.get("device") or "cpu", threads=_asked(record))


def _asked(record: Record) -> int:
    """How many threads were asked for, 0 where it was left to torch; older records have that as `threads`."""
    asked = record.get("threads_asked")
    return (record.get("threads") or 0) if asked is None else asked


def partial(record: Record) -> bool:
    """Whether it is right in a part of its contract only: it does not have the rest, and says so."""
    return record["status"] in GOOD and bool(record.get("not_supported"))


def coverage(record: Record) -> tuple[str, ...]:
    """What only equals have in common, and may be ranked by: nothing where the whole contract is covered, else how
    many cases, and what is missing."""
    if not partial(record):
        return ()
    told = f"{record.get('proof_cases')} of {record.get('proof_cases_all')}"
    return told, *sorted(record["not_supported"])


@dataclass
class Race:
    """One layer, pass, shape and dtype: its right rows with cold caches, the fastest first. Those that are right in a
    part of the contract only are not in it: what they leave out may be what the others take longer for."""

    rows: list[Record]

    @property
    def first(self) -> Record:
        return self.rows[0]

    @property
    def own(self) -> Record | None:
        """The fastest kernel of the project's own: a library's is none, who calls it does not write it."""
        return next((r for r in self.rows if not _composed(r) and not is_library(r["variant"])), None)

    @property
    def torch(self) -> Record | None:
        """The fastest PyTorch entry; a composition of another root is none, however fast: it is not known to be one."""
        return next((r for r in self.rows if _composed(r) and not r.get("outside")), None)


LIBRARIES = ("cublas", "cudnn", "cutlass")  # names of variants that hand the work to a vendor's library begin so


def is_library(name: str) -> bool:
    """Whether a variant hands the work to a vendor's library, by its name."""
    return name.partition(".")[2].startswith(LIBRARIES)


def _composed(record: Record) -> bool:
    """Whether it is made of PyTorch's operators, and not of code of its own."""
    return record["variant"].startswith("torch.")


def races(records: Iterable[Record]) -> list[Race]:
    """The races of some runs, in the order in which they were run. The A/A control's second entry takes no part."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for r in records:
        right = r["status"] == "ok" and not partial(r)
        if right and r.get("cache") == "cold" and r.get("median_s") and not r.get("control"):
            key = (r["layer"], r.get("shape_name") or "", r["phase"], r["dtype"], str(r.get("shape")))
            found.setdefault(key, []).append(r)
    return [Race(sorted(rows, key=lambda r: r["median_s"])) for rows in found.values()]


def by_variant(rows: Iterable[Record]) -> list[list[Record]]:
    """The records of each variant together, cold before warm."""
    found: dict[str, list[Record]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return [sorted(states, key=lambda r: r.get("cache") or "") for states in found.values()]


def ranked(rows: Iterable[Record]) -> list[list[Record]]:
    """The same: right ones first, the fastest on top; then those that cover a part of the contract, equals together;
    the others as they come."""

    def rank(states: list[Record]) -> tuple[bool, bool, tuple[str, ...], float]:
        wrong = any(row["status"] not in GOOD for row in states)
        part = () if wrong else coverage(states[0])
        return wrong, bool(part), part, states[0].get("median_s") or float("inf")

    return sorted(by_variant(rows), key=rank)


def newest(runs: list[Loaded]) -> list[Row]:
    """The newest record of each case, in the order of measurement; second entries of the A/A control are left out."""
    found: dict[Case, Row] = {}
    for run in runs:
        for record in run.records:
            old = found.get(case_of(record))
            if not record.get("control") and (not old or old[1].get("utc", "") <= record.get("utc", "")):
                found[case_of(record)] = run, record
    return list(found.values())


def timed(record: Record) -> bool:
    return record["status"] == "ok" and bool(record.get("samples"))


def samples(record: Record) -> list[float]:
    """Seconds of every call, in the order of measurement."""
    return [seconds for round_ in record["samples"] for seconds in round_]


def names(records: list[Record]) -> list[tuple[str, str]]:
    """(group, name) of each: what is compared with each other, and with what. Sizes are told where they must be; what
    covers a part of its contract is in a group of its equals."""
    plain = [" ".join(words(r)) for r in records]
    counts = Counter(zip(plain, (r["variant"] for r in records), strict=True))
    groups = []
    for group, r in zip(plain, records, strict=True):
        if counts[group, r["variant"]] > 1:
            sizes = [f"{name}={size}" for name, size in (r.get("shape") or {}).items()]
            group = " ".join([group, *sizes, r.get("device") or "", f"threads={r.get('threads')}"])
        part = f", right in {coverage(r)[0]} cases" if partial(r) else ""
        groups.append((group + part, r["variant"]))
    return groups


def device_name(run: Loaded, record: Record) -> str:
    """The device's model; a made-up or unnamed one by what it was called."""
    device = record.get("device") or "cpu"
    if device == "cpu":
        return (run.environment.get("cpu") or {}).get("model") or device
    gpus, index = run.environment.get("gpus") or [], device.partition(":")[2] or "0"
    return gpus[int(index)]["name"] if index.isdigit() and int(index) < len(gpus) else device


def flat(run: Loaded, record: Record) -> dict[str, object]:
    """A record as a row that says by itself what it is: commit and device's model, the shape as shape.T and so on, some
    texts as one, nothing that is nested; a failure has no times."""
    git = run.environment.get("git") or {}
    row: dict[str, object] = {"commit": git.get("commit"), "device_name": device_name(run, record)}
    for name, value in record.items():
        if name == "shape":
            row |= {f"shape.{k}": v for k, v in (record.get("shape") or {}).items()}
        elif name in TEXTS:
            row[name] = "; ".join(value) if isinstance(value, list) else None
        elif not isinstance(value, (dict, list)):
            row[name] = value
    return {k: None if k in Times.__annotations__ and record["status"] != "ok" else v for k, v in row.items()}


def words(record: Record) -> list[str]:
    return [str(record.get(k)) for k in ("layer", "phase", "shape_name", "dtype", "cache") if record.get(k)]
