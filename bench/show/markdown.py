"""The READMEs' tables and pictures, made from results/ between markers."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bench import HOME, cli
from bench.cli import CannotGoOn, no_such
from bench.records.queries import partial, races, ranked
from bench.records.read import RECORDS, latest, read_records, runs_in
from bench.records.record import Record
from bench.show.columns import COLUMNS, Column, States, check_text, columns, value
from bench.show.generation_page import above
from bench.show.page import Chart, as_svg
from bench.show.report import Page, read_runs
from bench.show.texts import DASH, coverage_text, percent, ratio_text
from reference import contract

MARKER = re.compile(r"(<!-- table (\w+) (\S+)((?: \w+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
CHART = re.compile(r"(<!-- chart (\S+) (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
DRAWN = "<!-- drawn from {} -->"

Rows = list[Record]


def rewrite_file(file: Path, check: bool = False) -> bool:
    """Whether its tables were stale; they are made anew, unless this is only to `check`."""
    if not file.is_file():
        raise CannotGoOn(no_such(file, "file"))
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
        if kind not in (*TABLES, *VERDICTS):
            raise CannotGoOn(f"no table {kind!r}{cli.did_you_mean(kind, TABLES)}")
        chosen = dict(option.split("=", 1) for option in options.split())
        if kind in VERDICTS:
            return f"{start}{VERDICTS[kind](HOME / folder)}\n{end}"
        rows = _of_all_runs(HOME / folder) if kind == "gpu" else _records(HOME / folder)
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


def _of_all_runs(folder: Path) -> Rows:
    """The records of every run below a folder, for a suite has one for each of its pieces; none where nothing was
    measured yet."""
    runs = runs_in(folder) if folder.is_dir() else []
    return [r for run in runs for r in latest(run.records).values() if not r.get("control")]


def _records(folder: Path) -> Rows:
    """Of the run in a folder, or of those below it: a run a layer, for instance."""
    if not folder.is_dir():
        raise CannotGoOn(no_such(folder, "folder"))
    if not (folder / RECORDS).is_file() and (below := sorted(folder.rglob(RECORDS))):
        return [r for file in below for r in _records(file.parent)]
    rows, problems = read_records(folder)
    if problems:
        raise CannotGoOn(f"damaged results: {problems[0]}")
    return [r for r in latest(rows).values() if not r.get("control")]


def layers(rows: Rows) -> str:
    """The fastest right variant of each case, cold, and how it compares."""
    shown = (
        *columns("case phase"),
        COLUMNS["variant"].titled("fastest own kernel"),
        COLUMNS["time"],
        COLUMNS["of_ceiling"].whole(),
        COLUMNS["baseline"].titled("fastest PyTorch"),
        COLUMNS["speedup"].titled("speed-up"),
        COLUMNS["noise_floor"].whole(),
    )
    return table(shown, [[race.own] for race in races(rows) if race.own])


def variants(rows: Rows, layer: str, phase: str) -> str:
    """Every variant of one layer and pass that could run there, the fastest first, with its story."""

    time = COLUMNS["time"]
    shown = (
        COLUMNS["variant"],
        Column("check", "", _short_check, right=False),
        time.titled("cold"),
        replace(time, title="warm", cache="warm"),
        COLUMNS["of_ceiling"].whole(),
        COLUMNS["speedup"].titled("vs fastest PyTorch"),
        COLUMNS["story"],
    )
    here = (r for r in rows if (r["layer"], r["phase"]) == (layer, phase) and r["status"] != "skipped")
    return table(shown, ranked(here))


def _short_check(r: Record) -> str:
    """The error alone of what is right in all."""
    return f"{r['error_ratio']:.2g}x" if r["status"] == "ok" and not partial(r) else check_text(r)


def step(rows: Rows) -> str:
    """A training step: ours beside PyTorch's, as far as they were timed: a compiler that was given up has no time."""
    rows = [r for r in rows if r["phase"] == "step" and r.get("median_s")]
    ours = next(r for r in rows if r["variant"] == "ours")
    shown = (
        COLUMNS["variant"].titled("step by"),
        Column("ms/step", "", lambda r: f"{r['median_s'] * 1e3:.0f}"),
        Column("tokens/s", "", lambda r: f"{r['tokens_per_s']:.0f}"),
        COLUMNS["mfu_palm_of_ceiling"].whole().titled("MFU (PaLM)"),
        COLUMNS["mfu_llmc_of_ceiling"].whole().titled("MFU (llm.c)"),
        Column("peak memory", "", lambda r: f"{value(r, 'peak_bytes') / 1e9:.1f} GB"),
        Column("speed-up", "", lambda r: f"{r['median_s'] / ours['median_s']:.2f}x" if r is not ours else DASH),
    )
    return table(shown, [[r] for r in rows])


def generation(rows: Rows) -> str:
    """Text from a model: each contestant's decode, and the prefill before it; below it why some are above a ceiling."""
    rows = [r for r in rows if r.get("median_s")]
    prefills = {r["variant"]: r for r in rows if r["phase"] == "prefill"}

    def of_prefill(name: str, write: Callable[[float], str]) -> Callable[[Record], str]:
        return lambda r: write(prefills[r["variant"]][name]) if r["variant"] in prefills else DASH  # type: ignore[literal-required]

    shown = (
        COLUMNS["variant"].titled("by"),
        Column("weights", "", lambda r: r["weights"], right=False),
        Column("decode tokens/s", "", lambda r: f"{r['tokens_per_s']:.1f}"),
        Column("spread of a step", "", lambda r: percent(r["noise"])),
        Column("reads a step", "", lambda r: f"{r['bytes'] / 1e6:.0f} MB"),
        Column("MBU", "", lambda r: percent(r["mbu"])),
        Column("prefill tokens/s", "", of_prefill("tokens_per_s", "{:.0f}".format)),
        Column("MFU", "", of_prefill("mfu", percent)),
    )
    told = "".join(f"\n\n{why}." for why in above(rows))
    return table(shown, [[r] for r in rows if r["phase"] == "decode"]) + told


