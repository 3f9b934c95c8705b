"""The rounds, with workers whose clock is made up: order, stopping rule, noise floor, failures, processes."""

import itertools
import os
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from bench.core.case import Case
from bench.core.process import ProcessFailed
from bench.core.variants import Variant
from bench.machine import compared
from bench.trial import race as timing
from bench.trial.checks import Verdict
from bench.trial.race import Effort
from bench.trial.room import Setting

CASE = Case("residual", "forward", {"N": 8, "dtype": "fp32"}, "test")


def variant(name: str) -> Variant:
    return Variant("residual", "torch", name, Path(f"{name}.py"), "A story.", frozenset({"forward"}))


WATCHED = dict(returned="", tampered="", seen=None, brought=None, kernels=None, allocated=0, changed="")


class FakeWorker:
    """Answers as a worker does; the seconds of a call are its variant's, times noise."""

    seconds: ClassVar[dict[str, float]] = {}
    fails: ClassVar[dict[str, ProcessFailed]] = {}
    wrong: ClassVar[set[str]] = set()
    wrong_when_hard: ClassVar[set[str]] = set()  # on the structured case
    hides: ClassVar[set[str]] = set()  # their clock does not tell all
    waits: ClassVar[dict[str, int]] = {}  # so many of their calls first wait for a core, and …
    waits_counted: ClassVar[bool] = True  # … whether the system counts that
    awake: ClassVar[dict[str, float]] = {}  # cores that their process always wants
    runtimes: ClassVar[dict[str, int]] = {}  # of OpenMP, where there are more than one
    noise = 0.001
    turns: ClassVar[list[tuple[str, str]]] = []  # variant, cache
    calls: ClassVar[list[tuple[str, int, int]]] = []  # variant, draw, seed
    judged: ClassVar[list[tuple[str, int, str]]] = []  # variant, turn, cache
    held: ClassVar[list[str]] = []  # variants that have memory
    most_held: ClassVar[list[int]] = []
    random = random.Random(0)

    def __init__(self, variant, setting):
        self.name = variant.stem
        self.alive = True
        self.setting = setting
        self.made, self.turn, self.waited, self.all = 0, 0, 0, 0
        self.process = SimpleNamespace(pid=os.getpid())

    def ask(self, command, limit=None, **arguments):
        if self.name in self.fails and command == "call":
            raise self.fails[self.name]
        return getattr(self, command)(**arguments)

    def canary(self):
        return {"warm": 2.0, "cold": 1.0, "bytes": 1.0}

    def settle(self, case, pool, seed):
        assert pool == ["given"]

    def ready(self, case, pool, seed):
        seconds = self.seconds[self.name]
        gpu = dict(busy_s=None, peak_bytes=None, runtimes=self.runtimes.get(self.name, 1))
        done = dict(prepare_s=1.0, call_s=seconds, overhead_s=0.0, workspace_bytes=7, configuration="")
        return done | gpu | dict(watched=WATCHED)

    def begin(self, clock):
        self.made = 0
        self.turn += 1
        self.most_held.append(len(self.held))

    def call(self, entry, seed, cold):
        if not self.made:
            self.turns.append((self.name, "cold" if cold else "warm"))
        self.cache = "cold" if cold else "warm"
        self.made += 1
        self.calls.append((self.name, entry, seed))
        self.all += 1
        if self.all <= self.waits.get(self.name, 0):
            began = time.monotonic_ns()
            time.sleep(0.004)
            self.waited += (time.monotonic_ns() - began) * self.waits_counted  # on a busy machine rather more
        now = timing.time.monotonic_ns()
        if self.name in self.hides:
            now -= 10_000_000
            time.sleep(0.01)
            return dict(began=now + 9_999_999, started=now + 9_999_999, stopped=now + 9_999_999, ended=now + 10_000_000)
        return dict(began=now, started=now, stopped=now, ended=now)

    def enter(self, case, pool, seed):
        assert pool == ["given"]
        self.held.append(self.name)

    def leave(self):
        if self.name in self.held:  # not after `ready`
            self.held.remove(self.name)

    def hand_back(self):
        self.judged.append((self.name, self.turn, self.cache))
        return self.name, ""

    def end(self):
        seconds = self.seconds[self.name]
        wall = [seconds * (1 + self.noise * self.random.gauss(0, 1)) for _ in range(self.made)]
        return dict(
            seconds=wall,
            cpu_s=wall,
            host_s=[],
            backlog_s=0.0,
            uncopied_s=[],
            copies={},
            kernels={},
            alien=[],
            state={},
            changed="",
        )

    def waited_ns(self):
        return self.waited

    def wanted_s(self):
        return self.awake.get(self.name, 0.0) * time.monotonic()

    def close(self):
        self.alive = False


