"""The page of some runs: what the template shows, worked out from their records."""

import ast
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.core.files import DiskFull
from bench.core.variants import Variant, discover
from bench.records.environment import Environment
from bench.records.queries import device_name, partial, races, ranked
from bench.records.read import Loaded, latest, runs_in
from bench.records.record import Record
from bench.show import Point, generation_page, overview, sightings
from bench.show.columns import COLUMNS, Column, columns
from bench.show.ladders import Ladder, is_own, ladder
from bench.show.limits import RANKS_TO
from bench.show.page import Cell, Chart, Line, anchor, cell, unavailable, write
from bench.show.points import (
    HIDDEN,
    Best,
    best_rows,
    error_rows,
    grouped,
    loss_rows,
    measured_peaks,
    noisy,
    roofline_rows,
    swap_rows,
    sweeps,
    time_rows,
    told_apart,
    waterfall_rows,
)
from bench.show.texts import DASH, duration, percent

TEMPLATE = "report.html.j2"
# A case's tables: none has more columns than a screen of 1400 pixels has room for.
LAYER = {
    "": columns("check cold warm speedup of_ceiling noise bytes_per_s flops_per_s deterministic"),
    "time and memory": columns(
        "uncopied_s span_s graph_s launch_s workspace_bytes saved_bytes peak_bytes energy_j sm_mhz compile_s"
    ),
    "resources": columns("registers spill_bytes shared_bytes occupancy configuration notes"),
}
COUNTED = {
    "": columns("phase dtype error_ratio moved_of_minimum sectors_per_request wavefronts_of_ideal kernels notes"),
    "resources, compiled for sm_90a": [
        *columns("phase dtype registers spill_bytes shared_bytes"),
        COLUMNS["occupancy"].whole(),
        *columns("tensor_core_instructions wide_instructions"),
    ],
}
# What a count says: what is good, and what is bad.
COUNTS = {
    "error_ratio": "The worst error, in units of plain PyTorch's: 1x is as good as PyTorch, 4x is the limit.",
    "moved_of_minimum": "Bytes asked of memory over the bytes that must move: 1x is good, 2x moves all of it twice.",
    "sectors_per_request": "32-byte sectors that an instruction of a warp touches: 4 is good for 4-byte accesses and 16"
    " for 16-byte ones; 32 means that every thread reads a place of its own.",
    "wavefronts_of_ideal": "Passes over the banks of shared memory, of the fewest: 1x is good, more is bank conflicts.",
    "kernels": "Launches of a call: 1 is good, for each costs the host some microseconds, and what lies between goes"
    " through memory.",
    "registers": "Of a thread: up to 32 leave room for all threads of a multiprocessor, 255 is the most there is.",
    "spill_bytes": "Registers of a thread that were put into memory: 0 is good, anything else is traffic for nothing.",
    "shared_bytes": "Of a block: the more it takes, the fewer blocks run side by side.",
    "occupancy": "Warps that fit, of the most: high hides the wait for memory; on tensor cores less is enough.",
    "tensor_core_instructions": "In the machine code: 0 in a matmul or attention means that the slow units multiply.",
    "wide_instructions": "Accesses of 16 bytes in the machine code: many are good, 0 means more instructions.",
}
STEP = [
    COLUMNS["check"].titled("check"),
    *columns("step tokens_per_s"),
    COLUMNS["speedup"].titled("speed"),
    *columns("mfu_palm_of_ceiling mfu_llmc_of_ceiling mfu_palm_of_datasheet mfu_llmc_of_datasheet"),
    *columns("step_peak first_loss last_loss worst_loss worst_norm"),
]
STORIES = {
    "ours": "the step assembled from the registry's variants",
    "torch.eager": "plain PyTorch, op by op",
    "torch.compile": "torch.compile as a careful user writes it",
}
FAR = 25.0  # the slowest is this many times slower than the fastest: points on a logarithmic axis
MOST_LENGTHS = 3  # values of T that a title names
MOST_COMMITS = 3  # that the first lines name
# Layers in the order of the training step; others follow by name.
ORDER = (
    *("embedding", "layernorm", "rmsnorm", "residual_layernorm", "residual_rmsnorm", "matmul", "gemv", "rope"),
    *("attention", "decode_attention", "gelu", "swiglu", "q8_quantise", "q8_matmul", "residual", "softmax"),
    *("cross_entropy", "fused_classifier", "sampling", "global_norm", "adamw"),
)


