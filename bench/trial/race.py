"""Timing: contestants take turns in random order, round by round, until the comparison is settled or time is up.

One round gives every contestant one short turn, so that a slow spell of the machine hits all alike and ratios within a
round survive it. The first contestant is entered twice (the A/A control): how far its two entries differ is the noise
floor, and no smaller difference means anything. With several processes, everything starts afresh in each.

Clocks (bench/machine/devices.py): on the CPU each call is timed by itself with time.perf_counter_ns (wall) and
time.process_time_ns (all threads of the process). No batching is needed: the clock ticks in tens of nanoseconds, and a
call from Python takes some microseconds, which are part of what is measured. On a GPU each turn is one session of the
profiler, and the busy time of its calls is what contestants are compared by; event spans and graph replays are taken
beside it, and say what launching costs. One clock never stands in for another.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core import stats
from bench.core.case import Case
from bench.core.process import ProcessFailed, pause
from bench.core.variants import Variant
from bench.machine import facts
from bench.machine.devices import SPAN, clocks_of, is_gpu
from bench.trial.briefs import Briefs
from bench.trial.checks import Verdict
from bench.trial.room import Ready, Replays, Sample, Setting
from bench.trial.worker import Worker
from reference import contract

TURN_SECONDS = 0.04  # one turn of a fast contestant
MAX_CALLS_A_TURN = 50
FIRST_ROUNDS = 3  # taken by everyone, …
SLOW_ROUNDS, SLOW_SECONDS = 2, 1.0  # … but this many where one call takes so long
MIN_ROUNDS = 5  # before the stopping rule is asked
COLD_ONLY_SECONDS = 0.2  # a call this long is timed cold only: its working set has left the caches by itself
MAX_ROUNDS = 60
SPAN_CALLS = 10  # a turn: a median of them stands beside the busy time
COLD, WARM = "cold", "warm"


@dataclass
class Effort:
    """How much time to spend on one shape and phase."""

    seconds: float = 12.0  # for all contestants together, flushing counted, warming up not
    target: float = 0.02  # stop once every paired ratio's interval is this narrow, relative
    caches: tuple[str, ...] = (COLD, WARM)
    processes: int = 1
    seed: int = 0


@dataclass
class Contestant:
    """One entry in the rounds: its samples in seconds, by cache state, one list a round, and how it ended."""

    variant: Variant
    label: str
    control: bool = False  # the second entry of the A/A control
    status: str = "ok"
    evidence: str = ""
    samples: dict[str, list[list[float]]] = field(default_factory=dict)  # of the clock that ranks
    cpu: dict[str, list[list[float]]] = field(default_factory=dict)
    spans: dict[str, list[list[float]]] = field(default_factory=dict)
    graphs: list[list[float]] = field(default_factory=list)  # a call's share of a replay, warm
    graph_evidence: str = ""  # why there are none
    rounds: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # (process, round) of each
    prepare_s: float = 0.0
    call_s: float = 0.0
    busy_s: float = 0.0  # of one call on a GPU, untimed
    overhead_s: float = 0.0  # flushing and poisoning before a cold call
    workspace_bytes: int = 0
    configuration: str = ""
    verified: int = 0  # timed calls whose outputs were judged
    ratio: float = 0.0  # worst error of those, in units of plain torch's
    kernels_ran: dict[str, int] = field(default_factory=dict)  # in one timed call on a GPU
    states: list[facts.GpuState] = field(default_factory=list)  # of the GPU, after each turn
    peak_bytes: int | None = None  # allocated inside a call
    energy_j: float | None = None  # of a warm call
    worker: Worker | None = None

    @property
    def running(self) -> bool:
        return self.status == "ok"

    def drop(self, status: str, evidence: str) -> None:
        self.status, self.evidence = status, evidence
        if self.worker:
            self.worker.close()
            self.worker = None

    def median_ci(self, cache: str) -> stats.Interval | None:
        if not self.samples.get(cache):
            return None
        return stats.median_ci(self.samples[cache], [p for p, _ in self.rounds[cache]])

    def noise(self, cache: str) -> float | None:
        return stats.noise(self.samples[cache]) if self.samples.get(cache) else None


@dataclass
class Timing:
    """All contestants of one case after the rounds, and what the rounds say about themselves."""

    case: Case
    contestants: list[Contestant]
    noise_floor: float | None  # relative; from the A/A control
    stopped: str  # why the rounds ended
    canary: dict[str, float] | None = None
    device: str = "cpu"
    load: facts.State | None = None


def ratio_ci(a: Contestant, b: Contestant, cache: str) -> stats.Interval | None:
    """(ratio, low, high) of a's time over b's, from the rounds both took part in."""
    if not a.samples.get(cache) or not b.samples.get(cache):
        return None
    of_b = dict(zip(b.rounds[cache], b.samples[cache], strict=True))
    of_a = zip(a.rounds[cache], a.samples[cache], strict=True)
    both = [(where, samples) for where, samples in of_a if where in of_b]
    if not both:
        return None
    return stats.paired_ratio_ci([s for _, s in both], [of_b[w] for w, _ in both], [w[0] for w, _ in both])


def race(
    case: Case,
    variants: list[Variant],
    yardstick: Variant | None,
    briefs: Briefs,
    setting: Setting,
    effort: Effort,
    progress: Callable[[str], None] = lambda _: None,
) -> Timing:
    """Time all variants on one case. The first one is the baseline of the stopping rule and of the A/A control."""
    contestants = [Contestant(v, v.name) for v in variants]
    contestants.insert(1, Contestant(variants[0], f"{variants[0].name} (again)", control=True))
    randomness = random.Random(effort.seed)
    canary = None
    stopped = ""
    for process in range(effort.processes):
        progress("truth of the timed calls")
        seeds = _verified_seeds(case, randomness)
        checks = {s: briefs.get(case, yardstick, perturbation=s) for s in seeds}
        values = briefs.get(case, None, values_only=True)
        _start(contestants, values, setting, progress)
        if is_gpu(setting.device) and WARM in effort.caches:
            _capture(contestants, values, setting, progress)
        if canary is None:
            canary = _canary(contestants)
        stopped = _rounds(contestants, process, checks, effort, randomness, progress)
        if is_gpu(setting.device) and process == 0:
            _energy(contestants, progress)
        for c in contestants:
            if c.worker:
                c.worker.close()
                c.worker = None
    noise_floor = _noise_floor(contestants, effort.caches)
    return Timing(case, contestants, noise_floor, stopped, canary, setting.device, facts.snapshot())


def _verified_seeds(case: Case, randomness: random.Random) -> list[int]:
    """Seeds of the timed calls that will be judged; one where the truth is dear."""
    dear = contract.flops(case.module, case.shape, case.phase) > 2e9
    return [randomness.getrandbits(40) for _ in range(1 if dear else 3)]


def _start(contestants: list[Contestant], values: Path, setting: Setting, progress: Callable[[str], None]) -> None:
    for c in contestants:
        if not c.running:
            continue
        progress(f"warming up {c.label}")
        _warm_up(c, values, setting)


def _warm_up(c: Contestant, values: Path, setting: Setting) -> None:
    """A worker for the contestant, with the case set up."""
    c.worker = Worker(c.variant, setting)
    try:
        done: Ready = c.worker.ask("ready", limit=setting.prepare_limit, path=values)
    except ProcessFailed as failure:
        c.drop(failure.status, failure.evidence)
        return
    c.prepare_s, c.call_s = max(c.prepare_s, done["prepare_s"]), done["call_s"]
    c.overhead_s = done["overhead_s"]
    c.workspace_bytes = done["workspace_bytes"]
    c.configuration = done["configuration"]
    c.busy_s, c.peak_bytes = done["busy_s"] or 0.0, done["peak_bytes"]
    if c.call_s > setting.time_limit:
        c.drop("timeout", f"one call takes {c.call_s:.3g} s, more than --time-limit {setting.time_limit:g}")
    elif c.peak_bytes and c.variant.own_code:
        c.drop("wrong", f"allocates: {c.peak_bytes} bytes inside the call, at the timed shape")


def _capture(contestants: list[Contestant], values: Path, setting: Setting, progress: Callable[[str], None]) -> None:
    """Have each capture its graph. A capture that breaks may leave anything behind: the worker is replaced."""
    for c in contestants:
        if not c.running or c.control or c.graph_evidence or c.call_s > COLD_ONLY_SECONDS:
            continue
        assert c.worker
        progress(f"capturing {c.label}")
        try:
            c.worker.ask("capture", busy_s=c.busy_s)
        except ProcessFailed as failure:
            c.graph_evidence = failure.evidence
            c.worker.close()
            _warm_up(c, values, setting)


def _energy(contestants: list[Contestant], progress: Callable[[str], None]) -> None:
    for c in contestants:
        if not c.running or c.control:
            continue
        assert c.worker
        progress(f"energy of {c.label}")
        try:
            c.energy_j = c.worker.ask("energy", busy_s=c.busy_s)
        except ProcessFailed as failure:
            c.drop(failure.status, f"while energy was measured: {failure.evidence}")


def _canary(contestants: list[Contestant]) -> dict[str, float] | None:
    worker = next((c.worker for c in contestants if c.running and c.worker), None)
    return worker.ask("canary") if worker else None


def _rounds(
    contestants: list[Contestant],
    process: int,
    checks: dict[int, Path],
    effort: Effort,
    randomness: random.Random,
    progress: Callable[[str], None],
) -> str:
    """Take rounds until the stopping rule says why to stop."""
    spent: dict[int, float] = {id(c): 0.0 for c in contestants}
    # Which of the first rounds end in a judged call is drawn at random; a variant cannot know.
    first = range(SLOW_ROUNDS if len(checks) <= SLOW_ROUNDS else FIRST_ROUNDS)
    judged = dict(zip(randomness.sample(first, len(checks)), checks.items(), strict=True))
    share = effort.seconds / effort.processes / max(1, sum(c.running for c in contestants))
    for round_ in range(MAX_ROUNDS):
        order = [c for c in contestants if c.running and (_must(c, round_, judged) or spent[id(c)] < share)]
        if not order:
            return f"time was up after {round_} rounds"
        if round_ >= MIN_ROUNDS and _settled(contestants, effort):
            return f"every ratio was known to ±{effort.target:.0%} after {round_} rounds"
        randomness.shuffle(order)
        for c in order:
            progress(f"round {round_ + 1}: {c.label}")
            spent[id(c)] += _turn(c, process, round_, judged.get(round_), effort, randomness)
            pause()
    return f"{MAX_ROUNDS} rounds were taken"


def _must(c: Contestant, round_: int, judged: dict[int, tuple[int, Path]]) -> bool:
    """Rounds that a contestant takes part in whatever it costs: few where one call takes seconds."""
    return round_ in judged or round_ < (SLOW_ROUNDS if c.call_s > SLOW_SECONDS else FIRST_ROUNDS)


def _turn(
    c: Contestant,
    process: int,
    round_: int,
    judged: tuple[int, Path] | None,
    effort: Effort,
    randomness: random.Random,
) -> float:
    """One contestant's turn in a round; answers the seconds it took, preparation of the calls included."""
    assert c.worker
    start = time.monotonic()
    calls = max(1, min(MAX_CALLS_A_TURN, int(TURN_SECONDS / (c.call_s + c.overhead_s))))
    caches = effort.caches[:1] if c.call_s > COLD_ONLY_SECONDS else effort.caches
    clocks = clocks_of(c.worker.setting.device)
    for cache in caches:
        seeds = [randomness.getrandbits(40) for _ in range(calls)]
        verify = None
        if judged and cache == caches[-1]:
            seeds[-1], verify = judged
        done: Sample | None = _ask(c, "sample", seeds=seeds, cold=cache == COLD, clock=clocks[0], verify=verify)
        if done is None:
            break
        c.samples.setdefault(cache, []).append(done["seconds"])
        c.cpu.setdefault(cache, []).append(done["cpu_s"])
        c.rounds.setdefault(cache, []).append((process, round_))
        c.kernels_ran = c.kernels_ran or done["kernels"]
        if done["state"]:
            c.states.append(done["state"])
        if SPAN in clocks and not c.control:
            _beside(c, cache, seeds, verify)
    return time.monotonic() - start


