"""The charts' specifications (bench/show/charts.py), and what is done with them without Altair, which takes a second.

No specification depends on what it will show, so they are kept in the cache until Altair or charts.py changes.
"""

import contextlib
import copy
import functools
import hashlib
from importlib import metadata
from pathlib import Path

from bench.core import files
from bench.show import Point, Spec
from kernels import cache_dir

ROW_HEIGHT = {"variant": 24, "case": 24, "contestant": 40}  # by what a chart has a row for
NARROW_HEIGHT = {"variant": 40, "case": 40, "contestant": 54}  # where a row's name stands above it
ABOVE = {"baseline": "bottom", "dy": -8, "fontSize": 11}  # of a row's bar
FLOORS = ("floor", "limit")  # of a row: where the least time stands
NARROW_LEGEND = 2  # columns
NARROW_LABEL = 160  # pixels, of a legend's label where two stand side by side
NARROW_TITLE = 40  # characters of an axis's title in one line
WIDTH = 720  # pixels, of a chart that is no part of a page


@functools.cache
def all_specs() -> dict[str, Spec]:
    """By the kind of a chart. Needs Altair where they are not in the cache."""
    source = Path(__file__).with_name("charts.py").read_bytes() + metadata.version("altair").encode()
    file = cache_dir() / f"charts-{hashlib.sha256(source).hexdigest()[:16]}.json"
    if known := files.recall(file):
        return known
    from bench.show import charts

    specs = charts.all_specs()
    with contextlib.suppress(OSError):  # the next page takes a second longer
        files.remember(file, specs)
    return specs


def height_of(spec: Spec, rows: list[Point], row_height: dict[str, int] = ROW_HEIGHT) -> int:
    """A chart's height: its own, or as many rows as there are names on its y axis."""
    if "height" in spec:
        return spec["height"]
    by = _row_field(spec)
    return row_height[by] * len({row[by] for row in rows})


def _row_field(spec: Spec) -> str:
    """What a chart has a row for: the names on its y axis; "" where that has numbers."""
    fields = [layer["encoding"]["y"] for layer in spec["layer"] if "y" in layer["encoding"]]
    return next((y["field"] for y in fields if y.get("type") == "nominal"), "")


def narrow(spec: Spec) -> Spec:
    """The same chart for a phone: a row's name and its number stand above the row and not beside it, where they would
    take most of the width."""
    whole = copy.deepcopy(spec)
    for layer in whole["layer"]:
        legend = layer["encoding"].get("color", {}).get("legend")
        if legend and "columns" in legend:
            legend["columns"] = NARROW_LEGEND
        elif legend and legend.get("labelLimit", 0) > NARROW_LABEL:  # two of them would not stand side by side
            legend["columns"] = 1
        axis = layer["encoding"].get("x", {}).get("axis")
        if axis and len(title := axis.get("title") or "") > NARROW_TITLE:
            axis["title"] = title.split("; ")
    by = _row_field(spec)
    if not by:
        return whole
    no_names = {"labels": False, "ticks": False, "domain": False, "title": None}
    for layer in whole["layer"]:
        if layer["encoding"].get("y", {}).get("field") == by:
            layer["encoding"]["y"]["axis"] = no_names
        if layer["encoding"].get("text", {}).get("field") == "text":
            layer["mark"] |= ABOVE | {"align": "right", "dx": 0}
            layer["encoding"]["x"] = {"value": "width"}
            whole["padding"] = whole["padding"] | {"right": 5}
    once = [{"aggregate": [{"op": "count", "as": "rows"}], "groupby": [by]}]
    whole["layer"].append(
        {
            "data": {"name": "rows"},
            "transform": once,
            "mark": {"type": "text", "align": "left"} | ABOVE,
            "encoding": {
                "y": {"field": by, "type": "nominal", "sort": None, "axis": no_names},
                "x": {"value": 2},
                "text": {"field": by},
            },
        }
    )
    return whole


def fitting(spec: Spec, rows: list[Point]) -> Spec:
    """Without its lines of the floor where no row knows one."""
    whole = copy.deepcopy(spec)
    if not any(row.get(name) is not None for row in rows for name in FLOORS):
        whole["layer"] = [layer for layer in whole["layer"] if not layer.get("name", "").startswith("floor")]
    return whole


def with_rows(spec: Spec, rows: list[Point]) -> Spec:
    """A whole specification, with the rows in it."""
    whole = fitting(spec, rows) | {"datasets": {"rows": rows}, "width": WIDTH, "height": height_of(spec, rows)}
    whole["config"] = {**whole.get("config", {}), "axisY": {"labelLimit": 330}}
    whole.setdefault("background", "white")
    return whole
