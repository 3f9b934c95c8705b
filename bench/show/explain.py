"""What a layer is, its floor on this machine, and how its variants rank."""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.core.variants import Variant, discover, find
from bench.machine import ceilings, roofline
from bench.records import environment, read
from bench.records.queries import partial
from bench.records.record import Record
from bench.show import limits, terminal, texts
from bench.show.columns import cases_text
from bench.show.sheet import Col, Sheet
from reference import contract
from reference.models import MODELS
from reference.models.model import Model

PLACES = ("runs", "results")


class Floor(NamedTuple):
    """Of one call: how often a step makes it, its FLOPs and bytes, and the seconds both take at the ceilings."""

    shape: str
    phase: str
    calls: int
    flops: int
    bytes: int
    floor_s: float | None


class Timed(NamedTuple):
    """A record, and the folder of its run."""

    record: Record
    folder: str


Ranks = dict[tuple[str, str], list[Timed]]  # by (shape, phase), the fastest first


@dataclass(frozen=True)
class Explained:
    """What there is to say of a layer."""

    layer: str
    model: Model
    dtype: str
    variants: list[Variant]  # the one that was asked for, or all
    one: bool
    floors: list[Floor]
    ranks: Ranks

    @property
    def module(self) -> ModuleType:
        return contract.load(self.layer)


def explained(what: str, model: str, dtype: str) -> Explained:
    """what: LAYER or LAYER.VARIANT. CannotGoOn for a name that is not there."""
    layer, _, name = what.partition(".")
    cli.choose(layer, contract.layer_names(), "layer")
    sizes = MODELS[cli.choose(model, MODELS, "model")]
    variants = discover(layers=[layer])
    shown = [find(variants, layer, name)] if name else variants
    floors = floors_of(layer, sizes, dtype)
    return Explained(layer, sizes, dtype, shown, bool(name), floors, ranks_of(layer, dtype))


def floors_of(layer: str, model: Model, dtype: str) -> list[Floor]:
    """FLOPs, bytes and the floor at this machine's ceilings (None where not known) of every shape and phase."""
    module, known = contract.load(layer), ceilings.remembered()
    found = []
    for name, call in model.shapes(layer, contract.DEFAULT_B, min(contract.DEFAULT_T, model.max_t)).items():
        for phase in contract.phases_of(module):
            shape = contract.overwriting(module, phase, call.shape, dtype)
            flops, size = contract.flops(module, shape, phase), contract.min_bytes(module, shape, phase)
            written = sum(t.bytes(shape) for t in contract.pass_of(module, phase).outputs)
            floor = roofline.floor_seconds(size, flops, dtype, known, written) if known else None
            found.append(Floor(name, phase, call.calls, flops, size, floor))
    return found


def ranks_of(layer: str, dtype: str) -> Ranks:
    """The latest time of each variant on this machine, the fastest first, by (shape, phase). What was timed at several
    sizes of a shape has them in its name: times of unequal work are no ranks."""
    rows: dict[tuple[str, str, str, str], Timed] = {}
    for folder in _folders():
        for r in read.read_records(folder)[0]:
            if (r.get("layer"), r.get("dtype"), r["status"]) == (layer, dtype, "ok") and r.get("cache") == "cold":
                key = (r["shape_name"], sizes_of(r), r["phase"], r["variant"])
                if not r.get("control") and (key not in rows or r["utc"] >= rows[key].record["utc"]):
                    rows[key] = Timed(r, str(folder.relative_to(HOME)))
    ranks: Ranks = {}
    timed_at = Counter(shape for shape, _ in {(shape, sizes) for shape, sizes, _, _ in rows})
    several = {shape for shape, count in timed_at.items() if count > 1}
    for (shape, sizes, phase, _), timed in sorted(rows.items(), key=lambda item: item[1].record["median_s"]):
        ranks.setdefault((f"{shape} {sizes}" if shape in several else shape, phase), []).append(timed)
    return ranks


