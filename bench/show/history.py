"""A layer's times over all result sets, as a table and a picture."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import CannotGoOn
from bench.core.files import cannot_write, put
from bench.records.queries import Case, case_of, coverage, device_name, newest
from bench.records.read import Loaded, load
from bench.records.record import Record
from bench.show import Spec
from bench.show.comparison import case_texts
from bench.show.page import Cell, Chart, Line, anchor, write
from bench.show.points import grouped, tied
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console
from bench.show.texts import DASH, change_text, percent, time_text

TEMPLATE = "history.html.j2"
COLUMNS = ("measured, commit", "time ±95 %", "change", "noise floor", "of ceiling", "source")


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
        return self.before is not None and tied(self.before.record, self.record)


def chosen(results: Path, layer: str, cache: str, variants: str | None, device: str | None) -> list[Point]:
    """The history of a layer under a folder; of a comma list of variants alone, and of a device: its name, or a part
    of its machine's. CannotGoOn where there is none."""
    runs = load(results, strict=False)  # one damaged folder is no reason to tell nothing of the others
    cli.choose(layer, sorted({r.get("layer") or "" for run in runs for r in run.records}), "layer in the results")
    points = history(runs, layer, cache)
    if variants:
        known = sorted({p.case.variant for p in points})
        wanted = cli.choose_all(variants, known, f"variant of {layer} in the results")
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


def document(layer: str, points: list[Point]) -> dict[str, Any]:
    """The table as JSON has it; times in seconds, shares and changes as ratios."""
    same = ("variant", "phase", "shape_name", "dtype", "cache", "threads", "device", "source_hash")
    numbers = ("median_s", "low_s", "high_s", "noise_floor", "of_ceiling")
    rows = [
        {"machine": p.machine, "measured": p.when, "commit": p.commit}
        | {name: p.record.get(name) for name in same + numbers}
        | {"change": p.change, "within_noise": p.within_noise if p.before else None}
        for p in points
    ]
    return {"layer": layer, "points": rows}


def print_table(layer: str, points: list[Point]) -> None:
    """A table for each case and machine, of which a set's date stays at any width."""
    screen = console()
    for panel, found in panels(points).items():
        numbers = [("time ±95 %", 0), ("change", 0), ("noise floor", 2), ("of ceiling", 3)]
        heads = [Col("variant"), Col("measured"), Col("commit", rank=5)]
        heads += [Col(name, right=True, rank=rank) for name, rank in numbers]
        sheet = Sheet(f"{layer} {panel}", [*heads, Col("source", rank=4)])
        last = ""
        for p in sorted(found, key=lambda p: p.case.variant):  # of each the oldest first, as they are
            variant = p.case.variant
            shares = percent(p.record.get("noise_floor")), percent(p.record.get("of_ceiling"))
            when = p.when[:16].replace("T", " ")
            shown = "" if variant == last else variant
            sheet.add(shown, when, p.commit, time_text(p.record), _change(p), *shares, _source(p))
            last = variant
        sheet.print(screen)
        screen.print()
    screen.print("commit+: with changes that were not committed. =: within the noise.", style="dim", highlight=False)


def draw(layer: str, points: list[Point], file: Path) -> None:
    """A .html file is a page in the report's frame; any other is a picture: a panel a case and machine."""
    if file.suffix == ".html":
        write(Page(layer, points), TEMPLATE, file)
        return
    try:
        import vl_convert
    except ImportError:
        raise CannotGoOn("a picture needs vl-convert: pip install vl-convert-python") from None

    try:
        put(file, vl_convert.vegalite_to_png(specification(layer, points), scale=2))
    except OSError as error:
        raise cannot_write(file, error) from error


# --- as a page ---


@dataclass
class Section:
    """One case on one machine: a line a variant in the chart, a row a set in the table."""

    name: str
    title: str
    columns: list[str]
    lines: list[Line]
    chart: str


