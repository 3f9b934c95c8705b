"""What a person sees: tables on stdout (plain when piped), progress on stderr (bench/core/progress.py)."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from bench.core.progress import Progress
from bench.core.variants import Variant
from bench.machine.facts import busy, one_line, snapshot
from bench.records.queries import by_variant, coverage, partial, ranked
from bench.records.record import Counts, Record
from bench.records.schema import GOOD
from bench.show.columns import COLUMNS, Column, cases_text, check_text, columns
from bench.show.limits import noise_of, ranks_nothing
from bench.show.sheet import Col, Sheet
from bench.show.texts import DASH, coverage_text, duration, multiple, percent

PLAIN_WIDTH = 160  # columns when stdout is no terminal: files and pipes do not wrap
WIDE = 120  # columns, from which on a table of times tells more than what is right and how fast
STORY = 44  # columns, at least, of a variant's story under its name
MARKS = {"ok": "green", "simulated": "cyan", "skipped": "dim", "wrong": "bold red", "impossible": "bold red"}

COUNTED = (
    replace(COLUMNS["moved_of_minimum"], title="moved", text=lambda r: f"{multiple(r['moved_of_minimum'])} of min"),
    COLUMNS["sectors_per_request"].titled("sectors/request"),
    *columns("sectors_of_ideal wavefronts_of_ideal kernels registers"),
    COLUMNS["spill_bytes"].titled("spills"),
    replace(COLUMNS["shared_bytes"], title="shared", text=lambda r: str(r["shared_bytes"])),
    COLUMNS["occupancy"],
    COLUMNS["tensor_core_instructions"].titled("tensor"),
    COLUMNS["wide_instructions"],
)
COUNTED_RANKS = (0, 3, 2, 2, 4, 1, 1, 3, 3, 4, 5)  # which of them go where there is no room, the highest first


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, no_color=True)


def print_machine(screen: Console, threads: int) -> None:
    """What something was measured on, and whether it is busy."""
    screen.print(f"{one_line()}, {threads} threads", highlight=False)
    if why := busy(snapshot()):
        screen.print(f"busy machine: {why}", style="yellow")


class Conditions(NamedTuple):
    """Of a run: the machine in a line, the proof's seeds, the clocks, the first of which ranks, and what else runs."""

    machine: str
    seeds: Sequence[int]
    clocks: Sequence[str]
    threads: int
    busy: str | None