def sizes_of(r: Record) -> str:
    return " ".join(f"{name}={size}" for name, size in (r.get("shape") or {}).items())


def _folders() -> list[Path]:
    """Folders of runs of this machine."""
    here = environment.environment()
    found = []
    for place in PLACES:
        for file in sorted((HOME / place).glob(f"**/{read.RECORDS}")):
            try:
                then = read.read_environment(file.parent)
            except CannotGoOn:
                continue
            same = (then.get("cpu") or {}).get("model") == here["cpu"]["model"] and then.get("gpus") == here["gpus"]
            if then and same:
                found.append(file.parent)
    return found


def document(e: Explained) -> dict[str, object]:
    return {
        "layer": e.layer,
        "about": inspect.getdoc(e.module),
        "tensors": {phase: tensors_of(e.module, phase) for phase in contract.phases_of(e.module)},
        "floors": [f._asdict() for f in e.floors],
        "variants": [
            dict(variant=v.name, story=v.story, dtypes=v.dtypes, phases=sorted(v.functions)) for v in e.variants
        ],
        "ranks": [
            dict(shape=shape, phase=phase)
            | {name: timed.record.get(name) for name in ("variant", "median_s", "run", "not_supported")}
            for (shape, phase), found in e.ranks.items()
            for timed in found
        ],
    }


def tensors_of(module: ModuleType, phase: str) -> list[dict[str, str]]:
    """What goes in and out: role, name, shape by symbols, dtype and peculiarities."""
    p = contract.pass_of(module, phase)
    rows = [("in", t) for t in p.inputs] + [("out", t) for t in p.outputs]
    found = []
    for role, t in rows:
        notes = [f"values below {t.high}"] if t.high else []
        notes += ["a list"] * t.many + ["read and written"] * t.inplace
        notes += ["overwritten, or added to"] * t.accumulates + [f"a slice of packed {t.pack}"] * bool(t.pack)
        notes += ["not in every shape"] * (t.when is not contract.always)
        dtype = {"work": "working dtype", "int": "int64"}.get(t.dtype, t.dtype)
        found.append(
            dict(role=role, name=t.name, shape=f"({', '.join(t.shape.split())})", dtype=dtype, notes=", ".join(notes))
        )
    if p.optional:
        told = dict(role="in", name=", ".join(p.optional), shape="", dtype="Python", notes="not in every shape")
        found.insert(len(p.inputs), told)
    if p.scalars:
        found.insert(len(p.inputs), dict(role="in", name=", ".join(p.scalars), shape="", dtype="Python", notes=""))
    return found


# --- showing it ---


def show(e: Explained) -> None:
    console, module, layer = terminal.console(), e.module, e.layer
    title, _, rest = (inspect.getdoc(module) or layer).partition("\n")
    console.print(f"{layer}: {title}", style="bold", highlight=False, markup=False)
    if rest.strip():
        console.print(flowing(rest), highlight=False, markup=False)
    for phase in contract.phases_of(module):
        console.print()
        tensor_table(module, phase).print(console)
        console.print(source_of(getattr(module, phase)), highlight=False, markup=False)
    console.print()
    floor_table(e).print(console)
    if not any(f.calls for f in e.floors):
        console.print(f"0 calls: {e.model.name}'s step does this inside another layer, or not at all", style="dim")
    for one in e.variants if e.one else ():
        console.print(f"{one.name}: {one.story}", style="bold", highlight=False, markup=False)
        console.print(flowing(_docstring(one).partition("\n")[2]), highlight=False, markup=False)
    for grid in rank_tables(e):
        console.print()
        grid.print(console)
    for folder, day in sorted({(t.folder, t.record["utc"][:10]) for found in e.ranks.values() for t in found}):
        console.print(f"timed in {folder}, {day}", style="dim", highlight=False)
    if not e.ranks:
        console.print(
            f"nothing of it was timed here yet: python -m bench.layer {layer} --all", style="dim", highlight=False
        )


def _docstring(v: Variant) -> str:
    return ast.get_docstring(ast.parse(v.path.read_text())) or ""


