"""Timing: contestants take turns in random order, round by round, until the comparison is settled or time is up.

One round gives every contestant one short turn, so that a slow spell of the machine hits all alike and ratios within a
round survive it. The first contestant is entered twice (the A/A control): how far its two entries differ is the noise
floor, and no smaller difference means anything. With several processes, everything starts afresh in each.

Clocks (bench/machine/devices.py): on the CPU each call is timed by itself with time.perf_counter_ns (wall) and
time.process_time_ns (all threads of the process). No batching is needed: the clock ticks in tens of nanoseconds, and a
call from Python takes some microseconds, which are part of what is measured. On a GPU each turn is one session of the
profiler, and the busy time of its calls is what contestants are compared by; event spans and graph replays are taken
beside it, and say what launching costs. One clock never stands in for another.

Every call gets new contents in full (bench/core/contents.py). Some calls are judged as in the proof: any call of any
turn, cold or warm, the last turns too. A variant's process hears which only when the call is over.

What is timed may be larger than all that was proved, and a kernel may have a path of its own for it. So at one moment,
that nobody knows beforehand, each is called with a structured case at the timed shape, which one is drawn by chance.
The time of that call counts for nothing.
"""

import random
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, compress

from bench.core import stats, world
from bench.core.case import Case
from bench.core.process import ProcessFailed, end_all, pause
from bench.core.shared import Given
from bench.core.variants import Variant
from bench.machine import devices, facts
from bench.machine.compared import Rest
from bench.machine.devices import SPAN, WALL, clocks_of, is_gpu, queued
from bench.trial import checks, needs
from bench.trial.judge import Content, Judge
from bench.trial.room import Moments, Ready, Replays, Sample, Setting
from bench.trial.worker import Worker
from reference import contract

TURN_SECONDS = 0.04  # one turn of a fast contestant
MAX_CALLS_A_TURN = 50
SETTLING = 2  # processes that are made ready for a case at once: nothing is measured yet
FIRST_ROUNDS = 3  # taken by everyone, …
SLOW_ROUNDS, SLOW_SECONDS = 2, 1.0  # … but this many where one call takes so long
MIN_ROUNDS = 5  # before the stopping rule is asked
COLD_ONLY_SECONDS = 0.2  # a call this long is timed cold only: its working set has left the caches by itself
MAX_ROUNDS = 60
SPAN_CALLS = 10  # a turn: a median of them stands beside the busy time
COLD, WARM = "cold", "warm"
PARKED = "the contestants' memory is too large to be there all at once"
COME_BACK = 0.1  # of the calls that are not judged get contents that others judge
JUDGED_SHARE = 0.5  # of turns, as long as none was judged
HARD_SHARE = 0.5  # of turns, as long as none had the structured case
SURE_TURNS = 2  # at least, of judged calls, after one whose error was near the limit
HIDDEN_SECONDS = 2e-3  # in each of so many calls: a process's clock does not tell all
FEWEST_CLOCKED = 5
SURELY_CLOCKED = 30  # calls before anybody is blamed: on a busy machine a few in a row may all have waited for a core


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
    uncopied: dict[str, list[list[float]]] = field(default_factory=dict)  # the same without the copies that end a call
    copies: dict[str, int] = field(default_factory=dict)  # those of one call, by name
    cpu: dict[str, list[list[float]]] = field(default_factory=dict)
    spans: dict[str, list[list[float]]] = field(default_factory=dict)
    hosts: list[float] = field(default_factory=list)  # seconds that launching a call took the host
    graphs: list[list[float]] = field(default_factory=list)  # a call's share of a replay, warm
    graph_evidence: str = ""  # why there are none
    rounds: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # (process, round) of each
    prepare_s: float = 0.0
    call_s: float = 0.0
    cold_only_s: float | None = None  # what a call took where it is too slow to be timed warm as well
    busy_s: float = 0.0  # of one call on a GPU, untimed
    overhead_s: float = 0.0  # flushing and poisoning before a cold call
    workspace_bytes: int = 0
    configuration: str = ""
    verified: int = 0  # timed calls whose outputs were judged
    last_judged: bool = False  # whether the last turn was
    ratio: float = 0.0  # worst error of those, in units of plain torch's
    shown_hard: bool = False  # whether it was called with the structured case
    luck: str = ""  # what was said against one of them that was borderline; a second one is wrong, …
    doubted: Content | None = None  # … on other contents than these
    kernels_ran: dict[str, int] = field(default_factory=dict)  # in one timed call on a GPU
    states: list[facts.GpuState] = field(default_factory=list)  # of the GPU, after each turn
    peak_bytes: int | None = None  # allocated inside a call
    energy_j: float | None = None  # of a warm call
    hidden: list[float] = field(
        default_factory=list
    )  # seconds of each call that its moments and the scheduler leave out
    short: list[float] = field(default_factory=list)  # … and that they leave in, but its clock leaves out
    seen: set[Content] = field(default_factory=set)  # contents that its calls were given
    runtimes: int = 1  # of OpenMP in its process
    worker: Worker | None = None
    scheduled: world.State = field(default_factory=dict)  # its process, as it was warmed up
    rest: Rest | None = None  # of its process, from one turn to the next

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

    def least(self, cache: str) -> list[list[float]]:
        """The samples that others are compared with: a library is not blamed for copying its results to where the
        contract wants them."""
        return self.uncopied[cache] if self.copies else self.samples[cache]

    def least_median(self, cache: str) -> float | None:
        if not self.samples.get(cache):
            return None
        return stats.median_ci(self.least(cache), [p for p, _ in self.rounds[cache]])[0]

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
    """(ratio, low, high) of a's time over b's, from the rounds both took part in. Copies that end a library's call are
    left out where another variant is compared with it; its own time, b's, is all of it."""
    if not a.samples.get(cache) or not b.samples.get(cache):
        return None
    of_b = dict(zip(b.rounds[cache], b.samples[cache], strict=True))
    of_a = zip(a.rounds[cache], a.samples[cache] if a.variant is b.variant else a.least(cache), strict=True)
    both = [(where, samples) for where, samples in of_a if where in of_b]
    if not both:
        return None
    return stats.paired_ratio_ci([s for _, s in both], [of_b[w] for w, _ in both], [w[0] for w, _ in both])