def write_beside(folder: Path) -> str:
    """Put report.html into a finished run's folder; a line that says so, or why there is none ($LAYERBENCH_REPORT=0:
    nobody wants it now). Of what goes wrong DiskFull alone is raised: a report can be built again."""
    if os.environ.get("LAYERBENCH_REPORT") == "0":
        return f"no report: LAYERBENCH_REPORT is 0 (python -m bench.report {folder})"
    if missing := unavailable():
        return f"no report: {missing}: python -m bench.report {folder}"
    try:
        out = folder / "report.html"
        write(*page_of(read_runs([folder])), out)
    except DiskFull:
        raise
    except (CannotGoOn, ImportError, OSError, ValueError, KeyError, TypeError) as error:
        return f"no report: {type(error).__name__}: {error} (python -m bench.report {folder})"
    return f"report: {out}"


def page_of(runs: list[Loaded], title: str | None = None) -> "tuple[Page | generation_page.Page, str]":
    """The page of some runs, and its template. Texts that were generated have a page of their own: beside layers and
    training steps, as in a suite, they are left out."""
    if generation_page.is_generation(runs):
        return generation_page.Page(runs, title), generation_page.TEMPLATE
    return Page([run for run in runs if not generation_page.is_generation([run])], title), TEMPLATE


# --- runs ---


def read_runs(paths: Iterable[Path]) -> list[Loaded]:
    """The runs in these folders, each with the last record of every case; second entries of the A/A controls are left
    out. CannotGoOn where there is none to show."""
    runs: list[Loaded] = []
    for path in paths:
        for run in runs_in(path, strict=False):
            rows = [r for r in latest(run.records).values() if not r.get("control")]
            runs.append(replace(run, records=rows))
    if not any(run.records for run in runs):
        names = ", ".join(str(r.folder) for r in runs)
        raise CannotGoOn(f"nothing to report: {names} {'holds' if len(runs) == 1 else 'hold'} no readable record")
    return [run for run in runs if run.records]


def machine_of(run: Loaded) -> str:
    """The GPU, or else the CPU."""
    on_gpu = next((r for r in run.records if r.get("device", "cpu") != "cpu"), None)
    if on_gpu and run.environment.get("gpus"):
        return device_name(run, on_gpu)
    cpu = run.environment.get("cpu", {})
    return f"{cpu.get('model') or 'unknown CPU'}, {cpu.get('usable', '?')} cores"


# --- the page ---


@dataclass
class Table:
    """title: "" of the one that is always open."""

    title: str
    columns: list[str]
    lines: list[Line]


@dataclass
class CaseView:
    """One layer's phase at one shape and dtype."""

    title: str
    anchor: str
    sizes: str
    facts: list[str]
    warnings: list[str]  # that it ranks nothing, that another run has other numbers
    tables: list[Table]
    chart: str  # the name of its data, or nothing where nothing was timed
    ladder: Ladder | None


@dataclass
class LayerView:
    name: str
    about: str
    cases: list[CaseView]
    roofline: str
    errors: str
    counted: list[Table]
    counted_ladders: list[tuple[str, Ladder]]
    sweeps: list[tuple[str, str]]  # what is swept, and its chart


@dataclass
class StepView:
    """One training step: contestants, where the time goes, losses."""

    title: str
    machine: str
    rows: list[Record]
    facts: list[str]
    columns: list[str]
    lines: list[Line]
    times: str
    waterfall: str
    losses: str
    kernels: list[tuple[str, str]]
    swaps: str
    link: str = ""
    warnings: list[str] = field(default_factory=list)
    older: bool = False  # a newer run of the same step is on the page

    @property
    def short(self) -> str:
        return self.title.partition(" (")[0] + (" (older)" if self.older else "")


