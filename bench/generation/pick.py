"""Which variants ours is made of: named, chosen beforehand, remembered, or the fastest of a race in its process."""

from dataclasses import replace

from bench import cli
from bench.core import variants
from bench.core.variants import Variant
from bench.generation.contestants import SETUP_LIMIT_S, Contestant, Lost
from bench.generation.plan import Job, Plan, calls
from bench.machine import facts
from bench.models import CallId, choose, chosen
from bench.models.choose import Times
from reference.contract import Shape

Pool = dict[CallId, list[Variant]]
Choice = dict[CallId, Variant]
WHAT = "the generation"


def candidates(plan: Plan, job: Job) -> Pool:
    """Who may serve each call. CannotGoOn as `choose.candidates` does."""
    found = variants.discover(plan.spec.folders)
    pool = choose.candidates(
        _spec_of(plan, job), found, calls(job), job.device, job.sizes.dtype, job.simulate, what=WHAT
    )
    if plan.spec.chosen:
        before = chosen.read(plan.spec.chosen)
        for id, here in pool.items():
            if not plan.spec.override(id) and not before.stale(id, here):
                pool[id] = [v for v in here if v.name == before.kernels[str(id)][0]]
    if job.simulate:
        # What is simulated has no times to choose by: the first that takes the shape, unless --kernels names another.
        shapes = {id: call.shape for id, call in calls(job).items()}
        pool = {id: [v for v in some if takes(v, shapes[id])][:1] or some[:1] for id, some in pool.items()}
    return pool


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
        new = _raced(ours, missing, choose.GPU_BUDGET_S if job.gpu else choose.BUDGET_S)
        if busy := facts.busy(facts.snapshot()):
            cli.say(f"busy machine, so these choices are not remembered: {busy}")
        else:
            cache.keep(missing, shapes, new)
        times.ms |= new.ms
        times.skipped |= new.skipped
    return choose.fastest(pool, times)


def _raced(ours: Contestant, pool: Pool, budget: float) -> Times:
    found = Times()
    out: dict[tuple[str, str], str] = {}  # (layer, variant): why
    left = pool
    while left:
        try:
            new: Times = ours.ask("race", pool=left, budget=budget, limit=SETUP_LIMIT_S)
            culprit, why = new.broke, "left the GPU unusable"
        except Lost as error:
            new, culprit = choose.told(ours.heard)
            why = str(error)
            if culprit is None:
                raise
        found.ms |= new.ms
        found.skipped |= new.skipped
        if culprit is None:
            break
        id, name = culprit
        cli.say(f"{name} of {id} is out: {why}")
        out[id.layer, name] = why
        ours.restart()
        left = {
            id: [v for v in some if (v.layer, v.name) not in out] for id, some in pool.items() if id not in found.ms
        }
    for (layer, name), why in out.items():
        for id in [id for id in pool if id.layer == layer]:
            found.ms.get(id, {}).pop(name, None)
            found.skipped.setdefault(id, {})[name] = why
    return found
