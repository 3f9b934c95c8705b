"""What a comparison of two runs says: verdicts in words, tables and one document."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from rich.text import Text

from bench.cli import CannotGoOn, several
from bench.records import gate, verdicts
from bench.records.conditions import Differences, differences
from bench.records.gate import NOT_COMPARABLE, Thresholds
from bench.records.queries import Case, case_of
from bench.records.read import Loaded, Problem, runs_in, with_records
from bench.records.verdicts import VERDICTS, Change, Comparison, Power, Side, geometric_means, powers
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console
from bench.show.texts import DASH, change_text, duration, percent

RUNS_LISTED = 3  # of a side; --json names all
ROWS = 400  # of the table; beyond them what is the same is left out
LISTED = 8  # of the cases that only one side has; --json names all

MFU = {"MFU (PaLM)": "mfu_palm", "MFU (llm.c)": "mfu_llmc"}
STYLES = {"FASTER": "green", "SLOWER": "bold red", "WRONG": "bold red", "FIXED": "green", "UNCLEAR": "yellow"}


def compared(before: Path, after: Path, thresholds: Thresholds, cross_env: bool) -> "Verdicts":
    """The verdicts on two folders. CannotGoOn where they share no case, or, without `cross_env`, were measured under
    different conditions."""
    one, other = (runs_in(path, NOT_COMPARABLE) for path in (before, after))
    return _compared(one, other, before, after, thresholds, cross_env)


def against_history(after: Path, history: Path, number: int, thresholds: Thresholds) -> "Verdicts":
    """The verdicts on a run beside the last `number` of those in a folder that were measured before it under the same
    conditions. CannotGoOn where there is none, or no case that both sides have."""
    new = runs_in(after, NOT_COMPARABLE)
    first, seen = min((_started(run) for run in new if run.records), default=""), _marks(new)
    like = next((run for run in new if run.records), None)
    old = [
        run
        for run in runs_in(history, NOT_COMPARABLE, strict=False)
        if like and run.records and alike(run, like) and _started(run) < first and not _marks([run]) & seen
    ]
    if like and not old:
        raise CannotGoOn(f"no run in {history} was measured before {after} under the same conditions", NOT_COMPARABLE)
    cases = {case_of(r).any_cache for run in new for r in run.records}
    telling = [run for run in old if any(case_of(r).any_cache in cases for r in run.records)]
    if old and not telling:
        raise CannotGoOn(
            f"no run in {history} that was measured before {after} under the same conditions has a case of it",
            NOT_COMPARABLE,
        )
    last = sorted(telling, key=_started)[-number:]
    return _compared(last, new, history, after, thresholds, False)


def _compared(
    one: list[Loaded], other: list[Loaded], before: Path, after: Path, thresholds: Thresholds, cross_env: bool
) -> "Verdicts":
    damaged = [problem for run in (*one, *other) for problem in run.problems]
    one, other = with_records(one, before, NOT_COMPARABLE), with_records(other, after, NOT_COMPARABLE)
    old, new = verdicts.side(one, alike), verdicts.side(other, alike)
    differing = differing_environments(old, new)
    if differing and not cross_env:
        keys = "; ".join(f"{key}: {was} before, {now} after" for key, (was, now) in differing.items())
        raise CannotGoOn(
            f"not measured under the same conditions ({keys}): --cross-env compares anyway", NOT_COMPARABLE
        )
    if reason := nothing_in_common(before, after, old, new):
        raise CannotGoOn(reason, NOT_COMPARABLE)
    found = verdicts.compare(old, new, thresholds, same_machine=not differing)
    failures = only_failures(before, old) or only_failures(after, new)
    same = ""
    if _marks(other) <= _marks(one) or _marks(one) <= _marks(other):
        same = f"{before.name} and {after.name} hold the same run: nothing can be said of a change"
    return Verdicts(found, one, other, thresholds, differing, damaged, failures, same)


def _marks(runs: Iterable[Loaded]) -> set[tuple[str, str, str]]:
    """What tells the records of one run from those of all others, wherever its folder was copied to."""
    return {(r.get("run") or "", r.get("utc") or "", r["case_id"]) for run in runs for r in run.records}


def _started(run: Loaded) -> str:
    return run.environment.get("started") or min((r.get("utc") or "" for r in run.records), default="")


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
        thresholds: Thresholds,
        differing: Differences,
        damaged: Sequence[Problem] = (),
        failures: str = "",
        same: str = "",
    ):
        self.comparison, self.before, self.after = comparison, before, after
        self.thresholds, self.differing, self.damaged = thresholds, differing, damaged
        self.failures = failures  # a sentence where nothing of a side is right
        self.same = same  # and where both sides are of one run
        # Of each layer the failures first, then the biggest change.
        self.changes = sorted(comparison.changes, key=lambda c: (c.case.layer, c.case.phase == "step", -c.size))

    @property
    def found(self) -> dict[str, int]:
        """How many there are of what a gate may fail on; a line that cannot be read is lost work, too."""
        found = self.comparison.found
        return found | {"missing": found["missing"] + len(self.damaged)}

    def power_lines(self) -> list[str]:
        """Of each layer's pass, which change would have been seen."""
        return [f"{layer} {phase}: {power_text(power)}" for (layer, phase), power in powers(self.changes).items()]

    def document(self) -> dict[str, object]:
        means = geometric_means(self.changes)
        return {
            "before": [run_facts(run) for run in self.before],
            "after": [run_facts(run) for run in self.after],
            "across_environments": bool(self.differing),
            "differing": self.differing,
            "threshold": self.thresholds.default,
            "thresholds": dict(self.thresholds.own),
            "found": self.found,
            "same_run": bool(self.same),
            "lost": [_case_document(gone.case) | {"why": gone.why} for gone in self.comparison.lost],
            "damaged": [str(problem) for problem in self.damaged],
            "smallest": [
                {"layer": layer, "phase": phase, **asdict(power)}
                for (layer, phase), power in powers(self.changes).items()
            ],
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
        gone = {lost.case for lost in found.lost}
        parts = (
            ("only before", [case for case in found.only_before if case not in gone]),
            ("only after", found.only_after),
            ("wrong after and not there before", [c for c in found.newly_wrong if c in found.only_after]),
            ("wrong before and after", found.still_wrong),
        )
        return [(what, cases) for what, cases in parts if cases]

    def headline(self, fail_on: Sequence[str]) -> str:
        return gate.headline(self.found, fail_on, bool(self.same))

    def print(self, fail_on: Sequence[str] = ()) -> None:
        screen = console()
        headline = self.headline(fail_on)
        style = "bold" if not fail_on else "bold red" if gate.failed(self.found, fail_on) else "bold green"
        screen.print(headline, highlight=False, markup=False, style=style)
        if self.same:
            screen.print(self.same, highlight=False, markup=False, style="bold yellow")
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
            self._steps_table(steps).print(screen)
            screen.print()
        if layers:
            self._layers_table(layers).print(screen)
            screen.print()
            self._means_table(layers).print(screen)
            screen.print()
        for line in self._footer():
            screen.print(line, highlight=False, markup=False)

    def _title(self, text: str) -> str:
        return f"ACROSS ENVIRONMENTS: {text}" if self.differing else text

    def _layers_table(self, changes: list[Change]) -> Sheet:
        heads = [Col("layer"), Col("case"), Col("variant"), *TIMES, WHY]
        sheet = Sheet(self._title("layers, after against before"), heads)
        texts = case_texts([c.case for c in changes])
        last = ""
        for c in listed(changes):
            layer = c.case.layer if c.case.layer != last else ""
            last = c.case.layer
            cells: list[str | Text] = [*time_cells(c), _verdict(c), why(c)]
            sheet.add(
                layer, texts[c.case], c.case.variant, *cells, label=f"{c.case.layer} {texts[c.case]} {c.case.variant}"
            )
        return sheet

    def _steps_table(self, changes: list[Change]) -> Sheet:
        mfu = [Col(name, right=True, rank=3) for name in MFU]
        sheet = Sheet(
            self._title("training steps, after against before"), [Col("model"), Col("step by"), *TIMES, *mfu, WHY]
        )
        texts = case_texts([c.case for c in changes])
        for c in changes:
            model = f"{c.case.layer} {texts[c.case]}"
            cells: list[str | Text] = [*time_cells(c), _verdict(c), *[mfu_text(c, name) for name in MFU], why(c)]
            sheet.add(model, c.case.variant, *cells, label=f"{model} {c.case.variant}")
        return sheet

    def _means_table(self, changes: list[Change]) -> Sheet:
        shown = [v for v in VERDICTS if any(c.verdict == v for c in changes)]
        numbers = [Col(name, right=True) for name in ("cases", "change", *shown, "could be seen")]
        title = self._title("geometric mean of the time, after against before")
        sheet = Sheet(title, [Col("layer"), Col("pass"), *numbers])
        seen = powers(changes)
        for (layer, phase), (ratio, cases) in geometric_means(changes).items():
            counts = Counter(c.verdict for c in changes if (c.case.layer, c.case.phase) == (layer, phase))
            sheet.add(
                layer,
                phase,
                str(cases),
                change_text(ratio),
                *[str(counts[v] or "") for v in shown],
                power_text(seen[layer, phase]),
            )
        return sheet

    def _footer(self) -> Iterator[str]:
        if gone := self.comparison.lost:
            more = f"; and {len(gone) - LISTED} more" if len(gone) > LISTED else ""
            yield f"LOST ({len(gone)}): {'; '.join(f'{case_text(g.case)}: {g.why}' for g in gone[:LISTED])}{more}"
        if self.damaged:
            yield f"DAMAGED: {several(len(self.damaged), 'line')} cannot be read (see the warnings)"
        for what, cases in self.one_sided():
            more = f"; and {len(cases) - LISTED} more" if len(cases) > LISTED else ""
            yield f"{what} ({len(cases)}): {'; '.join(case_text(c) for c in cases[:LISTED])}{more}"
        if (left := len(self.changes) - len(listed(self.changes))) > 0:
            yield f"{left} of the cases that are the same are not listed; --json and --html have all"
        counts = Counter(c.verdict for c in self.changes)
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
        told = told or f"nothing was timed in both; {self.comparison.right_in_both} right in both"
        yield f"{told}. Changes below {threshold_text(self.thresholds)} do not matter."


def listed(changes: list[Change]) -> list[Change]:
    """All that changed or is unclear, and of the rest as many as a table holds."""
    room = ROWS - sum(c.verdict != "SAME" for c in changes)
    kept = []
    for c in changes:
        room -= c.verdict == "SAME"
        if c.verdict != "SAME" or room >= 0:
            kept.append(c)
    return kept


def threshold_text(thresholds: Thresholds) -> str:
    """2% (attention 5%)"""
    own = ", ".join(f"{name} {share * 100:g}%" for name, share in thresholds.own.items())
    return f"{thresholds.default * 100:g}%" + (f" ({own})" if own else "")


def power_text(power: Power) -> str:
    """+2.1%; +2.1% to +12%, where the layer's cases differ; nothing, where no change would have been seen."""
    if power.least is None or power.most is None:
        return "nothing"
    ends = [change_text(1 + share) for share in (power.least, power.most)]
    blind = f", nothing in {power.blind}" if power.blind else ""
    return " to ".join(dict.fromkeys(ends)) + blind


TIMES = (Col("before", True, 2), Col("after", True, 2), Col("change [95 %]", True), Col("verdict"))
WHY = Col("why", prose=True, rank=4, below=True)


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
    timers = [timer for r in (c.before, c.after) if (timer := r.get("timer"))]  # what is wrong has none
    if len({*timers}) > 1:
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
