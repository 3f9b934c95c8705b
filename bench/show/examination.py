"""What the doctor found, as a person reads it."""

import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console

from bench.machine import roofline
from bench.machine.ceilings import Ceilings
from bench.machine.examine import Report, examine
from bench.machine.facts import Caches, Cpu, Git, Gpu, State, busy, nvml
from bench.records import environment, scrub
from bench.records.schema import SCHEMA
from bench.show.sheet import Col, Sheet
from bench.show.texts import DASH


def examined(refresh: bool) -> dict[str, Any]:
    """Examine this machine and print what was found; the same as a document."""
    report = examine(refresh)
    show(report)
    return as_json(report)


def show(report: Report) -> None:
    """Tables on stdout; plain, and not wrapped, where it is no terminal."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=160, no_color=True, highlight=False)
    m = report.machine
    about = [
        ("CPU", cpu_text(m["cpu"])),
        ("caches", cache_text(m["cpu"]["cache_bytes"])),
        ("instructions", " ".join(m["cpu"]["isa"]) or DASH),
        ("frequency", frequency_text(m["cpu"], report.state)),
        ("memory", f"{m['memory_bytes'] / 2**30:.1f} GiB" if m["memory_bytes"] else DASH),
        ("GPU", ", ".join(gpu_text(gpu) for gpu in m["gpus"]) or f"none: {nvml()[1]}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in m["versions"].items() if v)),
        ("threads", ", ".join(f"{k}={v}" for k, v in m["threads"].items())),
        ("settings", ", ".join(m["settings"]) or DASH),
        ("commit", commit_text(m["git"])),
        ("load", load_text(report.state)),
    ]
    table_of("this machine", ["", ""], about).print(console)
    console.print()
    rows = [(a.name, "yes" if a.works else "no", a.what) for a in report.abilities]
    table_of("what can run", ["", "", "with what, or why not"], rows).print(console)
    console.print()
    for c in report.ceilings:
        table_of(ceilings_title(c), CEILING_COLUMNS, ceiling_rows(c), right={1, 2, 3, 4}).print(console)
        console.print()
    n = report.noise
    console.print(
        f"noise floor (A/A): one torch operation against itself, {n.rounds} rounds: ratio {n.ratio:.3f} "
        f"[{n.low:.3f}, {n.high:.3f}]; single calls of {n.median_s * 1e6:.0f} µs spread by {n.spread:.0%}",
        markup=False,
    )
    for place in report.places:
        free = f"{place.free_bytes / 1e9:.0f} GB free" if place.free_bytes is not None else "free space unknown"
        console.print(f"{place.name}: {place.path}, {'writable' if place.writable else 'NOT WRITABLE'}, {free}")
    console.print()
    console.print(f"verdict: {report.verdict[0]}", style="bold", markup=False)
    for sentence in report.verdict[1:]:
        console.print(f"  - {sentence}", markup=False)


def table_of(title: str, columns: list[str], rows: list[tuple], right: set[int] | None = None) -> Sheet:
    """The last column has the sentences."""
    last = len(columns) - 1
    sheet = Sheet(title, [Col(c, right=i in (right or ()), prose=i == last) for i, c in enumerate(columns)])
    for row in rows:
        sheet.add(*map(str, row))
    return sheet


CEILING_COLUMNS = ["", "best", "spread", "sustained", "of datasheet", "how"]


def ceilings_title(c: Ceilings) -> str:
    hours = c.age_seconds / 3600
    age = "now" if hours < 0.02 else f"{hours:.1f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"
    return f"ceilings of {'this CPU' if c.device == 'cpu' else c.device}, measured {age} in {c.seconds:.0f} s" + (
        f" ({c.busy})" if c.busy else ""
    )


def ceiling_rows(c: Ceilings) -> list[tuple]:
    sheet = roofline.datasheet(c.device)
    rows = []
    for name, rate in c.bytes_per_s.items():
        share = f"{rate / (sheet.gbytes_per_s * 1e9):.0%}" if sheet else DASH
        rows.append((name, f"{rate / 1e9:.1f} GB/s", f"{c.spread[name]:.0%}", DASH, share, c.how[name]))
    for name, rate in c.flops_per_s.items():
        peak = sheet.flops_per_s(name) if sheet else None
        sustained = f"{c.sustained_flops_per_s[name] / 1e9:.0f} GFLOP/s"
        share = f"{rate / peak:.0%}" if peak else DASH
        best = f"{rate / 1e9:.0f} GFLOP/s"
        rows.append((f"matmul {name}", best, f"{c.spread[name]:.0%}", sustained, share, c.how[name]))
    return rows


def cpu_text(cpu: Cpu) -> str:
    parts = [cpu["model"] or cpu["architecture"], f"{cpu['usable']} of {cpu['threads']} logical cores usable"]
    if cpu["cores"]:
        parts.append(f"{cpu['cores']} physical")
    if cpu["quota"]:
        parts.append(f"time limit {cpu['quota']:g} cores")
    if cpu["virtual"]:
        parts.append("virtual machine")
    return ", ".join(parts)


def cache_text(sizes: Caches) -> str:
    def text(size: int | None) -> str:
        if not size:
            return DASH
        return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"

    return f"L1d {text(sizes['L1d'])}, L2 {text(sizes['L2'])} a core, L3 {text(sizes['L3'])}"


def frequency_text(cpu: Cpu, state: State) -> str:
    parts = [f"{state['mhz']:.0f} MHz now" if state["mhz"] else "not readable"]
    if cpu["max_mhz"]:
        parts.append(f"at most {cpu['max_mhz']:.0f} MHz")
    if cpu["governor"]:
        parts.append(f"governor {cpu['governor']}")
    return ", ".join(parts)


def gpu_text(gpu: Gpu) -> str:
    parts = [gpu["name"], f"driver {gpu['driver']}"]
    if gpu["memory_bytes"]:
        parts.append(f"{gpu['memory_bytes'] / 2**30:.0f} GiB")
    if gpu["power_cap_w"]:
        parts.append(f"{gpu['power_cap_w']:.0f} W")
    if gpu["mig"]:
        parts.append("MIG: a slice of a card")
    return " ".join(parts)


def commit_text(git: Git) -> str:
    if not git["commit"]:
        return "not a git checkout"
    return git["commit"][:12] + (" with changes" if git["dirty"] else "")


def load_text(state: State) -> str:
    parts = [f"{state['load']} on {state['cores']} cores (1-minute average)"]
    if state["others"] is not None:
        parts.append(f"other programs use {state['others']:.0%}")
    if state["stolen"]:
        parts.append(f"{state['stolen']:.1%} stolen by the hypervisor")
    return ", ".join(parts)


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data: seconds, bytes, bytes/s, flop/s; shares as fractions. Names and paths are scrubbed."""
    plain = asdict(report) | {"busy": busy(report.state), "schema": SCHEMA}
    plain["noise"]["floor"] = report.noise.floor
    plain["machine"] = environment.environment()
    return scrub.clean(plain, free_text=True)
