"""Which variants our step is made of: named, chosen beforehand, remembered, or the fastest of a race in our
contestant's process."""

from collections.abc import Iterable
from dataclasses import dataclass

from bench import cli
from bench.cli import CannotGoOn
from bench.core.variants import Variant
from bench.models import CallId, choose, chosen
from bench.models.choose import Pool, Raced, Times
from bench.models.chosen import Candidates
from bench.training.field import OURS, Field
from bench.training.rooms import Job

RACE_LIMIT_S = 300.0  # for one candidate on a GPU, compiling and tuning included
RACE_SHARE = 0.35  # of what is left of --minutes, for the whole race

Choice = dict[CallId, Variant]


@dataclass(frozen=True)
class Picked:
    """The variant of each call, and what is known of its and the others' speed."""

    choice: Choice
    times: Times
    swap_times: dict[str, Times]  # of each swap: its calls' variants before and after
    chosen: str = ""  # beforehand: in which file, where, when, and what of it is not used


def candidates(spec: choose.Spec, variants: list[Variant], calls: Iterable[CallId], job: Job) -> Candidates:
    """CannotGoOn for a file of an earlier choice that is none, and as `choose.candidates` does."""
    pool = choose.candidates(spec, variants, calls, job.device, job.dtype, job.simulate)
    found = chosen.narrowed(pool, spec, variants, lambda _, v: choose.why_not(v, job.device, job.dtype, job.simulate))
    if job.simulate:
        # What is simulated has no times to choose by: the first by name, unless --kernels names another.
        found.pool = {key: some[:1] for key, some in pool.items()}
    return found


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
    told = ""
    if found.chosen:
        told = found.told(field.chip())
        field.note(told)
    times = times_of(field, several) if several else Times()
    choice = choose.fastest(found.pool, times)
    if unraced := [str(id) for id, some in several.items() if choose.unraced(id, some, times)]:
        field.note(f"no time was left to race {', '.join(unraced)}: served by who is quickest at the nearest call")
    return Picked(choice, times, {text: race_swap(field, choice, swap) for text, swap in swaps.items()}, told)


def times_of(field: Field, pool: Pool) -> Times:
    """As choose.times_of."""
    plan = field.plan
    cache = choose.open_cache(field.chip(), plan.job.device, plan.job.threads)
    shapes = {id: call.shape for id, call in plan.calls.items()}
    return choose.times_of(pool, shapes, cache, lambda left, keep: measure(field, left, keep), plan.remeasure)


def measure(field: Field, pool: Pool, keep: choose.Keep = lambda new: None) -> Times:
    """The race of all candidates, as far as there is time. keep: is told each call's times at once."""
    gpu, limit = field.plan.gpu, field.deadline.limit(float("inf"), RACE_SHARE)
    end = field.deadline.left - limit  # what of the time must be left when the race is over

    def once(left: Pool) -> Raced | None:
        stop = field.deadline.left - end if field.deadline.bounded else float("inf")
        if stop <= 0:
            return None
        longest = field.deadline.limit(RACE_LIMIT_S if gpu else field.plan.setup_limit)
        return choose.race_in(field.contestants[OURS], left, keep, gpu, stop, longest)

    def out(what: str) -> None:
        field.note(what)
        field.restart(OURS)

    return choose.race_on(pool, once, out)


def race_swap(field: Field, choice: Choice, swap: Choice) -> Times:
    """Both variants of each swapped call, measured against each other in isolation."""
    pool = {key: [choice[key], v] for key, v in swap.items() if v != choice[key]}
    unlimited = dict(budget=float("inf"), hopeless=float("inf"))
    limit = field.deadline.limit(field.plan.setup_limit)
    times: Times = field.contestants[OURS].ask("race", pool=pool, **unlimited, limit=limit)
    if times.broke:
        raise CannotGoOn(f"{times.broke[1]} left the GPU unusable at {times.broke[0]}", cli.CANNOT_RUN)
    return times
