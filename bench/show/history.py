"""A layer's times over all result sets, as a table and a picture."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core.files import put, write_atomically
from bench.records.queries import Case, case_of, coverage, device_name, newest
from bench.records.read import Loaded, load
from bench.records.record import Record
from bench.show import Spec
from bench.show.comparison import case_texts
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console
from bench.show.texts import DASH, change_text, percent, time_text


@dataclass
class Point:
    """One set's time of a case, in seconds, and how it differs from the set before on the same machine."""

    case: Case
    machine: str
    when: str
    commit: str
    record: Record
    before: "Point | None" = None

    @property
    def change(self) -> float | None:
        return self.record["median_s"] / self.before.record["median_s"] if self.before else None

    @property
    def within_noise(self) -> bool:
        """Whether the change is below the noise floor of either set, or the two intervals meet."""
        if not self.before or not self.change:
            return False
        old, new = self.before.record, self.record
        floor = max(r.get("noise_floor") or 0.0 for r in (old, new))
        ends = [(r.get("low_s") or 0.0, r.get("high_s") or math.inf) for r in (old, new)]
        meet = max(low for low, _ in ends) <= min(high for _, high in ends)
        return meet or max(self.change, 1 / self.change) - 1 <= floor


def chosen(results: Path, layer: str, cache: str, variants: str | None, device: str | None) -> list[Point]:
    """The history of a layer under a folder; of a comma list of variants alone, and of a device: its name, or a part
    of its machine's. CannotGoOn where there is none."""
    runs = load(results, strict=False)  # one damaged folder is no reason to tell nothing of the others
    cli.choose(layer, sorted({r.get("layer") or "" for run in runs for r in run.records}), "layer in the results")
    points = history(runs, layer, cache)
    if variants:
        known = sorted({p.case.variant for p in points})
        wanted = [cli.choose(v, known, f"variant of {layer} in the results") for v in variants.split(",")]
        points = [p for p in points if p.case.variant in wanted]
    if device:
        name = device.lower()
        points = [p for p in points if name == p.case.device.lower() or name in p.machine.lower()]
    if not points:
        on = f" on {device}" if device else ""
        raise CannotGoOn(f"no {cache} times of {layer}{on} in the results")
    return points


def history(runs: list[Loaded], layer: str, cache: str) -> list[Point]:
    """Right times of a layer: by machine, case and variant, the oldest first."""
    points = []
    for run in runs:
        git = run.environment.get("git") or {}
        commit = (git.get("commit") or "")[:9] + ("+" if git.get("dirty") else "")
        for _, r in newest([run]):
            case = case_of(r)
            if r["status"] == "ok" and r.get("median_s") and case.layer == layer and case.cache in (cache, ""):
                when = run.environment.get("started") or r.get("utc") or ""
                points.append(Point(case, device_name(run, r), when, commit, r))
    points.sort(key=lambda p: (p.machine, p.case, p.when))
    for old, new in itertools.pairwise(points):
        alike = coverage(old.record) == coverage(new.record)  # times of unequal work are no change
        if alike and (old.machine, old.case) == (new.machine, new.case):
            new.before = old
    return points


def print_table(layer: str, points: list[Point]) -> None:
    screen = console()
    texts = case_texts([p.case for p in points])
    for machine in dict.fromkeys(p.machine for p in points):
        numbers = [("time ±95 %", 0), ("change", 0), ("noise floor", 2), ("of ceiling", 3)]
        heads = [Col("case"), Col("variant"), Col("measured", rank=1), Col("commit", rank=5)]
        heads += [Col(name, right=True, rank=rank) for name, rank in numbers]
        sheet = Sheet(f"{layer} on {machine}", [*heads, Col("source", rank=4)])
        last: tuple[str, str] = ("", "")
        for p in (p for p in points if p.machine == machine):
            series = texts[p.case], p.case.variant
            shown = ("", "") if series == last else series
            last = series
            change, source = DASH, ""
            if p.before and p.change:
                change = change_text(p.change) + (" =" if p.within_noise else "")
                source = "" if p.record.get("source_hash") == p.before.record.get("source_hash") else "changed"
            shares = percent(p.record.get("noise_floor")), percent(p.record.get("of_ceiling"))
            when = p.when[:16].replace("T", " ")
            sheet.add(*shown, when, p.commit, time_text(p.record), change, *shares, source)
        sheet.print(screen)
        screen.print()
    screen.print("commit+: with changes that were not committed. =: within the noise.", style="dim", highlight=False)


def draw(layer: str, points: list[Point], file: Path) -> None:
    """A panel a case and machine: time over the dates of the sets, a line a variant. A .html file needs no network."""
    try:
        import vl_convert
    except ImportError:
        raise CannotGoOn("a picture needs vl-convert: pip install vl-convert-python") from None

    spec = specification(layer, points)
    try:
        if file.suffix == ".html":
            write_atomically(file, vl_convert.vegalite_to_html(spec, bundle=True))
        else:
            put(file, vl_convert.vegalite_to_png(spec, scale=2))
    except OSError as error:
        raise CannotGoOn(f"cannot write {file}: {error.strerror}") from error


def specification(layer: str, points: list[Point]) -> Spec:
    """The chart in Vega-Lite."""
    texts = case_texts([p.case for p in points])
    rows = [
        {
            "panel": f"{texts[p.case]}, {p.machine}",
            "variant": p.case.variant,
            "when": p.when,
            "commit": p.commit,
            "ms": p.record["median_s"] * 1e3,
            "low": (p.record.get("low_s") or p.record["median_s"]) * 1e3,
            "high": (p.record.get("high_s") or p.record["median_s"]) * 1e3,
        }
        for p in points
    ]
    when = {"field": "when", "type": "temporal", "title": None}
    colour = {"field": "variant", "type": "nominal", "legend": {"orient": "bottom", "columns": 4, "title": None}}
    time = {"type": "quantitative", "scale": {"type": "log"}, "title": "ms"}
    told = [{"field": name, "type": "nominal"} for name in ("variant", "commit")] + [{"field": "ms", "format": ".4g"}]
    line = {
        "mark": {"type": "line", "point": True},
        "encoding": {"x": when, "y": time | {"field": "ms"}, "color": colour, "tooltip": told},
    }
    interval = {
        "mark": "rule",
        "encoding": {"x": when, "y": time | {"field": "low"}, "y2": {"field": "high"}, "color": colour},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": f"{layer}: time by result set",
        "background": "white",
        "data": {"values": rows},
        "facet": {"field": "panel", "type": "nominal", "title": None},
        "columns": 2,
        "spec": {"width": 360, "height": 220, "layer": [interval, line]},
        "resolve": {"scale": {"y": "independent"}},
    }
