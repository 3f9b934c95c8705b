"""The columns of all tables of records: bench.show.terminal, page and markdown draw them, each place says which."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.records.queries import partial
from bench.records.record import Record
from bench.show.texts import (
    DASH,
    bits_text,
    coverage_text,
    duration,
    multiple,
    percent,
    ratio_text,
    speed_text,
    time_text,
)

States = Sequence[Record]  # of one variant at one case, cold before warm


@dataclass(frozen=True)
class Column:
    """A field of one of a variant's records, and how it is told."""

    title: str
    name: str  # of the field; where the record lacks it there is a dash. "": `text` needs none
    text: Callable[[Record], str]
    cache: str | None = None  # of the record; None: the first
    right: bool = True  # numbers are
    no_wrap: bool = False

    def record(self, states: States) -> Record:
        if self.name == "status":  # what is not right of any of them is told
            return next((r for r in states if r["status"] != "ok"), states[0])
        if self.name == "graph_s":  # measured warm alone
            return next((r for r in states if r.get("graph_s")), states[0])
        return states[0] if self.cache is None else next((r for r in states if r.get("cache") == self.cache), Record())

    def has(self, states: States) -> bool:
        return self.record(states).get(self.name) is not None

    def told(self, states: States) -> str:
        return self.text(self.record(states)) if not self.name or self.has(states) else DASH

    def titled(self, title: str) -> "Column":
        """The same where a place has another word for it."""
        return replace(self, title=title)

    def whole(self) -> "Column":
        """A share without decimals."""
        return replace(self, text=lambda r: f"{value(r, self.name):.0%}")


def value(r: Record, name: str) -> float:
    """A number that is there."""
    found = r.get(name)
    assert isinstance(found, int | float), f"{name} is {found!r}"
    return found


def check_text(r: Record) -> str:
    """ok and how large the error is, of how many cases where it is not all, or what is wrong."""
    if r["status"] not in ("ok", "simulated"):
        return f"{r['status']}: {r.get('evidence', '')}"
    ratio = r.get("error_ratio")
    if partial(r):
        return f"{r['status']} {coverage_text(r)}" + (f"; error {ratio_text(ratio)}" if ratio is not None else "")
    return r["status"] if ratio is None else f"{r['status']} {ratio_text(ratio)}"


def evidence_text(r: Record) -> str:
    """What was seen, what is right in a part only, and notes; nothing of a plain ok."""
    told = [r.get("evidence") or "", coverage_text(r) if partial(r) else "", *(r.get("notes") or [])]
    return "; ".join(filter(None, told))


def cases_text(r: Record) -> str:
    """9; 7 of 9 where it does not have the others."""
    cases = str(r.get("proof_cases") or DASH)
    return f"{cases} of {r.get('proof_cases_all', DASH)}" if partial(r) else cases


def _word(title: str, name: str) -> Column:
    return Column(title, "", lambda r: str(r.get(name) or DASH), right=False)


def _scaled(title: str, name: str, scale: float = 1.0, form: str = "{:.3g}") -> Column:
    return Column(title, name, lambda r: form.format(value(r, name) / scale))


def _share(title: str, name: str) -> Column:
    return Column(title, name, lambda r: percent(value(r, name)))


def _multiple(title: str, name: str) -> Column:
    return Column(title, name, lambda r: multiple(value(r, name)))


def _seconds(title: str, name: str, no_wrap: bool = False) -> Column:
    return Column(title, name, lambda r: duration(value(r, name)), no_wrap=no_wrap)


