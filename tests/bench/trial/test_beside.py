"""What a session asks of processes beside proving and timing."""

import pytest

from bench.core.case import Case
from bench.core.variants import discover, find
from bench.trial import beside
from bench.trial.race import Contestant
from bench.trial.room import Setting

SHARED = find(discover(), "attention", "cuda.shared")


def case(head_size: int) -> Case:
    shape = dict(B=1, T=64, NH=2, NKV=2, HS=head_size, causal=True, dtype="bf16")
    return Case("attention", "forward", shape, "test")


@pytest.mark.parametrize(("head_size", "says"), [(64, ""), (256, "176")])
def test_a_kernel_that_cannot_be_launched_at_a_shape_says_so_without_a_gpu(head_size, says):
    told = beside.cannot_launch(SHARED, case(head_size), Setting())
    assert says in told and bool(told) == bool(says)


def test_in_a_suite_nothing_is_compiled_while_a_gpu_waits(monkeypatch):
    """What is known from results/ is told all the same."""
    contestant = Contestant(SHARED, SHARED.name)

    def never(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(beside, "Worker", never)
    assert beside.resources_on("sm_90a", case(64), [contestant], Setting("cuda"), compile_rest=False) == {}
    with pytest.raises(AssertionError, match="was started"):
        beside.resources_on("sm_90a", case(64), [contestant], Setting("cuda"))
    monkeypatch.setattr(beside.table, "known", lambda *_: {"registers": 40})
    known = beside.resources_on("sm_90a", case(64), [contestant], Setting("cuda"), compile_rest=False)
    assert known == {SHARED.name: {"registers": 40}}


def test_ceilings_are_looked_at_once_for_all_sessions_of_a_process(monkeypatch, tmp_path):
    asked: list[str] = []

    def measured(setting: Setting) -> str:
        asked.append(setting.device)
        return "sm_90a"

    monkeypatch.setattr(beside, "_measured", measured)
    monkeypatch.setattr(beside, "MEASURED", {})
    for cache in ("one", "two"):
        monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / cache))
        for device in ("cuda:0", "cuda:1", "cuda:0"):
            assert beside.measure_ceilings(Setting(device)) == "sm_90a"
    assert asked == ["cuda:0", "cuda:1"] * 2
