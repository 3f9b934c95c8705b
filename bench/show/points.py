"""What the report's charts are drawn of, worked out from records: a row a mark."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from bench.records.queries import partial
from bench.records.record import Record
from bench.show import Point, limits
from bench.show.columns import cases_text, value
from bench.show.page import backend_of
from bench.show.texts import DASH, duration, percent, speed_text

MOST_SAMPLES = 40  # of a row that are drawn
FEWEST_SIZES = 3  # of an axis that are a sweep: two have no shape between them

# Sizes that tell nothing of how much work it is.
HIDDEN = ("eps", "accumulate", "beta1", "beta2", "tensors")

T = TypeVar("T")
Key = TypeVar("Key")


def grouped(items: Iterable[T], key: Callable[[T], Key]) -> dict[Key, list[T]]:
    groups: dict[Key, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def noisy(r: Record) -> bool:
    """Whether the case that a row is of ranks nothing."""
    return not limits.ranks(r)


def beyond(r: Record, share: float) -> str:
    """Why a row may have taken less than its floor: `share` of it is above 1."""
    known: Record = {"flops": 0, "bytes": 0, **r, "of_ceiling": share}  # type: ignore[typeddict-item]
    return f"faster than its floor: {limits.why(known, None)}"


def standing(r: Record) -> str:
    """How a row stands against PyTorch's fastest: faster, tied, slower; noisy where its case ranks nothing; "" where
    there is nothing to stand against."""
    told = speed_text(r)
    if told == DASH:
        return ""
    if noisy(r):
        return "noisy"
    return "tied" if told.endswith("=") else "faster" if value(r, "speedup") > 1 else "slower"


def tied(old: Record, new: Record) -> bool:
    """Whether two times differ by no more than noise: below the noise floor of either, or the intervals meet."""
    ratio = value(old, "median_s") / value(new, "median_s")
    ends = [(r.get("low_s") or 0.0, _finite(r.get("high_s"), float("inf"))) for r in (old, new)]
    meet = max(low for low, _ in ends) <= min(high for _, high in ends)
    return meet or max(ratio, 1 / ratio) - 1 <= max(r.get("noise_floor") or 0.0 for r in (old, new))


@dataclass
class Best:
    """The fastest right own kernel of a case, beside the fastest PyTorch entry."""

    row: Record
    rival: Record | None
    sizes: str = ""  # by which it differs from others that are called the same: a sweep's

    @property
    def layer(self) -> str:
        return self.row["layer"]

    @property
    def case(self) -> str:
        r, shape = self.row, (self.row.get("shape_name") or "").partition("/")[2]
        return " ".join(x for x in (r["layer"], shape, r["phase"], r["dtype"], self.sizes) if x)

    @property
    def noisy(self) -> bool:
        return noisy(self.row)

    @property
    def text(self) -> str:
        """How it stands against PyTorch; nothing of a case that ranks nothing."""
        return DASH if self.noisy else speed_text(self.row)

    @property
    def time(self) -> str:
        return duration(self.row["median_s"])

    @property
    def rival_time(self) -> str:
        return duration(self.rival["median_s"]) if self.rival else DASH


def told_apart(best: list[Best]) -> list[Best]:
    """The same, those of one name with the sizes in which they differ."""
    for same in grouped(best, lambda b: b.case).values():
        shapes = [b.row.get("shape") or {} for b in same]
        differing = [k for k in shapes[0] if any(k not in s or s[k] != shapes[0][k] for s in shapes)]
        for b, shape in zip(same, shapes, strict=True):
            b.sizes = " ".join(f"{k}={shape[k]}" for k in differing if k in shape)
    return best


def time_rows(rows: list[Record]) -> list[Point]:
    found = []
    for r in sorted(rows, key=lambda r: r["median_s"]):
        low, high = r.get("low_s") or r["median_s"], _finite(r.get("high_s"), r["median_s"])
        samples = [s * 1e3 for turn in r.get("samples") or [] for s in turn]
        found.append(
            dict(
                variant=r["variant"],
                story=r.get("story", ""),
                backend=backend_of(r["variant"]),
                ms=r["median_s"] * 1e3,
                low=low * 1e3,
                high=high * 1e3,
                samples=samples[:: max(1, -(-len(samples) // MOST_SAMPLES))],
                reach=max([high * 1e3, *samples]),
                floor=_milliseconds(r.get("floor_s")),
                text=_time_text(r),
            )
        )
    return found


def _time_text(r: Record) -> str:
    """12 ms  2.00x; what is right in a part of the contract says so instead."""
    if partial(r):
        return f"{duration(r['median_s'])}  {cases_text(r)} cases"
    return duration(r["median_s"]) + (f"  {speed_text(r)}" if r.get("speedup") and not noisy(r) else "")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def sweeps(rows: list[Record]) -> dict[str, list[Point]]:
    """The shape sweeps among a layer's timed rows, by what they are of: times over the axis that varies while all
    other sizes stay. The shapes that a model gives names (its qkv and fc) are no sweep."""
    found: dict[str, list[Point]] = {}
    timed = [r for r in rows if r["status"] == "ok" and r.get("median_s") and r.get("cache") != "warm"]
    for (phase, dtype, name), same in grouped(timed, lambda r: (r["phase"], r["dtype"], r.get("shape_name"))).items():
        for axis in dict.fromkeys(k for r in same for k, v in (r.get("shape") or {}).items() if _is_size(v)):
            for others, group in grouped(
                [r for r in same if _is_size((r.get("shape") or {}).get(axis))], _without(axis)
            ).items():
                if len({r["shape"][axis] for r in group}) >= FEWEST_SIZES:
                    sizes = " ".join(f"{k}={v}" for k, v in others if k not in HIDDEN)
                    title = " ".join(
                        filter(None, (phase, name, dtype, f"over {axis};" if sizes else f"over {axis}", sizes))
                    )
                    found[title] = _sweep_rows(axis, group)
    return found


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool)


def _without(axis: str) -> Callable[[Record], tuple[tuple[str, str], ...]]:
    return lambda r: tuple((k, str(v)) for k, v in r["shape"].items() if k != axis)


def _sweep_rows(axis: str, rows: list[Record]) -> list[Point]:
    points = []
    for r in sorted(rows, key=lambda r: r["shape"][axis]):
        ms, whole = r["median_s"] * 1e3, "" if not partial(r) else f", right in {cases_text(r)} cases"
        ends = dict(low=(r.get("low_s") or r["median_s"]) * 1e3, high=_finite(r.get("high_s"), r["median_s"]) * 1e3)
        size = f"{axis}={r['shape'][axis]}"
        text = f"{size}: {duration(r['median_s'])}, {percent(r.get('of_ceiling'))} of the ceiling{whole}"
        known: Point = dict(axis=axis, at=r["shape"][axis], variant=r["variant"], backend=backend_of(r["variant"]))
        points.append(known | ends | dict(ms=ms, floor=_milliseconds(r.get("floor_s")), text=text))
    return points


def best_rows(best: Iterable[Best]) -> list[Point]:
    return [
        dict(
            case=b.case,
            variant=b.row["variant"],
            backend=backend_of(b.row["variant"]),
            speedup=b.row["speedup"],
            low=b.row["speedup_low"],
            high=b.row["speedup_high"],
            limit=(limit := b.row["speedup"] / share if (share := b.row.get("of_ceiling")) else None),
            reach=max(b.row["speedup_high"], b.row["speedup"], limit or 1, 1),
            noisy=b.noisy,
            text=f"{'too noisy,' if b.noisy else b.text} {b.row['variant']}",
        )
        for b in best
        if b.row.get("speedup") and None not in (b.row.get("speedup_low"), b.row.get("speedup_high"))
    ]


def error_rows(rows: list[Record]) -> list[Point]:
    worst: dict[tuple[str, str, str], Record] = {}
    for r in rows:
        key = (r["variant"], r["phase"], r["dtype"])
        if r.get("error_ratio") is not None and value(r, "error_ratio") >= value(worst.get(key, r), "error_ratio"):
            worst[key] = r
    return [
        dict(
            variant=variant,
            backend=backend_of(variant),
            phase=f"{phase} {dtype}",
            error=r["error_ratio"],
            text=f"{value(r, 'error_ratio'):.2g}x plain torch's, {dtype}, {cases_text(r)} cases",
        )
        for (variant, phase, dtype), r in sorted(worst.items())
    ]


def measured_peaks(rows: list[Record]) -> dict[str, float]:
    """FLOP/s by dtype of the ceilings that floors were worked out from. Where a record does not tell (they once did
    not), matmul's floor does: no other layer is bound by it."""
    peaks: dict[str, float] = {}
    for r in rows:
        floor = r.get("floor_s") if r["layer"] == "matmul" else None
        peak = r.get("ceiling_flops_per_s") or ((r.get("flops") or 0) / floor if floor else 0.0)
        peaks[r["dtype"]] = max(peak, peaks.get(r["dtype"], 0.0))
    return {dtype: peak for dtype, peak in peaks.items() if peak}