@dataclass(frozen=True)
class Pool:
    """What timed calls are given: draws, of which each call gets a changed one, and the contents that are judged."""

    judge: Judge
    case: Case
    draws: int
    judged: list[Content]  # at any time; they may come back
    closing: dict[str, Content]  # by cache state: judged in the last turn, and never seen before
    parked: bool = False  # contestants have their memory in their turns alone
    hard: Case | None = None  # a structured case at the timed shape, whose draw comes behind the others

    @property
    def given(self) -> list[Given]:
        """Where the draws lie now: a judge that was begun anew has them elsewhere."""
        return self.judge.draws_of(self.case)


def race(
    case: Case,
    variants: list[Variant],
    yardstick: Variant | None,
    judge: Judge,
    setting: Setting,
    effort: Effort,
    progress: Callable[[str], None] = lambda _: None,
    workers: dict[str, Worker] | None = None,
) -> Timing:
    """Time all variants on one case. The first one is the baseline of the stopping rule and of the A/A control.

    workers: processes that have a variant loaded already, by its name; they are taken, and put back if they can go on.
    """
    workers = {} if workers is None else workers
    contestants = [Contestant(v, v.name, worker=workers.pop(v.name, None)) for v in variants]
    contestants.insert(1, Contestant(variants[0], f"{variants[0].name} (again)", control=True))
    randomness = random.Random(effort.seed)
    canary = None
    stopped = ""
    progress("drawing the timed calls' contents")
    with ThreadPoolExecutor(max_workers=1) as beside:
        if not is_gpu(setting.device):
            beside.submit(devices.make_pages)
        pool = _pool(case, yardstick, judge, effort.caches, randomness, len(contestants), setting.device)
    for process in range(effort.processes):
        _start(contestants, case, pool, setting, randomness, progress)
        if is_gpu(setting.device) and WARM in effort.caches:
            _capture(contestants, case, pool, setting, randomness, progress)
        progress("truth of the timed calls")
        judge.ready()  # nothing else is at work when calls are timed
        if canary is None:
            canary = _canary(contestants)
        turns = Turns(case, judge, pool, process, effort, randomness)
        stopped = _rounds(contestants, turns, progress)
        if is_gpu(setting.device) and process == 0:
            _energy(contestants, pool, progress)
        for c in contestants:
            _let_go(c, workers if process == effort.processes - 1 else None)
    noise_floor = _noise_floor(contestants, effort.caches)
    return Timing(case, contestants, noise_floor, stopped, canary, setting.device, facts.snapshot())