COLUMNS = {
    "case": Column("layer", "", lambda r: f"{r['layer']} {r['shape_name'].partition('/')[2]}".strip(), right=False),
    "layer": _word("layer", "layer"),
    "phase": _word("pass", "phase"),
    "dtype": _word("dtype", "dtype"),
    "shape": Column("shape", "", lambda r: f"{r['shape_name']} {r['dtype']}", right=False),
    "variant": _word("variant", "variant"),
    "story": _word("story", "story"),
    "part": _word("part", "case_id"),
    "status": _word("status", "status"),
    "evidence": Column("evidence", "", evidence_text, right=False),
    "notes": Column("notes", "notes", lambda r: "; ".join(r["notes"]) or DASH, right=False),
    "baseline": _word("baseline", "baseline"),
    # --- proof ---
    "check": Column("check (error)", "status", check_text, right=False),
    "error_ratio": Column("error", "error_ratio", lambda r: ratio_text(value(r, "error_ratio"))),
    "proof_cases": Column("cases", "", cases_text),
    "deterministic": Column("bits", "deterministic", lambda r: bits_text(r["deterministic"])),
    # --- times ---
    "cold": Column("cold ±95 %", "median_s", time_text, "cold", no_wrap=True),
    "warm": Column("warm ±95 %", "median_s", time_text, "warm", no_wrap=True),
    "time": _seconds("time", "median_s"),
    "span_s": _seconds("span", "span_s", no_wrap=True),
    "uncopied_s": _seconds("without copies", "uncopied_s", no_wrap=True),
    "launch_s": _seconds("launch", "launch_s", no_wrap=True),
    "graph_s": _seconds("graph", "graph_s", no_wrap=True),
    "speedup": Column("vs torch", "speedup", speed_text, no_wrap=True),
    "noise": _share("noise", "noise"),
    "noise_floor": _share("noise floor", "noise_floor"),
    "bytes_per_s": _scaled("GB/s", "bytes_per_s", 1e9),
    "flops_per_s": _scaled("GFLOP/s", "flops_per_s", 1e9),
    "of_ceiling": _share("of ceiling", "of_ceiling"),
    "workspace_bytes": _scaled("scratch MB", "workspace_bytes", 1e6),
    "saved_bytes": _scaled("saved MB", "saved_bytes", 1e6),
    "peak_bytes": _scaled("peak MB", "peak_bytes", 1e6),
    "sm_mhz": _scaled("SM MHz", "sm_mhz", 1, "{:.0f}"),
    "energy_j": _scaled("mJ a call", "energy_j", 1e-3),
    "compile_s": _scaled("compile s", "compile_s", 1, "{:.2g}"),
    "configuration": Column("tiles", "configuration", lambda r: r["configuration"], right=False),
    # --- counts ---
    "moved_of_minimum": _multiple("moved, of least", "moved_of_minimum"),
    "sectors_per_request": _scaled("sectors a request", "sectors_per_request"),
    "sectors_of_ideal": _multiple("of ideal", "sectors_of_ideal"),
    "wavefronts_of_ideal": _multiple("bank passes", "wavefronts_of_ideal"),
    "kernels": _scaled("kernels", "kernels", 1, "{:.0f}"),
    "registers": _scaled("registers", "registers", 1, "{:.0f}"),
    "spill_bytes": _scaled("spills B", "spill_bytes", 1, "{:.0f}"),
    "shared_bytes": _scaled("shared B", "shared_bytes", 1, "{:,.0f}"),
    "occupancy": _share("occupancy", "occupancy"),
    "tensor_core_instructions": _scaled("tensor-core", "tensor_core_instructions", 1, "{:.0f}"),
    "wide_instructions": _scaled("128-bit", "wide_instructions", 1, "{:.0f}"),
    # --- a training step ---
    "step": Column("step ±95 %", "median_s", time_text),
    "tokens_per_s": _scaled("tokens/s", "tokens_per_s", 1, "{:,.0f}"),
    "mfu_palm_of_ceiling": _share("MFU PaLM / measured", "mfu_palm_of_ceiling"),
    "mfu_llmc_of_ceiling": _share("MFU llm.c / measured", "mfu_llmc_of_ceiling"),
    "mfu_palm_of_datasheet": _share("MFU PaLM / datasheet", "mfu_palm_of_datasheet"),
    "mfu_llmc_of_datasheet": _share("MFU llm.c / datasheet", "mfu_llmc_of_datasheet"),
    "step_peak": _scaled("peak MB", "peak_bytes", 1e6, "{:,.0f}"),
    "first_loss": _scaled("first loss", "first_loss", 1, "{:.4f}"),
    "last_loss": _scaled("last loss", "last_loss", 1, "{:.4f}"),
    "worst_loss": _share("loss, of the band", "worst_loss"),
    "worst_norm": _share("norm, of the band", "worst_norm"),
}


def columns(names: str) -> list[Column]:
    return [COLUMNS[name] for name in names.split()]
