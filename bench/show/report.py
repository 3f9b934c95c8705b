"""The page of some runs: what the template shows, worked out from their records."""

import ast
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import HOME
from bench.cli import CannotGoOn
from bench.core.variants import discover
from bench.records.queries import device_name, races
from bench.records.read import Loaded, latest, runs_in
from bench.show.columns import COLUMNS, COUNTED, STEP_COLUMNS, STEP_STORIES, Row, number
from bench.show.page import Cell, Chart, Line, anchor, backend_of, unavailable, write
from bench.show.texts import DASH, duration, percent, speed_text

TEMPLATE = "report.html.j2"
MOST_SAMPLES = 40  # of a row that are drawn
FAR = 25.0  # the slowest is this many times slower than the fastest: points on a logarithmic axis
# Layers in the order of the training step; others follow by name.
ORDER = (
    *("embedding", "layernorm", "residual_layernorm", "matmul", "attention", "gelu", "residual", "softmax"),
    *("cross_entropy", "fused_classifier", "global_norm", "adamw"),
)


def write_beside(folder: Path) -> str:
    """Put report.html into a finished run's folder; a line that says so, or why there is none ($LAYERBENCH_REPORT=0:
    nobody wants it now). Never raises: a report can be built again, and what was measured is on the disk."""
    if os.environ.get("LAYERBENCH_REPORT") == "0":
        return f"no report: LAYERBENCH_REPORT is 0 (python -m bench.report {folder})"
    if missing := unavailable():
        return f"no report: {missing}: python -m bench.report {folder}"
    try:
        out = folder / "report.html"
        write(Page(read_runs([folder])), TEMPLATE, out)
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
        for run in runs_in(path):
            rows = [r for r in latest(run.records).values() if not r.get("control")]
            runs.append(replace(run, records=rows))
    if not any(run.records for run in runs):
        raise CannotGoOn(f"nothing to report: {', '.join(str(r.folder) for r in runs)} hold no readable record")
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
    ladder: list[dict[str, Any]]


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
        self.hashes = _source_hashes()
        self.several_machines = len({machine_of(run) for run in runs}) > 1
        layer_rows = [(run, r) for run in runs for r in run.records if r.get("phase") != "step"]
        layer_rows.sort(key=lambda x: _place(x[1]["layer"]))
        self.peaks = measured_peaks([r for _, r in layer_rows])
        self.layers = [self._layer(name, rows) for name, rows in _grouped(layer_rows, lambda x: x[1]["layer"]).items()]
        self.steps = [self._step(run) for run in runs if any(r.get("phase") == "step" for r in run.records)]
        self.best = self._best([r for _, r in layer_rows])
        self.troubles = self._troubles([r for run in runs for r in run.records])
        self.counts = Counter(r["status"] for run in runs for r in run.records)
        self.environments = [(run.folder.name, environment_facts(run.environment)) for run in runs]
        self.machines = list(dict.fromkeys(machine_of(run) for run in runs))
        self.noise = max((r["noise_floor"] for _, r in layer_rows if r.get("noise_floor")), default=None)
        self.problems = [str(p) for run in runs for p in run.problems]
        self.when = sorted(str(run.environment.get("started", ""))[:10] for run in runs)[-1]
        self.title = title or self._title()

    def _title(self) -> str:
        what = [layer.name for layer in self.layers] if len(self.layers) <= 3 else [f"{len(self.layers)} layers"]
        what += [step.title.partition(" ")[0] for step in self.steps][:1]
        return f"{', '.join(what)} on {', '.join(self.machines)}"

    def _chart(self, name: str, spec: str, rows: list[dict[str, Any]], label: str) -> str:
        """Keep a chart's rows; its name, or nothing without rows."""
        if not rows:
            return ""
        self.data[name] = Chart(spec, rows, label)
        return name

    # --- layers ---

    def _layer(self, name: str, found: list[tuple[Loaded, Row]]) -> LayerView:
        timed = [(run, r) for run, r in found if r["status"] != "simulated"]
        groups = _grouped(timed, lambda x: self._case_key(*x))
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

    def _case_key(self, run: Loaded, r: Row) -> tuple[str, ...]:
        machine = machine_of(run) if self.several_machines else ""
        return r["phase"], r.get("shape_name") or "", r["dtype"], sizes_text(r), machine

    def _case(self, key: tuple[str, ...], rows: list[Row]) -> CaseView:
        phase, shape, dtype, sizes, machine = key
        title = " ".join(part for part in (phase, shape, dtype, machine) if part)
        variants = sorted(_grouped(rows, lambda r: r["variant"]).values(), key=_rank)
        ok = [states for states in variants if states[0]["status"] == "ok" and states[0].get("median_s")]
        times = time_rows([states[0] for states in ok])
        slowest = max((t["ms"] for t in times), default=0.0)
        far = bool(times) and slowest > FAR * min(t["ms"] for t in times)
        name = anchor(f"{rows[0]['layer']} {title} {sizes}")
        columns, lines = self._table(variants)
        return CaseView(
            title,
            sizes,
            case_facts(rows[0]),
            columns,
            lines,
            self._chart(name, "times_log" if far else "times", times, f"times of {rows[0]['layer']} {title}"),
            ladder([states[0] for states in ok]),
        )

    def _table(self, variants: list[list[Row]]) -> tuple[list[str], list[Line]]:
        columns = [c for c in COLUMNS if any(c.has(states) for states in variants)]
        lines = []
        for states in variants:
            r = states[0]
            cells = [c.cell(states) for c in columns]
            lines.append(Line(r["variant"], r.get("story", ""), cells, r.get("reproduce", ""), self._stale(r)))
        return [c.title for c in columns], lines

    def _stale(self, r: Row) -> bool:
        """Whether the variant's source is here, and another one."""
        now = self.hashes.get((r["layer"], r["variant"]))
        return now is not None and now != r.get("source_hash")

    def _counted(self, rows: list[Row]) -> tuple[list[str], list[Line]] | None:
        simulated = [r for r in rows if r["status"] == "simulated"]
        if not simulated:
            return None
        lines = []
        for r in simulated:
            cells = [
                Cell(r["phase"], r["phase"]),
                Cell(r["dtype"], r["dtype"]),
                number(r.get("error_ratio"), "{:.2g}x"),
            ]
            cells += [number(r.get(name), form) for name, (_, form) in COUNTED.items()]
            lines.append(Line(r["variant"], r["story"], cells, r.get("reproduce", ""), self._stale(r)))
        return ["pass", "dtype", "error", *(title for title, _ in COUNTED.values())], lines

    def _best(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The fastest right own kernel of each case, and its chart."""
        best: list[dict[str, Any]] = []
        for race in races(rows):
            if r := race.own:
                shape, rival = (r.get("shape_name") or "").partition("/")[2], race.torch
                case = " ".join(x for x in (r["layer"], shape, r["phase"], r["dtype"]) if x)
                told = dict(time=duration(r["median_s"]), rival_time=duration(rival["median_s"]) if rival else DASH)
                best.append(dict(case=case, layer=r["layer"], row=r, rival=rival, text=speed_text(r), **told))
        points = [
            dict(
                case=b["case"],
                variant=b["row"]["variant"],
                backend=backend_of(b["row"]["variant"]),
                speedup=b["row"]["speedup"],
                low=b["row"]["speedup_low"],
                high=b["row"]["speedup_high"],
                reach=max(b["row"]["speedup_high"], b["row"]["speedup"], 1),
                text=f"{b['text']} {b['row']['variant']}",
            )
            for b in best
            if b["row"].get("speedup") and _finite(b["row"].get("speedup_high"))
        ]
        self.overview = self._chart("overview", "overview", points, "the best kernel of each layer against PyTorch")
        return best

    def _troubles(self, rows: list[Row]) -> dict[str, list[Row]]:
        """Rows that failed, and rows that were skipped; one of each variant, phase and reason."""
        found: dict[str, dict[tuple, Row]] = {"failed": {}, "skipped": {}}
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
        if shape.get("accumulation", 1) > 1:
            title += f", {shape['accumulation']} micro-batches"
        name = anchor(f"{title} {run.folder.name}")
        columns = [c for c in STEP_COLUMNS if any(c.has([r]) for r in rows)]
        lines = []
        for r in rows:
            story, cells = STEP_STORIES.get(r["variant"], ""), [c.cell([r]) for c in columns]
            lines.append(Line(r["variant"], story, cells, r.get("reproduce", "")))
        times = time_rows([r for r in rows if r.get("median_s")])
        return StepView(
            title,
            step_facts(rows),
            [c.title for c in columns],
            lines,
            self._chart(f"step-{name}", "times", times, f"time of a step of {title}"),
            self._chart(f"parts-{name}", "waterfall", waterfall_rows(rows), "where the step's time goes"),
            self._chart(f"loss-{name}", "curves", loss_rows(rows), "loss of every contestant, step by step"),
            sorted((first.get("kernels") or {}).items()),
            self._chart(f"swaps-{name}", "swaps", swap_rows(rows), "predicted and measured change by each swap"),
        )


# --- rows of charts ---


def time_rows(rows: list[Row]) -> list[dict[str, Any]]:
    found = []
    for r in sorted(rows, key=lambda r: r["median_s"]):
        low, high = r.get("low_s") or r["median_s"], r["high_s"] if _finite(r.get("high_s")) else r["median_s"]
        samples = [s * 1e3 for turn in r.get("samples") or [] for s in turn]
        found.append(
            dict(
                variant=r["variant"],
                story=r.get("story", ""),
                backend=backend_of(r["variant"]),
                ms=r["median_s"] * 1e3,
                low=low * 1e3,
                high=high * 1e3,
                samples=samples[:: max(1, -(-len(samples) // MOST_SAMPLES))],
                reach=max([high * 1e3, *samples]),
                text=duration(r["median_s"]) + (f"  {speed_text(r)}" if r.get("speedup") else ""),
            )
        )
    return found


def error_rows(rows: list[Row]) -> list[dict[str, Any]]:
    worst: dict[tuple[str, str, str], Row] = {}
    for r in rows:
        key = (r["variant"], r["phase"], r["dtype"])
        if r.get("error_ratio") is not None and r["error_ratio"] >= worst.get(key, r)["error_ratio"]:
            worst[key] = r
    return [
        dict(
            variant=variant,
            backend=backend_of(variant),
            phase=f"{phase} {dtype}",
            error=r["error_ratio"],
            text=f"{r['error_ratio']:.2g}x plain torch's, {dtype}, {r.get('proof_cases')} cases",
        )
        for (variant, phase, dtype), r in sorted(worst.items())
    ]


def measured_peaks(rows: list[Row]) -> dict[str, float]:
    """FLOP/s by dtype of the ceilings that floors were worked out from. Where a record does not tell (they once did
    not), matmul's floor does: no other layer is bound by it."""
    peaks: dict[str, float] = {}
    for r in rows:
        peak = r.get("ceiling_flops_per_s") or (r["flops"] / r["floor_s"] if _tells_peak(r) else 0.0)
        peaks[r["dtype"]] = max(peak, peaks.get(r["dtype"], 0.0))
    return {dtype: peak for dtype, peak in peaks.items() if peak}


def _tells_peak(r: Row) -> bool:
    return r["layer"] == "matmul" and bool(r.get("floor_s"))


def roofline_rows(rows: list[Row], peaks: dict[str, float]) -> list[dict[str, Any]]:
    """A point a timed row; the roofs that their floors were worked out from, measured on the machine; and its maker's
    where they are known."""
    timed = [r for r in rows if r["status"] == "ok" and r.get("median_s") and r.get("flops") and r.get("bytes")]
    timed = [r for r in timed if r.get("cache") != "warm"]
    points = [
        dict(
            kind="point",
            intensity=r["flops"] / r["bytes"],
            gflops=r["flops"] / r["median_s"] / 1e9,
            variant=r["variant"],
            backend=backend_of(r["variant"]),
            phase=r["phase"],
            case=f"{r['phase']} {r.get('shape_name')} {r['dtype']}",
            text=f"{duration(r['median_s'])}, {percent(r.get('of_ceiling'))} of the ceiling",
        )
        for r in timed
    ]
    for dtype, found in _grouped([r for r in timed if r.get("floor_s")], lambda r: r["dtype"]).items():
        at = [r["flops"] / r["bytes"] for r in found]
        ends = min(at) / 2, max(at) * 2
        bandwidth = max(r.get("ceiling_bytes_per_s") or r["bytes"] / r["floor_s"] for r in found)
        points += _roof(f"measured ceiling, {dtype}", *ends, bandwidth, peaks.get(dtype))
        sheets = {(r.get("datasheet_bytes_per_s"), r.get("datasheet_flops_per_s")) for r in found}
        for bandwidth, peak in sorted(sheet for sheet in sheets if sheet[0]):
            points += _roof(f"datasheet, {dtype}", *ends, bandwidth, peak)
    return points


def _roof(name: str, least: float, most: float, bandwidth: float, peak: float | None) -> list[dict[str, Any]]:
    """Corners of min(bandwidth * intensity, peak) between two intensities; no peak where none is known."""
    corner = peak / bandwidth if peak else most
    ends = sorted({least, min(max(corner, least), most), most})
    return [
        dict(
            kind="roof",
            name=name,
            label=x == most,
            intensity=x,
            gflops=min(peak or float("inf"), x * bandwidth) / 1e9,
        )
        for x in ends
    ]


def waterfall_rows(rows: list[Row]) -> list[dict[str, Any]]:
    """Our step by layers, what is left over, and PyTorch's as a whole."""
    found = []
    for r in rows:
        parts: dict[str, float] = {}
        for key, seconds in (r.get("in_context_s") or {}).items():
            layer = key.partition(" ")[0].partition("/")[0]  # "matmul/qkv forward"
            parts[layer] = parts.get(layer, 0.0) + seconds * 1e3
        total = (r.get("median_s") or 0.0) * 1e3
        if not total:
            continue
        at = 0.0
        listed = sorted(parts.items(), key=lambda part: -part[1]) or [("whole step", total)]
        for i, (part, ms) in enumerate(listed):
            text = f"{ms:.3g} ms, {ms / total:.0%} of the step"
            found.append(dict(contestant=r["variant"], part=part, start=at, end=at + ms, order=i, text=text))
            at += ms
        if parts and total > at:
            text = f"{total - at:.3g} ms, {(total - at) / total:.0%} of the step"
            found.append(dict(contestant=r["variant"], part="remainder", start=at, end=total, order=99, text=text))
    return found


def loss_rows(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        dict(contestant=r["variant"], step=i + 1, value=loss)
        for r in rows
        for i, loss in enumerate(r.get("losses") or [])
    ]


def swap_rows(rows: list[Row]) -> list[dict[str, Any]]:
    """Of each `ours, layer=variant`: the step's change, beside what its layers' times in context and alone predict."""
    found = []
    for r in rows:
        if r.get("change_s") is None:
            continue
        swap, measured = r["variant"].partition(", ")[2], r["change_s"] * 1e3
        ends = [r[name] * 1e3 if _finite(r.get(name)) else measured for name in ("change_low_s", "change_high_s")]
        for by in ("in context", "alone"):
            predicted = r.get(f"predicted_{by.replace(' ', '_')}_s")
            if predicted is not None:
                text = f"predicted {predicted * 1e3:+.3g} ms, measured {measured:+.3g} ms"
                change = dict(predicted=predicted * 1e3, measured=measured, low=ends[0], high=ends[1])
                found.append(dict(swap=swap, by=f"layers {by}", text=text, **change))
    return found


def ladder(rows: list[Row]) -> list[dict[str, Any]]:
    """From the slowest to the fastest: what each step of the way buys, and its story."""
    ordered = sorted(rows, key=lambda r: -r["median_s"])
    if len(ordered) < 2:
        return []
    slowest, fastest = ordered[0]["median_s"], ordered[-1]["median_s"]
    return [
        dict(
            variant=r["variant"],
            backend=backend_of(r["variant"]),
            story=r.get("story", ""),
            time=duration(r["median_s"]),
            times=f"{slowest / r['median_s']:.3g}x",
            share=max(1.0, 100 * fastest / r["median_s"]),
        )
        for r in ordered
    ]


# --- texts ---


def case_facts(r: Row) -> list[str]:
    """What the work is, and how far the numbers can be trusted."""
    if not r.get("bytes"):
        return []
    facts = [f"{r['calls']} calls a step" if r.get("calls") else "not part of the fused step"]
    facts.append(f"{r['flops'] / 1e9:.3g} GFLOP, at least {r['bytes'] / 1e6:.3g} MB moved")
    if r.get("floor_s"):
        facts.append(f"floor at measured ceilings {duration(r['floor_s'])}")
    if r.get("noise_floor") is not None:
        facts.append(f"noise floor ±{percent(r['noise_floor'])}")
    if r.get("canary"):
        facts.append(f"canary {r['canary']['warm'] / 1e9:.3g} GB/s warm, {r['canary']['cold'] / 1e9:.3g} cold")
    if r.get("stopped"):
        facts.append(r["stopped"])
    return facts


def step_facts(rows: list[Row]) -> list[str]:
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


def environment_facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
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


def sizes_text(r: Row) -> str:
    hidden = ("eps", "accumulate", "beta1", "beta2", "tensors")
    return " ".join(f"{k}={v}" for k, v in (r.get("shape") or {}).items() if k not in hidden)


def _source_hashes() -> dict[tuple[str, str], str]:
    """Of the variants of this checkout; nothing where they cannot be read."""
    try:
        return {(v.layer, v.name): v.source_hash() for v in discover()}
    except CannotGoOn:
        return {}


def _grouped(items: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _place(layer: str) -> tuple[int, str]:
    return (ORDER.index(layer) if layer in ORDER else len(ORDER)), layer


def _rank(states: list[Row]) -> tuple[bool, float]:
    """Right ones first, the fastest on top."""
    return any(r["status"] not in ("ok", "simulated") for r in states), states[0].get("median_s") or float("inf")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")
