"""Which variants our step is made of: named, chosen beforehand, remembered, or the fastest of a race in our
contestant's process."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bench import cli
from bench.cli import CannotGoOn
from bench.core.variants import Variant
from bench.machine import facts
from bench.models import CallId, choose, chosen
from bench.models.choose import Times
from bench.models.chosen import Chosen
from bench.training.contestants import Lost
from bench.training.field import OURS, Field
from bench.training.rooms import Job

RACE_LIMIT_S = 300.0  # for one candidate on a GPU, compiling and tuning included
RACE_SHARE = 0.35  # of what is left of --minutes, for the whole race

Pool = dict[CallId, list[Variant]]
Choice = dict[CallId, Variant]


@dataclass(frozen=True)
class Picked:
    """The variant of each call, and what is known of its and the others' speed."""

    choice: Choice
    times: Times
    swap_times: dict[str, Times]  # of each swap: its calls' variants before and after
    chosen: str = ""  # beforehand: in which file, where, when, and what of it is not used


@dataclass
class Candidates:
    """Who may serve each call, and which earlier choice narrowed that down."""

    pool: Pool
    chosen: Chosen | None = None
    stale: dict[CallId, str] = field(default_factory=dict)  # why a call is not served as it was chosen

    def __str__(self) -> str:
        """What a row must say of an earlier choice; "" where there is none."""
        if self.chosen is None:
            return ""
        anew = "; ".join(f"{id}: {why}" for id, why in self.stale.items())
        return f"{self.chosen}" + (f"; not used for {anew}" if anew else "")


def candidates(spec: choose.Spec, variants: list[Variant], calls: Iterable[CallId], job: Job) -> Candidates:
    """CannotGoOn for a file of an earlier choice that is none, and as `choose.candidates` does."""
    pool = choose.candidates(spec, variants, calls, job.device, job.dtype, job.simulate)
    found = Candidates(pool)
    if spec.chosen:
        found.chosen = before = chosen.read(spec.chosen)
        for id in [id for id in pool if not spec.override(id)]:
            if why := _unfit(id, before, variants, job):
                found.stale[id] = why
            else:
                pool[id] = [_named(id, before, variants)]
    if job.simulate:
        # What is simulated has no times to choose by: the first by name, unless --kernels names another.
        found.pool = {key: some[:1] for key, some in pool.items()}
    return found


def _unfit(id: CallId, before: Chosen, variants: list[Variant], job: Job) -> str:
    """Why a call is not served by the variant of an earlier choice, or ""."""
    why = before.stale(id, variants)
    return why or choose.why_not(_named(id, before, variants), job.device, job.dtype, job.simulate) or ""


def _named(id: CallId, before: Chosen, variants: list[Variant]) -> Variant:
    """The variant that an earlier choice gives a call."""
    name, _ = before.kernels[str(id)]
    return next(v for v in variants if (v.layer, v.name) == (id.layer, name))


def swapped(text: str, spec: choose.Spec, variants: list[Variant], calls: Iterable[CallId], job: Job) -> Choice:
    """The variants to swap in."""
    touched = [id for id in calls if spec.override(id)] or list(calls)  # none: what there is, is told
    pool = choose.candidates(spec, variants, touched, job.device, job.dtype, job.simulate)
    if several := [id.place for id, found in pool.items() if len(found) > 1]:
        raise CannotGoOn(f"--swap {text!r}: name one variant of {several[0]}, for example cpu.naive", cli.USAGE)
    return {key: found[0] for key, found in pool.items()}


def pick(field: Field, found: Candidates, swaps: dict[str, Choice]) -> Picked:
    """One variant for each call of the step."""
    several = {key: some for key, some in found.pool.items() if len(some) > 1}
    told = str(found)
    if found.chosen:
        told += f"; here it is {chip}" if (chip := field.chip()) != found.chosen.chip else ""
        field.note(told)
    times = times_of(field, several)
    choice = choose.fastest(found.pool, times)
    if unraced := [str(id) for id, some in several.items() if choose.unraced(id, some, times)]:
        field.note(f"no time was left to race {', '.join(unraced)}: served by who is quickest at the nearest call")
    return Picked(choice, times, {text: race_swap(field, choice, swap) for text, swap in swaps.items()}, told)


