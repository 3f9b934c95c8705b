"""The first screen: what its cards count, and what a cell of the grid says of several shapes."""

from typing import Any

import pytest

from bench.show import overview
from bench.show.points import Best, time_rows, told_apart
from tests.bench.show.test_report import row, step_row

TORCH = row("torch.eager", seconds=2e-3)


def best(speedup: float = 2.0, **more: Any) -> Best:
    ends = dict(speedup=speedup, speedup_low=speedup * 0.95, speedup_high=speedup * 1.05)
    return Best(row("cpu.simd", **ends | more), TORCH)


def test_layers_are_faster_tied_slower_or_too_noisy_to_rank():
    found = [best(2.0), best(1.005), best(0.5), best(3.0, noise_floor=0.6), Best(row("cpu.simd", speedup=None), None)]
    card = overview.layers_card(found)
    assert [(f.number, f.text) for f in card.facts] == [
        *(("1", "faster"), ("1", "tied"), ("1", "slower")),
        ("1", "too noisy to rank"),
    ]
    assert card.below.startswith("of 4 cases")
    assert not overview.layers_card([]).facts


def test_the_nearest_and_the_farthest_are_of_what_can_be_ranked():
    found = [best(of_ceiling=x, shape_name=f"m/{n}") for n, x in (("a", 0.3), ("b", 0.9), ("c", 0.5))]
    found += [best(of_ceiling=0.99, noise_floor=2.0), best(of_ceiling=1.21, shape_name="m/over")]
    card = overview.limits_card(found, {id(found[1].row): "#there"})
    assert [(f.number, f.link) for f in card.facts[:2]] == [("90%", "#there"), ("30%", "")]
    assert card.facts[2].number == "121%" and "measured too low" in card.facts[2].text
    assert "1 cases are too noisy" in card.below
    assert "bench.doctor" in overview.limits_card([best(of_ceiling=None)], {}).below


def test_a_step_stands_beside_torch_compile_and_an_older_run_is_not_in_the_card():
    rows = [step_row("ours", 0.1), step_row("torch.eager", 0.3), step_row("torch.compile", 0.2)]
    card = overview.step_card([("new", "#step-1", rows, False), ("old", "#step-2", rows, True)])
    (fact,) = card.facts
    assert (fact.number, fact.style, fact.link) == ("2.00x", "ok", "#step-1") and "torch.compile's 200 ms" in fact.text
    failed = [rows[0] | dict(status="wrong", reproduce="again"), *rows[1:]]
    fact = overview.step_fact("t", "#s", failed)
    assert (fact.number, fact.style, fact.command) == ("wrong", "bad", "again")
    assert overview.step_fact("t", "#s", rows[:2]).text.endswith("torch.eager's 300 ms")
    assert "bench.e2e" in overview.step_card([]).below


def test_failures_have_their_commands():
    failed = [row(f"cpu.{n}", cache=None, status="wrong") for n in "abcde"]
    card = overview.failed_card(failed)
    assert [f.command for f in card.facts] == [r["reproduce"] for r in failed[:3]]
    assert card.title == "5 failed" and "2 more" in card.below
    assert overview.failed_card([]).below == "Nothing failed."


def test_a_cell_weighs_its_shapes_by_their_calls():
    """Floors of 10 x 1 and 1 x 4 ms over times of 10 x 2 and 1 x 20 ms: 14 of 40."""
    one = best(median_s=2e-3, floor_s=1e-3, calls=10, shape_name="m/a")
    other = best(0.5, median_s=20e-3, floor_s=4e-3, calls=1, shape_name="m/b")
    (grid,) = overview.grids([one, other], [], {id(one.row): "#a", id(other.row): "#b"})
    (cell,) = grid.rows[0].cells
    assert (cell.text, cell.style, cell.more) == ("35%", "s2", "cpu.simd, 1 faster, 1 slower")
    assert cell.link == "#a" or cell.link == "#b"
    assert overview.share_of([one, other]) == pytest.approx(14 / 40)


@pytest.mark.parametrize(
    ("more", "text", "style"),
    [
        (dict(median_s=1e-3, floor_s=0.05e-3), "5.0%", "s0"),
        (dict(median_s=1e-3, floor_s=0.8e-3), "80%", "s4"),
        (dict(median_s=1e-3, floor_s=1.2e-3), "120%", "over"),
        (dict(median_s=1e-3, floor_s=None), "–", "unknown"),
        (dict(noise_floor=0.51), "noise ±51%", "noisy"),
    ],
)
def test_a_cells_colour(more, text, style):
    (grid,) = overview.grids([best(**more)], [], {})
    assert (grid.rows[0].cells[0].text, grid.rows[0].cells[0].style) == (text, style)


def test_a_layer_without_a_right_kernel_says_that_it_failed():
    grids = overview.grids([best()], [row("cpu.bad", "forward", cache=None, status="wrong", layer="softmax")], {})
    cells = {r.layer: r.cells[0].style for r in grids[0].rows}
    assert cells == {"gelu": "s3", "softmax": "failed"}


def test_dtypes_have_a_grid_each():
    assert [g.name for g in overview.grids([best(dtype="fp32"), best(dtype="bf16")], [], {})] == ["bf16", "fp32"]


def test_a_run_of_which_most_cases_are_noisy_says_so():
    assert overview.noise_line([best(noise_floor=1.21), best(noise_floor=1.5), best()]).startswith(
        "This run ranks nothing"
    )
    assert not overview.noise_line([best(noise_floor=1.21), best(), best()])
    assert not overview.noise_line([])


def test_the_points_of_a_sweep_are_told_apart():
    """Else three rows and three bars of one name."""
    shapes = [dict(B=4, T=t, C=768) for t in (64, 1024)]
    found = told_apart([best(shape=shape) for shape in shapes] + [best(dtype="bf16", shape=shapes[0])])
    assert [b.sizes for b in found] == ["T=64", "T=1024", ""]
    assert found[0].case.endswith(" T=64")


def test_a_case_that_ranks_nothing_has_no_speed_at_its_bars():
    texts = [point["text"] for r in (best().row, best(noise_floor=0.6).row) for point in time_rows([r])]
    assert "2.00x" in texts[0] and "x" not in texts[1]