def _let_go(c: Contestant, workers: dict[str, Worker] | None) -> None:
    worker, c.worker = c.worker, None
    if worker and worker.alive and workers is not None and not c.control:
        if is_gpu(worker.setting.device):
            with suppress(ProcessFailed):  # others need the memory of this case
                worker.ask("leave")
        workers[c.variant.name] = worker
    elif worker:
        worker.close()


def _pool(
    case: Case,
    yardstick: Variant | None,
    judge: Judge,
    caches: tuple[str, ...],
    randomness: random.Random,
    contestants: int = 1,
    device: str = "cpu",
) -> Pool:
    """Few draws, and few truths, where they are dear."""
    free = 0 if is_gpu(device) else facts.available_bytes() or 0
    wanted = needs.of(case, len(caches), contestants, judge.means(), free)
    draws = wanted.draws
    known = [(randomness.randrange(draws), randomness.getrandbits(40)) for _ in range(len(caches) + wanted.truths)]
    seeds = [randomness.getrandbits(31) for _ in range(draws)]
    edits = contract.edits_of(case.module, case.phase, case.shape) if wanted.hard else []
    hard = replace(case, edit=randomness.choice(edits)) if edits else None  # its seed: so its yard is known on disk
    judge.pool(case, yardstick, seeds, [*known, (draws, 0)] if hard else known, hard)
    closing = dict(zip(caches, known, strict=False))
    return Pool(judge, case, draws, known[len(caches) :], closing, wanted.parked, hard)


def _enter(c: Contestant, pool: Pool, seed: int) -> None:
    """Give a contestant its memory, where it has it in its turns alone."""
    assert c.worker
    worker, limit = c.worker, c.worker.setting.prepare_limit
    if pool.parked:
        pool.judge.with_inputs(lambda: worker.ask("enter", limit=limit, case=pool.case, pool=pool.given, seed=seed))


def _leave(c: Contestant, pool: Pool) -> None:
    """All that was judged of its turn is over."""
    if pool.parked and c.worker and c.worker.alive:
        c.worker.ask("leave")


def _start(
    contestants: list[Contestant],
    case: Case,
    pool: Pool,
    setting: Setting,
    randomness: random.Random,
    progress: Callable[[str], None],
) -> None:
    running = [c for c in contestants if c.running]
    if not is_gpu(setting.device) and not pool.parked:
        progress("setting up")
        with ThreadPoolExecutor(max_workers=SETTLING) as threads:
            try:
                list(threads.map(lambda c: _settle(c, case, pool, setting), running))
            except BaseException:  # Ctrl-C, say: no thread waits for its process any more
                end_all()
                raise
    for c in running:
        progress(f"warming up {c.label}")
        _warm_up(c, case, pool, setting, randomness)


def _settle(c: Contestant, case: Case, pool: Pool, setting: Setting) -> None:
    """A worker for the contestant, with memory for the case."""
    if c.worker is None or not c.worker.alive:
        c.worker = Worker(c.variant, setting)
    try:
        c.worker.ask("settle", limit=setting.prepare_limit, case=case, pool=pool.given, seed=secrets.randbits(40))
    except ProcessFailed as failure:
        c.drop(failure.status, failure.evidence)


