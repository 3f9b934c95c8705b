"""Counts of small shapes, and how they are scaled."""

import json

import pytest

from bench.core.case import Case
from bench.gpu import units
from bench.gpu.launches import launches_of
from reference import contract


def points(*rows: tuple[int, int, int]) -> list[units.Point]:
    return [dict(zip(units.FEATURES, row, strict=True)) for row in rows]


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


def test_of_several_sums_that_fit_the_least_is_taken():
    """Items and work grow together in all small shapes: which of them the count goes by cannot be seen."""
    alike = points((4, 400, 0), (8, 800, 0), (12, 1200, 0))
    found = units.fit(alike, [40.0, 80.0, 120.0], CALL)
    assert value(found, CALL) == min(10 * 1000, 90000 / 10)
    fewer_items = points((10, 90000, 0))[0]
    assert value(units.fit(alike, [40.0, 80.0, 120.0], fewer_items), fewer_items) == 100


def test_what_never_happens_is_known_to():
    found = units.fit(SMALL, [0.0, 0.0, 0.0], CALL)
    assert found == {"of": [], "off": 0.0}


def every_call():
    for variant in units.variants():
        if not units.is_library(variant):
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


def test_a_table_of_another_schema_is_refused(tmp_path):
    file = tmp_path / "units.json"
    file.write_text(json.dumps({"schema": 0, "variants": {}}))
    with pytest.raises(ValueError, match="schema 0"):
        units.read(file)


def test_what_has_another_source_is_named_and_counted_anew(tmp_path, monkeypatch):
    file = tmp_path / "units.json"
    two = [
        v for v in units.variants() if (v.layer, v.name) in (("residual", "cuda.naive"), ("residual", "cuda.shared"))
    ]
    monkeypatch.setattr(units, "variants", lambda: two)
    monkeypatch.setattr(units, "call_entry", lambda *_: {})
    assert units.update(["residual"], ["cuda.naive"], file=file) == 1
    entries = units.read(file)
    assert "residual cuda.naive" not in units.stale(entries) and "residual cuda.shared" in units.stale(entries)
    assert units.update(["residual"], ["cuda.naive"], file=file) == 0, "it is up to date"
    entries["residual cuda.naive"]["source"] = "another"
    file.write_text(json.dumps({"schema": units.SCHEMA, "variants": entries}))
    assert "residual cuda.naive" in units.stale(entries)
    assert units.update(["residual"], ["cuda.naive"], file=file) == 1