def times_of(field: Field, pool: Pool) -> Times:
    """What is remembered of the candidates, and of the others what a race says. Each call's times are remembered as
    they come."""
    if not pool:
        return Times()
    plan = field.plan
    cache = choose.open_cache(field.chip(), plan.job.device, plan.job.threads)
    shapes = {id: call.shape for id, call in plan.calls.items()}
    times = Times() if plan.remeasure else cache.take(pool, shapes)
    if missing := {key: found for key, found in pool.items() if key not in times.ms}:
        cli.say(f"measuring {sum(map(len, missing.values()))} candidates for {len(missing)} calls")
        busy: list[str] = []
        kept: set[CallId] = set()

        def keep(new: choose.Told) -> None:
            if not isinstance(new, Times):
                return
            if reason := facts.busy(facts.snapshot()):
                busy.append(reason)
            else:
                cache.keep(missing, shapes, new)
                kept.update(new.ms)

        new = measure(field, missing, keep)
        # Again, for what was out at one call is out at those before it too.
        cache.keep(missing, shapes, Times({id: new.ms[id] for id in kept & new.ms.keys()}, new.skipped))
        if busy:
            cli.say(f"busy machine, so not all of these choices are remembered: {busy[-1]}")
        times.ms |= new.ms
        times.skipped |= new.skipped
    return times


def measure(field: Field, pool: Pool, keep: choose.Keep = lambda new: None) -> Times:
    """The race of all candidates. One that kills its process, hangs, or leaves the GPU unusable is out, and a new
    process goes on without it. keep: is told each call's times at once."""
    found = Times()
    out: dict[tuple[str, str], str] = {}  # (layer, variant): why
    left = pool
    limit = field.deadline.limit(float("inf"), RACE_SHARE)
    end = field.deadline.left - limit  # what of the time must be left when the race is over
    while left:
        stop = field.deadline.left - end if field.deadline.bounded else float("inf")
        if stop <= 0:
            break
        new, culprit, why = _raced(field, left, stop, keep)
        found.ms |= new.ms
        found.skipped |= new.skipped
        if culprit is None:
            break
        id, name = culprit
        out[id.layer, name] = why
        field.note(f"{name} of {id} is out: {why}")
        field.restart(OURS)
        left = {
            key: [v for v in candidates if (v.layer, v.name) not in out]
            for key, candidates in pool.items()
            if key not in found.ms
        }
    for (layer, name), why in out.items():
        for key in [id for id in pool if id.layer == layer]:
            found.ms.get(key, {}).pop(name, None)
            found.skipped.setdefault(key, {})[name] = why
    return found


def _raced(field: Field, pool: Pool, stop: float, keep: choose.Keep) -> tuple[Times, tuple[CallId, str] | None, str]:
    """The times of a race, and where it was cut off the call and variant that did it, and how."""
    gpu, contestant = field.plan.gpu, field.contestants[OURS]
    budget = choose.GPU_BUDGET_S if gpu else choose.BUDGET_S
    limit = field.deadline.limit(RACE_LIMIT_S if gpu else field.plan.setup_limit)
    contestant.listener = keep
    try:
        times: Times = contestant.ask("race", pool=pool, budget=budget, stop=stop, limit=limit)
    except Lost as error:
        told, culprit = choose.told(contestant.heard)
        if culprit is None:
            raise
        return told, culprit, str(error)
    finally:
        contestant.listener = None
    why = f"left the GPU unusable: {times.skipped[times.broke[0]][times.broke[1]]}" if times.broke else ""
    return times, times.broke, why


def race_swap(field: Field, choice: Choice, swap: Choice) -> Times:
    """Both variants of each swapped call, measured against each other in isolation."""
    pool = {key: [choice[key], v] for key, v in swap.items() if v != choice[key]}
    unlimited = dict(budget=float("inf"), hopeless=float("inf"))
    limit = field.deadline.limit(field.plan.setup_limit)
    times: Times = field.contestants[OURS].ask("race", pool=pool, **unlimited, limit=limit)
    if times.broke:
        raise CannotGoOn(f"{times.broke[1]} left the GPU unusable at {times.broke[0]}", cli.CANNOT_RUN)
    return times