class Page:
    """Everything the template shows. `data` holds the rows of all charts, by name."""

    def __init__(self, runs: list[Loaded], title: str | None = None):
        self.runs = runs
        self.data: dict[str, Chart] = {}
        every = [r for run in runs for r in run.records]
        here = _variants_of({(r["layer"], r["variant"]) for r in every})
        self.hashes = {known: v.source_hash() for known, v in here.items()}
        self.libraries = {v.name for v in here.values() if v.kernels}
        self.several_machines = len({machine_of(run) for run in runs}) > 1
        self.machines = list(dict.fromkeys(machine_of(run) for run in runs))
        rows = [(run, r) for run in runs for r in run.records if r.get("phase") != "step"]
        rows.sort(key=lambda x: _place(x[1]["layer"]))
        self.seen = sightings.of(rows, lambda run, r: (r["layer"], *self._case_key(run, r)))
        self.place: dict[int, str] = {}  # of a row by its id(): the address of its case
        newest = [r for seen in self.seen.values() for r in seen[0].rows]
        self.peaks = measured_peaks(newest)
        self.layers = [self._layer(name, found) for name, found in grouped(rows, lambda x: x[1]["layer"]).items()]
        self.steps = self._steps(runs)
        self.best = self._best(newest)
        told = "the best kernel of each layer against PyTorch"
        self.overview = self._chart("overview", "overview", best_rows(self.best), told)
        self.troubles = troubles(every)
        self.simulated = [r for r in newest if r["status"] == "simulated"]
        self.proofs = overview.proofs(newest)
        self.noise = overview.noise_line(self.best)
        self.cards = self._cards(newest)
        self.grids = overview.grids(self.best, self.troubles["failed"], self.place)
        self.counts = Counter(r["status"] for r in one_of_each(every))
        self.meanings = [(COLUMNS[name].title, told) for name, told in COUNTS.items()] if self.simulated else []
        self.environments = [(run.folder.name, environment_facts(run.environment)) for run in runs]
        self.problems = [str(p) for run in runs for p in run.problems]
        self.when = when(runs)
        self.noisy = f"±{percent(RANKS_TO)}"
        self.title = title or self._title()

    def _title(self) -> str:
        what = [layer.name for layer in self.layers] if len(self.layers) <= 3 else [f"{len(self.layers)} layers"]
        what += list(dict.fromkeys(step.title.partition(" ")[0] for step in self.steps))[:1]
        where = " and ".join(self.machines)
        if self.simulated and not self.best and not self.steps:
            return f"{', '.join(what)}: proved in the simulator, no times"
        lengths = sorted({t for run in self.runs for r in run.records if isinstance(t := _length(r), int)})
        named = ", ".join(map(str, lengths)) if len(lengths) <= MOST_LENGTHS else f"{lengths[0]} to {lengths[-1]}"
        return f"{', '.join(what)} on {where}" + (f", T={named}" if lengths else "")

    def _chart(self, name: str, spec: str, rows: list[Point], label: str) -> str:
        """Keep a chart's rows; its name, or nothing without rows."""
        if not rows:
            return ""
        self.data[name] = Chart(spec, rows, label)
        return name

    def _cards(self, newest: list[Record]) -> list[overview.Card]:
        failed = self.troubles["failed"]
        if self.simulated and not self.best and not self.steps:
            return overview.proved_cards(newest, failed)
        steps = [(step.title, step.link, step.rows, step.older) for step in self.steps]
        ranked = [] if self.noise else self.best
        cards = [overview.step_card(steps), overview.layers_card(ranked), overview.limits_card(ranked, self.place)]
        for card in cards[1:]:
            card.below = "This run ranks nothing." if self.noise else card.below
        return [*cards, overview.failed_card(failed)]

    # --- layers ---

    def _layer(self, name: str, found: list[tuple[Loaded, Record]]) -> LayerView:
        seen = {key: of for key, of in self.seen.items() if key[0] == name}
        rows = [r for of in seen.values() for r in of[0].rows]
        simulated = [r for r in rows if r["status"] == "simulated"]
        cases = [self._case(key, of, at, simulated) for key, of in seen.items() for at in range(len(of))]
        cases = [case for case in cases if case.tables]
        points = roofline_rows(rows, self.peaks)
        return LayerView(
            name,
            about_layer(name),
            cases,
            self._chart(f"roofline-{name}", "roofline", points, f"roofline of {name}"),
            self._chart(f"errors-{name}", "errors", error_rows(rows), f"errors of {name}'s variants"),
            self._counted(simulated),
            [
                (" ".join(key), steps)
                for key, group in grouped(simulated, lambda r: (r["phase"], r["dtype"])).items()
                if (steps := ladder(group, self.libraries))
            ],
            [
                (of, self._chart(anchor(f"sweep {name} {of}"), "sweep", points, f"times of {name} {of}"))
                for of, points in sweeps(rows).items()
            ],
        )

    def _case_key(self, run: Loaded, r: Record) -> tuple[str, ...]:
        machine = machine_of(run) if self.several_machines else ""
        return r["phase"], r.get("shape_name") or "", r["dtype"], sizes_text(r), machine

    def _case(self, key: tuple[str, ...], seen: list[sightings.Sighting], at: int, counted: list[Record]) -> CaseView:
        """What one run found of a case; the newest is `at` 0."""
        layer, phase, shape, dtype, sizes, machine = key
        rows = [r for r in seen[at].rows if r["status"] != "simulated"]
        title = " ".join(part for part in (phase, shape, dtype, machine) if part)
        title += f", {telling}" if (telling := telling_size(rows[0] if rows else Record())) else ""
        title += f" ({seen[at].named}: older)" if at else ""
        name = anchor(f"{layer} {title} {sizes}")
        self.place |= {id(r): f"#case-{name}" for r in rows}
        variants = ranked(rows)
        ok = [states for states in variants if states[0]["status"] == "ok" and states[0].get("median_s")]
        seconds = [states[0]["median_s"] for states in ok]
        far = bool(ok) and max(seconds) > FAR * min(seconds)
        times = time_rows([states[0] for states in ok])
        told = next((r for r in rows if r.get("compared")), rows[0]) if rows else Record()
        warnings = [too_noisy(r)] if (r := next((s[0] for s in ok if noisy(s[0])), None)) else []
        return CaseView(
            title,
            f"case-{name}",
            sizes,
            case_facts(told),
            [*warnings, *sightings.differing(seen, at)],
            self._tables(LAYER, variants),
            self._chart(name, "times_log" if far else "times", times, f"times of {layer} {title}"),
            ladder([states[0] for states in variants], self.libraries, counted) if ok else None,
        )

    def _tables(self, of: dict[str, list[Column]], variants: Sequence[Sequence[Record]]) -> list[Table]:
        """A table a group of columns; those that nobody fills are left out."""
        tables = []
        for title, group in of.items():
            shown = [c for c in group if any(c.has(states) or not c.name for states in variants)]
            told = [
                c for c in shown if any(c.told(states) not in ("", DASH) for states in variants) or c.name == "status"
            ]
            if variants and (any(c.name for c in told) or not title):
                lines = [self._line(list(states), shown, bool(not title)) for states in variants]
                tables.append(Table(title, [c.title for c in shown], lines))
        return tables

    def _counted(self, simulated: list[Record]) -> list[Table]:
        """What is right in a part of its contract says so."""
        check = columns("check") * any(map(partial, simulated))
        return self._tables({**COUNTED, "": check + COUNTED[""]}, [[r] for r in simulated])

    def _line(self, states: list[Record], shown: list[Column], whole: bool = True) -> Line:
        """whole: with its story and its command, which need not be told in each of a case's tables."""
        r = states[0]
        cells = [Cell(DASH, "", "number") if c.name == "speedup" and noisy(r) else cell(c, states) for c in shown]
        story, again = (r.get("story", ""), r.get("reproduce", "")) if whole else ("", "")
        return Line(r["variant"], story, cells, again, whole and self._stale(r))

    def _stale(self, r: Record) -> bool:
        """Whether the variant's source is here, and another one."""
        now = self.hashes.get((r["layer"], r["variant"]))
        return now is not None and now != r.get("source_hash")

    def _best(self, rows: list[Record]) -> list[Best]:
        """The fastest right own kernel of each case; a vendor's library is none, whoever calls it."""
        found = []
        for race in races(rows):
            own = next((r for r in race.rows if is_own(r["variant"], self.libraries)), None)
            found += [Best(own, race.torch)] if own else []
        return told_apart(found)

    # --- the training step ---

    def _steps(self, runs: list[Loaded]) -> list[StepView]:
        rows = [(run, r) for run in runs for r in run.records if r.get("phase") == "step"]
        seen = sightings.of(rows, lambda run, r: (step_title(r), machine_of(run)))
        found = [self._step(of, at) for of in seen.values() for at in range(len(of))]
        for number, step in enumerate(found, 1):
            step.link = f"#step-{number}"
        return found

    def _step(self, seen: list[sightings.Sighting], at: int) -> StepView:
        rows = seen[at].rows
        first, title = rows[0], step_title(rows[0])
        name = anchor(f"{title} {seen[at].run.folder.name}")
        shown = [c for c in STEP if any(c.has([r]) for r in rows)]
        lines = [
            Line(r["variant"], STORIES.get(r["variant"], ""), [cell(c, [r]) for c in shown], r.get("reproduce", ""))
            for r in rows
        ]
        times = time_rows([r for r in rows if r.get("median_s")])
        return StepView(
            title + (f" ({seen[at].named}: older)" if at else ""),
            machine_of(seen[at].run),
            rows,
            step_facts(rows),
            [c.title for c in shown],
            lines,
            self._chart(f"step-{name}", "times", times, f"time of a step of {title}"),
            self._chart(f"parts-{name}", "waterfall", waterfall_rows(rows), "where the step's time goes"),
            self._chart(f"loss-{name}", "curves", loss_rows(rows), "loss of every contestant, step by step"),
            sorted(kernels.items()) if isinstance(kernels := first.get("kernels"), dict) else [],
            self._chart(f"swaps-{name}", "swaps", swap_rows(rows), "predicted and measured change by each swap"),
            warnings=sightings.differing(seen, at),
            older=at > 0,
        )


