"""Which variants ours is made of: named, chosen beforehand, remembered, or the fastest of a race in its process."""

import time
from dataclasses import replace

from bench import cli
from bench.core import variants
from bench.core.variants import Variant
from bench.generation.contestants import SETUP_LIMIT_S, Contestant
from bench.generation.plan import Job, Plan, calls
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
    limit = plan.race_limit / len(plan.jobs)
    times = choose.times_of(
        several, shapes, cache, lambda left, keep: _raced(ours, left, keep, job.gpu, limit), plan.remeasure
    )
    if unraced := [str(id) for id, some in several.items() if choose.unraced(id, some, times)]:
        cli.say(f"no time was left to race {', '.join(unraced)}: served by who is quickest at the nearest call")
    return choose.fastest(pool, times)


def _raced(ours: Contestant, pool: Pool, keep: choose.Keep, gpu: bool, limit: float) -> Times:
    end = time.monotonic() + limit

    def once(left: Pool) -> Raced | None:
        stop = end - time.monotonic()
        return choose.race_in(ours, left, keep, gpu, stop, SETUP_LIMIT_S) if stop > 0 else None

    def out(what: str) -> None:
        cli.say(what)
        ours.restart()

    return choose.race_on(pool, once, out)