def _warm_up(c: Contestant, case: Case, pool: Pool, setting: Setting, randomness: random.Random) -> None:
    """Whatever is done once, then calls until they are warm."""
    if not c.running:
        return
    if c.worker is None or not c.worker.alive:
        c.worker = Worker(c.variant, setting)
    seed = randomness.getrandbits(40)
    worker, limit = c.worker, setting.prepare_limit
    try:
        done: Ready = pool.judge.with_inputs(
            lambda: worker.ask("ready", limit=limit, case=case, pool=pool.given, seed=seed)
        )
        _leave(c, pool)
    except ProcessFailed as failure:
        c.drop(failure.status, failure.evidence)
        return
    c.scheduled, c.rest = world.from_outside(c.worker.process.pid), Rest(c.worker.wanted_s, lambda: c.runtimes)
    c.prepare_s, c.call_s = max(c.prepare_s, done["prepare_s"]), done["call_s"]
    c.overhead_s, c.runtimes = done["overhead_s"], done["runtimes"]
    c.workspace_bytes = done["workspace_bytes"]
    c.configuration = done["configuration"]
    c.busy_s, c.peak_bytes = done["busy_s"] or 0.0, done["peak_bytes"]
    watched = checks.facts(c.variant, done["watched"])
    if c.call_s > setting.time_limit:
        c.drop("timeout", f"one call takes {c.call_s:.3g} s, more than --time-limit {setting.time_limit:g}")
    elif c.peak_bytes and c.variant.own_code:
        c.drop("wrong", f"allocates: {c.peak_bytes} bytes inside the call, at the timed shape")
    elif not watched.ok:
        c.drop("wrong", f"{watched.check} at the timed shape: {watched.evidence}")


def _capture(
    contestants: list[Contestant],
    case: Case,
    pool: Pool,
    setting: Setting,
    randomness: random.Random,
    progress: Callable[[str], None],
) -> None:
    """Have each capture its graph. A capture that breaks may leave anything behind: the worker is replaced."""
    for c in contestants:
        if pool.parked:
            c.graph_evidence = PARKED
        if not c.running or c.control or c.graph_evidence or c.call_s > COLD_ONLY_SECONDS:
            continue
        assert c.worker
        progress(f"capturing {c.label}")
        try:
            c.worker.ask("capture", busy_s=c.busy_s)
        except ProcessFailed as failure:
            c.graph_evidence = failure.evidence
            c.worker.close()
            _warm_up(c, case, pool, setting, randomness)


def _energy(contestants: list[Contestant], pool: Pool, progress: Callable[[str], None]) -> None:
    for c in contestants:
        if not c.running or c.control:
            continue
        assert c.worker
        progress(f"energy of {c.label}")
        try:
            _enter(c, pool, seed=1)
            c.energy_j = c.worker.ask("energy", busy_s=c.busy_s)
            _leave(c, pool)
        except ProcessFailed as failure:
            c.drop(failure.status, f"while energy was measured: {failure.evidence}")


def _canary(contestants: list[Contestant]) -> dict[str, float] | None:
    worker = next((c.worker for c in contestants if c.running and c.worker), None)
    return worker.ask("canary") if worker else None


def _rounds(contestants: list[Contestant], turns: "Turns", progress: Callable[[str], None]) -> str:
    """Take rounds until the stopping rule says why to stop. Each contestant's last turn has judged calls: that which by
    the one before uses up its time, or one more."""
    effort, randomness = turns.effort, turns.randomness
    spent, took = ({id(c): 0.0 for c in contestants} for _ in range(2))
    through: set[int] = set()  # who had a last turn
    share = effort.seconds / effort.processes / max(1, sum(c.running for c in contestants))
    stopped = f"{MAX_ROUNDS} rounds were taken"
    for round_ in range(MAX_ROUNDS):
        order = [c for c in contestants if c.running and id(c) not in through]
        order = [c for c in order if _must(c, round_, share) or spent[id(c)] < share]
        if not order:
            stopped = f"time was up after {round_} rounds"
            break
        if round_ >= MIN_ROUNDS and _settled(contestants, effort):
            stopped = f"every ratio was known to ±{effort.target:.0%} after {round_} rounds"
            break
        randomness.shuffle(order)
        for c in order:
            progress(f"round {round_ + 1}: {c.label}")
            last = not _must(c, round_ + 1, share) and spent[id(c)] + took[id(c)] >= share
            took[id(c)] = turns.take(c, round_, last)
            spent[id(c)] += took[id(c)]
            through |= {id(c)} if last else set()
            pause()
    for c in contestants:
        on_gpu = c.worker and is_gpu(c.worker.setting.device)
        owes = not c.last_judged or turns.owes_hard(c) or on_gpu  # its graph too
        if c.running and id(c) not in through and owes:
            progress(f"last calls: {c.label}")
            turns.take(c, round_ + 1, last=True)
        for _ in range(SURE_TURNS):
            if c.running and c.luck:
                turns.take(c, round_ + 1, last=True)
        if c.running:
            _look_back(c, contestants[0])
    return stopped


