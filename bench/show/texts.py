"""Numbers as people read them, the same in every table and on every page."""

import math

from bench.records import DASH
from bench.records.queries import partial
from bench.records.record import Record


def duration(seconds: float) -> str:
    """1.23 ms, 45.6 µs: three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale or unit == "µs":  # what three digits round up to the next unit belongs there
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError


def percent(share: float | None) -> str:
    if share is None:
        return DASH
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def multiple(ratio: float | None) -> str:
    return DASH if ratio is None else f"{three_digits(ratio)}x"


def number(value: float | None, scale: float) -> str:
    return DASH if value is None else three_digits(value / scale)


def three_digits(value: float) -> str:
    """0.0123, 45.6, 1,020: whole where three digits do not reach, and no power of ten."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < math.inf else f"{value:.3g}"


def ratio_text(ratio: float | None) -> str:
    """An error in units of plain torch's."""
    return DASH if ratio is None else f"{ratio:.2g}x" if ratio < 1000 else f"{ratio:.0e}x"


MOST_LACKS = 3  # that a row tells of


def coverage_text(record: Record) -> str:
    """`for 7 of 9 cases; not: grouped queries`, of a record that is right in a part of its contract."""
    lacks = record["not_supported"]
    more = [f"{len(lacks) - MOST_LACKS} more"] if len(lacks) > MOST_LACKS else []
    told = ", ".join([*lacks[:MOST_LACKS], *more])
    return f"for {record.get('proof_cases', DASH)} of {record.get('proof_cases_all', DASH)} cases; not: {told}"


def bits_text(deterministic: bool | None) -> str:
    return {True: "same", False: "differ", None: DASH}[deterministic]


def time_text(row: Record) -> str:
    """A record's median and half of its 95 % interval."""
    seconds, high = row.get("median_s"), row.get("high_s")
    if seconds is None:
        return DASH
    if high is None or high == float("inf"):
        return duration(seconds)
    return f"{duration(seconds)} {percent((high - row['low_s']) / 2 / seconds):>4}"


def speed_text(row: Record) -> str:
    """Speed against the fastest PyTorch entry; "=" where the difference is no difference."""
    speed = row.get("speedup")
    if speed is None or row["status"] != "ok" or partial(row):  # PyTorch's covers what this one does not
        return DASH
    # A difference that the A/A control shows as well, or whose interval holds 1, is none.
    # Of a single round nothing is known but the ratio: its interval has no upper end.
    low, high = row.get("speedup_low") or 0.0, row.get("speedup_high") or math.inf
    same = abs(speed - 1) <= (row.get("noise_floor") or 0.0) or low <= 1 <= high
    return f"{speed:.2f}x" + (" =" if same else "")


def change_text(ratio: float) -> str:
    """+5.2% of a time that is 1.052 times as long; multiples where that is easier to read."""
    if ratio >= 3:
        return f"{ratio:.2g}x"
    percent = round((ratio - 1) * 100, 1) + 0.0  # no -0.0
    return f"{percent:+.1f}%" if abs(percent) < 9.95 else f"{percent:+.0f}%"
