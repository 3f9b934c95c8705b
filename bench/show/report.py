"""The page of some runs: what the template shows, worked out from their records."""

import ast
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bench import HOME
from bench.cli import CannotGoOn
from bench.core.files import DiskFull
from bench.core.variants import discover
from bench.records.environment import Environment
from bench.records.queries import device_name, partial, races, ranked
from bench.records.read import Loaded, latest, runs_in
from bench.records.record import Record
from bench.show import Point
from bench.show.columns import COLUMNS, Column, columns
from bench.show.page import Chart, Line, anchor, cell, unavailable, write
from bench.show.points import (
    Best,
    best_rows,
    error_rows,
    grouped,
    ladder,
    loss_rows,
    measured_peaks,
    roofline_rows,
    swap_rows,
    time_rows,
    waterfall_rows,
)
from bench.show.texts import DASH, duration, percent

TEMPLATE = "report.html.j2"
LAYER = columns(
    "check cold warm uncopied_s span_s graph_s launch_s speedup noise bytes_per_s flops_per_s of_ceiling"
    " workspace_bytes saved_bytes peak_bytes sm_mhz energy_j compile_s registers spill_bytes shared_bytes occupancy"
    " deterministic configuration notes"
)
COUNTED = [
    *columns("phase dtype error_ratio moved_of_minimum sectors_per_request wavefronts_of_ideal kernels registers"),
    *columns("spill_bytes shared_bytes"),
    COLUMNS["occupancy"].whole(),
    *columns("tensor_core_instructions wide_instructions notes"),
]
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
# Layers in the order of the training step; others follow by name.
ORDER = (
    *("embedding", "layernorm", "residual_layernorm", "matmul", "attention", "gelu", "residual", "softmax"),
    *("cross_entropy", "fused_classifier", "global_norm", "adamw"),
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
        write(Page(read_runs([folder])), TEMPLATE, out)
    except DiskFull:
        raise
    except (CannotGoOn, OSError, ValueError, KeyError, TypeError) as error:
        return f"no report: {type(error).__name__}: {error} (python -m bench.report {folder})"
    return f"report: {out}"


# --- runs ---


def read_runs(paths: Iterable[Path]) -> list[Loaded]:
    """The runs in these folders, each with the last record of every case; second entries of the A/A controls are left
    out. CannotGoOn where there is none to show."""
    runs: list[Loaded] = []
    for path in paths:
        if not path.exists():
            raise CannotGoOn(f"no run in {path}: there is no such folder")
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
class CaseView:
    """One layer's phase at one shape and dtype."""

    title: str
    sizes: str
    facts: list[str]
    columns: list[str]
    lines: list[Line]
    chart: str  # the name of its data, or nothing where nothing was timed
    ladder: list[Point]


@dataclass
class LayerView:
    name: str
    about: str
    cases: list[CaseView]
    roofline: str
    errors: str
    counted: tuple[list[str], list[Line]] | None


@dataclass
class StepView:
    """One training step: contestants, where the time goes, losses."""

    title: str
    facts: list[str]
    columns: list[str]
    lines: list[Line]
    times: str
    waterfall: str
    losses: str
    kernels: list[tuple[str, str]]
    swaps: str


class Page:
    """Everything the template shows. `data` holds the rows of all charts, by name."""

    def __init__(self, runs: list[Loaded], title: str | None = None):
        self.runs = runs
        self.data: dict[str, Chart] = {}
        self.hashes = _source_hashes({(r["layer"], r["variant"]) for run in runs for r in run.records})
        self.several_machines = len({machine_of(run) for run in runs}) > 1
        layer_rows = [(run, r) for run in runs for r in run.records if r.get("phase") != "step"]
        layer_rows.sort(key=lambda x: _place(x[1]["layer"]))
        self.peaks = measured_peaks([r for _, r in layer_rows])
        self.layers = [self._layer(name, rows) for name, rows in grouped(layer_rows, lambda x: x[1]["layer"]).items()]
        self.steps = [self._step(run) for run in runs if any(r.get("phase") == "step" for r in run.records)]
        self.best = self._best([r for _, r in layer_rows])
        self.troubles = self._troubles([r for run in runs for r in run.records])
        self.counts = Counter(r["status"] for run in runs for r in run.records)
        self.environments = [(run.folder.name, environment_facts(run.environment)) for run in runs]
        self.machines = list(dict.fromkeys(machine_of(run) for run in runs))
        self.noise = max((noise for _, r in layer_rows if (noise := r.get("noise_floor"))), default=None)
        self.problems = [str(p) for run in runs for p in run.problems]
        self.when = sorted(str(run.environment.get("started", ""))[:10] for run in runs)[-1]
        self.title = title or self._title()

    def _title(self) -> str:
        what = [layer.name for layer in self.layers] if len(self.layers) <= 3 else [f"{len(self.layers)} layers"]
        what += [step.title.partition(" ")[0] for step in self.steps][:1]
        return f"{', '.join(what)} on {', '.join(self.machines)}"

    def _chart(self, name: str, spec: str, rows: list[Point], label: str) -> str:
        """Keep a chart's rows; its name, or nothing without rows."""
        if not rows:
            return ""
        self.data[name] = Chart(spec, rows, label)
        return name

    # --- layers ---

    def _layer(self, name: str, found: list[tuple[Loaded, Record]]) -> LayerView:
        timed = [(run, r) for run, r in found if r["status"] != "simulated"]
        groups = grouped(timed, lambda x: self._case_key(*x))
        cases = [self._case(key, [r for _, r in rows]) for key, rows in groups.items()]
        rows = [r for _, r in found]
        points = roofline_rows(rows, self.peaks)
        return LayerView(
            name,
            about_layer(name),
            cases,
            self._chart(f"roofline-{name}", "roofline", points, f"roofline of {name}"),
            self._chart(f"errors-{name}", "errors", error_rows(rows), f"errors of {name}'s variants"),
            self._counted(rows),
        )

    def _case_key(self, run: Loaded, r: Record) -> tuple[str, ...]:
        machine = machine_of(run) if self.several_machines else ""
        return r["phase"], r.get("shape_name") or "", r["dtype"], sizes_text(r), machine

    def _case(self, key: tuple[str, ...], rows: list[Record]) -> CaseView:
        phase, shape, dtype, sizes, machine = key
        title = " ".join(part for part in (phase, shape, dtype, machine) if part)
        variants = ranked(rows)
        ok = [states for states in variants if states[0]["status"] == "ok" and states[0].get("median_s")]
        times = time_rows([states[0] for states in ok])
        seconds = [states[0]["median_s"] for states in ok]
        far = bool(ok) and max(seconds) > FAR * min(seconds)
        name = anchor(f"{rows[0]['layer']} {title} {sizes}")
        shown = [c for c in LAYER if any(c.has(states) for states in variants)]
        return CaseView(
            title,
            sizes,
            case_facts(next((r for r in rows if r.get("compared")), rows[0])),
            [c.title for c in shown],
            [self._line(states, shown) for states in variants],
            self._chart(name, "times_log" if far else "times", times, f"times of {rows[0]['layer']} {title}"),
            ladder([states[0] for states in ok if not partial(states[0])]),
        )

    def _line(self, states: list[Record], shown: list[Column]) -> Line:
        r = states[0]
        cells = [cell(c, states) for c in shown]
        return Line(r["variant"], r.get("story", ""), cells, r.get("reproduce", ""), self._stale(r))

    def _stale(self, r: Record) -> bool:
        """Whether the variant's source is here, and another one."""
        now = self.hashes.get((r["layer"], r["variant"]))
        return now is not None and now != r.get("source_hash")

    def _counted(self, rows: list[Record]) -> tuple[list[str], list[Line]] | None:
        simulated = [r for r in rows if r["status"] == "simulated"]
        if not simulated:
            return None
        shown = columns("check") * any(map(partial, simulated)) + COUNTED
        shown = [c for c in shown if c.name != "notes" or any(r.get("notes") for r in simulated)]
        return [c.title for c in shown], [self._line([r], shown) for r in simulated]

    def _best(self, rows: list[Record]) -> list[Best]:
        """The fastest right own kernel of each case, and its chart."""
        best = [Best(race.own, race.torch) for race in races(rows) if race.own]
        told = "the best kernel of each layer against PyTorch"
        self.overview = self._chart("overview", "overview", best_rows(best), told)
        return best

    def _troubles(self, rows: list[Record]) -> dict[str, list[Record]]:
        """Rows that failed, and rows that were skipped; one of each variant, phase and reason."""
        found: dict[str, dict[tuple, Record]] = {"failed": {}, "skipped": {}}
        for r in rows:
            if r["status"] in ("ok", "simulated"):
                continue
            kind = "skipped" if r["status"] == "skipped" else "failed"
            found[kind].setdefault((r["layer"], r["variant"], r["phase"], r["dtype"], r.get("evidence")), r)
        return {kind: list(unique.values()) for kind, unique in found.items()}

    # --- the training step ---

    def _step(self, run: Loaded) -> StepView:
        rows = [r for r in run.records if r.get("phase") == "step"]
        first = rows[0]
        shape = first["shape"]
        title = f"{first['layer']} {first['dtype']}, B={shape['B']} T={shape['T']}"
        if shape.get("accumulation", 1) != 1:
            title += f", {shape['accumulation']} micro-batches"
        name = anchor(f"{title} {run.folder.name}")
        shown = [c for c in STEP if any(c.has([r]) for r in rows)]
        lines = [
            Line(r["variant"], STORIES.get(r["variant"], ""), [cell(c, [r]) for c in shown], r.get("reproduce", ""))
            for r in rows
        ]
        times = time_rows([r for r in rows if r.get("median_s")])
        return StepView(
            title,
            step_facts(rows),
            [c.title for c in shown],
            lines,
            self._chart(f"step-{name}", "times", times, f"time of a step of {title}"),
            self._chart(f"parts-{name}", "waterfall", waterfall_rows(rows), "where the step's time goes"),
            self._chart(f"loss-{name}", "curves", loss_rows(rows), "loss of every contestant, step by step"),
            sorted(kernels.items()) if isinstance(kernels := first.get("kernels"), dict) else [],
            self._chart(f"swaps-{name}", "swaps", swap_rows(rows), "predicted and measured change by each swap"),
        )


# --- texts ---


def case_facts(r: Record) -> list[str]:
    """What the work is, and how far the numbers can be trusted."""
    if not r.get("bytes"):
        return []
    facts = [f"{r['calls']} calls a step" if r.get("calls") else "not part of the fused step"]
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


def step_facts(rows: list[Record]) -> list[str]:
    facts = []
    for r in rows:
        if r["status"] not in ("ok", "simulated"):
            facts.append(f"parity FAILED for {r['variant']}: {r['evidence']}")
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
    hidden = ("eps", "accumulate", "beta1", "beta2", "tensors")
    return " ".join(f"{k}={v}" for k, v in (r.get("shape") or {}).items() if k not in hidden)


def _source_hashes(wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Of these variants in this checkout; nothing where they cannot be read."""
    try:
        return {(v.layer, v.name): v.source_hash() for v in discover() if (v.layer, v.name) in wanted}
    except CannotGoOn:
        return {}


def _place(layer: str) -> tuple[int, str]:
    return (ORDER.index(layer) if layer in ORDER else len(ORDER)), layer
