"""What a person sees: tables on stdout (plain when piped), progress on stderr (only on a terminal)."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.core.variants import Variant
from bench.records.queries import by_variant, coverage, partial, ranked
from bench.records.record import Counts, Record
from bench.records.schema import GOOD
from bench.show.columns import COLUMNS, Column, check_text, columns
from bench.show.texts import duration, multiple, percent

PLAIN_WIDTH = 160  # columns when stdout is no terminal: files and pipes do not wrap
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


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, no_color=True)


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
        self.status = Console(stderr=True).status("starting") if sys.stderr.isatty() else None

    def __enter__(self) -> "Screen":
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def progress(self, text: str) -> None:
        if self.status:
            self.status.update(text)

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

    def proofs(self, layer: str, phase: str, dtype: str, rows: list[Record]) -> None:
        table = new_table(f"{layer} {phase} {dtype}: proof")
        for name in ("variant", "verdict"):
            table.add_column(name, overflow="fold")
        shown = columns("error_ratio proof_cases deterministic")
        add_columns(table, shown)
        for row in rows:
            table.add_row(name_cell(row), verdict_cell(row), *[c.told([row]) for c in shown])
        self.console.print(table)
        for note in notes(rows):
            self.console.print(f"  {note}", style="dim", highlight=False, markup=False)

    def counts(self, layer: str, phase: str, dtype: str, counts: dict[str, Counts]) -> None:
        """What the simulator and the compiler counted, by variant; nothing where none was simulated."""
        if not counts:
            return
        first = next(iter(counts.values()))
        table = new_table(f"{layer} {phase} {dtype}: counted in the simulator at {first['counted_shape']}, no times")
        table.add_column("variant")
        add_columns(table, COUNTED)
        for name, counted in counts.items():
            table.add_row(name, *[c.told([Record(**counted)]) for c in COUNTED])
        self.console.print(table)

    def note(self, text: str) -> None:
        """A line as it is, to be copied from."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

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
        `launch` is the host's time for each kernel."""
        table = new_table(title)
        table.add_column("variant", overflow="fold", min_width=24, ratio=1)
        table.add_column("check", overflow="fold", min_width=8, max_width=48)
        shown = columns(" ".join(caches))
        shown += [COLUMNS["span_s"].titled(f"span {caches[0]}"), *columns("graph_s launch_s")] if on_gpu else []
        rate = "flops_per_s" if flops_matter else "bytes_per_s"
        shown += columns(f"noise {rate} of_ceiling workspace_bytes speedup deterministic")
        add_columns(table, shown)
        last: tuple[str, ...] = ()
        for states in ranked(rows):
            if coverage(states[0]) != last:  # others are no equals of it
                table.add_section()
            last = coverage(states[0])
            verdict = verdict_cell(COLUMNS["check"].record(states))
            table.add_row(name_cell(states[0]), verdict, *[c.told(states) for c in shown])
        self.console.print(table)
        for fact in [*facts, *compared(rows), *(gpu_facts(rows) if on_gpu else ()), *notes(rows)]:
            self.console.print(f"  {fact}", style="dim", highlight=False)
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
        self.console.print(f"{total or 'nothing to do'}.{where}", highlight=False)


def print_list(rows: list[tuple[Variant, str | None]]) -> None:
    """Layers and their variants, each with its story, or why it is skipped here."""
    table = new_table("layers and variants")
    table.add_column("layer")
    table.add_column("variant")
    table.add_column("passes")
    table.add_column("story", overflow="fold", ratio=1)
    last = ""
    for v, reason in rows:
        story = Text(v.story)
        if reason:
            story.append(f"  skipped here: {reason}", style="yellow")
        passes = "".join(p[0] for p in ("forward", "backward") if v.has(p))
        table.add_row("" if v.layer == last else v.layer, v.name, passes, story)
        last = v.layer
    console().print(table)


def new_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_style="bold",
    )


def add_columns(table: Table, shown: Sequence[Column]) -> None:
    for c in shown:
        table.add_column(c.title, justify="right" if c.right else "left", no_wrap=c.no_wrap)


def name_cell(row: Record) -> Text:
    tiles = row.get("configuration")
    return Text.assemble((row["variant"], "bold"), "\n", (row["story"], "dim"), (f"\n{tiles}" if tiles else "", "dim"))


def verdict_cell(row: Record) -> Text:
    found = Text(check_text(row), style=MARKS.get(row["status"], "red"))
    if row["status"] in GOOD and row.get("launch_bound"):
        found.append("\nlaunch-bound", "yellow")
    return found


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
