"""HTML pages that people want to look at: one file each, with style, script and the charts' data, without a network.

`bench.report` and `bench.compare` fill the frame page.html.j2 through templates of their own. A page is an object with
`title` and `data`: the rows of its charts by name, each with the chart's kind (`spec`, bench/show/charts.py).
"""

import contextlib
import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

from bench.cli import CannotGoOn
from bench.core.files import put, write_atomically
from bench.records.record import Record
from bench.records.schema import GOOD
from bench.show import Point, specs
from bench.show.columns import Column, States
from bench.show.texts import percent
from kernels import cache_dir

LONG = 24  # characters of a cell that may be broken anywhere
NEEDED = ("altair", "vl_convert", "jinja2")


class Page(Protocol):
    title: str
    data: "dict[str, Chart]"


@dataclass
class Chart:
    """Which chart is drawn of which rows, and what a screen reader says of it."""

    spec: str
    rows: list[Point]
    label: str


@dataclass
class Cell:
    """One cell of a table: what is shown, and what it is sorted by."""

    text: str
    key: float | str = ""
    style: str = ""


def cell(c: Column, states: States) -> Cell:
    """A column's cell for a variant."""
    r = c.record(states)
    found = r.get(c.name)
    if c.name == "status":
        return _status_cell(c, r)
    if not c.name:
        return Cell(c.text(r), c.text(r))
    if isinstance(found, str | bool | list):
        return Cell(c.text(r), str(found), "wrap" if len(c.text(r)) > LONG else "")
    key = float(f"{found:.6g}") if isinstance(found, int | float) else ""
    return Cell(c.told(states), key, "number" if c.right else "")


def _status_cell(c: Column, r: Record) -> Cell:
    if r["status"] in GOOD:
        return Cell(c.text(r), r.get("error_ratio") or 0.0, r["status"])
    return Cell(c.text(r), 1e9, "skipped long" if r["status"] == "skipped" else "bad long")


@dataclass
class Line:
    """One row of a table: its name with a sentence below, and the cells."""

    variant: str
    story: str
    cells: list[Cell]
    reproduce: str
    stale: bool = False

    @property
    def backend(self) -> str:
        return backend_of(self.variant)


def unavailable() -> str:
    """Why no page can be built here, or nothing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"a page needs {', '.join(missing)}: pip install altair vl-convert-python jinja2, or build it elsewhere"


def write(page: Page, template: str, out: Path) -> Path:
    """The page as a file, whole or not at all. CannotGoOn where packages are missing or it cannot be written."""
    if missing := unavailable():
        raise CannotGoOn(missing)
    return write_atomically(out, render(page, template))


def render(page: Page, template: str) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"anchor": anchor, "backend": backend_of, "percent": percent}
    known = {kind: spec for kind, spec in specs.all_specs().items() if kind in {c.spec for c in page.data.values()}}
    narrow = {kind: specs.narrow(spec) for kind, spec in known.items()}
    data = {
        name: {
            **vars(c),
            "height": specs.height_of(known[c.spec], c.rows),
            "narrow_height": specs.height_of(known[c.spec], c.rows, specs.NARROW_HEIGHT),
        }
        for name, c in page.data.items()
    }
    shown = environment.get_template(template)
    return shown.render(page=page, specs=known, narrow=narrow, data=data, vega=vega_bundle())


def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script: 0.9 MB, kept in the cache by vl-convert's version."""
    import vl_convert

    file = cache_dir() / f"vega-{metadata.version('vl-convert-python')}.js"
    if not file.exists():
        bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]
        with contextlib.suppress(OSError):  # the next page takes a second longer
            put(file, bundle.encode())
        return bundle
    return file.read_text()


def write_pictures(page: Page, folder: Path) -> int:
    """Every chart of the page as .png (twice the size) and .svg, named after its place; how many."""
    import vl_convert

    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = specs.all_specs()
        for name, chart in page.data.items():
            spec = specs.with_rows(known[chart.spec], chart.rows)
            (folder / f"{name}.png").write_bytes(vl_convert.vegalite_to_png(spec, scale=2))
            (folder / f"{name}.svg").write_text(as_svg(chart))
    except OSError as error:
        raise CannotGoOn(f"cannot write pictures to {folder}: {error.strerror}") from error
    return len(page.data)


def backend_of(name: str) -> str:
    """What a variant or a training step is coloured by: `cpu` of cpu.simd, `ours` of "ours, gelu=cpu.naive"."""
    return "ours" if name.startswith("ours") else name.partition(".")[0]


def as_svg(chart: Chart) -> str:
    import vl_convert

    return vl_convert.vegalite_to_svg(specs.with_rows(specs.all_specs()[chart.spec], chart.rows))


def anchor(text: str) -> str:
    """A name that an address may end in."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
