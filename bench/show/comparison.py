"""What a comparison of two runs says: verdicts in words, tables and one document."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from rich.table import Table
from rich.text import Text

from bench.cli import CannotGoOn
from bench.records import verdicts
from bench.records.conditions import Differences, differences
from bench.records.queries import Case
from bench.records.read import Loaded, load
from bench.records.verdicts import VERDICTS, Change, Comparison, Side, geometric_means
from bench.show.terminal import console, new_table
from bench.show.texts import DASH, change_text, duration, percent

FINE, GOT_SLOWER, GOT_WRONG, NOT_COMPARABLE = 0, 1, 2, 3
RUNS_LISTED = 3  # of a side; --json names all
LISTED = 8  # of the cases that only one side has; --json names all

MFU = {"MFU (PaLM)": "mfu_palm", "MFU (llm.c)": "mfu_llmc"}
STYLES = {"FASTER": "green", "SLOWER": "bold red", "WRONG": "bold red", "FIXED": "green", "UNCLEAR": "yellow"}


def exit_code(comparison: Comparison, fail_on: str | None) -> int:
    if fail_on in ("wrong", "any") and comparison.newly_wrong:
        return GOT_WRONG
    slower = any(c.verdict == "SLOWER" for c in comparison.changes)
    return GOT_SLOWER if fail_on in ("slower", "any") and slower else FINE


def compared(before: Path, after: Path, threshold: float, cross_env: bool) -> tuple["Verdicts", str]:
    """The verdicts on two folders, and a sentence where nothing of one is right. CannotGoOn where they share no case,
    or, without `cross_env`, were measured under different conditions."""
    one, other = (load(path, NOT_COMPARABLE) for path in (before, after))
    old, new = verdicts.side(one, alike), verdicts.side(other, alike)
    differing = differing_environments(old, new)
    if differing and not cross_env:
        keys = "; ".join(f"{key}: {was} before, {now} after" for key, (was, now) in differing.items())
        raise CannotGoOn(
            f"not measured under the same conditions ({keys}): --cross-env compares anyway", NOT_COMPARABLE
        )
    if reason := nothing_in_common(before, after, old, new):
        raise CannotGoOn(reason, NOT_COMPARABLE)
    found = verdicts.compare(old, new, threshold, same_machine=not differing)
    return Verdicts(found, one, other, threshold, differing), only_failures(before, old) or only_failures(after, new)


# --- environments ---


def differing_environments(before: Side, after: Side) -> Differences:
    """What differs between the machines of cases that both sides have, and the clocks they were timed by."""
    differing: Differences = {}
    compared: set[tuple[int, int]] = set()
    for case, new in after.entries.items():
        old = before.entries.get(case)
        if old and (id(old.run), id(new.run)) not in compared:
            compared.add((id(old.run), id(new.run)))
            differing |= differences(old.run.environment, new.run.environment)
        timers = [e.record.get("timer") for e in (old, new) if e and e.processes]
        if len(set(timers)) > 1:
            differing["timer"] = (timers[0], timers[1])
    return differing


def alike(a: Loaded, b: Loaded) -> bool:
    return a is b or not differences(a.environment, b.environment)


def nothing_in_common(before: Path, after: Path, old: Side, new: Side) -> str:
    """Why there is nothing to put side by side; "" where there is."""
    if {case.any_cache for case in old.entries} & {case.any_cache for case in new.entries}:
        return ""
    one, other = (case_text(next(iter(side.entries))) for side in (old, new))
    return f"no case is in both: {before} has {one}, {after} has {other}"


def only_failures(path: Path, side: Side) -> str:
    """A sentence where nothing of a side is right."""
    counts = Counter(entry.record["status"] for entry in side.entries.values())
    if counts["ok"] + counts["simulated"]:
        return ""
    return f"nothing in {path} is right: {', '.join(f'{n} {status}' for status, n in counts.items())}"


# --- what is said ---


class RunFacts(TypedDict):
    folder: str
    kind: str
    started: str | None
    commit: str | None
    dirty: bool | None


class Verdicts:
    """What is printed, and the same as a document."""

    def __init__(
        self,
        comparison: Comparison,
        before: list[Loaded],
        after: list[Loaded],
        threshold: float,
        differing: Differences,
    ):
        self.comparison, self.before, self.after = comparison, before, after
        self.threshold, self.differing = threshold, differing
        # Of each layer the failures first, then the biggest change.
        self.changes = sorted(comparison.changes, key=lambda c: (c.case.layer, c.case.phase == "step", -c.size))

    def document(self) -> dict[str, object]:
        means = geometric_means(self.changes)
        return {
            "before": [run_facts(run) for run in self.before],
            "after": [run_facts(run) for run in self.after],
            "across_environments": bool(self.differing),
            "differing": self.differing,
            "threshold": self.threshold,
            "verdicts": Counter(c.verdict for c in self.changes),
            "cases": [_document(c) for c in self.changes],
            "geometric_means": [
                {"layer": layer, "phase": phase, "ratio": ratio, "cases": cases}
                for (layer, phase), (ratio, cases) in means.items()
            ],
            **{
                name: [_case_document(case) for case in getattr(self.comparison, name)]
                for name in ("only_before", "only_after", "newly_wrong", "still_wrong")
            },
        }

    def one_sided(self) -> list[tuple[str, list[Case]]]:
        """What there is no verdict on: cases of one side, and what was never right."""
        found = self.comparison
        parts = (
            ("only before", found.only_before),
            ("only after", found.only_after),
            ("wrong after and not there before", [c for c in found.newly_wrong if c in found.only_after]),
            ("wrong before and after", found.still_wrong),
        )
        return [(what, cases) for what, cases in parts if cases]

    def print(self) -> None:
        screen = console()
        for what, runs in (("before", self.before), ("after", self.after)):
            lines = [run_line(run) for run in runs[:RUNS_LISTED]]
            if (more := len(runs) - RUNS_LISTED) > 0:
                lines.append(f"and {more} more, the last: {run_line(runs[-1])}")
            for line in lines:
                screen.print(f"{what:7} {line}", highlight=False, markup=False)
        for key, (old, new) in self.differing.items():
            screen.print(f"DIFFERS {key}: {old} → {new}", highlight=False, markup=False, style="bold yellow")
        for line in noted(self.before, self.after):
            screen.print(f"differs {line}", highlight=False, markup=False)
        steps = [c for c in self.changes if c.case.phase == "step"]
        layers = [c for c in self.changes if c.case.phase != "step"]
        screen.print()
        if steps:
            screen.print(self._steps_table(steps))
        if layers:
            screen.print(self._layers_table(layers))
            screen.print(self._means_table(layers))
        for line in self._footer():
            screen.print(line, highlight=False, markup=False)

    def _title(self, text: str) -> str:
        return f"ACROSS ENVIRONMENTS: {text}" if self.differing else text

    def _layers_table(self, changes: list[Change]) -> Table:
        table = new_table(self._title("layers, after against before"))
        for name in ("layer", "case", "variant"):
            table.add_column(name, overflow="fold", no_wrap=name == "case")
        _add_times(table)
        table.add_column("why", overflow="fold", ratio=1)
        texts = case_texts([c.case for c in changes])
        last = ""
        for c in changes:
            layer = c.case.layer if c.case.layer != last else ""
            last = c.case.layer
            table.add_row(layer, texts[c.case], c.case.variant, *time_cells(c), _verdict(c), Text(why(c)))
        return table

    def _steps_table(self, changes: list[Change]) -> Table:
        table = new_table(self._title("training steps, after against before"))
        table.add_column("model")
        table.add_column("step by", overflow="fold")
        _add_times(table)
        for name in MFU:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("why", overflow="fold", ratio=1)
        texts = case_texts([c.case for c in changes])
        for c in changes:
            model = f"{c.case.layer} {texts[c.case]}"
            table.add_row(
                model, c.case.variant, *time_cells(c), _verdict(c), *[mfu_text(c, name) for name in MFU], Text(why(c))
            )
        return table

    def _means_table(self, changes: list[Change]) -> Table:
        table = new_table(self._title("geometric mean of the time, after against before"))
        for name in ("layer", "pass"):
            table.add_column(name)
        shown = [v for v in VERDICTS if any(c.verdict == v for c in changes)]
        for name in ("cases", "change", *shown):
            table.add_column(name, justify="right")
        for (layer, phase), (ratio, cases) in geometric_means(changes).items():
            counts = Counter(c.verdict for c in changes if (c.case.layer, c.case.phase) == (layer, phase))
            table.add_row(layer, phase, str(cases), change_text(ratio), *[str(counts[v] or "") for v in shown])
        return table

    def _footer(self) -> Iterator[str]:
        for what, cases in self.one_sided():
            more = f"; and {len(cases) - LISTED} more" if len(cases) > LISTED else ""
            yield f"{what} ({len(cases)}): {'; '.join(case_text(c) for c in cases[:LISTED])}{more}"
        counts = Counter(c.verdict for c in self.changes)
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
        told = told or f"nothing was timed in both; {self.comparison.right_in_both} right in both"
        yield f"{told}. Changes below {self.threshold * 100:g}% do not matter."


def _add_times(table: Table) -> None:
    for name in ("before", "after", "change [95 %]"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)


def time_cells(c: Change) -> list[str]:
    times = [DASH if seconds is None else duration(seconds) for seconds in (c.before_s, c.after_s)]
    if c.ratio is None:
        return [*times, DASH]
    interval = f" [{change_text(c.low)}, {change_text(c.high)}]" if c.low is not None and c.high is not None else ""
    return [*times, change_text(c.ratio) + interval]


def _verdict(c: Change) -> Text:
    return Text(c.verdict, style=STYLES.get(c.verdict, ""))


def why(c: Change) -> str:
    notes = ["source changed"] if c.source_changed else []
    timers = [r.get("timer") for r in (c.before, c.after)]
    if timers[0] != timers[1]:
        notes.append(f"timer {timers[0]} before, {timers[1]} after")
    tiles = [r.get("configuration") or "none" for r in (c.before, c.after)]
    if tiles[0] != tiles[1]:
        notes.append(f"configuration {' → '.join(tiles)}")
    old, new = c.before.get("kernels"), c.after.get("kernels")
    if old != new and isinstance(old, dict) and isinstance(new, dict):  # of a step; a layer's row has their number
        moved = [f"{key} {old.get(key)} → {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
        notes.append(f"other kernels: {', '.join(moved)}")
    return "; ".join([c.reason, *notes])


def mfu_text(c: Change, column: str) -> str:
    """Before and after; of the measured peak, or of the datasheet's where that alone is known."""
    name = MFU[column]
    shares = [r.get(f"{name}_of_ceiling") or r.get(f"{name}_of_datasheet") for r in (c.before, c.after)]
    pair = [percent(share) if isinstance(share, float) else DASH for share in shares]
    return DASH if pair == [DASH, DASH] else " → ".join(pair)


