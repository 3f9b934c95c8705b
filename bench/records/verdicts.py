"""Whether a case got faster or slower between two sets of runs, and when that cannot be said.

The change is the ratio of the median times, after over before. Two runs of the same code differ too, so FASTER and
SLOWER are said only where the change is beyond all that such runs show:

    interval    95 %, by a bootstrap over processes and then their rounds, widened to what runs differ by; 1 must be
                outside
    reach       how far two runs of the same code may be apart, by a t-test. Where a side has several runs, on what
                their medians differ by. Where each has one, on what processes differ by: the variant's own, the two
                entries of the A/A control, and, because these are few, the controls of the layer's other cases; and
                as if each run were one process, for they ran one after the other in the same hour, and a slow spell
                may be all of a run's. All cases of a comparison share one level of 1 %
    floor       the noise floor of either run, of several runs that of all their controls together
    drift       the median change of the other variants of the case whose source stayed the same: what explains their
                change is not this variant's doing
    threshold   smaller changes do not matter

What a case could have shown is the largest of them: a change that is smaller would have been called SAME or UNCLEAR.

Samples of one process are not independent, so more of them do not help, and more processes little; more runs do.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import stdtrit

from bench.core import stats
from bench.core.progress import track
from bench.machine import facts
from bench.records import DASH, FAILURES
from bench.records.gate import Lost, Thresholds, lost
from bench.records.queries import Case, case_of, coverage
from bench.records.read import Loaded
from bench.records.record import Record
from bench.records.schema import BAD, GOOD

FASTER, SLOWER, SAME, UNCLEAR = "FASTER", "SLOWER", "SAME", "UNCLEAR"
WRONG, FIXED, NOT_COMPARED = "WRONG", "FIXED", "NOT COMPARED"
VERDICTS = (SLOWER, FASTER, SAME, UNCLEAR, WRONG, FIXED, NOT_COMPARED)

SAME_CLOCK = 0.03  # frequencies further apart are different clocks
LEVEL = 0.95  # of the interval
ALL_RIGHT = 0.99  # how surely no case at all is called faster or slower where the code is the same
BORROWED = 4  # degrees of freedom that the controls of the layer's other cases count for
MOST = 90  # percent: one unsteady case says nothing about the others, but what one in ten does, others may do
MOST_OF_NORMAL = 1.645  # standard deviations that a normal value stays within as often


@dataclass
class Entry:
    """A case on one side: its newest record, and the medians of the rounds of all its processes, in seconds, by run and
    process."""

    record: Record
    run: Loaded
    processes: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    # Kept once asked for: runs are pooled before.

    @cached_property
    def median(self) -> float:
        return float(np.median(np.concatenate(list(self.processes.values()))))

    @cached_property
    def logs(self) -> dict[tuple[str, int], float]:
        """Each process's logarithm of its median."""
        return {name: math.log(np.median(rounds)) for name, rounds in self.processes.items()}

    @cached_property
    def spells(self) -> dict[str, float]:
        """Each run's median of them: what its processes share may be the hour's doing and not the code's."""
        runs: dict[str, list[float]] = {}
        for (run, _), log in self.logs.items():
            runs.setdefault(run, []).append(log)
        return {run: float(np.median(logs)) for run, logs in runs.items()}


@dataclass
class Side:
    """All that one side measured."""

    entries: dict[Case, Entry]
    controls: dict[Case, Entry]  # the second entries of the A/A controls, by the case of the first


@dataclass
class Change:
    """The verdict on one case. Shares and ratios are plain fractions."""

    case: Case
    before: Record
    after: Record
    verdict: str
    reason: str
    before_s: float | None = None
    after_s: float | None = None
    ratio: float | None = None  # after / before: above 1 is slower
    low: float | None = None
    high: float | None = None
    noise_floor: float | None = None  # the larger of the two
    reach: float | None = None
    drift: float | None = None  # None where no unchanged variant was timed beside it
    smallest: float | None = None  # the least change that would have been called one; None where none would

    @property
    def size(self) -> float:
        """How far from no change, in either direction."""
        return abs(math.log(self.ratio)) if self.ratio else math.inf

    @property
    def source_changed(self) -> bool:
        return self.before.get("source_hash") != self.after.get("source_hash")


