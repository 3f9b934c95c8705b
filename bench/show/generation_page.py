"""The page of generations: decode against the bandwidth floor, with weights kept in less and less; prefill; where a
step goes. From the records of `bench.generate` alone (bench/records/record.py, `Generation`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.cli import CannotGoOn
from bench.records.read import Loaded, latest
from bench.records.record import Record
from bench.show import Point
from bench.show.limits import ranks_nothing, widest_half
from bench.show.page import Chart
from bench.show.texts import DASH, duration, multiple, number, percent

TEMPLATE = "generation.html.j2"
KIND = "generate"
OURS = "ours"
PREFILL, DECODE = "prefill", "decode"
RUNGS = ("fp32", "bf16", "q8_0")  # of the ladder: what weights are kept in
ABOVE = {
    "mbu": "MBU above 100%: the weights that a step reads fit into the last-level cache, or the bandwidth was measured "
    "while other programs were at work",
    "mfu": "MFU above 100%: int8 weights are multiplied by instructions for bytes, and the ceiling is that of matmuls "
    "in the working dtype, or it was measured while other programs were at work",
}
MOST_PARTS = 12  # of a step that are shown


def is_generation(runs: Iterable[Loaded]) -> bool:
    found = list(runs)
    return bool(found) and all(run.kind == KIND for run in found)


def above(rows: Iterable[Record]) -> list[str]:
    """Why some are above 100% of what was measured here, a sentence for each kind."""
    rows = list(rows)
    return [why for share, why in ABOVE.items() if any((r.get(share) or 0.0) > 1 for r in rows)]  # type: ignore[operator]


@dataclass
class Row:
    name: str
    story: str
    cells: list[str]


@dataclass
class Rung:
    """Of the ladder: one form of the weights, and what it gains on the first."""

    form: str
    rate: str
    gain: str  # of tokens a second, against the first rung
    fewer: str  # bytes that a step reads, against the first rung
    mbu: str


class Page:
    """What generation.html.j2 shows. CannotGoOn where nothing was timed."""

    decode_columns = (
        "check",
        "tokens/s",
        "a step",
        "MBU",
        "at the floor",
        "speed",
        "reads",
        "weights",
        "cache",
        "peak",
    )
    prefill_columns = ("tokens/s", "time", "MFU", "first token", "speed")

    def __init__(self, runs: list[Loaded], title: str | None = None):
        several = len(runs) > 1
        self.records = [
            (f"{r['variant']}, {run.folder.name}" if several else r["variant"], r)
            for run in runs
            for r in latest(run.records).values()
        ]
        timed = [(name, r) for name, r in self.records if r.get("median_s") and r.get("tokens_per_s")]
        if not timed:
            raise CannotGoOn(f"nothing to report: nothing was timed in {', '.join(str(run.folder) for run in runs)}")
        models = " and ".join(dict.fromkeys(r["layer"] for _, r in timed))
        self.title = title or f"Text from {models}"
        self.data: dict[str, Chart] = {}
        decode = [(name, r) for name, r in timed if r["phase"] == DECODE]
        prefill = [(name, r) for name, r in timed if r["phase"] == PREFILL]
        if decode:
            self.data[DECODE] = Chart(
                "tokens", _points(decode), "tokens a second of decode, and at the bandwidth floor"
            )
        if prefill:
            self.data[PREFILL] = Chart("tokens", _points(prefill), "tokens a second of prefill, and at the matmul rate")
        none = ranks_nothing(widest_half(r for _, r in decode))
        self.decode = [Row(name, r.get("story", ""), _decode_cells(r, none)) for name, r in decode]
        self.prefill = [Row(name, r.get("story", ""), _prefill_cells(r, none)) for name, r in prefill]
        self.ladders = [] if none else _ladders(decode)
        self.parts = [(name, _parts(r)) for name, r in decode if r.get("in_context_s")]
        self.kernels = {} if several else {call: v for _, r in timed for call, v in _kernels(r).items()}
        self.troubles = [
            f"{name}, {r['phase']}: {r['status']}: {r.get('evidence') or ''}"
            for name, r in self.records
            if r["status"] != "ok"
        ]
        if none:
            self.troubles.append(none)
        self.troubles += above(r for _, r in timed)
        self.sizes = list(dict.fromkeys(_sizes(r) for _, r in timed))
        self.ceilings = list(dict.fromkeys(filter(None, (_ceiling(r) for _, r in timed))))
        self.commands = [str(run.environment["command"]) for run in runs if "command" in run.environment]
        self.machines = list(dict.fromkeys(_machine(run) for run in runs))
        self.folders = [Path(run.folder).name for run in runs]


def _points(rows: list[tuple[str, Record]]) -> list[Point]:
    found = []
    for name, r in rows:
        rate = r["tokens_per_s"]
        work = rate * r["median_s"]  # tokens
        low = work / slowest if (slowest := r.get("high_s")) else rate
        high = work / r["low_s"] if r.get("low_s") else rate
        limit = work / floor if (floor := r.get("floor_s")) else None
        name_of, share = ("MBU", r.get("mbu")) if r["phase"] == DECODE else ("MFU", r.get("mfu"))
        text = f"{rate:,.1f}" + (f", {name_of} {percent(share)}" if share is not None else "")
        kind = OURS if r["variant"].startswith(OURS) else "others"
        reach = max(rate, high, limit or 0.0)
        found.append(
            dict(contestant=name, rate=rate, low=low, high=high, limit=limit, reach=reach, kind=kind, text=text)
        )
    return found


def _check(r: Record) -> str:
    if "error_ratio" not in r:
        return DASH
    same = f", {r.get('same_tokens')} of {r['checked_tokens']}" if "checked_tokens" in r else ""
    return f"{multiple(r['error_ratio'])}{same}"


def _decode_cells(r: Record, none: str) -> list[str]:
    floor = r.get("floor_s")
    at_floor = f"{r['tokens_per_s'] * r['median_s'] / floor:,.1f}" if floor else DASH
    peak = r.get("peak_bytes")
    return [
        _check(r),
        f"{r['tokens_per_s']:,.1f}",
        duration(r["median_s"]),
        percent(r.get("mbu")),
        at_floor,
        _speed(r, none),
        *(f"{number(value, 1e6)} MB" if value else DASH for value in (r.get("bytes"), r.get("weight_bytes"))),
        *(f"{number(value, 1e6)} MB" if value else DASH for value in (r.get("cache_bytes"), peak)),
    ]


def _prefill_cells(r: Record, none: str) -> list[str]:
    first = duration(r["first_token_s"]) if r.get("first_token_s") is not None else DASH
    return [f"{r['tokens_per_s']:,.0f}", duration(r["median_s"]), percent(r.get("mfu")), first, _speed(r, none)]


def _speed(r: Record, none: str) -> str:
    """none: why nothing is ranked."""
    return f"{r['speedup']:.2f}x {r.get('baseline', '')}" if r.get("speedup") and not none else DASH


def _ladders(decode: list[tuple[str, Record]]) -> list[tuple[str, list[Rung]]]:
    """(model, its ladder) of what can be compared: the same model, batch and lengths."""
    alike: dict[tuple[str, str], list[Record]] = {}
    for _, r in decode:
        alike.setdefault((r["layer"], str({**r["shape"], "G": 0})), []).append(r)
    return [(model, rungs) for (model, _), records in alike.items() if (rungs := _ladder(records))]


def _ladder(records: list[Record]) -> list[Rung]:
    """Ours by what weights are kept in, where there are two forms at least; of several runs the fastest counts."""
    best: dict[str, Record] = {}
    for r in records:
        form = r.get("weights", "")
        if r["variant"].startswith(OURS) and form in RUNGS and r["status"] == "ok":
            best[form] = min(best.get(form, r), r, key=lambda row: row["median_s"])
    rungs = [best[form] for form in RUNGS if form in best]
    if len(rungs) < 2:
        return []
    first = rungs[0]
    return [
        Rung(
            r["weights"],
            f"{r['tokens_per_s']:,.1f} tokens/s",
            f"{first['median_s'] / r['median_s']:.2f}x",
            f"{first['bytes'] / r['bytes']:.2f}x fewer bytes" if r.get("bytes") and first.get("bytes") else "",
            f"{percent(r.get('mbu'))} of the read bandwidth",
        )
        for r in rungs
    ]


def _parts(r: Record) -> list[tuple[str, list[str]]]:
    """Of a step, launched call by call: the largest parts and their variants."""
    inside, names = r["in_context_s"], _kernels(r)
    total = sum(inside.values()) or 1.0
    ranked = sorted(inside, key=inside.__getitem__, reverse=True)
    rows = [
        (
            call.removesuffix(" forward"),
            [str(names.get(call, DASH)), duration(inside[call]), percent(inside[call] / total)],
        )
        for call in ranked[:MOST_PARTS]
    ]
    if rest := ranked[MOST_PARTS:]:
        left = sum(inside[call] for call in rest)
        rows.append((f"{len(rest)} more", [DASH, duration(left), percent(left / total)]))
    return rows


def _kernels(r: Record) -> dict[str, str]:
    """The variant of each call; of others' rows none."""
    found = r.get("kernels")
    return found if isinstance(found, dict) else {}


def _sizes(r: Record) -> str:
    s = r.get("shape") or {}
    return f"{r['layer']}: B={s.get('B')}, a prompt of {s.get('T')} tokens, {s.get('steps')} tokens each"


def _ceiling(r: Record) -> str:
    if rate := r.get("ceiling_bytes_per_s"):
        return f"read bandwidth {number(rate, 1e9)} GB/s"
    if rate := r.get("ceiling_flops_per_s"):
        return f"{r['dtype']} matmuls {number(rate, 1e9)} GFLOP/s"
    return ""


def _machine(run: Loaded) -> str:
    cpu, gpus = run.environment.get("cpu", {}), run.environment.get("gpus") or []
    names = [str(gpu.get("name")) for gpu in gpus if any(r.get("device", "cpu") != "cpu" for r in run.records)]
    return ", ".join([*names, f"{cpu.get('model') or 'unknown CPU'}, {cpu.get('usable', '?')} cores"])