class FakeJudge:
    means_: ClassVar[dict | None] = None

    def means(self):
        return self.means_

    def with_inputs(self, ask):
        return ask()

    def pool(self, case, yardstick, seeds, contents, hard=None):
        self.hard = (len(seeds), 0)
        assert (self.hard in contents) == (hard is not None)
        return ["given"] * len(seeds)

    def draws_of(self, case):
        return ["given"]

    def ready(self):
        pass

    def judge(self, case, handed, content):
        if content == self.hard and handed in FakeWorker.wrong_when_hard:
            return Verdict("not_finite", "off")
        return Verdict("inaccurate", "off") if handed in FakeWorker.wrong else Verdict(ratio=1.5)


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(timing, "Worker", FakeWorker)
    monkeypatch.setattr(timing, "pause", lambda: None)
    monkeypatch.setattr(FakeWorker, "seconds", {"eager": 1e-3, "fast": 5e-4, "slow": 4.0})
    monkeypatch.setattr(FakeWorker, "fails", {})
    monkeypatch.setattr(FakeWorker, "wrong", set())
    monkeypatch.setattr(FakeJudge, "means_", None)
    for name in ("turns", "calls", "judged", "held", "most_held"):
        monkeypatch.setattr(FakeWorker, name, [])
    monkeypatch.setattr(FakeWorker, "hides", set())
    monkeypatch.setattr(FakeWorker, "waits", {})
    monkeypatch.setattr(FakeWorker, "random", random.Random(0))


def race(*names: str, **effort) -> timing.Timing:
    chosen = [variant(n) for n in names]
    return timing.race(CASE, chosen, chosen[0], FakeJudge(), Setting(), Effort(**effort))  # type: ignore[arg-type]


def by_label(found: timing.Timing) -> dict[str, timing.Contestant]:
    return {c.label: c for c in found.contestants}


def test_everyone_takes_part_in_every_round_and_the_order_is_shuffled():
    found = race("eager", "fast", seconds=1e9, target=1e-9)
    assert {len(c.samples["cold"]) for c in found.contestants} <= {timing.MAX_ROUNDS, timing.MAX_ROUNDS + 1}
    cold = [name for name, cache in FakeWorker.turns if cache == "cold"][: 3 * timing.MAX_ROUNDS]
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
    clock = itertools.count(int(timing.time.monotonic()))  # on from now: what looks at the machine has begun to
    monkeypatch.setattr(timing.time, "monotonic", lambda: float(next(clock)))
    found = race("eager", "fast", seconds=12, target=1e-9)
    assert "time was up" in found.stopped
    assert len(found.contestants[0].samples["cold"]) < timing.MAX_ROUNDS


def test_a_slow_one_is_timed_cold_only_and_seldom(monkeypatch):
    clock = itertools.count(int(timing.time.monotonic()))  # on from now: what looks at the machine has begun to
    monkeypatch.setattr(timing.time, "monotonic", lambda: float(next(clock)))
    found = by_label(race("eager", "slow", seconds=6, target=1e-9))
    assert list(found["torch.slow"].samples) == ["cold"]
    assert found["torch.slow"].cold_only_s and found["torch.eager"].cold_only_s is None
    assert len(found["torch.slow"].samples["cold"]) < len(found["torch.eager"].samples["cold"]) + 1


def test_calls_of_everyone_are_judged_cold_and_warm_up_to_the_last_turn():
    found = race("eager", "fast")
    assert all(c.verified >= 1 and c.ratio == 1.5 and c.last_judged for c in found.contestants)
    for name in ("eager", "fast"):
        turns = [turn for n, turn, _ in FakeWorker.judged if n == name]
        assert max(turns) >= 2 * len(found.contestants[-1].samples["cold"]) - 2


def test_which_calls_are_judged_differs_from_seed_to_seed():
    seen = set()
    for seed in range(5):
        race("eager", seed=seed)
        seen.add(tuple(FakeWorker.judged))
        FakeWorker.judged.clear()
    assert len(seen) == 5


