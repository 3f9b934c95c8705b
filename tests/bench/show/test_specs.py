"""A chart for a phone has its rows' names above them, and no legend that is wider than the screen."""

import pytest

pytest.importorskip("altair")
from bench.show import specs

ROWS = [dict(variant="a", contestant="a", case="a"), dict(variant="b", contestant="b", case="b")]


@pytest.mark.parametrize("kind", ["times", "times_log", "overview", "errors", "waterfall", "changes"])
def test_names_stand_above_their_rows_and_rows_are_higher(kind):
    spec = specs.all_specs()[kind]
    narrow = specs.narrow(spec)
    named = narrow["layer"][-1]
    assert named["mark"]["type"] == "text" and named["encoding"]["x"] == {"value": 2}
    axes = [layer["encoding"]["y"]["axis"] for layer in narrow["layer"] if layer["encoding"].get("y", {}).get("field")]
    assert axes and all(not axis["labels"] for axis in axes)
    numbers = [layer for layer in narrow["layer"] if layer["encoding"].get("text", {}).get("field") == "text"]
    assert all(layer["encoding"]["x"] == {"value": "width"} for layer in numbers)
    assert bool(numbers) == (kind in ("times", "times_log", "overview"))
    assert spec == specs.all_specs()[kind]  # the wide one is as it was
    assert specs.height_of(narrow, ROWS, specs.NARROW_HEIGHT) > specs.height_of(spec, ROWS)


@pytest.mark.parametrize("kind", ["roofline", "curves", "swaps", "sweep", "history"])
def test_charts_with_numbers_on_both_axes_keep_them(kind):
    spec = specs.all_specs()[kind]
    assert len(specs.narrow(spec)["layer"]) == len(spec["layer"])
    assert specs.height_of(spec, ROWS) == specs.height_of(specs.narrow(spec), ROWS, specs.NARROW_HEIGHT)


def test_a_wide_legend_is_folded():
    legends = [
        layer["encoding"]["color"]["legend"] for layer in specs.narrow(specs.all_specs()["waterfall"])["layer"][:1]
    ]
    assert [legend["columns"] for legend in legends] == [specs.NARROW_LEGEND]


def test_a_line_of_the_floor_is_left_out_where_no_row_knows_one():
    spec = specs.all_specs()["times"]
    known, unknown = (specs.fitting(spec, [dict(floor=floor)]) for floor in (0.5, None))
    assert known == spec and len(unknown["layer"]) == len(spec["layer"]) - 2


def test_what_would_be_cut_off_on_a_phone_has_lines_of_its_own():
    losses, changes = (specs.narrow(specs.all_specs()[name]) for name in ("training_loss", "changes"))
    assert {layer["encoding"]["color"]["legend"]["columns"] for layer in losses["layer"]} == {1}
    titles = [axis["title"] for layer in changes["layer"] if (axis := layer["encoding"].get("x", {}).get("axis"))]
    assert titles == [["change of the time", "grey: what runs of the same code may differ by"]]