@dataclass
class Comparison:
    changes: list[Change]
    only_before: list[Case]
    only_after: list[Case]
    newly_wrong: list[Case]  # after and not before, whether there was anything before or not
    still_wrong: list[Case]
    right_in_both: int  # cases, timed or not
    lost: list[Lost]  # what was right before and is not there, or is less

    @property
    def found(self) -> dict[str, int]:
        """How many cases are what a gate may fail on."""
        verdicts = [c.verdict for c in self.changes]
        counts = verdicts.count(SLOWER), len(self.newly_wrong), len(self.lost), verdicts.count(UNCLEAR)
        return dict(zip(FAILURES, counts, strict=True))


# --- one side ---


def side(runs: Iterable[Loaded], alike: Callable[[Loaded, Loaded], bool] = lambda a, b: True) -> Side:
    """All that some runs measured with the newest source of each variant.

    A case's newest record counts; with it are pooled the processes that runs of the same source measured on a machine
    that is `alike`.
    """
    found: dict[tuple[Case, bool], list[Entry]] = {}
    newest_source: dict[Case, tuple[str, str | None]] = {}
    for run in runs:
        last = {(case_of(r), bool(r.get("control"))): r for r in run.records}
        for (case, control), record in last.items():
            found.setdefault((case, control), []).append(Entry(record, run, _processes(record, run)))
            told = (record.get("utc") or "", record.get("source_hash"))
            newest_source[case.any_cache] = max(newest_source.get(case.any_cache, told), told, key=lambda t: t[0])
    made = Side({}, {})
    for (case, control), entries in found.items():
        entries = [e for e in entries if e.record.get("source_hash") == newest_source[case.any_cache][1]]
        if not entries:
            continue
        newest = max(entries, key=lambda e: e.record.get("utc") or "")
        for e in entries:
            if alike(e.run, newest.run):
                newest.processes.update(e.processes)
        (made.controls if control else made.entries)[case] = newest
    return made


def _processes(record: Record, run: Loaded) -> dict[tuple[str, int], np.ndarray]:
    """The medians of a record's rounds, by process; empty for a failure, whatever was timed before it."""
    samples = record.get("samples")
    if record["status"] != "ok" or not samples or not all(samples):
        return {}
    medians = stats.round_medians(samples)
    owner = np.asarray(record.get("processes") or [0] * len(medians))
    return {(str(run.folder), int(p)): medians[owner == p] for p in np.unique(owner)}


# --- both sides ---


def compare(before: Side, after: Side, thresholds: Thresholds, same_machine: bool = True) -> Comparison:
    """The verdict on each case that both sides have, and what only one side has or became wrong.

    thresholds: smaller changes do not matter. same_machine: False where the sides are known to differ in more
    than the source, so that unchanged variants are no control, and clocks may be others.
    """
    old, new = _outcomes(before), _outcomes(after)
    changes: list[Change] = []
    newly: list[Case] = []
    still: list[Case] = []
    for case, record in new.items():
        was = old.get(case)
        if _bad(record):
            (still if was and _bad(was) else newly).append(case)
        if was and _bad(was) != _bad(record):
            failed = record if _bad(record) else was
            reason = f"{failed['status']}{'' if _bad(record) else ' before'}: {failed.get('evidence') or DASH}"
            changes.append(Change(case, was, record, WRONG if _bad(record) else FIXED, reason))
    changes += _Judge(before, after, thresholds, same_machine).changes()
    gone = lost(*({case: entry.record for case, entry in s.entries.items()} for s in (before, after)))
    right = sum(not _bad(record) and case in old and not _bad(old[case]) for case, record in new.items())
    only = _only(before, old, after, new), _only(after, new, before, old)
    return Comparison(changes, *only, newly, still, right, gone)


def _outcomes(of: Side) -> dict[Case, Record]:
    """By case without its cache state: the first failure, else what was right. What was skipped is not there."""
    outcomes: dict[Case, Record] = {}
    for case, entry in of.entries.items():
        record = entry.record
        if record["status"] in BAD or (record["status"] in GOOD and case.any_cache not in outcomes):
            outcomes[case.any_cache] = record
    return outcomes


def _bad(record: Record) -> bool:
    return record["status"] in BAD


def _only(mine: Side, my_outcomes: dict[Case, Record], theirs: Side, their_outcomes: dict[Case, Record]) -> list[Case]:
    """What I have and they have not; a failure on either side is told as such."""
    found = []
    for case in mine.entries:
        record, other = my_outcomes.get(case.any_cache), their_outcomes.get(case.any_cache)
        if record and (not other or (case not in theirs.entries and not _bad(record) and not _bad(other))):
            found.append(case)
    return found