class Page:
    """What history.html.j2 shows. `data` holds the rows of all charts, by name."""

    def __init__(self, layer: str, points: list[Point]):
        self.data: dict[str, Chart] = {}
        self.title = f"{layer} over {cli.several(len({set_name(p) for p in points}), 'result set')}"
        self.machines = list(dict.fromkeys(p.machine for p in points))
        self.sections = [self._section(panel, found) for panel, found in panels(points).items()]

    def _section(self, panel: str, points: list[Point]) -> Section:
        name = anchor(panel)
        newest_first = sorted(points, key=lambda p: p.when, reverse=True)
        self.data[name] = Chart("history", [_row(p) for p in points], f"times of {panel} by result set")
        return Section(name, panel, list(COLUMNS), [_line(p) for p in newest_first], name)


def panels(points: list[Point]) -> dict[str, list[Point]]:
    """The points of each case and machine, the oldest first."""
    texts = case_texts([p.case for p in points])
    oldest_first = sorted(points, key=lambda p: p.when)
    order = dict.fromkeys((texts[p.case], p.machine) for p in points)
    found = grouped(oldest_first, lambda p: (texts[p.case], p.machine))
    return {f"{text}, {machine}": found[text, machine] for text, machine in order}


def set_name(p: Point) -> str:
    """2026-11-21 15:42 7a733f7+: when, and of which commit, a result set was measured."""
    return " ".join(filter(None, (p.when[:16].replace("T", " "), p.commit[:7] + "+" * p.commit.endswith("+"))))


def _row(p: Point) -> dict[str, object]:
    r = p.record
    low, high = r.get("low_s") or r["median_s"], r.get("high_s")
    return {
        "set": set_name(p),
        "variant": p.case.variant,
        "ms": r["median_s"] * 1e3,
        "low": low * 1e3,
        "high": (high if high and math.isfinite(high) else r["median_s"]) * 1e3,
        "floor": floor * 1e3 if (floor := r.get("floor_s")) else None,
        "text": f"{time_text(r)}, {_change(p)}" if p.change else time_text(r),
    }


def _change(p: Point) -> str:
    """Since the set before; "=" where that tells nothing."""
    return change_text(p.change) + (" =" if p.within_noise else "") if p.change else DASH


def _source(p: Point) -> str:
    """Whether it is another one than the set's before."""
    same = p.before is None or p.record.get("source_hash") == p.before.record.get("source_hash")
    return "" if same else "changed"


def _line(p: Point) -> Line:
    r = p.record
    style = "" if not p.change or p.within_noise else "bad" if p.change > 1 else "ok"
    cells = [
        Cell(set_name(p), p.when),
        Cell(time_text(r), r["median_s"], "number"),
        Cell(_change(p), p.change or "", f"number {style}".strip()),
        Cell(percent(r.get("noise_floor")), r.get("noise_floor") or "", "number"),
        Cell(percent(r.get("of_ceiling")), r.get("of_ceiling") or "", "number"),
        Cell(_source(p), _source(p)),
    ]
    return Line(p.case.variant, "", cells, r.get("reproduce", ""))


# --- as a picture ---


def specification(layer: str, points: list[Point]) -> Spec:
    """The chart in Vega-Lite: times over the sets, whose commits are on the axis."""
    rows = [_row(p) | {"panel": panel} for panel, found in panels(points).items() for p in found]
    one = {"field": "set", "type": "nominal", "title": None, "sort": None, "axis": {"labelAngle": -30}}
    colour = {"field": "variant", "type": "nominal", "legend": {"orient": "bottom", "columns": 4, "title": None}}
    time = {"type": "quantitative", "scale": {"type": "log"}, "title": "ms; red: the floor"}
    line = {
        "mark": {"type": "line", "point": True},
        "encoding": {"x": one, "y": time | {"field": "ms"}, "color": colour},
    }
    interval = {
        "mark": "rule",
        "encoding": {"x": one, "y": time | {"field": "low"}, "y2": {"field": "high"}, "color": colour},
    }
    floor = {
        "transform": [{"filter": "isValid(datum.floor)"}],
        "mark": {"type": "line", "color": "#d62728", "strokeDash": [5, 3]},
        "encoding": {"x": one, "y": time | {"field": "floor", "aggregate": "min"}},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": f"{layer}: time by result set",
        "background": "white",
        "data": {"values": rows},
        "facet": {"field": "panel", "type": "nominal", "title": None},
        "columns": 2,
        "spec": {"width": 360, "height": 220, "layer": [interval, line, floor]},
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
    }