GOOD = ("ok", "simulated")


def one_of_each(rows: list[Record]) -> list[Record]:
    """A row of each variant, pass, dtype and status, whatever its shapes and caches; of what is not good also of each
    reason. All that counts rows counts these, so that no two numbers of a page differ."""
    found: dict[tuple, Record] = {}
    for r in rows:
        why = None if r["status"] in GOOD else r.get("evidence")
        found.setdefault((r["layer"], r["variant"], r["phase"], r["dtype"], r["status"], why), r)
    return list(found.values())


def troubles(rows: list[Record]) -> dict[str, list[Record]]:
    """Rows that failed, and rows that were skipped."""
    bad = [r for r in one_of_each(rows) if r["status"] not in GOOD]
    return {
        "failed": [r for r in bad if r["status"] != "skipped"],
        "skipped": [r for r in bad if r["status"] == "skipped"],
    }


# --- texts ---


def case_facts(r: Record) -> list[str]:
    """What the work is, and how far the numbers can be trusted."""
    if not r.get("bytes") or r.get("flops") is None:
        return []
    facts = [f"{cli.several(r['calls'] or 0, 'call')} a step" if r.get("calls") else "not part of the fused step"]
    facts.append(f"{r['flops'] / 1e9:.3g} GFLOP, at least {r['bytes'] / 1e6:.3g} MB moved")
    if floor := r.get("floor_s"):
        facts.append(f"floor at measured ceilings {duration(floor)}")
    if (noise := r.get("noise_floor")) is not None:
        facts.append(f"noise floor ±{percent(noise)}")
    if canary := r.get("canary"):
        facts.append(f"canary {canary['warm'] / 1e9:.3g} GB/s warm, {canary['cold'] / 1e9:.3g} cold")
    if r.get("stopped"):
        facts.append(r["stopped"])
    if r.get("compared"):
        facts.append(f"outputs compared: {r['compared']}")
    return facts