def case_text(case: Case) -> str:
    sizes = "" if case.shape_name else " ".join(f"{name}={size}" for name, size in case.sizes)
    words = (case.layer, case.phase, case.shape_name or sizes, case.dtype, case.cache, case.variant)
    return " ".join(word for word in words if word)


def case_texts(cases: list[Case]) -> dict[Case, str]:
    """What tells a table's cases apart beside layer and variant; sizes, device and threads only where they vary."""
    varying = {name for name in ("device", "threads") if len({getattr(c, name) for c in cases}) > 1}
    sizes: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    shared: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for c in cases:
        key = (c.layer, c.phase, c.shape_name)
        sizes.setdefault(key, set()).update(c.sizes)
        shared[key] = shared.get(key, set(c.sizes)) & set(c.sizes)
    texts = {}
    for c in cases:
        key = (c.layer, c.phase, c.shape_name)
        shown = [size for size in c.sizes if size not in shared[key] or not c.shape_name]
        words = ["" if c.phase == "step" else c.phase, c.shape_name, *(f"{n}={v}" for n, v in shown), c.dtype, c.cache]
        words += [c.device] if "device" in varying else []
        words += [f"{c.threads} threads"] if "threads" in varying else []
        texts[c] = " ".join(word for word in words if word)
    return texts


