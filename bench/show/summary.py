"""What a suite's parts found, as a page of Markdown, a document and tables."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.text import Text

from bench import cli
from bench.core import files
from bench.records import read
from bench.records.queries import partial, races
from bench.records.record import Record
from bench.records.schema import BAD
from bench.show.columns import COLUMNS, Column, States, columns, value
from bench.show.limits import RANKS_TO, ranks
from bench.show.markdown import table
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console
from bench.show.texts import percent


class Fastest(Record, total=False):
    """A record, beside PyTorch's fastest and the number of variants that were right."""

    fastest_torch_s: float | None
    variants: int


@dataclass
class Summary:
    """What a folder's parts found; made from their records alone, so that it can be made again."""

    parts: list[Record]
    fastest: list[Fastest]  # of each layer, pass and shape
    failed: list[Record]  # each variant once for each thing it fails of
    training: list[Record]  # the contestants of the training step
    partial: list[Record]  # each variant once that is right in a part of its contract
    unranked: int = 0  # races whose noise floor tells nobody apart: nobody is the fastest of those

    @classmethod
    def of(cls, out: Path) -> "Summary":
        parts = list(read.latest(read.read_records(out)[0]).values())
        found: dict[str, list[Record]] = {}
        for file in sorted([*out.glob("*-*/records.jsonl"), *out.glob("e2e/records.jsonl")], key=_in_order):
            rows = read.latest(read.read_records(file)[0]).values()
            found.setdefault(file.parent.name.partition("-")[0], []).extend(rows)
        found["time"] = list(read.latest(found.get("time", [])).values())  # what was begun anew counts
        measured = [r for rows in found.values() for r in rows]
        return cls(
            parts,
            fastest(found.get("time", [])),
            failures(measured),
            training(found.get("e2e", [])),
            parts_of(measured),
            sum(not ranks(race.first) for race in races(found.get("time", []))),
        )

    def exit_code(self) -> int:
        failed = {f["status"] for f in self.failed}
        parts = {p["status"] for p in self.parts if p.get("evidence") != TOO_LONG}
        if (failed | parts) & {"wrong", "impossible"}:
            return cli.WRONG
        if (failed | parts) & {"crash", "error"}:
            return cli.FAILED
        return cli.TIMED_OUT if "timeout" in failed else cli.OK

    def document(self) -> dict[str, Sequence[Record]]:
        return {
            "parts": self.parts,
            "fastest": self.fastest,
            "failed": self.failed,
            "training": self.training,
            "partial": self.partial,
        }

    def write(self, out: Path) -> None:
        files.write_atomically(out / "summary.json", json.dumps(self.document(), indent=1) + "\n")
        text = "\n\n".join(
            f"## {title}\n\n{table(shown, rows, aligned=False) if rows else 'none'}"
            for title, shown, rows in self.tables()
        )
        files.write_atomically(out / "summary.md", f"# What was measured\n\n{text}\n")

    def print(self) -> None:
        screen = console()
        for title, shown, rows in self.tables():
            if not rows:
                screen.print(f"{title}: none")
                continue
            sheet = Sheet(title, [_head(c) for c in shown])
            for states in rows:
                cells = [c.told(states) for c in shown]
                label = " ".join(cell for cell, c in zip(cells, shown, strict=True) if c.title != "evidence")
                sheet.add(*cells, label=label)
            sheet.print(screen)
            screen.print()
        if self.unranked:
            told = f"races that rank nobody, with a noise floor above ±{percent(RANKS_TO)}: {self.unranked}"
            screen.print(Text(told, style="bold red"))

    def tables(self) -> list[tuple[str, Sequence[Column], list[States]]]:
        unfinished = [p for p in self.parts if p["status"] not in ("ok", "wrong")]
        found = (
            ("fastest variant, caches cold", FASTEST, self.fastest),
            ("what failed", columns("layer variant phase dtype status evidence"), self.failed),
            ("right in a part of the contract", columns("layer variant phase dtype status evidence"), self.partial),
            ("training step", TRAINING, self.training),
            ("parts that did not finish", columns("part status evidence"), unfinished),
        )
        return [(title, shown, [[r] for r in rows]) for title, shown, rows in found]


