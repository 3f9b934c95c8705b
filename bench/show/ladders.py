"""The ladder of a layer: its own kernels from the plainest to the best, what each step of the way gains and saves, with
PyTorch and the vendors' libraries as marks beside it, and the floor as the last rung.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from bench.core import RUNGS
from bench.records.queries import is_library, partial
from bench.records.record import Record
from bench.show.columns import COLUMNS, cases_text, value
from bench.show.page import backend_of
from bench.show.points import beyond, noisy, tied
from bench.show.texts import duration, percent

# What a step may save beside time: a column, and how it is told of two of its texts.
SAVED = {
    "moved_of_minimum": "moves {} → {} of the least bytes",
    "workspace_bytes": "scratch {} → {} MB",
    "saved_bytes": "kept for backward {} → {} MB",
    "peak_bytes": "peak {} → {} MB",
    "kernels": "{} → {} launches",
    "registers": "registers {} → {}",
    "spill_bytes": "spills {} → {} B",
    "shared_bytes": "shared memory {} → {} B",
    "tensor_core_instructions": "tensor-core instructions {} → {}",
    "wide_instructions": "128-bit accesses {} → {}",
}
SAME = "no difference that this run can tell"
ROOM = 4.0  # percent of the track left of the floor


@dataclass
class Rung:
    """A kernel on the ladder, the floor, or a mark beside it."""

    variant: str
    backend: str
    story: str
    time: str = ""
    gain: str = ""  # against the rung before, and by what: "×10.6: tiles in shared memory"
    total: str = ""  # against the first rung
    saves: list[str] = field(default_factory=list)
    at: float | None = None  # place on the logarithmic track, in percent


@dataclass
class Ladder:
    """rungs: own kernels in the order of the story, and the floor; marks: PyTorch's and the libraries', by time;
    said: what the picture does not show."""

    rungs: list[Rung]
    marks: list[Rung]
    said: list[str]


def is_own(name: str, libraries: Collection[str] = ()) -> bool:
    """Whether it is neither PyTorch's nor a library's: by its name, or one of those that say so themselves."""
    return backend_of(name) != "torch" and name not in libraries and not is_library(name)


def ladder(rows: Iterable[Record], libraries: Collection[str] = (), counted: Iterable[Record] = ()) -> Ladder | None:
    """Of one case's rows, cold, each variant once; counted: simulated rows, whose counts stand in for what a timed row
    of the same source lacks. None where no own kernel is right."""
    rows = list(rows)
    right = [r for r in rows if r["status"] == "simulated" or (r["status"] == "ok" and r.get("median_s"))]
    own = sorted([r for r in right if is_own(r["variant"], libraries) and not partial(r)], key=_place)
    if not own:
        return None
    known = {_source(r): r for r in counted}
    own = [_with_counts(r, known.get(_source(r))) for r in own]
    track = Track(right)
    rungs = [_rung(own[0], track)]
    for old, new in itertools.pairwise(own):
        rungs.append(_step(old, new, own[0], track))
    others = [r for r in right if not is_own(r["variant"], libraries) and not partial(r)]
    marks = [_rung(r, track) for r in sorted(others, key=_seconds)]
    return Ladder(rungs + _floor(own, track), marks, _said(rows, own, others))


def _place(r: Record) -> tuple[int, float, str]:
    stem = r["variant"].partition(".")[2]
    return (RUNGS.index(stem) if stem in RUNGS else len(RUNGS)), -_seconds(r), r["variant"]


def _seconds(r: Record) -> float:
    return r.get("median_s") or 0.0


def _source(r: Record) -> tuple[str, ...]:
    return r["layer"], r["variant"], r["phase"], r["dtype"], str(r.get("source_hash"))


def _with_counts(r: Record, counted: Record | None) -> Record:
    missing = {k: v for k in SAVED if r.get(k) is None and counted and (v := counted.get(k)) is not None}
    return {**r, **missing}  # type: ignore[typeddict-item]


class Track:
    """A logarithmic axis from the floor (or the fastest, where no floor is known) to the slowest, as percent."""

    def __init__(self, rows: list[Record]):
        times = [value(r, "median_s") for r in rows if r.get("median_s")]
        floors = [value(r, "floor_s") for r in rows if r.get("floor_s")]
        self.least, self.most = min([*times, *floors], default=1.0), max(times, default=1.0)

    def place(self, seconds: float | None) -> float | None:
        if not seconds:
            return None
        whole = math.log(self.most / self.least)
        return round(ROOM + (100 - ROOM) * (math.log(seconds / self.least) / whole if whole else 0.0), 2)


def _rung(r: Record, track: Track) -> Rung:
    seconds = r.get("median_s")
    time = duration(seconds) if seconds else ""
    return Rung(r["variant"], backend_of(r["variant"]), r.get("story", ""), time, at=track.place(seconds))


def _step(old: Record, new: Record, first: Record, track: Track) -> Rung:
    rung = _rung(new, track)
    if all(r.get("median_s") for r in (first, old, new)) and not noisy(new):
        rung.gain = gain_text(old, new)
        rung.total = "" if old is first or tied(first, new) else gain_text(first, new)
    rung.gain = ": ".join(filter(None, (rung.gain, technique(new.get("story", "")))))
    rung.saves = _saves(old, new)
    return rung


def gain_text(old: Record, new: Record) -> str:
    """×10.6, or that the run cannot tell the two apart."""
    if tied(old, new):
        return SAME
    ratio = old["median_s"] / new["median_s"]
    return f"×{ratio:.3g}" if ratio >= 1 else f"×{ratio:.2f} (slower)"


def technique(story: str) -> str:
    """The first clause of a story that says something: `128 x 128 tiles in shared memory`. A single word before a
    colon (`Hopper:`) names where, not how."""
    clauses = [c.strip() for c in re.split(r"[,;:.](?:\s|$)", story) if c.strip()]
    told = next((c for c in clauses if " " in c), story.strip(" ."))
    return told[:1].lower() + told[1:] if told[1:2].islower() or told[1:2] == " " else told


def _saves(old: Record, new: Record) -> list[str]:
    """What a step of the ladder saves, or takes more of: time of a call, and of a training step; bytes; resources."""
    told = []
    if old.get("median_s") and new.get("median_s") and not noisy(new) and not tied(old, new):
        saved = old["median_s"] - new["median_s"]
        told.append(f"{_signed(saved)} a call")
        if (calls := new.get("calls") or 0) > 1:
            told.append(f"{_signed(saved * calls)} a training step ({calls} calls)")
    for name, form in SAVED.items():
        before, after = old.get(name), new.get(name)
        if isinstance(before, int | float) and isinstance(after, int | float) and before != after:
            texts = COLUMNS[name].told([old]), COLUMNS[name].told([new])
            told += [form.format(*texts)] if texts[0] != texts[1] else []
    return told


def _signed(saved: float) -> str:
    return ("−" if saved > 0 else "+") + duration(abs(saved))


def _floor(own: list[Record], track: Track) -> list[Rung]:
    """The last rung: what the best is still away from it."""
    timed = [r for r in own if r.get("median_s")]
    floor = next((r["floor_s"] for r in timed if r.get("floor_s")), None)
    if not floor:
        return []
    best = min(timed, key=_seconds)
    ratio = best["median_s"] / floor
    left = (
        f"×{ratio:.3g} left"
        if ratio >= 1
        else f"{best['variant']} is {percent(1 / ratio)} of it: {beyond(best, 1 / ratio)}"
    )
    story = "No call can take less: the contract's bytes and FLOPs at the ceilings that this machine showed."
    return [Rung("the floor", "floor", story, duration(floor), left, at=track.place(floor))]


def _said(rows: list[Record], own: list[Record], others: list[Record]) -> list[str]:
    said = []
    if own[0]["status"] == "simulated":
        said.append("Run by the simulator: right, and counted. There are no times, and so no gains.")
    parts = [f"{r['variant']} ({cases_text(r)} cases)" for r in rows if partial(r)]
    said += [f"Right in a part of the contract, and therefore not on it: {', '.join(parts)}."] if parts else []
    shown = {r["variant"] for r in (*own, *others)} | {r["variant"] for r in rows if partial(r)}
    lost = [f"{r['variant']} ({r['status']})" for r in rows if r["variant"] not in shown]
    said += [f"Not on it: {', '.join(dict.fromkeys(lost))}."] if lost else []
    return said