class Screen:
    """The screen of one `bench.layer` command."""

    def __init__(self) -> None:
        self.console = console()
        self.line = Progress()

    def __enter__(self) -> "Screen":
        self.line.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.line.__exit__(*error)

    def progress(self, text: str) -> None:
        self.line.tell(text)

    def header(self, how: Conditions) -> None:
        """How this run measures, and what state the machine is in."""
        self.console.print(how.machine, highlight=False)
        clock, *others = how.clocks
        beside = f", ranked by it; {' and '.join(others)} beside it" if others else f", {how.threads} threads"
        self.console.print(
            f"proof: fp64 truth, seeds {', '.join(map(str, how.seeds))}; an error may be 4x plain torch's. "
            f"timer: {clock}{beside}.",
            highlight=False,
        )
        if how.busy:
            self.console.print(Text(f"busy machine: {how.busy}", style="yellow"))
        self.console.print()

    def proofs(self, layer: str, phase: str, dtype: str, rows: list[Record]) -> None:
        shown = columns("error_ratio proof_cases deterministic")
        sheet = Sheet(f"{layer} {phase} {dtype}: proof", [name_column(), Col("verdict"), *map(column, shown)])
        for row in tried(rows):
            sheet.add(name_cell(row, self.wide), verdict_cell(row), *[c.told([row]) for c in shown])
        self.tell_below(sheet, rows, [])
        self.print(sheet)

    def counts(self, layer: str, phase: str, dtype: str, counts: dict[str, Counts]) -> None:
        """What the simulator and the compiler counted, by variant; nothing where none was simulated."""
        if not counts:
            return
        first = next(iter(counts.values()))
        title = f"{layer} {phase} {dtype}: counted in the simulator at {first['counted_shape']}, no times"
        ranks = zip(COUNTED, COUNTED_RANKS, strict=True)
        sheet = Sheet(title, [Col("variant"), *(column(c, rank) for c, rank in ranks)])
        for name, counted in counts.items():
            sheet.add(name, *[c.told([Record(**counted)]) for c in COUNTED])
        self.print(sheet)

    def say(self, text: str) -> None:
        """A sentence, wrapped between words on a terminal."""
        self.console.print(Text(text), soft_wrap=not self.console.is_terminal)

    def note(self, text: str) -> None:
        """A line as it is, to be copied from."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def wide(self) -> bool:
        return not self.console.is_terminal or self.console.width >= WIDE

    def timings(
        self,
        title: str,
        facts: list[str],
        rows: list[Record],
        caches: tuple[str, ...],
        flops_matter: bool,
        on_gpu: bool = False,
    ) -> None:
        """One line a variant. On a GPU the times by cache state are busy times, and two more clocks stand beside;
        `launch` is the host's time for each kernel. Where the noise floor tells nobody apart nobody is ranked."""
        first, *others = columns(" ".join(caches))
        more = [(c, 1) for c in others]
        more += [(c, 2) for c in columns("graph_s launch_s")] if on_gpu else []
        more += [(COLUMNS["span_s"].titled(f"span {caches[0]}"), 1)] if on_gpu else []
        rate = "flops_per_s" if flops_matter else "bytes_per_s"
        more += [(COLUMNS["noise"], 3), (COLUMNS[rate], 4)]
        ends = [(COLUMNS["deterministic"], 5), (COLUMNS["workspace_bytes"], 6)]
        if not self.wide:
            left_out, more, ends = [c.title for c, _ in [*more, *ends]], [], []
        else:
            left_out = []
        shown = [(first, 0), *more, (ABOVE, 0), (COLUMNS["speedup"], 0), *ends]
        heads = [column(c, rank) for c, rank in shown]
        sheet = Sheet(title, [name_column(), Col("check"), *heads])
        sheet.left_out = left_out
        ranks_none = ranks_nothing(noise_of(rows))
        last: tuple[str, ...] = ()
        for states in by_variant(tried(rows)) if ranks_none else ranked(tried(rows)):
            if not ranks_none and coverage(states[0]) != last:  # others are no equals of it
                sheet.section()
            last = coverage(states[0])
            cells = [DASH if ranks_none and c.name == "speedup" else c.told(states) for c, _ in shown]
            sheet.add(name_cell(states[0], self.wide), verdict_cell(COLUMNS["check"].record(states)), *cells)
        if ranks_none:
            sheet.tell(ranks_none, "bold red")
        self.tell_below(sheet, rows, [*facts, *compared(rows), *(gpu_facts(rows) if on_gpu else ())])
        self.print(sheet)

    def tell_below(self, sheet: Sheet, rows: list[Record], facts: list[str]) -> None:
        """What has no room in a table: what failed and how, what is right in a part, facts, notes."""
        for text, style in failures(rows):
            sheet.tell(text, style)
        for text in [*parts(rows), *facts, *notes(rows)]:
            sheet.tell(text)

    def print(self, sheet: Sheet) -> None:
        sheet.print(self.console)
        self.console.print()

    def footer(self, records: list[Record], folder: Path | None) -> None:
        counts: dict[str, int] = {}
        for row in records:
            if not row["control"]:
                status = row["status"] + " in part" * partial(row)
                counts[status] = counts.get(status, 0) + 1
        told = sorted(counts, key=lambda status: (not status.startswith("ok"), status))  # lanes end in any order
        total = ", ".join(f"{counts[status]} {status}" for status in told)
        where = f" Results: {folder}" if folder else ""
        self.note(f"{total or 'nothing to do'}.{where}")


def print_list(rows: list[tuple[Variant, str | None]]) -> None:
    """Layers and their variants, one line each: its passes, and its story, or why it is skipped here. On a terminal
    what is longer than its line ends in "…"; names never do."""
    screen = console()
    names = max((len(v.name) for v, _ in rows), default=0)
    for layer, found in groupby(rows, key=lambda row: row[0].layer):
        screen.print(Text(layer, style="bold"))
        for v, reason in found:
            passes = "".join(p[0] if v.has(p) else " " for p in ("forward", "backward"))
            line = Text(f"  {v.name:{names}}  {passes}  ")
            if reason:
                line.append(f"skipped here: {reason}. ", style="yellow")
            line.append(v.story)
            if screen.is_terminal:
                screen.print(line, no_wrap=True, overflow="ellipsis")
            else:
                screen.print(line, soft_wrap=True)
    screen.print(
        Text("f, b: has a forward, a backward. python -m bench.explain LAYER tells all of a layer.", style="dim")
    )


