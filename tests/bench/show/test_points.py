"""What charts are drawn of: sweeps are found among cases, and floors are where their records say."""

from bench.show.points import best_rows, standing, sweeps, tied, time_rows
from tests.bench.show.test_overview import best
from tests.bench.show.test_report import row


def at(t: int, b: int = 4, **more):
    return row("cpu.simd", seconds=1e-6 * t, shape={"B": b, "T": t, "eps": 1e-5}, floor_s=5e-7 * t, **more)


def test_an_axis_that_varies_while_the_others_stay_is_a_sweep():
    found = sweeps([at(256), at(64), at(128), at(128, cache="warm"), at(128, status="wrong"), at(64, b=8)])
    (title,) = found
    assert title == "forward gpt2-124m fp32 over T; B=4"
    assert [(p["at"], round(p["ms"], 6), round(p["floor"], 6)) for p in found[title]] == [
        (64, 0.064, 0.032),
        (128, 0.128, 0.064),
        (256, 0.256, 0.128),
    ]


def test_two_sizes_or_a_models_shapes_are_no_sweep():
    assert sweeps([at(64), at(128)]) == {}
    assert sweeps([at(t, shape_name=f"gpt2-124m/{t}") for t in (64, 128, 256)]) == {}
    assert sweeps([at(t, b=b) for t, b in ((64, 1), (128, 2), (256, 4))]) == {}  # two axes move together


def test_floors_are_in_the_charts():
    assert [p["floor"] for p in time_rows([row("cpu.simd"), row("cpu.old", floor_s=None)])] == [0.5, None]
    (point,) = best_rows([best(2.0, of_ceiling=0.5)])
    assert point["limit"] == 4.0 and point["reach"] >= 4.0
    assert best_rows([best(2.0, of_ceiling=None)])[0]["limit"] is None


def test_standing_and_ties():
    stands = [standing(best(s).row) for s in (2.0, 1.001, 0.5)] + [standing(best(2.0, noise_floor=0.51).row)]
    assert stands == ["faster", "tied", "slower", "noisy"]
    assert standing(row("cpu.simd", not_supported=["masks"])) == ""  # right in a part: nobody's rival
    assert tied(row("a.a", seconds=1e-3), row("b.b", seconds=1.05e-3)) and not tied(
        row("a.a"), row("b.b", seconds=2e-3)
    )
