"""Which variants ours is made of: named, chosen beforehand, remembered, or the fastest of a race in its process."""

import time
from dataclasses import replace

from bench import cli
from bench.core import variants
from bench.core.variants import Variant
from bench.generation.contestants import SETUP_LIMIT_S, Contestant, Lost
from bench.generation.plan import Job, Plan, calls
from bench.machine import facts
from bench.models import CallId, choose, chosen
from bench.models.choose import Pool, Raced, Times
from bench.models.chosen import Candidates
from reference.contract import Shape

Choice = dict[CallId, Variant]
WHAT = "the generation"


def candidates(plan: Plan, job: Job) -> Candidates:
    """Who may serve each call. CannotGoOn as `choose.candidates` does, and for a file of an earlier choice that is
    none."""
    found = variants.discover(plan.spec.folders)
    pool = choose.candidates(
        _spec_of(plan, job), found, calls(job), job.device, job.sizes.dtype, job.simulate, what=WHAT
    )
    before = chosen.narrowed(pool, plan.spec, found, lambda id, v: _why_not(id, v, job))
    if job.simulate:
        # What is simulated has no times to choose by: the first that takes the shape, unless --kernels names another.
        shapes = {id: call.shape for id, call in calls(job).items()}
        before.pool = {
            id: [v for v in some if takes(v, shapes[id])][:1] or some[:1] for id, some in before.pool.items()
        }
    return before


def _why_not(id: CallId, variant: Variant, job: Job) -> str | None:
    """Why a variant cannot serve a call here, or None."""
    return choose.why_not(variant, job.device, job.sizes.dtype, job.simulate, phases=(id.phase,))


def _spec_of(plan: Plan, job: Job) -> choose.Spec:
    """--kernels without what it says of calls that another form of the weights makes, and this one does not."""
    places = {of: _places(of) for of in plan.jobs}
    anywhere = [*dict.fromkeys(name for names in places.values() for name in names)]
    for where in plan.spec.overrides:
        cli.choose(where, anywhere, f"layer of {WHAT}")
    here = {where: wish for where, wish in plan.spec.overrides.items() if where in places[job]}
    return replace(plan.spec, overrides=here)


def _places(job: Job) -> list[str]:
    """What --kernels can name of a job's calls."""
    return [name for id in calls(job) for name in (id.place, id.layer)]


def takes(variant: Variant, shape: Shape) -> bool:
    """Whether a variant says that it takes a shape."""
    return "supports" not in variant.functions or variant.load().supports(shape) is True


def pick(plan: Plan, job: Job, ours: Contestant, pool: Pool) -> Choice:
    """One variant for each call. A candidate that kills the process, or hangs in it, is out."""
    several = {id: some for id, some in pool.items() if len(some) > 1}
    if not several:
        return choose.fastest(pool, Times())
    cache = choose.open_cache(ours.ask("chip"), job.device, job.threads)
    shapes = {id: call.shape for id, call in calls(job).items()}
    times = Times() if plan.remeasure else cache.take(several, shapes)
    if missing := {id: some for id, some in several.items() if id not in times.ms}:
        cli.say(f"measuring {sum(map(len, missing.values()))} candidates for {len(missing)} calls of {job.form}")
        limit = plan.race_limit / len(plan.jobs)
        new = _raced(ours, missing, choose.GPU_BUDGET_S if job.gpu else choose.BUDGET_S, limit)
        if busy := facts.busy(facts.snapshot()):
            cli.say(f"busy machine, so these choices are not remembered: {busy}")
        else:
            cache.keep(missing, shapes, new)
        times.ms |= new.ms
        times.skipped |= new.skipped
    if unraced := [str(id) for id, some in several.items() if choose.unraced(id, some, times)]:
        cli.say(f"no time was left to race {', '.join(unraced)}: served by who is quickest at the nearest call")
    return choose.fastest(pool, times)


def _raced(ours: Contestant, pool: Pool, budget: float, limit: float) -> Times:
    end = time.monotonic() + limit

    def once(left: Pool) -> Raced | None:
        stop = end - time.monotonic()
        if stop <= 0:
            return None
        try:
            return choose.ended(ours.ask("race", pool=left, budget=budget, stop=stop, limit=SETUP_LIMIT_S))
        except Lost as error:
            return choose.cut_off(ours.heard, error)

    def out(what: str) -> None:
        cli.say(what)
        ours.restart()

    return choose.race_on(pool, once, out)