def too_noisy(r: Record) -> str:
    """The word of a case on itself; no gain and no speed is told of it."""
    return f"This case ranks nothing: its noise floor is ±{percent(r.get('noise_floor'))}."


def step_facts(rows: list[Record]) -> list[str]:
    facts = []
    for r in rows:
        if r["status"] not in GOOD:
            facts.append(f"parity FAILED for {r['variant']}: {r.get('evidence', '')}")
    if not facts:
        facts.append("parity: every step's loss and gradient norm is inside the band of PyTorch's own runs")
    ours = rows[0]
    if ours.get("in_context_s") and ours.get("median_s"):
        layers = sum(ours["in_context_s"].values())
        rest = ours["median_s"] - layers
        facts.append(
            f"all layers in context {duration(layers)}, the step {duration(ours['median_s'])}, "
            f"remainder {'-' if rest < 0 else ''}{duration(abs(rest))}"
        )
    return facts


def environment_facts(environment: Environment) -> list[tuple[str, str]]:
    """What a run was measured on, in pairs of name and text."""
    cpu, versions = environment.get("cpu") or {}, environment.get("versions") or {}
    facts = [("command", str(environment.get("command", DASH))), ("started", str(environment.get("started", DASH)))]
    facts.append(("CPU", f"{cpu.get('model')}, {cpu.get('usable')} cores, {' '.join(cpu.get('isa') or [])}"))
    for gpu in environment.get("gpus") or []:
        facts.append(("GPU", ", ".join(f"{k} {v}" for k, v in gpu.items() if v is not None)))
    facts.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v)))
    if settings := environment.get("settings"):
        facts.append(("settings", ", ".join(settings)))
    git = environment.get("git") or {}
    facts.append(("commit", f"{git.get('commit') or DASH}{' with changes' if git.get('dirty') else ''}"))
    return facts


