"""Counts of small shapes, and how they are scaled."""

import json

import pytest

from bench import cli
from bench.core.case import Case
from bench.gpu import units
from bench.gpu.launches import launches_of
from reference import contract


def points(*rows: tuple[int, int, int]) -> list[units.Point]:
    """(items, work, side), with nothing before them."""
    return [dict(zip(units.FEATURES, (*row, 0), strict=True)) for row in rows]


def value(found: units.Entry | None, at: units.Point) -> float:
    assert found
    return sum(found[name] * at[name] for name in found["of"])


SMALL = points((4, 100, 0), (8, 400, 0), (8, 300, 0))
CALL = points((1000, 90000, 0))[0]


def test_a_count_of_items_and_work_is_found_and_scaled():
    found = units.fit(SMALL, [7 * p["items"] + 3 * p["work"] for p in SMALL], CALL)
    assert found and found["of"] == ["items", "work"] and value(found, CALL) == pytest.approx(7 * 1000 + 3 * 90000)


def test_a_count_that_is_no_such_sum_is_not_known():
    assert units.fit(SMALL, [p["work"] ** 3 for p in SMALL], CALL) is None
    assert units.fit(SMALL[:1], [100.0], CALL) is None, "one point is no proof"
    off_by_one_percent = [100.0, 400.0, 303.0]
    assert units.fit(SMALL, off_by_one_percent, CALL) is None


def test_of_several_sums_that_fit_none_is_taken_unless_they_agree():
    """Items and work grow together in all small shapes: which of them the count goes by cannot be seen."""
    alike = points((4, 400, 0), (8, 800, 0), (12, 1200, 0))
    persistent, more = points((264, 90000, 0), (900, 90000, 0))
    assert units.fit(alike, [40.0, 80.0, 120.0], persistent) is None, "264 or 900 of them"
    assert value(units.fit(alike, [40.0, 80.0, 120.0], more), more) == pytest.approx(9000), "either way"
    nearly = points((890, 90000, 0))[0]
    assert value(units.fit(alike, [40.0, 80.0, 120.0], nearly), nearly) == pytest.approx(8900), "the least"


def test_what_is_little_at_small_shapes_is_not_lost_in_the_tolerance():
    values = [1000 * p["items"] + 0.001 * p["work"] for p in SMALL]
    assert value(units.fit(SMALL, values, CALL), CALL) == pytest.approx(1000 * 1000 + 90)


def test_what_never_happens_is_known_to():
    found = units.fit(SMALL, [0.0, 0.0, 0.0], CALL)
    assert found == {"of": [], "off": 0.0}


def test_parts_that_a_kernel_adds_up_are_known_by_the_kernel_before():
    """Twice the parts, twice the loads, of as many items; and only where nothing of its own tells as much."""
    here = [{**p, "items": 10, "before": b} for p, b in zip([*SMALL, SMALL[0]], (4, 8, 16, 32), strict=True)]
    call = {**CALL, "items": 100, "before": 700}
    found = units.fit(here, [3.0 * p["items"] + 5 * p["before"] for p in here], call)
    assert found and set(found["of"]) == {"items", "before"} and value(found, call) == pytest.approx(3800)
    own = units.fit(here, [2.0 * p["work"] for p in here], call)
    assert own and own["of"] == ["work"]


def test_launches_of_one_kernel_are_one_point():
    variant = next(v for v in units.variants() if (v.layer, v.name) == ("matmul", "cuda.mma"))
    shape = dict(M=4096, N=256, K=256, epilogue="bias", dgelu=False, dtype="bf16", accumulate=False)
    case = Case("matmul", "backward", shape, "parts")
    uses = units.items_of(variant.load(), case)
    points = dict(units.points_of(case, uses))
    assert [use.grid[1] for use in uses] != [1] * len(uses), "dweight is cut into parts"
    assert points["matmul_dx"]["before"] == 0 and points["matmul_dweight"]["before"] == 32 * 2
    assert points["add_parts"]["before"] == points["matmul_dweight"]["items"]
    adds = [use for use in uses if units.kernel_name(use) == "add_parts"]
    assert len(adds) == 2 and points["add_parts"]["items"] == sum(use.grid[0] for use in adds)
    assert points["matmul_dx"]["work"] == 4096 * 256 * 256 and points["matmul_dx"]["side"] == 4096 * 256


def every_call():
    for variant in units.variants():
        if not variant.kernels:
            for phase, name, call in units.calls_of(variant.layer):
                if variant.has(phase):
                    yield variant, phase, name, call.shape


def test_small_shapes_are_the_contracts_and_tell_items_from_work():
    for variant, phase, _, shape in every_call():
        small = units.small_shapes(variant, phase, shape)
        assert len(small) >= 3 and all(s.keys() == shape.keys() for s in small)
        assert len({units.work(variant.layer, s) for s in small}) >= 2
        module = contract.load(variant.layer)
        full = contract.overwriting(module, phase, small[0], units.DTYPE)
        assert 0 < contract.min_bytes(module, full, phase) < 200e6, "it is to be simulated"


def test_persistent_launches_have_their_number_of_tiles_and_then_their_blocks_again():
    variant = next(v for v in units.variants() if (v.layer, v.name) == ("matmul", "cuda.wgmma"))
    shape = dict(M=1024, N=512, K=64, epilogue="none", dgelu=False, dtype="bf16")
    case = Case("matmul", "forward", shape, "tiles")
    assert [use.grid for use in units.items_of(variant.load(), case)] == [(8 * 4, 1, 1)]
    assert launches_of(variant.load(), case, units.ARCH)[0].grid[0] < 8 * 4


@pytest.mark.parametrize(
    ("text", "told"),
    [('{"schema": 0, "variants": {}}', "schema is 0"), ("{", "Expecting"), ("[]", "TypeError"), (None, "No such")],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, told):
    file = tmp_path / "units.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(cli.CannotGoOn, match=told):
        units.read(file)


def test_what_has_another_source_is_named_and_counted_anew(tmp_path, monkeypatch):
    file = tmp_path / "units.json"
    two = [
        v for v in units.variants() if (v.layer, v.name) in (("residual", "cuda.naive"), ("residual", "cuda.shared"))
    ]
    monkeypatch.setattr(units, "variants", lambda: two)
    monkeypatch.setattr(units, "variant_entry", lambda v: {"source": v.source_hash(), "calls": {}, "samples": {}})
    assert units.update(["residual"], ["cuda.naive"], file=file) == 1
    entries = units.read(file)
    assert "residual cuda.naive" not in units.stale(entries) and "residual cuda.shared" in units.stale(entries)
    assert units.update(["residual"], ["cuda.naive"], file=file) == 0, "it is up to date"
    entries["residual cuda.naive"]["source"] = "another"
    file.write_text(json.dumps({"schema": units.SCHEMA, "variants": entries}))
    assert "residual cuda.naive" in units.stale(entries)
    assert units.update(["residual"], ["cuda.naive"], file=file) == 1