class _Judge:
    """The cases that both sides timed, and what controls and unchanged variants say about noise."""

    def __init__(self, before: Side, after: Side, thresholds: Thresholds, same_machine: bool):
        self.thresholds, self.same_machine = thresholds, same_machine
        pairs = {case: (before.entries.get(case), new) for case, new in after.entries.items() if new.processes}
        self.pairs = {case: (old, new) for case, (old, new) in pairs.items() if old and old.processes}
        self.change = {
            case: math.log(new.median / old.median)
            for case, (old, new) in self.pairs.items()
            if not same_machine or old.record.get("timer") == new.record.get("timer")
        }
        self.races: dict[Case, list[Case]] = {}
        for case in self.change:
            self.races.setdefault(case.race, []).append(case)
        # Of each race, the logarithms of what the two entries of the control differ by, process by process, and what
        # they differ by where the runs of a side are pooled.
        self.controls: dict[Case, list[float]] = {}
        self.floors: dict[Case, float] = {}
        for one in (before, after):
            for case, again in one.controls.items():
                if first := one.entries.get(case):
                    found = [first.logs[p] - again.logs[p] for p in first.logs.keys() & again.logs.keys()]
                    self.controls.setdefault(case.race, []).extend(found)
                    if len(first.spells) > 1 and again.processes:
                        floor = max(abs(end - 1) for end in ratio_interval(first, again)[1:])
                        self.floors[case.race] = max(floor, self.floors.get(case.race, 0.0))

        self.by_layer: dict[str, list[Case]] = {}
        for race in self.controls:
            self.by_layer.setdefault(race.layer, []).append(race)
        self.borrowed: dict[Case, tuple[int, float]] = {}

    def changes(self) -> list[Change]:
        pairs = track(list(self.pairs.items()), "case", lambda pair: f"{pair[0].layer} {pair[0].variant}")
        return [self._judge(case, *pair) for case, pair in pairs]

    def _judge(self, case: Case, old: Entry, new: Entry) -> Change:
        change = Change(case, old.record, new.record, NOT_COMPARED, "", old.median, new.median)
        if case not in self.change:
            change.reason = f"timer {old.record.get('timer')} before, {new.record.get('timer')} after"
            return change
        if change.source_changed and coverage(old.record) != coverage(new.record):
            change.reason = f"covers {_covered(old.record)} before, {_covered(new.record)} after"
            return change
        deviation, freedom = self._deviation(case, old, new)
        change.ratio, low, high = ratio_interval(old, new)
        if freedom:
            usual = math.exp(quantile(LEVEL, freedom) * deviation)
            low, high = min(low, change.ratio / usual), max(high, change.ratio * usual)
            all_cases = 1 - (1 - ALL_RIGHT) / len(self.change)
            change.reach = math.expm1(min(quantile(all_cases, freedom) * deviation, 700.0))
        if math.isfinite(high):
            change.low, change.high = low, high
        floors = [f for e in (old, new) if len(e.spells) < 2 and (f := e.record.get("noise_floor")) is not None]
        floors += [self.floors[case.race]] if case.race in self.floors else []
        change.noise_floor = max(floors, default=None)
        if moved := self._others(case):
            change.drift = math.expm1(float(np.median(moved)))
        change.verdict, change.reason = self._verdict(change, old, new)
        change.smallest = self._smallest(change, old, new)
        return change

    def _smallest(self, change: Change, old: Entry, new: Entry) -> float | None:
        """The least change that `_verdict` would call SLOWER here, as a share."""
        if disturbance(old, new, self.same_machine) or not (change.ratio and change.low and change.high):
            return None
        if change.reach is None:
            return None
        share = max(self.thresholds.of(change.case), change.noise_floor or 0.0, change.reach)
        usual = max(math.log(change.ratio / change.low), math.log(change.high / change.ratio))
        drift = abs(math.log1p(change.drift or 0.0))
        return math.expm1(min(max(usual, math.log1p(share) + drift), 700.0))

    def _verdict(self, change: Change, old: Entry, new: Entry) -> tuple[str, str]:
        if disturbed := disturbance(old, new, self.same_machine):
            return UNCLEAR, disturbed
        if change.low is None or change.high is None:
            return UNCLEAR, "a single round"
        threshold = self.thresholds.of(change.case)
        small, moved = math.log1p(threshold), math.log(change.ratio or 1)
        if -small <= math.log(change.low) and math.log(change.high) <= small:
            if abs(math.log1p(change.drift or 0.0)) > small:
                return UNCLEAR, f"the same, but unchanged variants moved {change.drift:+.1%}"
            return SAME, f"within {_share(threshold)}"
        if abs(moved) <= small:
            return UNCLEAR, f"its interval is wider than {_share(threshold)}"
        if change.low <= 1 <= change.high:
            return UNCLEAR, "the interval holds 1"
        noise = change.noise_floor or 0.0
        if abs(moved) <= math.log1p(noise):
            return UNCLEAR, f"below the noise floor {_share(noise)}"
        if change.reach is None:
            return UNCLEAR, "one process a side, and no control"
        if abs(moved) <= math.log1p(change.reach):
            return UNCLEAR, f"runs of the same code may be {_share(change.reach)} apart"
        noise = max(noise, change.reach)
        own = moved - math.log1p(change.drift or 0.0)
        if own * moved < 0 or abs(own) <= max(small, math.log1p(noise)):
            return UNCLEAR, f"unchanged variants moved {change.drift:+.1%}, noise is {_share(noise)}"
        return SLOWER if moved > 0 else FASTER, f"beyond noise: {_share(noise)}"

    def _deviation(self, case: Case, old: Entry, new: Entry) -> tuple[float, int]:
        """(standard deviation of log(after / before) where nothing changed, its degrees of freedom)."""
        pooled = len(old.spells) > 1 or len(new.spells) > 1
        squares, freedom = 0.0, 0
        for entry in (old, new):
            logs = np.array(list((entry.spells if pooled else entry.logs).values()))
            squares += float(np.square(logs - logs.mean()).sum())
            freedom += len(logs) - 1
        for difference in self.controls.get(case.race, []) if not pooled else ():
            squares += difference**2 / 2  # of two processes
            freedom += 1
        borrowed, usual = self._elsewhere(case.race)
        if borrowed:  # the larger of both: equal times of a few processes may be luck
            squares = max(squares / freedom, usual) * (freedom + borrowed) if freedom else usual * borrowed
            freedom += borrowed
        if freedom:
            return math.sqrt(squares / freedom * (1 / len(old.spells) + 1 / len(new.spells))), freedom
        others = self._others(case)  # no control, one process a side: steps of a training, beside PyTorch's
        return (math.sqrt(float(np.mean(np.square(others)))), len(others)) if others else (0.0, 0)

    def _elsewhere(self, race: Case) -> tuple[int, float]:
        """(degrees of freedom, variance of a process) that the controls of the layer's other cases tell of a race's."""
        if race not in self.borrowed:
            found = [abs(d) for r in self.by_layer.get(race.layer, ()) if r != race for d in self.controls[r]]
            usual = (float(np.percentile(found, MOST)) / MOST_OF_NORMAL) ** 2 / 2 if found else 0.0
            self.borrowed[race] = min(BORROWED, len(found)), usual
        return self.borrowed[race]

    def _others(self, case: Case) -> list[float]:
        """Changes of the other variants of the race whose source stayed the same."""
        race = self.races[case.race] if self.same_machine else []
        return [self.change[other] for other in race if other != case and self._unchanged(other)]

    def _unchanged(self, case: Case) -> bool:
        old, new = (entry.record for entry in self.pairs[case])
        # A training step's record has no hash of its many sources; PyTorch's steps have none of ours.
        return old.get("source_hash") == new.get("source_hash") and not ("kernels" in old or "kernels" in new)