def flowing(text: str) -> str:
    """Prose that was broken for a source file, to be broken for a terminal; what is indented, or an item, stays."""
    return re.sub(r"(?<=\S)\n(?=[^\s*-])", " ", text.strip())


def source_of(function: Callable[..., object]) -> str:
    """The reference's formula, as it is written."""
    return "\n" + "\n".join(f"    {line}" for line in inspect.getsource(function).rstrip().splitlines())


def tensor_table(module: ModuleType, phase: str) -> Sheet:
    heads = [Col(""), Col("tensor"), Col("shape", prose=True), Col("dtype"), Col("", prose=True)]
    grid = Sheet(f"{phase}: what goes in and out", heads)
    for t in tensors_of(module, phase):
        grid.add(*t.values())
    return grid


def floor_table(e: Explained) -> Sheet:
    known = any(f.floor_s for f in e.floors)
    how = "measured ceilings" if known else "ceilings not measured yet: python -m bench.doctor"
    numbers = [Col(name, right=True) for name in ("calls a step", "GFLOP", "MB at least", "floor")]
    grid = Sheet(f"floor, {e.model.name} {e.dtype}; {how}", [Col("shape"), Col("pass"), *numbers])
    for f in e.floors:
        floor = texts.duration(f.floor_s) if f.floor_s else texts.DASH
        grid.add(f.shape or texts.DASH, f.phase, str(f.calls), f"{f.flops / 1e9:.3g}", f"{f.bytes / 1e6:.3g}", floor)
    return grid


def rank_tables(e: Explained) -> list[Sheet]:
    """Of each shape and pass that was timed here: its variants by rank, down to the floor, which none can pass. Then
    those that were not timed at all."""
    shown = {v.name: v for v in e.variants}
    sheets = []
    for (shape, phase), found in e.ranks.items():
        rows = [t for t in ordered(found) if t.record["variant"] in shown]
        if not rows:
            continue
        title = f"{e.layer} {phase} {shape} {e.dtype}: by rank, caches cold"
        sheet = Sheet(title, [Col("rank", right=True), Col("variant"), Col("time", True), Col("of floor", True), STORY])
        floor = min((s for t in rows if (s := t.record.get("floor_s"))), default=None)
        for t in rows:
            seconds, name = t.record["median_s"], t.record["variant"]
            sheet.add(
                rank_of(t, found),
                name,
                texts.duration(seconds),
                f"{seconds / floor:.3g}x" if floor else texts.DASH,
                part_text(t.record) or shown[name].story,
            )
        if floor:
            sheet.section()
            sheet.add(
                "", "floor", texts.duration(floor), "1x", "what its bytes or FLOPs take at this machine's ceilings"
            )
        sheets.append(sheet)
    timed = {t.record["variant"] for found in e.ranks.values() for t in found}
    if rest := [v for v in e.variants if v.name not in timed]:
        sheet = Sheet(f"{e.layer} {e.dtype}: not timed on this machine", [Col("variant"), STORY])
        for v in rest:
            sheet.add(v.name, v.story)
        sheets.append(sheet)
    return sheets


STORY = Col("story", prose=True)


def ordered(found: list[Timed]) -> list[Timed]:
    """Ranked ones first, the fastest on top; then what a run too noisy to rank timed, and what is right in a part."""
    return sorted(found, key=lambda t: (partial(t.record), not limits.ranks(t.record), t.record["median_s"]))


def rank_of(timed: Timed, found: list[Timed]) -> str:
    """1 for the fastest of those that can be ranked; a dash for the others."""
    able = [t for t in ordered(found) if not partial(t.record) and limits.ranks(t.record)]
    return str(able.index(timed) + 1) if timed in able else texts.DASH


def part_text(record: Record) -> str:
    """Why a record has no rank; "" for one that has."""
    if partial(record):
        return f"right in {cases_text(record)} cases: no equal of the others"
    return "" if limits.ranks(record) else limits.ranks_nothing(record["noise_floor"])