def _head(c: Column) -> Col:
    """Of a column on the terminal: evidence, which is sentences, goes below a table that has no room for it."""
    return Col(c.title, c.right, *((1, True, EVIDENCE, True) if c.title == "evidence" else ()))


def _in_order(file: Path) -> tuple[bool, str, int]:
    """What was begun anew, in a folder with a number, comes after what it goes on from, and a quick step before the
    whole one."""
    name, dash, number = file.parent.name.rpartition("-")
    name, number = (name, number) if dash and number.isdecimal() else (file.parent.name, "1")
    return name == "e2e", name, int(number)


def _of_step(r: Record) -> str:
    shape = r.get("shape") or {}
    return f"{r['variant']} ({r['layer']} {r['dtype']}, B={shape.get('B')} T={shape.get('T')})"


TOO_LONG = "a variant took too long"  # the evidence of a part in which nothing worse happened
EVIDENCE = 48  # columns, less than which a sentence is not put into a table
FASTEST = (
    *columns("layer phase shape variant time"),
    Column("vs torch", "fastest_torch_s", lambda r: f"{value(r, 'fastest_torch_s') / r['median_s']:.2f}x"),
)
TRAINING = (
    Column("step by", "", _of_step, right=False),
    COLUMNS["time"],
    Column("tok/s", "tokens_per_s", lambda r: f"{r['tokens_per_s']:.0f}"),
    Column("vs PyTorch", "speedup", lambda r: f"{r['speedup']:.2f}x {r['baseline']}"),
    COLUMNS["mfu_palm_of_ceiling"].titled("MFU, PaLM"),
    COLUMNS["status"],
)


def fastest(rows: list[Record]) -> list[Fastest]:
    """The record with the smallest median of each layer, pass, shape and dtype, and how it compares with torch's."""
    kept = "layer phase shape_name dtype variant timer median_s low_s high_s reproduce"
    found = []
    for race in filter(lambda race: ranks(race.first), races(rows)):
        torch_s = race.torch["median_s"] if race.torch else None
        found.append(Fastest(**_only(race.first, kept), fastest_torch_s=torch_s, variants=len(race.rows)))
    return found


def failures(rows: Iterable[Record]) -> list[Record]:
    """Each way in which a variant fails, once: its timings repeat what its proof found, for every shape."""
    found: dict[tuple[str, ...], Record] = {}
    for r in rows:
        cut_short = r.get("tool") and r["status"] == "timeout"  # compute-sanitizer's time was over, for all of them
        if r["status"] in BAD and not cut_short:
            key = tuple(str(r.get(k)) for k in ("layer", "variant", "phase", "dtype", "status", "tool"))
            found.setdefault(key, _only(r, "layer variant phase dtype status evidence reproduce"))
    return list(found.values())


def parts_of(rows: Iterable[Record]) -> list[Record]:
    """Each variant that is right in a part of its contract, once."""
    found: dict[tuple[str, ...], Record] = {}
    for r in filter(partial, rows):
        key = tuple(str(r.get(k)) for k in ("layer", "variant", "phase", "dtype"))
        found.setdefault(key, _only(r, "layer variant phase dtype status proof_cases proof_cases_all not_supported"))
    return list(found.values())


def training(rows: list[Record]) -> list[Record]:
    kept = "layer variant dtype shape status evidence median_s tokens_per_s speedup baseline"
    # Of a quick run and the full one after it, the later.
    steps = {(r["layer"], r["variant"], r["dtype"], str(r.get("shape"))): r for r in rows}
    return [_only(r, f"{kept} mfu_palm_of_ceiling mfu_palm_of_datasheet peak_bytes") for r in steps.values()]


def _only(r: Record, names: str) -> Record:
    """These fields, null where the record lacks them."""
    return cast(Record, {name: r.get(name) for name in names.split()})