def ratio_interval(before: Entry, after: Entry) -> stats.Interval:
    """(ratio, low, high) of the medians, after / before, 95 %: both sides are resampled, processes first, then rounds.

    Unbounded where a side has one round only.
    """
    ratio = after.median / before.median
    sides = [list(entry.processes.values()) for entry in (before, after)]
    if any(sum(map(len, processes)) == 1 for processes in sides):
        return ratio, 0.0, math.inf
    one, other = (_resampled(processes, side) for side, processes in enumerate(sides))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(other / one, [tail, 100 - tail])
    return ratio, float(low), float(high)


def _resampled(processes: list[np.ndarray], side: int) -> np.ndarray:
    """The median of each resample, (RESAMPLES,)."""
    chosen = _resamples(tuple(len(rounds) for rounds in processes), side, stats.RESAMPLES)
    drawn = np.sort(np.concatenate(processes)[chosen], axis=1)
    middle = drawn.shape[1] // 2
    return drawn[:, middle] if drawn.shape[1] % 2 else (drawn[:, middle - 1] + drawn[:, middle]) / 2


@lru_cache(maxsize=64)
def _resamples(counts: tuple[int, ...], side: int, number: int) -> np.ndarray:
    """Which rounds each resample takes, (number, processes * the most rounds): a process is drawn, then its rounds, and
    the two sides apart. The same for all cases that have as many, so that thousands of cases take seconds."""
    random = np.random.default_rng([stats.SEED, side])
    starts, sizes = np.cumsum((0, *counts[:-1])), np.array(counts)
    chosen = random.integers(0, len(counts), (number, len(counts), 1))
    rounds = (random.random((number, len(counts), max(counts))) * sizes[chosen]).astype(int)
    return (starts[chosen] + rounds).reshape(number, -1).astype(np.int32)


