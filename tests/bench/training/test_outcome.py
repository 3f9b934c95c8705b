"""A training run judges itself: where its times tell nobody apart it gives no ranks and no shares."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.core.files import DiskFull
from bench.show.limits import widest_half
from bench.training import session
from bench.training.outcome import Report


def measured(*intervals: tuple[float, float | None], gpu: bool = False) -> Any:
    """A report of contestants whose median step took a second, within these ends."""
    timed = [{"median_s": 1.0, "low_s": low, "high_s": high} for low, high in intervals]
    return SimpleNamespace(timed=timed, s=SimpleNamespace(plan=SimpleNamespace(gpu=gpu)))


def test_a_page_that_finds_the_disk_full_is_told_after_all_else(monkeypatch, capsys):
    def full(_: Path) -> str:
        raise DiskFull("no space left to write report.html")

    monkeypatch.setattr(session, "write_beside", full)
    made = SimpleNamespace(
        plan=SimpleNamespace(profile=None, json=True, argv=()),
        run_=SimpleNamespace(folder=Path("here"), write_csv=lambda _: None),
        full_disk=None,
    )
    report = SimpleNamespace(print=lambda: None, document=lambda: {"parity": True}, parity=True)
    with pytest.raises(DiskFull):
        session.Session._report(cast(Any, made), cast(Any, report))
    assert '"parity": true' in capsys.readouterr().out


def total(layers: float, gaps: float = 0.0, step: float = 1.0) -> dict[str, float]:
    return {"layers_s": layers, "gaps_s": gaps, "remainder_s": step - layers - gaps, "step_s": step}


def test_the_noise_is_the_widest_interval_that_is_known():
    assert widest_half(measured((0.98, 1.02), (0.7, 1.3)).timed) == pytest.approx(0.3)
    assert widest_half(measured((0.98, None), (0.9, math.inf)).timed) is None, "of a single round nothing is known"


@pytest.mark.parametrize(
    ("found", "parts", "told"),
    [
        (measured((0.9, 1.1)), total(0.9, 0.05), ""),
        (measured((0.9, 1.1)), total(0.3, 0.65), ""),  # a small model's step is mostly gaps
        (measured((0.9, 1.1)), total(3.02), "took 3 times as long as without"),  # "all layers 302 %"
        (measured((0.9, 1.1)), total(0.3, 0.1), "took 0.4 times as long"),
        (measured((0.9, 1.1), gpu=True), total(0.7, 4.0), ""),  # what plain launches wait for, a graph does not
        (measured((0.9, 1.1), gpu=True), total(1.5), "took 1.5 times as long"),
        (measured((0.1, 2.52)), total(0.9, 0.05), "this run ranks nothing: the noise floor is ±121%"),
    ],
)
def test_parts_that_do_not_add_up_are_no_shares(found, parts, told):
    said = Report._no_shares(found, parts)
    assert told in said and bool(said) == bool(told)
