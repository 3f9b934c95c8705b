"""The columns of the page's tables."""

from dataclasses import dataclass
from typing import Any

from bench.show.page import Cell
from bench.show.texts import DASH, duration, percent, speed_text, time_text

# --- columns ---


Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: which field of a variant's rows (cold first) it shows, and how."""

    title: str
    name: str
    form: Any  # (row) -> text
    cache: str | None = None  # of the row that is shown; None: the first

    def row(self, states: list[Row]) -> Row:
        return states[0] if self.cache is None else next((r for r in states if r.get("cache") == self.cache), {})

    def has(self, states: list[Row]) -> bool:
        return self.row(states).get(self.name) is not None

    def cell(self, states: list[Row]) -> Cell:
        r = self.row(states)
        value = r.get(self.name)
        if self.name == "status":
            return status_cell(next((s for s in states if s["status"] != "ok"), r))
        if value is None:
            return Cell(DASH, "", "number")
        key = str(value) if isinstance(value, str | bool) else float(value)
        return Cell(self.form(r), key, "number" if not isinstance(value, str | bool) else "")


def status_cell(r: Row) -> Cell:
    status, ratio = r["status"], r.get("error_ratio")
    if status in ("ok", "simulated"):
        told = status if ratio is None else f"{status} {ratio:.2g}x"
        return Cell(told, ratio or 0.0, status)
    style = "skipped long" if status == "skipped" else "bad long"
    return Cell(f"{status}: {r.get('evidence', '')}", 1e9, style)


def _scaled(name: str, scale: float, form: str = "{:.3g}") -> Any:
    return lambda r: form.format(r[name] / scale)


def _percent_of(name: str) -> Any:
    return lambda r: percent(r[name])


COLUMNS = (
    Column("check (error)", "status", None),
    Column("cold ±95 %", "median_s", time_text, "cold"),
    Column("warm ±95 %", "median_s", time_text, "warm"),
    Column("span", "span_s", lambda r: duration(r["span_s"])),
    Column("graph", "graph_s", lambda r: duration(r["graph_s"])),
    Column("vs torch", "speedup", speed_text),
    Column("noise", "noise", _percent_of("noise")),
    Column("GB/s", "bytes_per_s", _scaled("bytes_per_s", 1e9)),
    Column("GFLOP/s", "flops_per_s", _scaled("flops_per_s", 1e9)),
    Column("of ceiling", "of_ceiling", _percent_of("of_ceiling")),
    Column("scratch MB", "workspace_bytes", _scaled("workspace_bytes", 1e6)),
    Column("saved MB", "saved_bytes", _scaled("saved_bytes", 1e6)),
    Column("peak MB", "peak_bytes", _scaled("peak_bytes", 1e6)),
    Column("SM MHz", "sm_mhz", _scaled("sm_mhz", 1, "{:.0f}")),
    Column("mJ a call", "energy_j", _scaled("energy_j", 1e-3)),
    Column("compile s", "compile_s", _scaled("compile_s", 1, "{:.2g}")),
    Column("registers", "registers", _scaled("registers", 1, "{:.0f}")),
    Column("spills B", "spill_bytes", _scaled("spill_bytes", 1, "{:.0f}")),
    Column("shared B", "shared_bytes", _scaled("shared_bytes", 1, "{:,.0f}")),
    Column("occupancy", "occupancy", _percent_of("occupancy")),
    Column("bits", "deterministic", lambda r: "same" if r["deterministic"] else "differ"),
    Column("tiles", "configuration", lambda r: r["configuration"]),
)
STEP_COLUMNS = (
    Column("check", "status", None),
    Column("step ±95 %", "median_s", time_text),
    Column("tokens/s", "tokens_per_s", _scaled("tokens_per_s", 1, "{:,.0f}")),
    Column("speed", "speedup", speed_text),
    Column("MFU PaLM / measured", "mfu_palm_of_ceiling", _percent_of("mfu_palm_of_ceiling")),
    Column("MFU llm.c / measured", "mfu_llmc_of_ceiling", _percent_of("mfu_llmc_of_ceiling")),
    Column("MFU PaLM / datasheet", "mfu_palm_of_datasheet", _percent_of("mfu_palm_of_datasheet")),
    Column("MFU llm.c / datasheet", "mfu_llmc_of_datasheet", _percent_of("mfu_llmc_of_datasheet")),
    Column("peak MB", "peak_bytes", _scaled("peak_bytes", 1e6, "{:,.0f}")),
    Column("first loss", "first_loss", _scaled("first_loss", 1, "{:.4f}")),
    Column("last loss", "last_loss", _scaled("last_loss", 1, "{:.4f}")),
    Column("loss, of the band", "worst_loss", _percent_of("worst_loss")),
    Column("norm, of the band", "worst_norm", _percent_of("worst_norm")),
)
STEP_STORIES = {
    "ours": "the step assembled from the registry's variants",
    "torch.eager": "plain PyTorch, op by op",
    "torch.compile": "torch.compile as a careful user writes it",
}
COUNTED = {
    "moved_of_minimum": ("moved, of least", "{:.3g}x"),
    "sectors_per_request": ("sectors a request", "{:.3g}"),
    "wavefronts_of_ideal": ("bank passes", "{:.3g}x"),
    "kernels": ("kernels", "{:.0f}"),
    "registers": ("registers", "{:.0f}"),
    "spill_bytes": ("spills B", "{:.0f}"),
    "shared_bytes": ("shared B", "{:,.0f}"),
    "occupancy": ("occupancy", "{:.0%}"),
    "tensor_core_instructions": ("tensor-core", "{:.0f}"),
    "wide_instructions": ("128-bit", "{:.0f}"),
}


def number(value: Any, form: str) -> Cell:
    return Cell(DASH if value is None else form.format(value), "" if value is None else float(value), "number")
