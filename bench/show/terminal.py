"""What a person sees: tables on stdout (plain when piped), progress on stderr (only on a terminal)."""

import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.show.texts import DASH, bits_text, duration, multiple, number, percent, ratio_text, speed_text, time_text

PLAIN_WIDTH = 160  # columns when stdout is no terminal: files and pipes do not wrap
MARKS = {"ok": "green", "simulated": "cyan", "skipped": "dim", "wrong": "bold red", "impossible": "bold red"}


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, no_color=True)


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

    def header(self, facts: dict[str, Any]) -> None:
        """How this run measures, and what state the machine is in."""
        self.console.print(facts["machine"], highlight=False)
        clock, *others = facts["clocks"]
        beside = f", ranked by it; {' and '.join(others)} beside it" if others else f", {facts['threads']} threads"
        self.console.print(
            f"proof: fp64 truth, seeds {', '.join(map(str, facts['seeds']))}; an error may be 4x plain torch's. "
            f"timer: {clock}{beside}.",
            highlight=False,
        )
        if facts["busy"]:
            self.console.print(Text(f"busy machine: {facts['busy']}", style="yellow"))

    def proofs(self, layer: str, phase: str, dtype: str, rows: list[dict[str, Any]]) -> None:
        table = new_table(f"{layer} {phase} {dtype}: proof")
        for name in ("variant", "verdict"):
            table.add_column(name, overflow="fold")
        for name in ("error", "cases", "bits"):
            table.add_column(name, justify="right")
        for row in rows:
            cells = [ratio_text(row["error_ratio"]), str(row["proof_cases"] or DASH), bits_text(row["deterministic"])]
            table.add_row(name_cell(row), verdict_cell(row), *cells)
        self.console.print(table)

    def counts(self, layer: str, phase: str, dtype: str, counts: dict[str, dict[str, Any]]) -> None:
        """What the simulator and the compiler counted, by variant; nothing where none was simulated."""
        if not counts:
            return
        first = next(iter(counts.values()))
        table = new_table(f"{layer} {phase} {dtype}: counted in the simulator at {first['counted_shape']}, no times")
        table.add_column("variant")
        for name in ("moved", "sectors/request", "of ideal", "bank passes"):
            table.add_column(name, justify="right")
        for name in ("kernels", "registers", "spills", "shared", "occupancy", "tensor", "128-bit"):
            table.add_column(name, justify="right")
        for name, c in counts.items():
            ratios = [multiple(c[name]) for name in ("moved_of_minimum", "sectors_per_request", "sectors_of_ideal")]
            counted = [c[name] for name in ("kernels", "registers", "spill_bytes", "shared_bytes")]
            instructions = [c["tensor_core_instructions"], c["wide_instructions"]]
            table.add_row(
                name,
                f"{ratios[0]} of min",
                ratios[1].rstrip("x"),
                ratios[2],
                multiple(c["wavefronts_of_ideal"]),
                *map(str, counted),
                percent(c["occupancy"]),
                *map(str, instructions),
            )
        self.console.print(table)

    def note(self, text: str) -> None:
        """A line as it is, to be copied from."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def timings(
        self,
        title: str,
        facts: list[str],
        rows: list[dict[str, Any]],
        caches: tuple[str, ...],
        flops_matter: bool,
        on_gpu: bool = False,
    ) -> None:
        """One line a variant. On a GPU the times by cache state are busy times, and two more clocks stand beside."""
        table = new_table(title)
        table.add_column("variant", overflow="fold", min_width=24, ratio=1)
        table.add_column("check", overflow="fold", min_width=8, max_width=48)
        for cache in caches:
            table.add_column(f"{cache} ±95 %", justify="right", no_wrap=True)
        if on_gpu:
            for name in (f"span {caches[0]}", "graph"):
                table.add_column(name, justify="right", no_wrap=True)
        table.add_column("noise", justify="right")
        table.add_column("GFLOP/s" if flops_matter else "GB/s", justify="right")
        table.add_column("of ceiling", justify="right")
        table.add_column("scratch MB", justify="right")
        table.add_column("vs torch", justify="right", no_wrap=True)
        table.add_column("bits", justify="right")
        for states in sorted(_by_variant(rows), key=_rank):
            row = states[0]
            rate = row.get("flops_per_s" if flops_matter else "bytes_per_s")
            table.add_row(
                name_cell(row),
                verdict_cell(next((r for r in states if r["status"] != "ok"), row)),
                *[time_text(next((r for r in states if r["cache"] == cache), {})) for cache in caches],
                *(beside_cells(states) if on_gpu else ()),
                percent(row.get("noise")),
                number(rate, 1e9),
                percent(row.get("of_ceiling")),
                number(row.get("workspace_bytes"), 1e6),
                speed_text(row),
                bits_text(row["deterministic"]),
            )
        self.console.print(table)
        for fact in [*facts, *(gpu_facts(rows) if on_gpu else ())]:
            self.console.print(f"  {fact}", style="dim", highlight=False)
        self.console.print()

    def footer(self, records: list[dict[str, Any]], folder: Path | None) -> None:
        counts: dict[str, int] = {}
        for row in records:
            if not row["control"]:
                counts[row["status"]] = counts.get(row["status"], 0) + 1
        total = ", ".join(f"{n} {status}" for status, n in counts.items())
        where = f" Results: {folder}" if folder else ""
        self.console.print(f"{total or 'nothing to do'}.{where}", highlight=False)


def print_list(rows: list[tuple[Any, str | None]]) -> None:
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


def _by_variant(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The records of each variant together, cold before warm."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["cache"] or ""):
        found.setdefault(row["variant"], []).append(row)
    return list(found.values())


def _rank(states: list[dict[str, Any]]) -> tuple[bool, float]:
    """Right ones first, the fastest on top; the others as they come."""
    wrong = any(row["status"] not in ("ok", "simulated") for row in states)
    return wrong, states[0].get("median_s") or float("inf")


def name_cell(row: dict[str, Any]) -> Text:
    tiles = row.get("configuration")
    return Text.assemble((row["variant"], "bold"), "\n", (row["story"], "dim"), (f"\n{tiles}" if tiles else "", "dim"))


def verdict_cell(row: dict[str, Any]) -> Text:
    status = row["status"]
    if status in ("ok", "simulated"):
        ratio = row["error_ratio"]
        found = Text(status if ratio is None else f"{status} {ratio_text(ratio)}", style=MARKS[status])
        return found.append("\nlaunch-bound", "yellow") if row.get("launch_bound") else found
    return Text(f"{status}: {row['evidence']}", style=MARKS.get(status, "red"))


def beside_cells(states: list[dict[str, Any]]) -> list[str]:
    """The span of the first cache state, and the graph's time, which is warm."""
    graph = next((r["graph_s"] for r in states if r.get("graph_s")), None)
    return [DASH if s is None else duration(s) for s in (states[0].get("span_s"), graph)]


def gpu_facts(rows: list[dict[str, Any]]) -> list[str]:
    """Lines under a GPU's table: whose time is launching, who has no graph and why, and how the card was doing."""
    lines = []
    for row in (states[0] for states in _by_variant(rows)):
        if share := row.get("launch_bound"):
            gaps = "of its span the GPU waits for launches"
            lines.append(f"{row['variant']} is launch-bound: {percent(share)} {gaps} (span {duration(row['span_s'])})")
        if reason := row.get("graph_evidence"):
            lines.append(f"{row['variant']} has no graph: {reason}")
    clocks = [row["sm_mhz"] for row in rows if row.get("sm_mhz")]
    told = {word for row in rows for word in (row.get("throttled") or "").split(", ") if word}
    if clocks:
        known = any(row.get("throttled") is not None for row in rows)
        slowed = f"clocks lowered by {', '.join(sorted(told))}" if told else "no throttling seen" if known else ""
        lines.append(f"SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz{'; ' if slowed else ''}{slowed}")
    return lines