def test_contents_that_come_back_are_not_only_those_that_are_judged():
    found = race("eager", seconds=1e9, target=1e-9)
    contents = [tuple(content) for _, *content in FakeWorker.calls]
    again = len(contents) - len(set(contents))
    assert again > 2 * sum(c.verified for c in found.contestants)


def test_most_calls_get_contents_that_were_never_seen(monkeypatch):
    monkeypatch.setattr(timing, "COME_BACK", 0.0)
    found = race("eager")
    contents = [content for _, *content in FakeWorker.calls]
    assert len({tuple(c) for c in contents}) >= len(contents) - sum(c.verified for c in found.contestants)


def test_times_of_other_calls_than_were_made_are_wrong(monkeypatch):
    honest = FakeWorker.end
    more = lambda self: honest(self) | (dict(seconds=[1e-9] * 99) if self.name == "fast" else {})  # noqa: E731
    monkeypatch.setattr(FakeWorker, "end", more)
    found = by_label(race("eager", "fast"))
    assert "times of 99 calls" in found["torch.fast"].evidence and found["torch.eager"].running


def test_seconds_that_are_fewer_than_those_between_the_moments_are_wrong(monkeypatch):
    honest = FakeWorker.call

    def slow(self, entry, seed, cold):
        made = honest(self, entry, seed, cold)
        if self.name != "fast":
            return made
        time.sleep(0.004)
        return made | dict(stopped=made["started"] + 4_000_000, ended=made["started"] + 4_000_000)

    monkeypatch.setattr(FakeWorker, "call", slow)
    found = by_label(race("eager", "fast"))
    assert "fewer than those between" in found["torch.fast"].evidence and found["torch.eager"].running


def test_a_clock_that_does_not_tell_all_is_wrong(monkeypatch):
    monkeypatch.setattr(FakeWorker, "hides", {"fast"})
    found = by_label(race("eager", "fast"))
    assert found["torch.fast"].status == "wrong" and found["torch.fast"].evidence.startswith("clock")
    assert found["torch.eager"].running


@pytest.mark.parametrize(("waits", "counted"), [(10_000, True), (timing.FEWEST_CLOCKED + 1, False)])
def test_who_waits_for_a_core_is_no_liar(monkeypatch, waits, counted):
    """In every call, as the scheduler counted; or in the first ones, where nobody counts: more calls tell."""
    monkeypatch.setattr(FakeWorker, "waits", {"fast": waits})
    monkeypatch.setattr(FakeWorker, "waits_counted", counted)
    found = by_label(race("eager", "fast", seconds=0.5))
    assert found["torch.fast"].running, found["torch.fast"].evidence
    assert all(len(round_) for round_ in found["torch.fast"].samples["cold"])


def test_a_liar_who_waits_too_is_wrong(monkeypatch):
    monkeypatch.setattr(FakeWorker, "hides", {"fast"})
    monkeypatch.setattr(FakeWorker, "waits", {"fast": 10_000})
    assert by_label(race("eager", "fast"))["torch.fast"].evidence.startswith("clock")


@pytest.mark.parametrize(
    ("eager", "fast", "runtimes", "status"),
    [(0.0, 1.0, 1, "wrong"), (0.6, 1.0, 1, "ok"), (0.0, 0.3, 1, "ok"), (0.0, 1.0, 2, "ok")],
)
def test_who_wants_a_core_beside_others_turns_is_wrong(monkeypatch, eager, fast, runtimes, status):
    """As no wait of PyTorch's does, and none of a second OpenMP runtime."""
    monkeypatch.setattr(compared, "RESTED_S", 0.0)
    monkeypatch.setattr(FakeWorker, "awake", {"eager": eager, "fast": fast})
    monkeypatch.setattr(FakeWorker, "runtimes", {"fast": runtimes})
    found = by_label(race("eager", "fast"))
    assert found["torch.fast"].status == status and found["torch.eager"].running
    assert ("100% of a core while others" in found["torch.fast"].evidence) == (status == "wrong")


def test_a_wrong_timed_call_ends_that_row_only(monkeypatch):
    monkeypatch.setattr(FakeWorker, "wrong", {"fast"})
    found = by_label(race("eager", "fast"))
    assert found["torch.fast"].status == "wrong" and "inaccurate in a timed call" in found["torch.fast"].evidence
    assert found["torch.eager"].running


