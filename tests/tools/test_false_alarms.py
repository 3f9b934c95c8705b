"""The measurement of false alarms: its bounds are those of the books, and what is wrong is counted."""

import random
import re

import pytest

from bench import HOME
from bench.core import variants
from bench.core.case import cases_of, draw
from reference import contract
from tools import false_alarms


@pytest.mark.parametrize(
    ("fails", "trials", "bound"),
    [(0, 1, 0.95), (0, 100, 0.02951), (0, 3000, 0.000998), (3, 100, 0.0757), (10, 10, 1.0), (5000, 10000, 0.5083)],
)
def test_the_upper_bound_is_clopper_and_pearsons(fails, trials, bound):
    assert false_alarms.upper_bound(fails, trials) == pytest.approx(bound, rel=0.005)


@pytest.mark.parametrize("slope", [3.0, 8.0])
def test_the_tail_of_a_power_law_is_found(slope):
    draw = random.Random(3)
    ratios = [draw.random() ** (-1 / slope) for _ in range(20_000)]
    assert false_alarms.tail_beyond(ratios, 3.0) == pytest.approx(3.0**-slope, rel=0.4)


def test_few_ratios_and_equal_ones_have_no_tail():
    assert false_alarms.tail_beyond([1.0] * 50, 4.0) == 0.0
    assert false_alarms.tail_beyond([], 4.0) == 0.0
    assert false_alarms.tail_beyond([5.0] * 50, 4.0) == 1.0


@pytest.mark.parametrize(("factor", "fails"), [(1.0, False), (1.01, True)])
def test_stand_ins_are_judged_and_what_is_wrong_is_counted(monkeypatch, tmp_path, factor, fails):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    real = false_alarms.call
    monkeypatch.setattr(false_alarms, "call", lambda *arguments: [part * factor for part in real(*arguments)])
    row = false_alarms.measure("residual", "forward", "fp16", 0.05, 1)
    assert row.calls >= row.seeds > 0
    assert row.failed == (row.calls if fails else 0)
    page = false_alarms.page([row], "`--seed 1`")
    assert "| residual | forward | fp16 |" in page and ("What was beyond the limit" in page) == fails
    said, rows = false_alarms.read(page)
    assert said == "`--seed 1`" and false_alarms.page([*rows.values()], said) == page, "it is read as it was written"
    both = row.with_(rows[row.name])
    assert (both.calls, both.failed) == (2 * row.calls, 2 * row.failed)
    assert both.worst == pytest.approx(row.worst, abs=0.01)


def test_what_the_judge_promises_is_what_was_measured():
    promised = re.search(r"less than one proof of ([\d,]+) on average", (HOME / "docs" / "judge.md").read_text())
    measured = re.search(r"less than once in ([\d,]+) runs on average", (HOME / "docs" / "false_alarms.md").read_text())
    assert promised and measured
    assert int(measured[1].replace(",", "")) >= int(promised[1].replace(",", ""))


@pytest.mark.parametrize("layer", contract.layer_names())
def test_only_axes_whose_order_means_nothing_are_turned_round(layer):
    eager = variants.find(variants.discover(), layer, "torch.eager")
    for phase in contract.phases_of(contract.load(layer)):
        case = cases_of(layer, phase, "fp32", [0])[0]
        values = draw(case)
        here, there = (call(eager, case, values) for call in (false_alarms.call, false_alarms.turned_call))
        for one, other in zip(here, there, strict=True):
            assert (one.double() - other.double()).norm() <= 1e-5 * one.double().norm()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", false_alarms.DTYPES)
@pytest.mark.parametrize("layer", ["gelu", "layernorm", "attention", "adamw"])
def test_honest_stand_ins_do_not_fail(monkeypatch, tmp_path, layer, dtype):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    row = false_alarms.measure(layer, "forward", dtype, 8, 2)
    assert row.seeds and not row.failed