def roofline_rows(rows: list[Record], peaks: dict[str, float]) -> list[Point]:
    """A point a timed row; the roofs that their floors were worked out from, measured on the machine; and its maker's
    where they are known."""
    timed = [r for r in rows if r["status"] == "ok" and r.get("median_s") and r.get("flops") and r.get("bytes")]
    timed = [r for r in timed if r.get("cache") != "warm"]
    points = [
        dict(
            kind="point",
            intensity=r["flops"] / r["bytes"],
            gflops=r["flops"] / r["median_s"] / 1e9,
            variant=r["variant"],
            backend=backend_of(r["variant"]),
            phase=r["phase"],
            case=f"{r['phase']} {r.get('shape_name')} {r['dtype']}",
            text=f"{duration(r['median_s'])}, {percent(r.get('of_ceiling'))} of the ceiling",
        )
        for r in timed
    ]
    for dtype, found in grouped([r for r in timed if r.get("floor_s")], lambda r: r["dtype"]).items():
        at = [r["flops"] / r["bytes"] for r in found]
        ends = min(at) / 2, max(at) * 2
        bandwidth = max(r.get("ceiling_bytes_per_s") or r["bytes"] / value(r, "floor_s") for r in found)
        points += _roof(f"measured ceiling, {dtype}", *ends, bandwidth, peaks.get(dtype))
        sheets = {(r.get("datasheet_bytes_per_s"), r.get("datasheet_flops_per_s")) for r in found}
        for rate, peak in sorted((rate, peak) for rate, peak in sheets if rate):
            points += _roof(f"datasheet, {dtype}", *ends, rate, peak)
    return points