# --- facts of runs ---


def run_facts(run: Loaded) -> RunFacts:
    git = run.environment.get("git") or {}
    return {
        "folder": str(run.folder),
        "kind": run.kind,
        "started": run.environment.get("started"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
    }


def run_line(run: Loaded) -> str:
    facts = run_facts(run)
    commit = f"commit {facts['commit'][:9]}{' and changes' if facts['dirty'] else ''}" if facts["commit"] else ""
    gpus = [gpu.get("name") for gpu in run.environment.get("gpus") or []]
    cpu = (run.environment.get("cpu") or {}).get("model")
    words = [facts["folder"], (facts["started"] or "")[:16].replace("T", " "), commit, *(gpus or [cpu])]
    return ", ".join(word for word in words if word)


def noted(before: Iterable[Loaded], after: Iterable[Loaded]) -> list[str]:
    """Versions that differ and may explain a change, without making the runs incomparable."""
    sides = []
    for runs in (before, after):
        versions: dict[str, set[str]] = {}
        for run in runs:
            for name, version in (run.environment.get("versions") or {}).items():
                versions.setdefault(name, set()).add(str(version))
        sides.append({name: ", ".join(sorted(found)) for name, found in versions.items()})
    old, new = sides
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name) and name != "torch"]
    return [f"versions.{name}: {old.get(name)} → {new.get(name)}" for name in changed]


def _document(c: Change) -> dict[str, object]:
    fields = {k: v for k, v in asdict(c).items() if k not in ("case", "before", "after")}
    sides = {
        f"{name}_{what}": record.get(name)
        for name in ("status", "evidence", "source_hash", "configuration", "timer")
        for what, record in (("before", c.before), ("after", c.after))
    }
    return _case_document(c.case) | fields | {"source_changed": c.source_changed} | sides


def _case_document(case: Case) -> dict[str, object]:
    return case._asdict() | {"sizes": dict(case.sizes)}
