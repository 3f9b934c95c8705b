"""What is ranked with what: only equals are, and what covers a part of its contract is no equal of what covers all."""

import pytest

from bench.records.queries import coverage, partial, races, ranked
from tests.bench.show.test_report import row

LACKS = ["grouped queries"]


def part(variant, seconds, lacks=LACKS, **more):
    return row(variant, seconds=seconds, proof_cases=7, proof_cases_all=9, not_supported=lacks, **more)


def names(rows):
    return [states[0]["variant"] for states in ranked(rows)]


def test_the_fastest_of_a_race_covers_the_whole_contract():
    whole = [row("cpu.simd", seconds=2e-3), row("torch.eager", seconds=3e-3)]
    (race,) = races([*whole, part("cpu.quick", 1e-3), part("torch.quick", 1e-3)])
    assert race.own and race.torch
    assert [r["variant"] for r in (race.first, race.own, race.torch)] == ["cpu.simd", "cpu.simd", "torch.eager"]
    assert len(race.rows) == 2
    assert races([part("cpu.quick", 1e-3)]) == []


def test_partial_ones_are_ranked_below_among_equals_and_above_what_is_wrong():
    rows = [
        row("cpu.wrong", cache=None, status="wrong", evidence="inaccurate"),
        part("cpu.slow", 2e-3),
        part("cpu.other", 1.5e-3, ["no causal form"]),
        part("cpu.quick", 1e-3),
        row("torch.eager", seconds=3e-3),
        row("cpu.simd", seconds=2.5e-3),
    ]
    assert names(rows) == ["cpu.simd", "torch.eager", "cpu.quick", "cpu.slow", "cpu.other", "cpu.wrong"]


@pytest.mark.parametrize("more", [{}, {"not_supported": []}, {"not_supported": LACKS, "status": "wrong"}])
def test_old_records_whole_ones_and_failures_are_not_partial(more):
    record = row("cpu.simd") | more
    assert not partial(record) and coverage(record) == ()


def test_the_order_of_what_is_missing_does_not_matter():
    assert coverage(part("a.b", 1, ["x", "y"])) == coverage(part("a.c", 2, ["y", "x"])) == ("7 of 9", "x", "y")
    assert coverage(part("a.b", 1)) != coverage(part("a.b", 1) | {"proof_cases": 6})


def test_a_composition_of_another_root_is_neither_the_yardstick_nor_a_kernel_of_ours():
    rows = [row("torch.sleeps", seconds=1e-3) | {"outside": True}, row("cpu.simd", seconds=2e-3)]
    (race,) = races([*rows, row("torch.eager", seconds=3e-3)])
    assert race.torch and race.own
    assert (race.first["variant"], race.own["variant"], race.torch["variant"]) == (
        "torch.sleeps",
        "cpu.simd",
        "torch.eager",
    )
    (alone,) = races(rows)
    assert alone.torch is None


def test_a_librarys_kernel_is_not_ours():
    (race,) = races(
        [row("cuda.cublaslt", seconds=1e-3), row("cuda.mma", seconds=2e-3), row("torch.eager", seconds=3e-3)]
    )
    assert race.own and (race.first["variant"], race.own["variant"]) == ("cuda.cublaslt", "cuda.mma")
