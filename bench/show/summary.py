"""What a suite's parts found, as a page of Markdown, a document and tables."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from bench import cli
from bench.core import files
from bench.records import read
from bench.records.queries import races
from bench.show.terminal import console, new_table
from bench.show.texts import DASH, duration, percent

# --- what came out ---

BAD = ("wrong", "impossible", "crash", "error", "timeout")


@dataclass
class Summary:
    """What a folder's parts found; made from their records alone, so that it can be made again."""

    parts: list[dict[str, Any]]
    fastest: list[dict[str, Any]]  # of each layer, pass and shape
    failed: list[dict[str, Any]]  # each variant once for each thing it fails of
    training: list[dict[str, Any]]  # the contestants of the training step

    @classmethod
    def of(cls, out: Path) -> "Summary":
        parts = list(read.latest(read.read_records(out)[0]).values())
        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted(out.glob("*-*/records.jsonl")) + sorted(out.glob("e2e/records.jsonl")):
            rows = read.latest(read.read_records(file)[0]).values()
            found.setdefault(file.parent.name.partition("-")[0], []).extend(rows)
        measured = [r for rows in found.values() for r in rows]
        return cls(parts, fastest(found.get("time", [])), failures(measured), training(found.get("e2e", [])))

    def exit_code(self) -> int:
        statuses = {p["status"] for p in self.parts} | {f["status"] for f in self.failed}
        if statuses & {"wrong", "impossible"}:
            return cli.WRONG
        return cli.FAILED if statuses & {"crash", "error"} else cli.OK

    def document(self) -> dict[str, Any]:
        return {"parts": self.parts, "fastest": self.fastest, "failed": self.failed, "training": self.training}

    def write(self, out: Path) -> None:
        files.write_atomically(out / "summary.json", json.dumps(self.document(), indent=1) + "\n")
        text = "\n\n".join(
            f"## {title}\n\n{markdown(columns, rows) if rows else 'none'}" for title, columns, rows in self.tables()
        )
        files.write_atomically(out / "summary.md", f"# What was measured\n\n{text}\n")

    def print(self) -> None:
        screen = console()
        for title, columns, rows in self.tables():
            if not rows:
                screen.print(f"{title}: none")
                continue
            table = new_table(title)
            for i, column in enumerate(columns):
                table.add_column(column, overflow="fold", justify="right" if i in RIGHT.get(title, ()) else "left")
            for row in rows:
                table.add_row(*map(Text, row))
            screen.print(table)

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        unfinished = [p for p in self.parts if p["status"] not in ("ok", "wrong")]
        return [
            (
                FASTEST,
                ("layer", "pass", "shape", "variant", "time", "vs torch"),
                [fastest_cells(r) for r in self.fastest],
            ),
            (
                FAILURES,
                ("layer", "variant", "pass", "dtype", "status", "evidence"),
                [failed_cells(r) for r in self.failed],
            ),
            (
                TRAINING,
                ("step by", "time", "tok/s", "vs PyTorch", "MFU, PaLM", "status"),
                [step_cells(r) for r in self.training],
            ),
            (
                UNFINISHED,
                ("part", "status", "evidence"),
                [(p["case_id"], p["status"], p["evidence"]) for p in unfinished],
            ),
        ]


FASTEST, FAILURES, TRAINING = "fastest variant, caches cold", "what failed", "training step"
UNFINISHED = "parts that did not finish"
RIGHT = {FASTEST: (4, 5), TRAINING: (1, 2, 3, 4)}


def fastest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The record with the smallest median of each layer, pass, shape and dtype, and how it compares with torch's."""
    kept = ("layer", "phase", "shape_name", "dtype", "variant", "timer", "median_s", "low_s", "high_s", "reproduce")
    found = []
    for race in races(rows):
        torch_s = race.torch["median_s"] if race.torch else None
        found.append({k: race.first.get(k) for k in kept} | {"fastest_torch_s": torch_s, "variants": len(race.rows)})
    return found


def failures(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each way in which a variant fails, once: its timings repeat what its proof found, for every shape."""
    kept = ("layer", "variant", "phase", "dtype", "status", "evidence", "reproduce")
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for r in rows:
        cut_short = r.get("tool") and r["status"] == "timeout"  # compute-sanitizer's time was over, for all of them
        if r["status"] in BAD and not cut_short:
            found.setdefault(tuple(str(r.get(k)) for k in (*kept[:5], "tool")), {k: r.get(k) for k in kept})
    return list(found.values())


def training(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = (
        *("layer", "variant", "dtype", "shape", "status", "evidence", "median_s", "tokens_per_s", "speedup"),
        *("baseline", "mfu_palm_of_ceiling", "mfu_palm_of_datasheet", "peak_bytes"),
    )
    # Of a quick run and the full one after it, the later.
    steps = {(r["layer"], r["variant"], r["dtype"], str(r.get("shape"))): r for r in rows}
    return [{k: r.get(k) for k in kept} for r in steps.values()]


def fastest_cells(r: dict[str, Any]) -> tuple[str, ...]:
    against = f"{r['fastest_torch_s'] / r['median_s']:.2f}x" if r["fastest_torch_s"] else DASH
    return r["layer"], r["phase"], f"{r['shape_name']} {r['dtype']}", r["variant"], duration(r["median_s"]), against


def failed_cells(r: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(r[k] or "") for k in ("layer", "variant", "phase", "dtype", "status", "evidence"))


def step_cells(r: dict[str, Any]) -> tuple[str, ...]:
    shape = r["shape"] or {}
    name = f"{r['variant']} ({r['layer']} {r['dtype']}, B={shape.get('B')} T={shape.get('T')})"
    if not r["median_s"]:
        return name, DASH, DASH, DASH, DASH, r["status"]
    speedup = f"{r['speedup']:.2f}x {r['baseline']}" if r["speedup"] else DASH
    mfu = percent(r["mfu_palm_of_ceiling"])
    return name, duration(r["median_s"]), f"{r['tokens_per_s']:.0f}", speedup, mfu, r["status"]


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(c.replace('|', '/').replace(chr(10), ' ') for c in cells)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
