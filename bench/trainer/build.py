"""The step that a run trains with: kernels picked as `bench.e2e` picks them, bound to memory in this process."""

from collections.abc import Mapping
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core import variants
from bench.core.variants import Variant
from bench.machine.devices import chip_name, open_device
from bench.models import CallId, choose, chosen
from bench.models.program import program
from bench.models.step import Step
from bench.training import pick, plan
from bench.training.field import OURS, Field

Choice = dict[CallId, Variant]
Names = Mapping[str, tuple[str, str]]  # of each call: the variant and its file's hash, for other ranks


def choose_kernels(race: plan.Plan) -> tuple[Choice, str]:
    """A variant for each call, and what is to be said of an earlier choice. Where several may serve a call a process of
    its own races them, or what is remembered of such a race decides. CannotGoOn as `bench.e2e` does."""
    spec = race.spec
    found = pick.candidates(spec, variants.discover(spec.folders), race.calls, race.job)
    if all(len(some) == 1 for some in found.pool.values()):
        return {id: some[0] for id, some in found.pool.items()}, str(found)
    with Field(race, []) as field:
        field.start(OURS)
        picked = pick.pick(field, found, {})
    return picked.choice, picked.chosen


def names(choice: Choice) -> Names:
    return {str(id): (v.name, v.source_hash()) for id, v in choice.items()}


def named(race: plan.Plan, told: Names) -> Choice:
    """The choice of another rank. CannotGoOn where it has files that this one lacks, or others."""
    here = variants.discover(race.spec.folders)
    choice = {}
    for id in race.calls:
        name, source = told[str(id)]
        fit = [v for v in here if (v.layer, v.name) == (id.layer, name)]
        if not fit or fit[0].source_hash() != source:
            raise CannotGoOn(f"{name} of {id} is another file here than where rank 0 runs", cli.CANNOT_RUN)
        choice[id] = fit[0]
    return choice


def write_choice(folder: Path, race: plan.Plan, choice: Choice) -> None:
    """kernels.json of a run, for `--kernels` and for going on."""
    job = race.job
    chip = choose.cpu_name() if job.device == "cpu" else chip_name(job.device)
    chosen.write(folder, choice, chip=chip, run="train", model=job.model.name, dtype=job.dtype, B=job.B, T=job.T)


def again(kernels: str, folder: Path) -> str:
    """`--kernels` for going on with a run: what it had, and the folders of variants that its own list named."""
    file = folder / chosen.FILE
    if not file.exists():
        return kernels
    return ",".join([*(f"{f}/" for f in choose.parse(kernels).folders), str(file)])


def build(race: plan.Plan, choice: Choice, masters: bool = True, ranks: int = 1) -> Step:
    """The step, in this process."""
    job = race.job
    made = program(job.model, job.B, job.T, job.dtype, open_device(job.device), job.recompute, masters)
    modules = {id: variant.load() for id, variant in choice.items()}
    return Step(made, modules, job.accumulation, job.seed, ranks)


def record(step: Step, race: plan.Plan) -> None:
    """On a GPU the step as graphs. `load` follows. CannotGoOn where a kernel cannot be recorded."""
    if race.graph and (why := step.capture()):
        raise CannotGoOn(f"the step is no graph: {why}; leave it out with --no-graph", cli.CANNOT_RUN)
