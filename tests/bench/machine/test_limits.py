"""Bounds from rates: each formula by hand."""

from dataclasses import fields, replace

import pytest

from bench.machine import limits, roofline
from bench.machine.limits import H200, Limits

CYCLE = 1 / (132 * 1.98e9)  # of all multiprocessors together, in seconds


def test_every_limit_has_a_source_and_agrees_with_the_datasheet():
    assert all(getattr(H200, f.name).source and getattr(H200, f.name).value > 0 for f in fields(Limits))
    sheet = roofline.DATASHEETS["NVIDIA H200"]
    assert H200.wgmma.value == sheet.flops_per_s("bf16") and H200.memory.value == sheet.bytes_per_s
    assert 132 * H200.fp32.value * 2 * H200.clock.value == pytest.approx(sheet.flops_per_s("fp32"), rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "by_hand"),
    [
        (limits.memory_seconds(4.8e12), 1.0),
        (limits.product_seconds(989.4e12), 1.0),
        (limits.product_seconds(0, 0.68 * 989.4e12), 1.0),
        (limits.product_seconds(989.4e12, 0.68 * 989.4e12), 2.0),  # they share the tensor cores
        (limits.special_seconds(1), 2 * CYCLE),  # 32 results, 16 a cycle
        (limits.fp32_seconds(4), CYCLE),
        (limits.shared_seconds(3), 3 * CYCLE),
        (limits.l1_seconds(4), CYCLE),
        (limits.l2_seconds(4), 2 * CYCLE),
        (limits.floor_seconds(4.8e12, 3 * 989.4e12), 3.0),
        (limits.floor_seconds(4 * 4.8e12, 3 * 989.4e12), 4.0),
    ],
)
def test_a_bound_is_what_it_is_by_hand(seconds, by_hand):
    assert seconds == pytest.approx(by_hand, rel=1e-12)


def test_waves_and_imbalance():
    assert limits.waves(264, 2) == 1 and limits.waves(133, 1) == pytest.approx(133 / 132)
    assert limits.imbalance(132) == limits.imbalance(264) == 1 and limits.imbalance(133) == pytest.approx(264 / 133)
    assert limits.imbalance(1) == 132, "one block has one multiprocessor to itself, and the others wait"
    assert all(limits.imbalance(n) >= 1 for n in range(1, 1000))


def test_a_faster_card_has_lower_bounds():
    faster = replace(H200, clock=replace(H200.clock, value=2 * H200.clock.value))
    for seconds in (limits.special_seconds, limits.fp32_seconds, limits.shared_seconds, limits.l1_seconds):
        assert seconds(1000, faster) == pytest.approx(seconds(1000) / 2)
