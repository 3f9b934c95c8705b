"""The page of a comparison: what `bench.compare` prints, with every case's change as a picture."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cli import CannotGoOn
from bench.records import ANY
from bench.records.gate import failed
from bench.records.queries import Case
from bench.records.read import Loaded
from bench.records.verdicts import VERDICTS, Change, geometric_means
from bench.show import Point
from bench.show.comparison import (
    MFU,
    RUNS_LISTED,
    Verdicts,
    case_text,
    case_texts,
    mfu_text,
    noted,
    run_line,
    threshold_text,
    time_cells,
    why,
)
from bench.show.page import Cell, Chart, Line, anchor, write
from bench.show.report import environment_facts
from bench.show.texts import DASH, change_text

TEMPLATE = "comparison.html.j2"
STYLES = dict(FASTER="ok", FIXED="ok", SLOWER="bad", WRONG="bad", UNCLEAR="skipped")
ROOM = 1.3  # the grey bands reach so much further than the widest interval, at most
COLUMNS = ("before", "after", "change [95 %]", "verdict", "why")


@dataclass
class Section:
    """The cases of one layer, or the training steps."""

    name: str
    title: str
    means: list[str]
    columns: list[str]
    lines: list[Line]
    chart: str  # the name of its data, or nothing where nothing was timed in both


class Page:
    """What comparison.html.j2 shows. `data` holds the rows of all charts, by name."""

    def __init__(self, told: Verdicts, fail_on: Sequence[str] = ()):
        self.data: dict[str, Chart] = {}
        self.headline = told.headline(fail_on)
        self.failed = bool(told.same or failed(told.found, fail_on or ANY))
        self.differing, self.threshold = told.differing, threshold_text(told.thresholds)
        self.power = told.power_lines()
        self.lost = [f"{case_text(gone.case)}: {gone.why}" for gone in told.comparison.lost]
        self.lost += [str(problem) for problem in told.damaged]
        self.title = f"{_names(told.before)} → {_names(told.after)}"
        self.sides = [("before", _facts(told.before)), ("after", _facts(told.after))]
        self.noted = noted(told.before, told.after)
        self.counts = {v: n for v in VERDICTS if (n := sum(c.verdict == v for c in told.changes))}
        self.right_in_both = told.comparison.right_in_both
        self.columns, self.listed = COLUMNS, RUNS_LISTED
        found = [c for c in told.changes if c.verdict in ("SLOWER", "FASTER", "WRONG", "FIXED")]
        self.lines = [_line(c, case_text(c.case._replace(variant=""))) for c in found]
        self.sections = self._sections(told.changes)
        self.one_sided = [(what, [case_text(case) for case in cases]) for what, cases in told.one_sided()]

    def _sections(self, changes: list[Change]) -> list[Section]:
        steps = [c for c in changes if c.case.phase == "step"]
        sections = [self._section("steps", "training steps", steps)] if steps else []
        for layer in dict.fromkeys(c.case.layer for c in changes if c.case.phase != "step"):
            found = [c for c in changes if c.case.layer == layer and c.case.phase != "step"]
            sections.append(self._section(layer, layer, found))
        return sections

    def _section(self, name: str, title: str, changes: list[Change]) -> Section:
        texts = case_texts([c.case for c in changes])
        rows = change_rows([c for c in changes if c.ratio], texts)
        chart = f"changes-{anchor(name)}" if rows else ""
        if rows:
            self.data[chart] = Chart("changes", rows, f"changes of {title}")
        shares = [name for name in MFU if any(mfu_text(c, name) != DASH for c in changes)]
        lines = [_line(c, texts[c.case], shares) for c in changes]
        return Section(name, title, _means(changes), [*COLUMNS, *shares], lines, chart)


def change_rows(changes: list[Change], texts: dict[Case, str]) -> list[Point]:
    """Cases as the chart has them: change, interval, and how far apart runs of the same code may be. That is cut where
    it would push everything else into the middle."""
    ends = [abs(math.log(x)) for c in changes for x in (c.ratio, c.low, c.high) if x]
    widest = math.exp(ROOM * max([*ends, math.log(1.01)]))
    rows = []
    for c in changes:
        noise = min(1 + max(c.reach or 0.0, c.noise_floor or 0.0), widest)
        rows.append(
            dict(
                case=f"{c.case.variant}  {texts[c.case]}",
                ratio=c.ratio,
                low=c.low or c.ratio,
                high=c.high or c.ratio,
                least=1 / noise,
                most=noise,
                verdict=c.verdict,
                text=f"{time_cells(c)[2]}: {why(c)}",
            )
        )
    return rows


def _line(c: Change, text: str, shares: Iterable[str] = ()) -> Line:
    before, after, change = time_cells(c)
    cells = [
        Cell(before, c.before_s or "", "number"),
        Cell(after, c.after_s or "", "number"),
        Cell(change, c.ratio or "", "number"),
        Cell(c.verdict, VERDICTS.index(c.verdict), STYLES.get(c.verdict, "")),
        Cell(why(c), why(c), "long"),
        *[Cell(mfu_text(c, name), mfu_text(c, name), "number") for name in shares],
    ]
    return Line(c.case.variant, text, cells, c.after.get("reproduce", ""))


def _means(changes: list[Change]) -> list[str]:
    return [
        f"{phase}: {change_text(ratio)}, geometric mean of {cases} case{'s' if cases > 1 else ''}"
        for (_, phase), (ratio, cases) in geometric_means(changes).items()
    ]


def _names(runs: list[Loaded]) -> str:
    """The run's folder, or the one that holds several."""
    if len(runs) == 1:
        return runs[0].folder.resolve().name
    return f"{Path(os.path.commonpath([run.folder.resolve() for run in runs])).name} ({len(runs)} runs)"


def _facts(runs: list[Loaded]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A line and the facts of each run; of an absolute path only the name, for pages are sent to others."""
    shown = [replace(run, folder=Path(run.folder.name)) if run.folder.is_absolute() else run for run in runs]
    return [(run_line(run), environment_facts(run.environment)) for run in shown]


def write_page(told: Verdicts, out: Path | None, fail_on: Sequence[str] = ()) -> str:
    """The HTML page, where it is wanted; why it could not be written, or nothing."""
    if out is None:
        return ""
    try:
        print(f"page: {write(Page(told, fail_on), TEMPLATE, out)}")
    except CannotGoOn as error:
        return str(error)
    return ""