def gpu(rows: Rows, dtype: str = "bf16") -> str:
    """Every layer and pass on a GPU: the fastest right own kernel by busy time, cold; dashes where nothing is."""
    shown = (
        *columns("layer phase"),
        COLUMNS["variant"].titled("fastest own kernel"),
        COLUMNS["time"].titled("busy"),
        COLUMNS["of_ceiling"].whole(),
        COLUMNS["speedup"].titled("vs fastest PyTorch"),
    )
    if not rows:
        return table(shown, [[Record(layer="all of them", phase="both")]])
    best = []
    for layer in contract.layer_names():
        for phase in contract.phases_of(contract.load(layer)):
            found = [r for r in rows if (r["layer"], r["phase"], r["dtype"]) == (layer, phase, dtype)]
            own = [race.own for race in races(r for r in found if r.get("timer") == "busy") if race.own]
            best.append(min(own, key=lambda r: r["median_s"], default=Record(layer=layer, phase=phase)))
    return table(shown, [[r] for r in best])


def _counted_error(r: Record) -> str:
    told = ratio_text(r.get("error_ratio"))
    return f"{told} {coverage_text(r)}" if partial(r) else told


def counted(rows: Rows, dtype: str, layers: str = "") -> str:
    """Simulated variants: traffic against the least, bank conflicts, resources. Counts, never times."""
    shown = (
        *columns("layer phase variant"),
        replace(COLUMNS["error_ratio"], text=_counted_error),
        COLUMNS["moved_of_minimum"].titled("moved"),
        *columns("sectors_per_request wavefronts_of_ideal registers"),
        COLUMNS["occupancy"].whole(),
        COLUMNS["wide_instructions"],
    )
    wanted = layers.split(",") if layers else contract.layer_names()
    simulated = [r for r in rows if r["status"] == "simulated" and r["dtype"] == dtype and r["layer"] in wanted]
    simulated.sort(key=lambda r: (r["layer"], r["phase"] != "forward", r["variant"]))
    return table(shown, [[r] for r in simulated])


def imported(file: Path) -> str:
    """Of kernels that were imported: a row each, and their number by verdict, from a file as `_verdicts` reads it."""
    text, rows = _verdicts(file, file.read_text().splitlines(), "to decide")
    none = sum(row[3] == "0" for row in rows)
    return f"{text}\n\n{len(rows)} kernels: {_by_verdict(rows)}. {none} have no line for a person to decide."


GLUE = 10  # lines of a person's own that a published kernel should do with
NOT_RUN = "not run"
DRAW = "## "  # before the title of a draw


def drawn(file: Path) -> str:
    """Of kernels that were drawn by chance: a row each, and how many ran with at most GLUE lines of a person's own, for
    each draw: what stands below a line that begins with DRAW."""
    draws: list[tuple[str, list[str]]] = []
    for line in file.read_text().splitlines():
        if line.startswith(DRAW) or not draws:
            draws.append((line.removeprefix(DRAW) if line.startswith(DRAW) else "", []))
        draws[-1][1].append(line)
    return "\n\n".join(_draw(file, title, lines) for title, lines in draws if any(_is_verdict(line) for line in lines))


def _draw(file: Path, title: str, lines: Sequence[str]) -> str:
    text, rows = _verdicts(file, lines, "glue")
    ran = [row for row in rows if row[4] != NOT_RUN and int(row[3]) <= GLUE]
    none = sum(row[3] == "0" for row in ran)
    said = f"{len(ran)} of {len(rows)} ran with at most {GLUE} lines of glue, {none} with none: {_by_verdict(ran)}."
    return "\n\n".join([*([f"{title}:"] if title else []), text, said])


def _is_verdict(line: str) -> bool:
    return bool(line) and not line.startswith("#")


def _verdicts(file: Path, lines: Sequence[str], told: str) -> tuple[str, list[list[str]]]:
    """(A table, its rows) of lines whose fields are parted by tabs: source, kernel, layer, a number, verdict, why.
    CannotGoOn for a line with too few or too many fields."""
    fields = ("source", "kernel", "layer", told, "verdict", "why")
    rows = [line.split("\t") for line in lines if _is_verdict(line)]
    if wrong := [row for row in rows if len(row) != len(fields)]:
        raise CannotGoOn(f"{shown(file)}: not {len(fields)} fields: {' | '.join(wrong[0])}")
    return "\n".join([_line(fields), _line(["---"] * len(fields)), *map(_line, rows)]), rows


def _by_verdict(rows: Sequence[Sequence[str]]) -> str:
    verdicts = [row[4] for row in rows]
    kinds = sorted(sorted(set(verdicts)), key=verdicts.count, reverse=True)
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


VERDICTS = {"imported": imported, "drawn": drawn}


def table(shown: Sequence[Column], variants: Iterable[States], aligned: bool = True) -> str:
    """A table in Markdown. aligned: its numbers are, to the right."""
    rule = "".join("--:|" if c.right else "---|" for c in shown)
    lines = [_line(c.title for c in shown), f"|{rule}" if aligned else _line(["---"] * len(shown))]
    return "\n".join([*lines, *(_line(c.told(states) for c in shown) for states in variants)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(c.replace('|', '/').replace(chr(10), ' ') for c in cells)} |"


TABLES: dict[str, Callable[..., str]] = {
    "layers": layers,
    "variants": variants,
    "step": step,
    "generation": generation,
    "gpu": gpu,
    "counted": counted,
}
