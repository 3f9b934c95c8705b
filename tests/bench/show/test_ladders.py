"""The ladder: own kernels in the order of the story, what each step gains and saves, and the floor below them all."""

from typing import Any

import pytest

from bench.show.ladders import SAME, ladder, technique
from tests.bench.show.test_report import row

STORIES = {"naive": "One thread an output.", "shared": "Tiles in shared memory, 8 x 8 sums.", "mma": "Tensor cores."}


def cuda(stem: str, seconds: float, **more: Any):
    return row(f"cuda.{stem}", seconds=seconds, story=STORIES.get(stem, ""), device="cuda", **more)


def test_own_kernels_stand_in_the_order_of_the_story_with_gains_and_savings():
    rows = [
        cuda("mma", 1e-3, workspace_bytes=0, registers=128),
        cuda("shared", 4e-3, workspace_bytes=2_000_000, registers=64),
        cuda("naive", 40e-3, workspace_bytes=2_000_000, registers=64),
        row("torch.eager", seconds=2e-3),
        cuda("cublaslt", 0.8e-3),
    ]
    found = ladder(rows)
    assert found
    assert [r.variant for r in found.rungs] == ["cuda.naive", "cuda.shared", "cuda.mma", "the floor"]
    assert [m.variant for m in found.marks] == ["cuda.cublaslt", "torch.eager"]
    naive, shared, mma, floor = found.rungs
    assert (naive.gain, shared.gain, mma.gain) == ("", "×10: tiles in shared memory", "×4: tensor cores")
    assert (shared.total, mma.total) == ("", "×40")
    assert shared.saves == ["−36 ms a call", "−432 ms a training step (12 calls)"]
    assert mma.saves[2:] == ["scratch 2 → 0 MB", "registers 64 → 128"]
    assert floor.time == "500 µs" and floor.gain == "×2 left"
    places = [r.at or 0 for r in found.rungs]
    assert places == sorted(places, reverse=True) and 0 < places[-1] < 10 and places[0] == 100


def test_what_the_story_does_not_name_stands_last_the_slowest_first():
    found = ladder([cuda("wgmma", 1e-3), cuda("mine", 2e-3), cuda("other", 3e-3), cuda("naive", 9e-3)])
    assert found and [r.variant for r in found.rungs[:4]] == ["cuda.naive", "cuda.wgmma", "cuda.other", "cuda.mine"]
    assert "(slower)" in found.rungs[2].gain


@pytest.mark.parametrize("more", [dict(noise_floor=0.3), dict(low_s=1e-5, high_s=1.0)])
def test_a_gain_within_the_noise_is_none(more):
    found = ladder([cuda("naive", 1.2e-3, **more), cuda("shared", 1e-3, **more)])
    assert found and found.rungs[1].gain.startswith(SAME) and not found.rungs[1].saves


def test_a_noisy_case_has_no_gains():
    found = ladder([cuda("naive", 1.0, noise_floor=0.51), cuda("shared", 1e-3, noise_floor=0.51)])
    assert found and found.rungs[1].gain == "tiles in shared memory" and not found.rungs[1].saves


def test_what_is_not_on_it_is_told():
    lacks: Any = dict(not_supported=["dropout"], proof_cases=7, proof_cases_all=9)
    rows = [cuda("naive", 1e-3), cuda("shared", 1e-6, **lacks), row("cuda.mma", cache=None, status="wrong")]
    found = ladder(rows)
    assert found and [r.variant for r in found.rungs] == ["cuda.naive", "the floor"]
    assert found.said == [
        "Right in a part of the contract, and therefore not on it: cuda.shared (7 of 9 cases).",
        "Not on it: cuda.mma (wrong).",
    ]


def test_a_time_below_the_floor_is_told_with_its_reason():
    found = ladder([cuda("naive", 4e-4)])
    assert found and "125% of it" in found.rungs[-1].gain and "ceiling was measured too low" in found.rungs[-1].gain


def test_counts_of_the_simulator_stand_in_for_those_of_the_same_source_alone():
    rows = [cuda("naive", 2e-3), cuda("shared", 1e-3)]
    counted = [{**r, "status": "simulated", "moved_of_minimum": 2.0 - i} for i, r in enumerate(rows)]
    found = ladder(rows, counted=counted)  # type: ignore[arg-type]
    assert found and "moves 2x → 1x of the least bytes" in found.rungs[1].saves
    other = [{**r, "source_hash": "another"} for r in counted]
    found = ladder(rows, counted=other)  # type: ignore[arg-type]
    assert found and not any("moves" in s for s in found.rungs[1].saves)


def test_a_simulated_ladder_has_counts_and_no_times():
    rows = [row(f"cuda.{v}", cache=None, status="simulated", registers=n) for v, n in (("shared", 64), ("naive", 40))]
    found = ladder(rows)
    assert found and [r.variant for r in found.rungs] == ["cuda.naive", "cuda.shared"]
    assert all(r.at is None and not r.time for r in found.rungs)
    assert found.rungs[1].saves == ["registers 40 → 64"] and "no times" in found.said[0]


def test_without_an_own_kernel_there_is_no_ladder():
    assert ladder([row("torch.eager"), row("cuda.cudnn")]) is None
    assert ladder([row("triton.vendor")], libraries={"triton.vendor"}) is None


@pytest.mark.parametrize(
    ("story", "told"),
    [
        ("128 x 128 tiles in shared memory, 8 x 8 sums.", "128 x 128 tiles in shared memory"),
        ("Hopper: one thread copies tiles by TMA, two multiply.", "one thread copies tiles by TMA"),
        ("The same tiles as triton.flash, brought by TMA.", "the same tiles as triton.flash"),
        ("GELU fused.", "GELU fused"),
        ("", ""),
    ],
)
def test_a_technique_is_the_first_clause_that_says_something(story, told):
    assert technique(story) == told