def _beside(c: Contestant, cache: str, seeds: list[int], verify: Path | None) -> None:
    """The clocks that do not rank: spans, and where calls are warm a graph."""
    spans: Sample | None = _ask(c, "sample", seeds=seeds[:SPAN_CALLS], cold=cache == COLD, clock=SPAN)
    if not spans:
        return
    c.spans.setdefault(cache, []).append(spans["seconds"])
    if cache == WARM and not c.graph_evidence:
        replays: Replays | None = _ask(c, "time_graph", seed=seeds[-1], verify=verify)
        if replays:
            c.graphs.append(replays["seconds"])


def _ask(c: Contestant, command: str, **arguments: object) -> Any:
    """The worker's answer; None where the contestant was dropped: it failed, or a judged call was wrong."""
    assert c.worker
    try:
        done = c.worker.ask(command, None, **arguments)
    except ProcessFailed as failure:
        c.drop(failure.status, failure.evidence)
        return None
    verdict: Verdict | None = done["verdict"]
    if verdict is not None:
        c.verified += 1
        c.ratio = max(c.ratio, verdict.ratio)
        if not verdict.ok:
            what = "in a graph" if command == "time_graph" else "in a timed call"
            c.drop("wrong", f"{verdict.check} {what}: {verdict.evidence}")
            return None
    return done


def _settled(contestants: list[Contestant], effort: Effort) -> bool:
    """Whether every running contestant's ratio to the baseline is known to the target."""
    baseline, cache = contestants[0], effort.caches[0]
    if not baseline.running:
        return False
    for c in contestants[1:]:
        if not c.running:
            continue
        interval = ratio_ci(c, baseline, cache)
        if interval is None or interval[2] - interval[1] > 2 * effort.target * interval[0]:
            return False
    return True


def _noise_floor(contestants: list[Contestant], caches: tuple[str, ...]) -> float | None:
    """How far the interval of the A/A ratio reaches from 1, at worst."""
    first = contestants[0]
    control = next(c for c in contestants if c.control)
    intervals = [r for cache in caches if (r := ratio_ci(control, first, cache)) and r[2] != float("inf")]
    return max((max(abs(r[1] - 1), abs(r[2] - 1)) for r in intervals), default=None)
