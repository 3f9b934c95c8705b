"""How far a run's own numbers can be believed: when it ranks nothing, and why a row may be above its ceiling."""

import math
from collections.abc import Iterable
from typing import Protocol

from bench.records.record import Record
from bench.show.texts import percent


class Ceilings(Protocol):
    """What is asked of bench.machine.ceilings.Ceilings, which loads torch."""

    @property
    def cache_bytes(self) -> int: ...
    @property
    def busy(self) -> str | None: ...


RANKS_TO = 0.5  # of a noise floor, as bench.doctor has it: beyond it an entry differs from itself by more than half


def noise_of(rows: Iterable[Record]) -> float | None:
    """The noise floor of a race, from any of its rows; None where there was no control."""
    return max((floor for r in rows if (floor := r.get("noise_floor")) is not None), default=None)


def widest_half(rows: Iterable[Record]) -> float | None:
    """How well times are known: the widest half of a 95 % interval, of its median; None where single rounds tell
    nothing."""
    known = [(r["low_s"], high, r["median_s"]) for r in rows if math.isfinite(high := r.get("high_s") or math.inf)]
    return max(((high - low) / 2 / median for low, high, median in known), default=None)


def ranks(row: Record) -> bool:
    """Whether the race that a row is of can say who is faster."""
    return (row.get("noise_floor") or 0.0) <= RANKS_TO


def ranks_nothing(noise: float | None) -> str:
    """The sentence of a run that tells nobody apart; "" of one that does."""
    return f"this run ranks nothing: the noise floor is ±{percent(noise)}" if (noise or 0.0) > RANKS_TO else ""


def above_ceiling(rows: Iterable[Record], known: Ceilings | None) -> list[str]:
    """A sentence with its reason for each variant that took less than its floor at the measured ceilings."""
    found: dict[str, list[Record]] = {}
    for r in rows:
        if (r.get("of_ceiling") or 0.0) > 1:
            found.setdefault(r["variant"], []).append(r)
    lines = []
    for name, above in found.items():
        shares = ", ".join(f"{percent(r['of_ceiling'])} {r['cache']}" for r in above)
        most = max(above, key=lambda r: r["of_ceiling"] or 0.0)
        lines.append(f"{name}: {shares}, of its ceiling: {why(most, known)}")
    return lines


def why(row: Record, known: Ceilings | None) -> str:
    """What may be the reason that a record is above its ceiling; the likeliest first."""
    memory_s = row["bytes"] / rate if (rate := row.get("ceiling_bytes_per_s")) else 0.0
    compute_s = row["flops"] / rate if (rate := row.get("ceiling_flops_per_s")) else 0.0
    cache = known.cache_bytes if known else 0
    if memory_s >= compute_s and row["bytes"] <= 2 * cache:
        size, room = row["bytes"] / 1e6, cache / 1e6
        told = f"much of its {size:.3g} MB finds room in the last cache ({room:.3g} MB)"
        return f"{told}, and the ceiling is memory's"
    if known and known.busy:
        return f"the ceiling was measured on a busy machine ({known.busy}); python -m bench.doctor --refresh"
    over, floor = (row["of_ceiling"] or 0.0) - 1, max(row.get("noise_floor") or 0.0, row.get("noise") or 0.0)
    if over <= floor:
        return f"within this run's noise of ±{percent(floor)}"
    return "the ceiling was measured too low, in a worse hour of this machine; python -m bench.doctor --refresh"
