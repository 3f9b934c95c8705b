"""Which variants our step is made of: named, remembered, or the fastest of a race in our contestant's process."""

from collections.abc import Iterable
from dataclasses import dataclass

from bench import cli
from bench.cli import CannotGoOn
from bench.core.variants import Variant
from bench.machine import facts
from bench.models import CallId, choose
from bench.models.choose import Times
from bench.training.contestants import Lost
from bench.training.field import OURS, Field
from bench.training.rooms import Job

RACE_LIMIT_S = 300.0  # for one candidate on a GPU, compiling and tuning included

Pool = dict[CallId, list[Variant]]
Choice = dict[CallId, Variant]


@dataclass(frozen=True)
class Picked:
    """The variant of each call, and what is known of its and the others' speed."""

    choice: Choice
    times: Times
    swap_times: dict[str, Times]  # of each swap: its calls' variants before and after


def candidates(spec: choose.Spec, variants: list[Variant], calls: Iterable[CallId], job: Job) -> Pool:
    pool = choose.candidates(spec, variants, calls, job.device, job.dtype, job.simulate)
    # What is simulated has no times to choose by: the first by name, unless --kernels names another.
    return {key: found[:1] for key, found in pool.items()} if job.simulate else pool


def swapped(text: str, spec: choose.Spec, variants: list[Variant], calls: Iterable[CallId], job: Job) -> Choice:
    """The variants to swap in."""
    touched = [id for id in calls if spec.override(id)]
    pool = choose.candidates(spec, variants, touched, job.device, job.dtype, job.simulate)
    if several := [id.place for id, found in pool.items() if len(found) > 1]:
        raise CannotGoOn(f"--swap {text!r}: name one variant of {several[0]}, for example cpu.naive", cli.USAGE)
    return {key: found[0] for key, found in pool.items()}


def pick(field: Field, pool: Pool, swaps: dict[str, Choice]) -> Picked:
    """One variant for each call of the step."""
    times = times_of(field, {key: found for key, found in pool.items() if len(found) > 1})
    choice = choose.fastest(pool, times)
    return Picked(choice, times, {text: race_swap(field, choice, swap) for text, swap in swaps.items()})


def times_of(field: Field, pool: Pool) -> Times:
    """What is remembered of the candidates, and of the others what a race says."""
    plan = field.plan
    cache = choose.open_cache(plan.job.device, plan.job.threads)
    shapes = {id: call.shape for id, call in plan.calls.items()}
    times = Times() if plan.remeasure else cache.take(pool, shapes)
    if missing := {key: found for key, found in pool.items() if key not in times.ms}:
        cli.say(f"measuring {sum(map(len, missing.values()))} candidates for {len(missing)} calls")
        new = measure(field, missing)
        if reason := facts.busy(facts.snapshot()):
            cli.say(f"busy machine, so these choices are not remembered: {reason}")
        else:
            cache.keep(missing, shapes, new)
        times.ms |= new.ms
        times.skipped |= new.skipped
    return times


def measure(field: Field, pool: Pool) -> Times:
    """The race of all candidates. One that kills its process, hangs, or leaves the GPU unusable is out, and a new
    process goes on without it."""
    found = Times()
    out: dict[tuple[str, str], str] = {}  # (layer, variant): why
    left = pool
    while left:
        new, culprit, why = _raced(field, left)
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


def _raced(field: Field, pool: Pool) -> tuple[Times, tuple[CallId, str] | None, str]:
    """The times of a race, and where it was cut off the call and variant that did it, and how."""
    gpu, contestant = field.plan.gpu, field.contestants[OURS]
    budget = choose.GPU_BUDGET_S if gpu else choose.BUDGET_S
    limit = RACE_LIMIT_S if gpu else field.plan.setup_limit
    try:
        times: Times = contestant.ask("race", pool=pool, budget=budget, limit=limit)
    except Lost as error:
        told, culprit = choose.told(contestant.heard)
        if culprit is None:
            raise
        return told, culprit, str(error)
    why = f"left the GPU unusable: {times.skipped[times.broke[0]][times.broke[1]]}" if times.broke else ""
    return times, times.broke, why


def race_swap(field: Field, choice: Choice, swap: Choice) -> Times:
    """Both variants of each swapped call, measured against each other in isolation."""
    pool = {key: [choice[key], v] for key, v in swap.items() if v != choice[key]}
    unlimited = dict(budget=float("inf"), hopeless=float("inf"))
    times: Times = field.contestants[OURS].ask("race", pool=pool, **unlimited, limit=field.plan.setup_limit)
    if times.broke:
        raise CannotGoOn(f"{times.broke[1]} left the GPU unusable at {times.broke[0]}", cli.CANNOT_RUN)
    return times
