"""The READMEs' tables and pictures, made from results/ between markers."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.records.queries import races
from bench.records.read import read_records
from bench.show.page import Chart, as_svg
from bench.show.report import Page, read_runs
from bench.show.texts import DASH, duration, multiple, speed_text
from reference import contract

MARKER = re.compile(r"(<!-- table (\w+) (\S+)((?: \w+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
CHART = re.compile(r"(<!-- chart (\S+) (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
DRAWN = "<!-- drawn from {} -->"

Rows = list[dict[str, Any]]


def rewrite_file(file: Path, check: bool = False) -> bool:
    """Whether its tables were stale; they are made anew, unless this is only to `check`."""
    try:
        old = file.read_text()
    except (OSError, ValueError) as error:
        raise CannotGoOn(f"cannot read {file}: {error}") from error
    new = rewrite(old, draw=not check)
    if new != old and not check:
        file.write_text(new)
    return new != old


def shown(file: Path) -> str:
    return str(file.relative_to(HOME)) if file.is_relative_to(HOME) else file.name


def rewrite(text: str, draw: bool = False) -> str:
    """The document with every marked table made anew; draw: also the pictures whose numbers changed."""

    def table(found: re.Match[str]) -> str:
        start, kind, folder, options, end = found.groups()
        if kind not in TABLES:
            raise CannotGoOn(f"no table {kind!r}{cli.did_you_mean(kind, TABLES)}")
        chosen = dict(option.split("=", 1) for option in options.split())
        rows = [] if kind == "gpu" and not (HOME / folder).exists() else _records(HOME / folder)
        return f"{start}{TABLES[kind](rows, **chosen)}\n{end}"

    def chart(found: re.Match[str]) -> str:
        start, name, folder, picture, end = found.groups()
        drawn = _chart(name, folder)
        digest = hashlib.sha256(json.dumps([drawn.spec, drawn.rows]).encode()).hexdigest()[:12]
        file = HOME / picture
        if draw and (digest not in found[0] or not file.is_file()):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(as_svg(drawn))
        known = digest if file.is_file() else "nothing"
        return f"{start}{DRAWN.format(known)}\n\n![{drawn.label}]({picture})\n{end}"

    return CHART.sub(chart, MARKER.sub(table, text))


def _chart(name: str, folder: str) -> Chart:
    """The report's chart of these results."""
    charts = Page(read_runs([HOME / folder])).data
    if known := [n for n in charts if n.startswith(name)]:
        return charts[known[0]]
    raise CannotGoOn(f"no chart {name!r} of {folder} (there are {', '.join(charts)})")


def _records(folder: Path) -> Rows:
    if not folder.is_dir():
        raise CannotGoOn(f"no results in {folder}")
    rows, problems = read_records(folder)
    if problems:
        raise CannotGoOn(f"damaged results: {problems[0]}")
    return [r for r in rows if not r.get("control")]


def layers(rows: Rows) -> str:
    """The fastest right variant of each case, cold, and how it compares."""
    lines = ["| layer | pass | fastest own kernel | time | of ceiling | fastest PyTorch | speed-up | noise floor |"]
    lines.append("|---|---|---|--:|--:|---|--:|--:|")
    for best in (race.own for race in races(rows) if race.own):
        name = f"{best['layer']} {best['shape_name'].partition('/')[2]}".strip()
        lines.append(
            f"| {name} | {best['phase']} | {best['variant']} | {_time(best)} | {_percent(best.get('of_ceiling'))} "
            f"| {best.get('baseline') or DASH} | {speed_text(best)} | {_percent(best.get('noise_floor'))} |"
        )
    return "\n".join(lines)


def variants(rows: Rows, layer: str, phase: str) -> str:
    """Every variant of one layer and pass, the fastest first, with its story."""
    lines = [
        "| variant | check | cold | warm | of ceiling | vs fastest PyTorch | story |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    mine = [r for r in rows if (r["layer"], r["phase"]) == (layer, phase)]
    warm = {r["variant"]: r for r in mine if r["cache"] == "warm"}
    cold = [r for r in mine if r["cache"] != "warm"]
    for r in sorted(cold, key=lambda r: (r["status"] != "ok", r.get("median_s") or 0)):
        check = f"{r['error_ratio']:.2g}x" if r["status"] == "ok" else f"{r['status']}: {r['evidence']}"
        lines.append(
            f"| {r['variant']} | {check} | {_time(r)} | {_time(warm.get(r['variant'], {}))} "
            f"| {_percent(r.get('of_ceiling'))} | {speed_text(r)} | {r['story']} |"
        )
    return "\n".join(lines)


def step(rows: Rows) -> str:
    """A training step: ours beside PyTorch's."""
    lines = ["| step by | ms/step | tokens/s | MFU (PaLM) | MFU (llm.c) | peak memory | speed-up |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    ours = next(r for r in rows if r["variant"] == "ours")
    for r in rows:
        if r["phase"] != "step":
            continue
        ratio = f"{r['median_s'] / ours['median_s']:.2f}x" if r is not ours else DASH
        lines.append(
            f"| {r['variant']} | {r['median_s'] * 1e3:.0f} | {r['tokens_per_s']:.0f} "
            f"| {_percent(r.get('mfu_palm_of_ceiling'))} | {_percent(r.get('mfu_llmc_of_ceiling'))} "
            f"| {r['peak_bytes'] / 1e9:.1f} GB | {ratio} |"
        )
    return "\n".join(lines)


def gpu(rows: Rows, dtype: str = "bf16") -> str:
    """Every layer and pass on a GPU: the fastest right own kernel by busy time, cold; dashes where nothing is."""
    lines = [
        "| layer | pass | fastest own kernel | busy | of ceiling | vs fastest PyTorch |",
        "|---|---|---|--:|--:|--:|",
    ]
    if not rows:
        return "\n".join([*lines, f"| all twelve | both | {' | '.join([DASH] * 4)} |"])
    for layer in contract.layer_names():
        for phase in contract.phases_of(contract.load(layer)):
            found = [r for r in rows if (r["layer"], r["phase"], r["dtype"]) == (layer, phase, dtype)]
            own = [race.own for race in races(r for r in found if r.get("timer") == "busy") if race.own]
            best = min(own, key=lambda r: r["median_s"], default={})
            cells = best.get("variant", DASH), _time(best), _percent(best.get("of_ceiling"))
            lines.append(f"| {layer} | {phase} | {' | '.join(cells)} | {speed_text(best) if best else DASH} |")
    return "\n".join(lines)


def counted(rows: Rows, dtype: str, layers: str = "") -> str:
    """Simulated variants: traffic against the least, bank conflicts, resources. Counts, never times."""
    lines = ["| layer | pass | variant | error | moved | sectors a request | bank passes | registers | occupancy |"]
    lines[0] += " 128-bit |"
    lines.append("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for r in rows:
        if r["status"] != "simulated" or r["dtype"] != dtype or (layers and r["layer"] not in layers.split(",")):
            continue
        lines.append(
            f"| {r['layer']} | {r['phase']} | {r['variant']} | {r['error_ratio']:.2g}x "
            f"| {multiple(r['moved_of_minimum'])} | {r['sectors_per_request']:.3g} "
            f"| {multiple(r['wavefronts_of_ideal'])} | {r['registers']} | {_percent(r['occupancy'])} "
            f"| {r['wide_instructions']} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[..., str]] = {
    "layers": layers,
    "variants": variants,
    "step": step,
    "gpu": gpu,
    "counted": counted,
}


def _time(row: dict[str, Any]) -> str:
    seconds = row.get("median_s")
    return duration(seconds) if seconds else DASH


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{share:.0%}"
