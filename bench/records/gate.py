"""What fails a gate: from the verdicts of a comparison to an exit code.

slower    a case is SLOWER
wrong     a case became wrong (wrong, impossible, error, crash, timeout), or is new and wrong
missing   work was lost: what was right before is not there, is skipped, covers less of its contract or is not timed
          any more; or a line of either side's records cannot be read
unclear   of a case that both sides timed nothing can be said
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.cli import USAGE, CannotGoOn, did_you_mean, no_such
from bench.records import ANY, FAILURES
from bench.records.queries import Case, coverage
from bench.records.record import Record
from bench.records.schema import BAD, GOOD

FINE, GOT_SLOWER, GOT_WRONG, NOT_COMPARABLE, GOT_LOST, GOT_UNCLEAR = 0, 1, 2, 3, 4, 5
CODES = {"wrong": GOT_WRONG, "missing": GOT_LOST, "slower": GOT_SLOWER, "unclear": GOT_UNCLEAR}  # the gravest first


def exit_code(found: Mapping[str, int], fail_on: Iterable[str]) -> int:
    """The code of the gravest of FAILURES that was found and is failed on."""
    return next((code for kind, code in CODES.items() if kind in fail_on and found.get(kind)), FINE)


def failed(found: Mapping[str, int], fail_on: Iterable[str]) -> list[str]:
    """`2 slower`, `1 missing`, of what is failed on."""
    return [f"{found[kind]} {kind}" for kind in FAILURES if kind in fail_on and found.get(kind)]


def headline(found: Mapping[str, int], fail_on: Sequence[str], same: bool = False) -> str:
    """PASS or FAIL and why, in a line; what `any` would say where no gate was asked for. same: both sides hold one run,
    which no gate judges."""
    if same:
        return "--fail-on any would not judge this: one run on both sides"
    kinds = fail_on or ANY
    bad = failed(found, kinds)
    if not fail_on:
        told = f"fail: {', '.join(bad)}" if bad else "pass"
        return f"--fail-on any would {told}"
    if bad:
        return f"FAIL: {', '.join(bad)}"
    return f"PASS: nothing {' or '.join(kind for kind in FAILURES if kind in kinds)}"


# --- lost work ---


@dataclass(frozen=True)
class Lost:
    """What was right before, and why it does not count any more."""

    case: Case
    why: str


def lost(before: Mapping[Case, Record], after: Mapping[Case, Record]) -> list[Lost]:
    """What of `before` was right and is not there `after`, or is less. What became wrong is not lost but wrong."""
    by_any: dict[Case, list[Record]] = {}
    for case, record in after.items():
        by_any.setdefault(case.any_cache, []).append(record)
    found = []
    for case, old in before.items():
        others = by_any.get(case.any_cache, [])
        was_right = old["status"] in GOOD and not any(r["status"] in BAD for r in others)
        if was_right and (why := _less(old, after.get(case), others)):
            found.append(Lost(case, why))
    return found


def _less(old: Record, new: Record | None, others: list[Record]) -> str:
    """What there is less of; "" where nothing is."""
    skipped = next((r for r in ([new] if new else others) if r["status"] == "skipped"), None)
    if skipped:
        return f"skipped: {skipped.get('evidence') or 'no reason given'}"
    if new is None:
        # Whether a call of about the length that parts both is timed warm as well is the hour's doing.
        slow = old.get("cache") == "warm" and any("cold_only_s" in r for r in others)
        return "" if slow else "not there"
    if gone := sorted(set(coverage(new)[1:]) - set(coverage(old)[1:])):
        return f"does not cover any more: {', '.join(gone)}"
    return "not timed any more" if old.get("samples") and not new.get("samples") else ""


# --- thresholds ---


@dataclass(frozen=True)
class Thresholds:
    """Below which change, as a share, nothing matters: by layer or model, by `layer pass`, or by default."""

    default: float
    own: Mapping[str, float] = field(default_factory=dict)

    def of(self, case: Case) -> float:
        return self.own.get(f"{case.layer} {case.phase}", self.own.get(case.layer, self.default))


TABLE = ("tool", "layerbench", "thresholds")  # in pyproject.toml, or in a file of its own


def read_thresholds(file: Path, default: float, known: Iterable[str]) -> Thresholds:
    """Of a TOML file's [tool.layerbench.thresholds]: `default = "2%"`, `attention = 0.05`, `"gelu backward" = "10%"`.

    known: names of layers and models. CannotGoOn where the file cannot be read or a line of it makes no sense.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    if not file.is_file():
        raise CannotGoOn(no_such(file, "file"), USAGE)
    try:
        table: object = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CannotGoOn(f"cannot read {file}: {error}", USAGE) from error
    for name in TABLE:
        table = table.get(name, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise CannotGoOn(f"{file}: {'.'.join(TABLE)} is no table", USAGE)
    names = {"default", *known}
    own = {}
    for name, value in table.items():
        layer, _, phase = name.partition(" ")
        if layer not in names or phase not in ("", "forward", "backward", "step"):
            raise CannotGoOn(f"{file}: a threshold for {name!r}, which is no layer{did_you_mean(layer, names)}", USAGE)
        try:
            own[name] = share(str(value))
        except ValueError as error:
            raise CannotGoOn(f"{file}: {name}: {error}", USAGE) from error
    return Thresholds(own.pop("default", default), own)


def share(text: str) -> float:
    """0.02 from "2%" or "0.02"; ValueError where it is neither, or not between 0 and 100 %."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is no share: 2% or 0.02, more than 0 and less than 100%")
    return value