def _roof(name: str, least: float, most: float, bandwidth: float, peak: float | None) -> list[Point]:
    """Corners of min(bandwidth * intensity, peak) between two intensities; no peak where none is known."""
    corner = peak / bandwidth if peak else most
    ends = sorted({least, min(max(corner, least), most), most})
    return [
        dict(
            kind="roof",
            name=name,
            label=x == most,
            intensity=x,
            gflops=min(peak or float("inf"), x * bandwidth) / 1e9,
        )
        for x in ends
    ]


def waterfall_rows(rows: list[Record]) -> list[Point]:
    """Our step by layers, what is left over, and PyTorch's as a whole."""
    found = []
    for r in rows:
        parts: dict[str, float] = {}
        for key, seconds in (r.get("in_context_s") or {}).items():
            layer = key.partition(" ")[0].partition("/")[0]  # "matmul/qkv forward"
            parts[layer] = parts.get(layer, 0.0) + seconds * 1e3
        total = (r.get("median_s") or 0.0) * 1e3
        if not total:
            continue
        at = 0.0
        listed = sorted(parts.items(), key=lambda part: -part[1]) or [("whole step", total)]
        for i, (part, ms) in enumerate(listed):
            text = f"{ms:.3g} ms, {ms / total:.0%} of the step"
            found.append(dict(contestant=r["variant"], part=part, start=at, end=at + ms, order=i, text=text))
            at += ms
        if parts and total > at:
            text = f"{total - at:.3g} ms, {(total - at) / total:.0%} of the step"
            found.append(dict(contestant=r["variant"], part="remainder", start=at, end=total, order=99, text=text))
    return found


def loss_rows(rows: list[Record]) -> list[Point]:
    return [
        dict(contestant=r["variant"], step=i + 1, value=loss)
        for r in rows
        for i, loss in enumerate(r.get("losses") or [])
    ]


def swap_rows(rows: list[Record]) -> list[Point]:
    """Of each `ours, layer=variant`: the step's change, beside what its layers' times in context and alone predict."""
    found = []
    for r in rows:
        if r.get("change_s") is None:
            continue
        swap, measured = r["variant"].partition(", ")[2], r["change_s"] * 1e3
        ends = [_finite(r.get(name), r["change_s"]) * 1e3 for name in ("change_low_s", "change_high_s")]
        predictions = {"in context": r.get("predicted_in_context_s"), "alone": r.get("predicted_alone_s")}
        for by, predicted in predictions.items():
            if predicted is not None:
                text = f"predicted {predicted * 1e3:+.3g} ms, measured {measured:+.3g} ms"
                change = dict(predicted=predicted * 1e3, measured=measured, low=ends[0], high=ends[1])
                found.append(dict(swap=swap, by=f"layers {by}", text=text, **change))
    return found


def _finite(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else otherwise