@pytest.mark.parametrize("seconds", [0, 1e9])
@pytest.mark.parametrize("wrong", [set(), {"fast"}])
def test_everyone_is_called_once_with_a_structured_case_at_the_timed_shape(monkeypatch, seconds, wrong):
    """However short the race is; and that call is not among those that are timed."""
    monkeypatch.setattr(timing.needs, "_hard", lambda case: True)
    monkeypatch.setattr(FakeWorker, "wrong_when_hard", wrong)
    found = by_label(race("eager", "fast", seconds=seconds))
    draws = timing.needs.of(CASE, 2).draws
    assert sorted(name for name, entry, _ in FakeWorker.calls if entry >= draws) == ["eager", "fast"]
    fast = found["torch.fast"]
    assert fast.status == ("wrong" if wrong else "ok") and found["torch.eager"].running
    assert not wrong or re.fullmatch(r"not_finite in a call at the timed shape with \w+: off", fast.evidence)
    timed = sum(len(calls) for samples in found["torch.eager"].samples.values() for calls in samples)
    assert timed < sum(name == "eager" for name, _, _ in FakeWorker.calls)


@pytest.mark.parametrize("times", [1, 2])
def test_one_error_near_the_limit_is_luck_and_a_second_is_wrong(monkeypatch, times):
    """After one, every turn is judged, on other contents."""
    judged: list[timing.Content] = []

    def judge(self, case, handed, content):
        if handed != "fast":
            return Verdict(ratio=1.5)
        judged.append(content)
        return Verdict("inaccurate", f"off {len(judged)}", 4.4) if len(judged) <= times else Verdict(ratio=1.0)

    monkeypatch.setattr(FakeJudge, "judge", judge)
    monkeypatch.setattr(timing, "JUDGED_SHARE", 0.0)  # the last turns alone are judged
    fast = by_label(race("eager", "fast"))["torch.fast"]
    assert judged[0] != judged[1]
    if times == 1:
        assert fast.running and fast.luck.endswith("off 1") and fast.ratio == 4.4
        assert len(judged) > timing.SURE_TURNS
    else:
        assert fast.status == "wrong" and len(judged) == 2
        assert "off 2; before, inaccurate in a timed call: off 1" in fast.evidence


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


@pytest.mark.parametrize(("free", "held"), [(1 << 40, 0), (1 << 20, 1)])
def test_where_memory_is_short_contestants_have_it_in_their_turns_alone(monkeypatch, free, held):
    monkeypatch.setattr(
        FakeJudge, "means_", dict(free_bytes=free, context_bytes=1 << 20, flops_per_s=1e12, bytes_per_s=1e12)
    )
    found = race("eager", "fast", seconds=0.3)
    assert all(c.running for c in found.contestants)
    assert set(FakeWorker.most_held) == {held} and FakeWorker.held == []


@pytest.mark.parametrize(("free", "held"), [(1 << 40, 0), (1, 1)])
def test_so_they_have_on_a_cpu(monkeypatch, free, held):
    monkeypatch.setattr(timing.facts, "available_bytes", lambda: free)
    found = race("eager", "fast", seconds=0.3)
    assert all(c.running for c in found.contestants)
    assert set(FakeWorker.most_held) == {held} and FakeWorker.held == []


def test_a_library_is_compared_without_the_copies_that_end_its_calls():
    rounds = {"cold": [(0, n) for n in range(3)]}

    def contestant(name: str, whole: float, bare: list[float]) -> timing.Contestant:
        samples, uncopied = {"cold": [[whole, whole]] * 3}, {"cold": [bare] * 3}
        return timing.Contestant(variant(name), name, samples=samples, uncopied=uncopied, rounds=rounds)

    def ratio() -> float:
        found = timing.ratio_ci(library, own, "cold")
        assert found
        return found[0]

    library, own = contestant("torch.sdpa", 4.0, [2.0, 2.0]), contestant("cuda.own", 1.0, [])
    assert ratio() == 4 and library.least_median("cold") == 4, "nothing is copied"
    library.copies = {"Memcpy DtoD": 1}
    assert ratio() == 2 and library.least_median("cold") == 2
    # Whoever ends in copies is no faster for it, and no other than itself.
    for other, wanted in ((own, 1 / 4), (library, 1.0)):
        found = timing.ratio_ci(other, library, "cold")
        assert found and found[0] == wanted
    whole = library.median_ci("cold")
    assert whole and whole[0] == 4 and own.least_median("warm") is None