def quantile(level: float, freedom: int) -> float:
    """How many standard deviations a t-distributed value stays within, at this two-sided level."""
    return float(stdtrit(freedom, (1 + level) / 2))


# --- what disturbs a measurement ---


def disturbance(old: Entry, new: Entry, same_machine: bool) -> str:
    """Why the two were not measured under the same conditions; "" where nothing says so."""
    for what, entry in (("before", old), ("after", new)):
        state = entry.record.get("machine")
        # A GPU's own clock does not see what else the host does; there, others' processes are often in sight.
        on_cpu = entry.record.get("device", "cpu") == "cpu"
        if on_cpu and state and facts.tells(state) and (busy := facts.busy(state)):
            return f"{what}: {busy}"
    throttled = [entry.record.get("throttled") or "" for entry in (old, new)]
    if throttled[0] != throttled[1]:  # a large matmul always reaches the power cap; on one side only it is news
        return f"throttled: {throttled[0] or 'not'} before, {throttled[1] or 'not'} after"
    was, now = _clock(old.record), _clock(new.record)
    if same_machine and was and now and abs(math.log(now / was)) > math.log1p(SAME_CLOCK):
        return f"clock at {was:.0f} MHz before, {now:.0f} MHz after"
    return ""


def _clock(record: Record) -> float | None:
    """MHz of what did the work, where they were read."""
    state = record.get("machine")
    on_cpu = record.get("device", "cpu") == "cpu"
    mhz = (state.get("mhz") if state else None) if on_cpu else record.get("sm_mhz")
    return mhz if mhz and mhz > 0 else None


def _covered(record: Record) -> str:
    """7 of 9 cases (not: grouped queries); all cases."""
    if part := coverage(record):
        return f"{part[0]} cases (not: {', '.join(part[1:])})"
    return "all cases"


def _share(share: float) -> str:
    """±2%, ±12%, ±0.35%; a share that says nothing any more as a factor."""
    return f"±{share * 100:.2g}%" if share < 0.995 else f"x{1 + share:.2g}"


# --- all together ---


def geometric_means(changes: Iterable[Change]) -> dict[tuple[str, str], tuple[float, int]]:
    """(layer, phase) -> (geometric mean of after / before, cases), over all cases that were compared."""
    found: dict[tuple[str, str], list[float]] = {}
    for c in changes:
        if c.ratio:
            found.setdefault((c.case.layer, c.case.phase), []).append(math.log(c.ratio))
    return {key: (math.exp(float(np.mean(logs))), len(logs)) for key, logs in sorted(found.items())}


@dataclass
class Power:
    """Which changes of a layer's pass would have been seen: those beyond the least, and, in all cases, the most."""

    least: float | None  # a share; None where none would
    most: float | None
    blind: int  # cases in which none would


def powers(changes: Iterable[Change]) -> dict[tuple[str, str], Power]:
    """(layer, phase) -> what could have been seen, of the cases that both sides timed."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for c in changes:
        if c.before_s is not None:
            found.setdefault((c.case.layer, c.case.phase), []).append(c.smallest)
    told = {key: [s for s in all_ if s is not None] for key, all_ in found.items()}
    return {
        key: Power(min(seen, default=None), max(seen, default=None), len(found[key]) - len(seen))
        for key, seen in sorted(told.items())
    }
