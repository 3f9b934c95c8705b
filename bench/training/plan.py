"""What one run of `bench.e2e` is to do: its command line, with what that leaves open filled in by device."""

from dataclasses import dataclass
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.machine import facts
from bench.models import CallId, choose
from bench.models.program import recomputable, step_calls
from bench.training import (
    BASELINES,
    CPU_B,
    CPU_BASELINES,
    CPU_IN_TIME,
    CPU_T,
    GPU_B,
    GPU_BASELINES,
    GPU_IN_TIME,
    GPU_STEPS,
    GPU_T,
    SIMULATED_STEPS,
    STEPS,
    WARM_UP,
)
from bench.training.contestants import SETUP_LIMIT_S
from bench.training.rooms import Job
from reference.contract import Call
from reference.models import MODELS, Model

GPU_TURN = 5  # timed steps in a row on a GPU, after one that takes back the memory that was lent to the others


@dataclass(frozen=True)
class Turn:
    """Steps, by number, that a contestant takes before the others have theirs, and those of them that are timed."""

    steps: range
    timed: range


@dataclass(frozen=True)
class Plan:
    job: Job
    halve: bool  # nobody asked for this batch, so it may be made smaller
    baselines: tuple[str, ...]
    spec: choose.Spec
    swaps: dict[str, choose.Spec]  # by what was written
    graph: bool
    remeasure: bool
    data: str | None
    lr: float
    steps: int  # timed ones
    time_limit: float  # seconds for one step
    minutes: float | None  # for all of it
    compile_limit: float  # seconds for a baseline to compile
    profile: Path | None
    out: Path | None
    json: bool
    argv: tuple[str, ...]

    @property
    def gpu(self) -> bool:
        return self.job.device != "cpu"

    @property
    def calls(self) -> dict[CallId, Call]:
        """The calls of a step: their shapes, and how often a micro-batch makes them."""
        job = self.job
        return step_calls(job.model, job.B, job.T, job.dtype, job.recompute)

    @property
    def turns(self) -> list[Turn]:
        return turns(self.steps, self.gpu)

    @property
    def setup_limit(self) -> float:
        return max(SETUP_LIMIT_S, self.time_limit)


def turns(steps: int, gpu: bool) -> list[Turn]:
    """Turns of `steps` timed steps in all, after WARM_UP others.

    On a CPU every step is a turn. On a GPU, which is at its steady clocks and temperature only under load, a turn is
    several steps, and its first one, for which memory is taken back, is not timed.
    """
    if not gpu:
        warm_up = [Turn(range(t, t + 1), range(0)) for t in range(WARM_UP)]
        return warm_up + [Turn(range(t, t + 1), range(t, t + 1)) for t in range(WARM_UP, WARM_UP + steps)]
    found = [Turn(range(WARM_UP), range(0))]
    while steps > 0:
        first, timed = found[-1].steps.stop, min(steps, GPU_TURN)
        found.append(Turn(range(first, first + 1 + timed), range(first + 1, first + 1 + timed)))
        steps -= timed
    return found


def plan_of(
    *,
    model: str,
    kernels: str,
    baseline: str | None,
    swap: list[str],
    batch: int | None,
    seq: int | None,
    accumulation: int,
    dtype: str | None,
    device: str,
    recompute: str | None,
    no_graph: bool,
    data: str | None,
    simulate: bool,
    lr: float,
    steps: int | None,
    seed: int,
    threads: int | None,
    time_limit: float,
    minutes: float | None,
    compile_limit: float,
    remeasure: bool,
    out: Path | None,
    profile: Path | None,
    json: bool,
    argv: list[str],
) -> Plan:
    """The plan of a command line. CannotGoOn for what makes no sense."""
    sizes = MODELS[cli.choose(model, MODELS, "model")]
    if simulate:
        device, baseline = "cpu", "none"  # nothing is timed, so there is nothing to compare with
    gpu = device != "cpu"
    B, T = batch_of(sizes, device, batch, seq)
    in_time, in_any = (GPU_IN_TIME, GPU_BASELINES) if gpu else (CPU_IN_TIME, CPU_BASELINES)
    baseline = baseline or (in_time if minutes else in_any)
    of_model = recomputable(sizes)
    job = Job(
        model=sizes,
        B=B,
        T=T,
        dtype=dtype or ("bf16" if gpu else "fp32"),
        device=device,
        threads=threads or facts.usable_cores(),
        accumulation=accumulation,
        seed=seed,
        simulate=simulate,
        recompute=tuple(cli.choose_all(recompute, of_model, "output to compute again")) if recompute else (),
    )
    return Plan(
        job=job,
        halve=gpu and batch is None,
        baselines=() if baseline == "none" else tuple(cli.choose_all(baseline, BASELINES, "baseline")),
        spec=choose.parse(kernels),
        swaps={text: _swap(text) for text in swap},
        graph=gpu and not no_graph,
        remeasure=remeasure,
        data=data,
        lr=lr,
        steps=steps or (SIMULATED_STEPS if simulate else GPU_STEPS if gpu else STEPS),
        time_limit=time_limit,
        minutes=minutes,
        compile_limit=compile_limit,
        profile=profile,
        out=out,
        json=json,
        argv=tuple(argv),
    )


def batch_of(model: Model, device: str, batch: int | None, seq: int | None) -> tuple[int, int]:
    """(B, T) of a micro-batch: as they were asked for, else the device's. CannotGoOn for a T beyond the model."""
    gpu = device != "cpu"
    B = batch or (GPU_B.get(model.name, max(GPU_B.values())) if gpu else CPU_B)
    T = seq or min(GPU_T if gpu else CPU_T, model.max_t)
    if model.max_t < T:
        raise CannotGoOn(f"--seq {T}: {model.name} has {model.max_t} positions", cli.USAGE)
    return B, T


def _swap(text: str) -> choose.Spec:
    spec = choose.parse(text)
    if not spec.overrides or spec.default != choose.FASTEST or spec.folders:
        raise CannotGoOn(f"--swap {text!r} is not LAYER=VARIANT", cli.USAGE)
    return spec