def _look_back(c: Contestant, baseline: Contestant) -> None:
    """What all calls together tell: of cores that were not given, of a process that is scheduled otherwise, and of one
    that is at work while others are timed."""
    assert c.worker
    threads = c.worker.setting.threads or facts.usable_cores()
    cpu, wall = (list(chain.from_iterable(s)) for s in (chain(*c.cpu.values()), chain(*c.samples.values())))
    told = world.cpu_over_wall(cpu, wall, threads, c.runtimes) if len(cpu) == len(wall) else ""
    told = told or world.difference(c.scheduled, world.from_outside(c.worker.process.pid))
    if c.rest and baseline.rest:
        told = told or c.rest.evidence([baseline.rest])
    if told:
        c.drop("wrong", f"global_state in timed calls: {told}")


def _must(c: Contestant, round_: int, share: float) -> bool:
    """Rounds that a contestant takes part in whatever it costs: few where one call takes seconds, or where it is too
    slow to be timed warm and they would take more than its share of the seconds."""
    slow = c.call_s > SLOW_SECONDS or COLD_ONLY_SECONDS < c.call_s > share / FIRST_ROUNDS
    return round_ < (SLOW_ROUNDS if slow else FIRST_ROUNDS)


@dataclass
class Turns:
    """Contestants' turns in one process each."""

    case: Case
    judge: Judge
    pool: Pool
    process: int
    effort: Effort
    randomness: random.Random

    def take(self, c: Contestant, round_: int, last: bool = False) -> float:
        """One contestant's turn in a round; answers the seconds it took, preparation of the calls included and what
        the judge took left out. `last`: calls are judged whatever was judged before."""
        assert c.worker
        start = time.monotonic()
        if c.rest:
            c.rest.end()
        self.judging = 0.0
        calls = max(1, min(MAX_CALLS_A_TURN, int(TURN_SECONDS / (c.call_s + c.overhead_s))))
        caches = self.effort.caches
        if c.call_s > COLD_ONLY_SECONDS and len(caches) > 1:
            caches, c.cold_only_s = caches[:1], c.call_s
        clocks = clocks_of(c.worker.setting.device)
        try:
            _enter(c, self.pool, self.randomness.getrandbits(40))
            if self.owes_hard(c) and (last or self.randomness.random() < HARD_SHARE):
                self._show_hard(c, self.randomness.choice(caches), clocks[0])
            for cache in caches:
                done = self._calls(c, cache, clocks[0], calls, self._which(c, cache, calls, last))
                if done["seconds"]:
                    c.samples.setdefault(cache, []).append(done["seconds"])
                    c.cpu.setdefault(cache, []).append(done["cpu_s"])
                    c.uncopied.setdefault(cache, []).append(done["uncopied_s"])
                    c.rounds.setdefault(cache, []).append((self.process, round_))
                c.kernels_ran = c.kernels_ran or done["kernels"]
                c.copies = c.copies or done["copies"]
                if done["state"]:
                    c.states.append(done["state"])
                if SPAN in clocks and not c.control:
                    self._beside(c, cache, min(calls, SPAN_CALLS), last)
            _leave(c, self.pool)
        except ProcessFailed as failure:
            c.drop(failure.status, failure.evidence)
        if c.worker and c.rest:
            c.rest.begin()
        return time.monotonic() - start - self.judging

    def _which(self, c: Contestant, cache: str, calls: int, last: bool) -> tuple[int, Content] | None:
        """Which call of a turn is judged, if any, and on which contents: fewer calls the more were judged; all of one
        that takes its time anyway, as long as there are contents that it has not seen; all of one that is doubted."""
        unseen = [content for content in self.pool.judged if content not in c.seen]
        content = None
        if c.luck:
            content = self._judged_content(c)
        elif last:
            closing = self.pool.closing[cache]
            content = next((x for x in (closing, *unseen) if x not in c.seen), closing)
        elif c.call_s > SLOW_SECONDS:
            content = next((x for x in (*unseen, *self.pool.closing.values()) if x not in c.seen), None)
        elif self.randomness.random() < JUDGED_SHARE / (1 + c.verified) and (unseen or calls > 1):
            content = self.randomness.choice(unseen or self.pool.judged)
        c.last_judged = content is not None
        return None if content is None else (self.randomness.randrange(calls), content)

    def _calls(self, c: Contestant, cache: str, clock: str, calls: int, judged: tuple[int, Content] | None) -> Sample:
        """Timed calls, one of which may be judged; times of those whose contents were new to the contestant. Raises
        ProcessFailed, also for what was found wrong."""
        assert c.worker
        c.worker.ask("begin", clock=clock)
        between, new = [], []
        for i in range(calls):
            content = judged[1] if judged and i == judged[0] else self._content(calls)
            new.append(content not in c.seen)
            between.append(self._call(c, content, cache))
            if judged and i == judged[0]:
                self._judge(c, content, "in a timed call")
        done: Sample = c.worker.ask("end")
        hosts = calls if clock == SPAN else 0
        others = {len(done["cpu_s"]), len(done["uncopied_s"])}
        if len(done["seconds"]) != calls or not others <= {0, calls} or len(done["host_s"]) != hosts:
            raise ProcessFailed("wrong", f"clock in a timed call: times of {len(done['seconds'])} calls, not {calls}")
        # Whoever shares a core may be put aside between two readings, and often is on a busy machine.
        c.short += [held - s for s, held in zip(done["seconds"], between, strict=True)]
        if clock == WALL:
            self._fits(c, cache)
        if done["changed"]:
            raise ProcessFailed("wrong", f"global_state in a timed call: {done['changed']}")
        if done["alien"]:
            ran = ", ".join(done["alien"])
            raise ProcessFailed("wrong", f"library in a timed call: says it is its own code, yet ran {ran}")
        # Whoever remembers an answer may be quick with it: it is not timed.
        done["seconds"] = [*compress(done["seconds"], new)]
        done["cpu_s"], done["host_s"] = ([*compress(done[name], new)] for name in ("cpu_s", "host_s"))
        done["uncopied_s"] = [*compress(done["uncopied_s"], new)]
        return done

    def owes_hard(self, c: Contestant) -> bool:
        """Whether a contestant is still to be called with the structured case. Its variant is; not its second entry."""
        return self.pool.hard is not None and not c.control and not c.shown_hard

    def _show_hard(self, c: Contestant, cache: str, clock: str) -> None:
        """A call with the structured case, as it would be timed. Raises ProcessFailed for what was found wrong."""
        assert c.worker and self.pool.hard
        content, c.shown_hard = (self.pool.draws, 0), True
        c.worker.ask("begin", clock=clock)
        self._call(c, content, cache)
        self._judge(c, content, f"in a call at the timed shape with {self.pool.hard.edit}")
        c.worker.ask("end")

    def _call(self, c: Contestant, content: Content, cache: str) -> float:
        """One call; the seconds between its own moments. What they leave out is kept."""
        assert c.worker
        c.seen.add(content)
        waited, sent = c.worker.waited_ns(), time.monotonic_ns()
        at: Moments = c.worker.ask("call", entry=content[0], seed=content[1], cold=cache == COLD)
        hidden = _hidden(sent, at, time.monotonic_ns())
        c.hidden.append(hidden - (c.worker.waited_ns() - waited) / 1e9)
        return (at["stopped"] - at["started"]) / 1e9

    def _fits(self, c: Contestant, cache: str) -> None:
        """Raises ProcessFailed where in no call the process's clock told all that passed here. Whoever is suspected
        makes more calls, which count for nothing else: a lie is in all of them, a wait for a core is not."""
        assert c.worker
        suspected = [len(x) >= FEWEST_CLOCKED and _least(x) > HIDDEN_SECONDS for x in (c.hidden, c.short)]
        if any(suspected) and len(c.hidden) < SURELY_CLOCKED:
            c.worker.ask("begin", clock=WALL)
            between = [self._call(c, self._content(2), cache) for _ in range(SURELY_CLOCKED - len(c.hidden))]
            c.short += [held - s for s, held in zip(c.worker.ask("end")["seconds"], between, strict=False)]
        if suspected[0] and _least(c.hidden) > HIDDEN_SECONDS:
            evidence = f"every call took {_least(c.hidden) * 1e3:.3g} ms more by the clock here than by its own"
            raise ProcessFailed("wrong", f"clock in a timed call: {evidence}")
        if suspected[1] and _least(c.short) > HIDDEN_SECONDS:
            raise ProcessFailed("wrong", "clock in a timed call: its seconds are fewer than those between its moments")

    def _content(self, calls: int) -> Content:
        """New contents; of many calls now and then some that are judged at other times, so that coming back tells
        nothing."""
        if calls > 1 and self.randomness.random() < COME_BACK:
            return self.randomness.choice(self.pool.judged)
        return self.randomness.randrange(self.pool.draws), self.randomness.getrandbits(40)

    def _judged_content(self, c: Contestant) -> Content:
        known = [*self.pool.judged, *self.pool.closing.values()]
        return self.randomness.choice([content for content in known if content != c.doubted] or known)

    def _judge(self, c: Contestant, content: Content, where: str) -> None:
        """Judge what the last call left. Raises ProcessFailed where it is wrong."""
        assert c.worker
        start = time.monotonic()
        handed, tampered = c.worker.ask("hand_back")
        if tampered:
            raise ProcessFailed("wrong", f"not_the_output {where}: {tampered}")
        verdict = self.judge.judge(self.case, handed, content)
        c.verified += 1
        c.ratio = max(c.ratio, verdict.ratio)
        self.judging += time.monotonic() - start
        if verdict.borderline and not c.luck:
            c.luck, c.doubted = f"{verdict.check} {where}: {verdict.evidence}", content
        elif not verdict.ok:
            again = f"; before, {c.luck}" if c.luck else ""
            raise ProcessFailed("wrong", f"{verdict.check} {where}: {verdict.evidence}{again}")

    def _beside(self, c: Contestant, cache: str, calls: int, last: bool) -> None:
        """The clocks that do not rank: spans, and where calls are warm a graph."""
        assert c.worker
        done = self._calls(c, cache, SPAN, calls, None)
        c.hosts += done["host_s"]
        if spans := queued(done["seconds"], done["host_s"], done["backlog_s"]):
            c.spans.setdefault(cache, []).append(spans)
        if cache == WARM and not c.graph_evidence:
            # What is updated in place, or added to, has been so by every call of the graph: no truth is known of that.
            p = contract.pass_of(self.case.module, self.case.phase)
            once = not self.case.accumulate and not any(t.inplace for t in p.outputs)
            judged = once and (last or self.randomness.random() < JUDGED_SHARE / (1 + c.verified))
            content = self._judged_content(c) if judged else self._content(1)
            replays: Replays = c.worker.ask("time_graph", entry=content[0], seed=content[1])
            if judged:
                self._judge(c, content, "in a graph")
            c.graphs.append(replays["seconds"])


def _least(seconds: list[float]) -> float:
    """What all calls but a tenth have at least: a call that itself waited for a core is taken to have hidden less."""
    return sorted(seconds)[len(seconds) // 10]


def _hidden(sent: int, at: Moments, got: int) -> float:
    """Seconds between sending a command and its answer in which, by the other process's own moments, neither the call
    nor what comes before it went on: work that is done once the clock has stopped is among them. Raises ProcessFailed
    where they cannot be."""
    moments = [sent, at["began"], at["started"], at["stopped"], at["ended"], got]
    if moments != sorted(moments):
        raise ProcessFailed("wrong", "clock in a timed call: its moments do not lie between asking and answer")
    return (at["began"] - sent + got - at["stopped"]) / 1e9


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