def _share_of_ceiling(r: Record) -> str:
    share = r["of_ceiling"]
    return percent(share) + (" !" if share is not None and share > 1 else "")


ABOVE = replace(COLUMNS["of_ceiling"], text=_share_of_ceiling)  # what no machine should do is marked


def column(c: Column, rank: int = 0) -> Col:
    return Col(c.title, c.right, rank)


def name_column() -> Col:
    """Of variants and their stories."""
    return Col("variant", prose=True, least=STORY)


def name_cell(row: Record, story: bool = True) -> Text:
    tiles = row.get("configuration")
    name = Text(row["variant"], "bold")
    if story:
        name.append(f"\n{row['story']}", "not bold dim")
        name.append(f"\n{tiles}" if tiles else "", "not bold dim")
    return name


def verdict_cell(row: Record) -> Text:
    """One or two words: what is to be said of a failure stands below the table."""
    short = row["status"] if row["status"] not in GOOD else check_text(row)
    if partial(row):
        short = f"{row['status']} for {cases_text(row)}"
    found = Text(short, style=MARKS.get(row["status"], "red"))
    if row["status"] in GOOD and row.get("launch_bound"):
        found.append("\nlaunch-bound", "yellow")
    return found


def tried(rows: list[Record]) -> list[Record]:
    """Without those that were skipped: all that there is to say of them is why, and that stands below."""
    return [row for row in rows if row["status"] != "skipped"]


def failures(rows: list[Record]) -> list[tuple[str, str]]:
    """(line, style) of each way in which rows are not right, the variants that share it together; skipped ones last."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] not in GOOD:
            found.setdefault((row["status"], row.get("evidence") or ""), []).append(row["variant"])
    lines = []
    for (status, evidence), names in sorted(found.items(), key=lambda item: item[0][0] == "skipped"):
        told = f"{', '.join(dict.fromkeys(names))}: {status}" + (f": {evidence}" if evidence else "")
        lines.append((told, "yellow" if status == "skipped" else "red"))
    return lines


def parts(rows: list[Record]) -> list[str]:
    """What is right in a part of its contract, and in which."""
    return list(dict.fromkeys(f"{r['variant']}: {r['status']} {coverage_text(r)}" for r in rows if partial(r)))


def compared(rows: list[Record]) -> list[str]:
    """One line under a table, where its rows tell: how much of their outputs was judged."""
    told = sorted({row["compared"] for row in rows if row.get("compared")})
    return [f"outputs compared: {', '.join(told)}"] if told else []


def notes(rows: list[Record]) -> list[str]:
    """Lines under a table: what was seen of a variant that is no fault."""
    return list(dict.fromkeys(f"{row['variant']}: {note}" for row in rows for note in row.get("notes") or []))


def gpu_facts(rows: list[Record]) -> list[str]:
    """Lines under a GPU's table: whose time is launching, who has no graph and why, and how the card was doing."""
    lines = []
    for row in (states[0] for states in by_variant(rows)):
        if share := row.get("launch_bound"):
            spans = f"span {duration(row['span_s'])}" + (f", host {duration(row['host_s'])}" if "host_s" in row else "")
            waits = f"{percent(share)} of it the GPU waits for launches"
            lines.append(f"{row['variant']} is launch-bound: {waits} ({spans})")
        if copies := row.get("copies"):
            least, count = duration(row["uncopied_s"]), sum(copies.values())
            ends = f"without the {count} cop{'y' if count == 1 else 'ies'} that end its call; speedups are against that"
            lines.append(f"{row['variant']} takes {least} {row['cache']} {ends}")
        if reason := row.get("graph_evidence"):
            lines.append(f"{row['variant']} has no graph: {reason}")
    clocks = [mhz for row in rows if (mhz := row.get("sm_mhz"))]
    told = {word for row in rows for word in (row.get("throttled") or "").split(", ") if word}
    if clocks:
        known = any(row.get("throttled") is not None for row in rows)
        slowed = f"clocks lowered by {', '.join(sorted(told))}" if told else "no throttling seen" if known else ""
        lines.append(f"SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz{'; ' if slowed else ''}{slowed}")
    return lines
