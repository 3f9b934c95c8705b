"""The rounds, with workers whose clock is made up: order, stopping rule, noise floor, failures, processes."""

import random
from pathlib import Path
from typing import ClassVar

import pytest

from bench.core.case import Case
from bench.core.process import ProcessFailed
from bench.core.variants import Variant
from bench.trial import race as timing
from bench.trial.checks import Verdict
from bench.trial.race import Effort
from bench.trial.room import Setting

CASE = Case("residual", "forward", {"N": 8, "dtype": "fp32"}, "test")


def variant(name: str) -> Variant:
    return Variant("residual", "torch", name, Path(f"{name}.py"), "A story.", frozenset({"forward"}))


class FakeWorker:
    """Answers as a worker does; the seconds of a call are its variant's, times noise."""

    seconds: ClassVar[dict[str, float]] = {}
    fails: ClassVar[dict[str, ProcessFailed]] = {}
    wrong: ClassVar[set[str]] = set()
    noise = 0.001
    log: ClassVar[list[tuple[str, str, bool]]] = []
    random = random.Random(0)

    def __init__(self, variant, setting):
        self.name = variant.stem
        self.alive = True
        self.setting = setting

    def ask(self, command, limit=None, **arguments):
        if command == "canary":
            return {"warm": 2.0, "cold": 1.0, "bytes": 1.0}
        if self.name in self.fails and command == "sample":
            raise self.fails[self.name]
        seconds = self.seconds[self.name]
        if command == "ready":
            gpu = dict(busy_s=None, peak_bytes=None)
            return dict(prepare_s=1.0, call_s=seconds, overhead_s=0.0, workspace_bytes=7, configuration="", **gpu)
        self.log.append((self.name, "cold" if arguments["cold"] else "warm", arguments["verify"] is not None))
        wall = [seconds * (1 + self.noise * self.random.gauss(0, 1)) for _ in arguments["seeds"]]
        verdict = None
        if arguments["verify"] is not None:
            verdict = Verdict("inaccurate", "off") if self.name in self.wrong else Verdict(ratio=1.5)
        return dict(seconds=wall, cpu_s=wall, kernels={}, state={}, verdict=verdict)

    def close(self):
        self.alive = False


class FakeBriefs:
    def get(self, case, yardstick, perturbation=None, values_only=False):
        return Path("brief")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(timing, "Worker", FakeWorker)
    monkeypatch.setattr(timing, "pause", lambda: None)
    monkeypatch.setattr(FakeWorker, "seconds", {"eager": 1e-3, "fast": 5e-4, "slow": 4.0})
    monkeypatch.setattr(FakeWorker, "fails", {})
    monkeypatch.setattr(FakeWorker, "wrong", set())
    monkeypatch.setattr(FakeWorker, "log", [])
    monkeypatch.setattr(FakeWorker, "random", random.Random(0))


def race(*names: str, **effort) -> timing.Timing:
    chosen = [variant(n) for n in names]
    return timing.race(CASE, chosen, chosen[0], FakeBriefs(), Setting(), Effort(**effort))  # type: ignore[arg-type]


def by_label(found: timing.Timing) -> dict[str, timing.Contestant]:
    return {c.label: c for c in found.contestants}


def test_everyone_takes_part_in_every_round_and_the_order_is_shuffled():
    found = race("eager", "fast", seconds=1e9, target=1e-9)
    assert {len(c.samples["cold"]) for c in found.contestants} == {timing.MAX_ROUNDS}
    cold = [name for name, cache, _ in FakeWorker.log if cache == "cold"]
    orders = {tuple(cold[i : i + 3]) for i in range(0, len(cold), 3)}
    assert all(sorted(order) == ["eager", "eager", "fast"] for order in orders) and len(orders) == 3


def test_the_ratio_and_the_noise_floor_come_from_the_rounds():
    found = race("eager", "fast")
    contestants = by_label(found)
    ratio, low, high = timing.ratio_ci(contestants["torch.eager"], contestants["torch.fast"], "cold") or (0, 0, 0)
    assert ratio == pytest.approx(2, rel=0.01) and low <= ratio <= high
    assert found.noise_floor is not None and 0 < found.noise_floor < 0.01


def test_the_noise_floor_shows_a_noisy_machine(monkeypatch):
    monkeypatch.setattr(FakeWorker, "noise", 0.3)
    assert (race("eager", "fast").noise_floor or 0) > 0.01


def test_rounds_end_when_the_ratios_are_known_or_time_is_up(monkeypatch):
    assert "every ratio was known" in race("eager", "fast", seconds=1e9).stopped
    clock = iter(range(10**6))
    monkeypatch.setattr(timing.time, "monotonic", lambda: float(next(clock)))
    found = race("eager", "fast", seconds=12, target=1e-9)
    assert "time was up" in found.stopped
    assert len(found.contestants[0].samples["cold"]) < timing.MAX_ROUNDS


def test_a_slow_one_is_timed_cold_only_and_seldom(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(timing.time, "monotonic", lambda: float(next(clock)))
    found = by_label(race("eager", "slow", seconds=6, target=1e-9))
    assert list(found["torch.slow"].samples) == ["cold"]
    assert len(found["torch.slow"].samples["cold"]) < len(found["torch.eager"].samples["cold"]) + 1


def test_some_calls_of_everyone_are_verified_in_rounds_nobody_can_foresee():
    found = race("eager", "fast")
    assert {c.verified for c in found.contestants} == {3}
    assert all(c.ratio == 1.5 for c in found.contestants)


def test_a_wrong_timed_call_ends_that_row_only(monkeypatch):
    monkeypatch.setattr(FakeWorker, "wrong", {"fast"})
    found = by_label(race("eager", "fast"))
    assert found["torch.fast"].status == "wrong" and "inaccurate in a timed call" in found["torch.fast"].evidence
    assert found["torch.eager"].running


def test_a_crash_ends_that_row_only(monkeypatch):
    monkeypatch.setattr(FakeWorker, "fails", {"fast": ProcessFailed("crash", "signal SIGSEGV")})
    found = by_label(race("eager", "fast"))
    assert (found["torch.fast"].status, found["torch.fast"].evidence) == ("crash", "signal SIGSEGV")
    assert found["torch.eager"].running and found["torch.eager"].samples


def test_a_crash_of_the_baseline_leaves_the_others(monkeypatch):
    monkeypatch.setattr(FakeWorker, "fails", {"eager": ProcessFailed("timeout", "no answer")})
    found = race("eager", "fast")
    assert by_label(found)["torch.fast"].samples and found.noise_floor is None


def test_several_processes_start_afresh_and_label_their_rounds():
    found = race("eager", "fast", processes=2)
    assert {p for p, _ in found.contestants[0].rounds["cold"]} == {0, 1}