def about_layer(name: str) -> str:
    """The first line of the layer's contract, read from its source."""
    file = HOME / "reference" / f"{name}.py"
    try:
        return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    except (OSError, SyntaxError):
        return ""


def sizes_text(r: Record) -> str:
    return " ".join(f"{k}={v}" for k, v in (r.get("shape") or {}).items() if k not in HIDDEN)


def _length(r: Record) -> object:
    return (r.get("shape") or {}).get("T")


def telling_size(r: Record) -> str:
    """T=1024, or, where a layer has no T, the size that stands first."""
    sizes = {k: v for k, v in (r.get("shape") or {}).items() if k not in HIDDEN}
    first = "T" if "T" in sizes else next(iter(sizes), "")
    return f"{first}={sizes[first]}" if first else ""


def step_title(r: Record) -> str:
    """gpt2-124m fp32, B=4 T=64."""
    shape = r.get("shape") or {}
    title = f"{r['layer']} {r['dtype']}, B={shape.get('B')} T={shape.get('T')}"
    batches = shape.get("accumulation", 1)
    return title + (f", {batches} micro-batches" if batches != 1 else "")


def when(runs: list[Loaded]) -> str:
    """The days of some runs, and their commits."""
    days = sorted({str(run.environment.get("started", ""))[:10] for run in runs} - {""})
    commits = list(dict.fromkeys(c for run in runs if (c := sightings.commit_of(run))))
    told = [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    more = f" and {len(commits) - MOST_COMMITS} more" if len(commits) > MOST_COMMITS else ""
    told += [f"commit{'s' * (len(commits) > 1)} {', '.join(commits[:MOST_COMMITS])}{more}"] if commits else []
    return " · ".join(told)


def _variants_of(wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Variant]:
    """These variants as they are in this checkout; nothing where they cannot be read."""
    try:
        here = discover(layers={layer for layer, _ in wanted})
        return {(v.layer, v.name): v for v in here if (v.layer, v.name) in wanted}
    except CannotGoOn:
        return {}


def _place(layer: str) -> tuple[int, str]:
    return (ORDER.index(layer) if layer in ORDER else len(ORDER)), layer
