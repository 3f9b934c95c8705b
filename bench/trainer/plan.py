"""What a training run is to do: its command line, with what that leaves open filled in, and what it may not change when
it goes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import CannotGoOn
from bench.machine import facts
from bench.trainer import FSDP, LR
from bench.trainer.schedule import Schedule
from bench.training import plan
from bench.training.contestants import STEP_LIMIT_S
from reference.models import MODELS
from reference.models.model import Model, Recipe

# What the weights after a step depend on: a run that goes on must say the same, or nothing.
FIXED = (
    *("model", "seq", "total_batch", "dtype", "seed", "no_shuffle", "no_masters", "recompute"),
    *("weight_decay", "betas", "eps", "clip"),
    *("lr", "schedule", "warmup", "final_fraction", "steps", "epochs", "skip_loss_z", "skip_norm_z"),
)
USED_BY = {  # options by the one without which they do nothing
    "val_every": ("val", "val_batches"),
    "hellaswag_every": ("hellaswag",),
    "sample_every": ("sample_tokens", "temperature", "top_k", "prompt"),
    "baseline": ("parity_every",),
}
PATHS = ("out", "from", "hellaswag")
NOT_KEPT: dict[str, Any] = {"out": None, "resume": True, "from": None, "remeasure": False, "baseline": None}
NEAREST = 2  # possible batches that are named on either side of an impossible one


@dataclass(frozen=True)
class Every:
    """Something that is done every so many steps; 0 is never."""

    steps: int

    def __call__(self, step: int) -> bool:
        return self.steps > 0 and step % self.steps == 0


@dataclass(frozen=True)
class Plan:
    """Fields that an option of the same name fills need no line in `plan_of`."""

    race: plan.Plan  # of `bench.e2e`, for the choice of kernels: model, sizes, dtype, device, threads
    options: Mapping[str, Any]  # as they were given or recorded; for the log and for going on
    out: Path | None
    resume: bool
    source: Path | None  # --from
    data: str | None
    val: str | None
    shuffle: bool
    data_threads: int
    masters: bool
    total_batch: int  # tokens of a step, all ranks together
    steps: int | None  # None: by `epochs`
    epochs: float
    lr: float
    schedule: str
    warmup: int
    final: float
    skip_loss_z: float | None
    skip_norm_z: float | None
    not_finite_in_a_row: int
    optimizer: str
    val_every: Every
    val_batches: int
    hellaswag: Path | None
    hellaswag_every: Every
    sample_every: Every
    sample_tokens: int
    temperature: float
    top_k: int
    prompt: str | None
    spot_checks: bool
    baseline: str | None
    parity_every: Every
    checkpoint_every: Every
    keep_last: int
    keep_every: int

    @property
    def model(self) -> Model:
        return self.race.job.model

    @property
    def B(self) -> int:
        return self.race.job.B

    @property
    def T(self) -> int:
        return self.race.job.T

    @property
    def micro_batches(self) -> int:
        """Of one rank in a step."""
        return self.race.job.accumulation

    @property
    def looks(self) -> tuple[Every, Every, Every]:
        return self.val_every, self.hellaswag_every, self.sample_every

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or max(1, math.ceil(self.epochs * steps_per_epoch))

    def schedule_of(self, steps: int) -> Schedule:
        return Schedule(self.schedule, self.lr, steps, self.warmup, self.final)


def plan_of(options: Mapping[str, Any], ranks: int = 1, argv: list[str] | None = None) -> Plan:
    """The plan of the command line's options, by the names of the parser. CannotGoOn for what makes no sense."""
    o = dict(options)
    if not o["model"]:
        raise CannotGoOn("which model? for example: python -m bench.train gpt2-tiny (--help)", cli.USAGE)
    model = model_named(o["model"])
    B, T = plan.batch_of(model, o["device"], o["batch"], o["seq"])
    total = o["total_batch"] or B * T * ranks
    race = race_of(
        replace(model, recipe=recipe_of(model, o)),
        kernels=o["kernels"],
        B=B,
        T=T,
        accumulation=micro_batches(total, B, T, ranks),
        dtype=o["dtype"],
        device=o["device"],
        threads=o["threads"],
        recompute=o["recompute"],
        graph=not o["no_graph"] and ranks == 1,
        seed=o["seed"],
        remeasure=o["remeasure"],
        argv=argv or [],
    )
    job = race.job
    if o["no_masters"] and job.dtype != "bf16":
        raise CannotGoOn("--no-masters: fp32 weights have none; it goes with --dtype bf16", cli.USAGE)
    if o["baseline"]:
        _need_what_pytorch_does_too(o, ranks)
    if o["steps"] and o["epochs"]:
        raise CannotGoOn("--steps and --epochs: one of them", cli.USAGE)
    if o["hellaswag_every"] and not o["hellaswag"]:
        raise CannotGoOn("--hellaswag-every needs --hellaswag FILE (python -m bench.data makes one)", cli.USAGE)
    o |= dict(batch=B, seq=T, total_batch=total, dtype=job.dtype)
    found: dict[str, Any] = {
        f.name: Every(o[f.name]) if f.type is Every else o[f.name] for f in fields(Plan) if f.name in o
    }
    found |= dict(
        race=race,
        options=o,
        source=o["from"],
        shuffle=not o["no_shuffle"],
        masters=not o["no_masters"],
        epochs=o["epochs"] or 1.0,
        final=o["final_fraction"],
        not_finite_in_a_row=o["not_finite"],
        spot_checks=not o["no_spot_checks"],
    )
    return Plan(**found)


def _need_what_pytorch_does_too(o: Mapping[str, Any], ranks: int) -> None:
    others = {"--skip-loss-z": o["skip_loss_z"], "--skip-norm-z": o["skip_norm_z"], "--no-masters": o["no_masters"]}
    others |= {"--from": o["from"]}
    if (ranks > 1) != (o["baseline"] == FSDP):
        goes = f"{FSDP} is of several ranks (torchrun)" if ranks == 1 else f"of several ranks it is {FSDP}"
        raise CannotGoOn(f"--baseline {o['baseline']}: {goes}", cli.USAGE)
    if here := [name for name, given in others.items() if given]:
        raise CannotGoOn(f"--baseline: PyTorch's training beside ours does not go with {here[0]}", cli.USAGE)


def race_of(
    model: Model,
    *,
    kernels: str,
    B: int,
    T: int,
    dtype: str | None,
    device: str,
    threads: int | None,
    accumulation: int = 1,
    recompute: str | None = None,
    graph: bool = True,
    seed: int = 0,
    remeasure: bool = False,
    argv: list[str] | None = None,
) -> plan.Plan:
    """What `bench.e2e` would call the choice of kernels for this step."""
    made = plan.plan_of(
        model=model.name,
        kernels=kernels,
        baseline="none",
        swap=[],
        batch=B,
        seq=T,
        accumulation=accumulation,
        dtype=dtype,
        device=device,
        recompute=recompute,
        no_graph=not graph,
        data=None,
        simulate=False,
        lr=LR,
        steps=None,
        seed=seed,
        threads=threads or facts.usable_cores(),
        time_limit=STEP_LIMIT_S,
        minutes=None,
        compile_limit=STEP_LIMIT_S,
        remeasure=remeasure,
        out=None,
        profile=None,
        json=False,
        argv=argv or [],
    )
    return replace(made, job=replace(made.job, model=model))


def recipe_of(model: Model, o: Mapping[str, Any]) -> Recipe:
    """The family's recipe with what the command line says otherwise. --clip 0 does not clip."""
    given: dict[str, float] = {}
    if o["betas"] is not None:
        given |= dict(zip(("beta1", "beta2"), o["betas"], strict=True))
    if o["clip"] is not None:
        given["max_norm"] = o["clip"] or math.inf
    if o["eps"] is not None:
        given["eps"] = o["eps"]
    if o["weight_decay"] is not None:
        given["decay"] = o["weight_decay"]
    return replace(model.recipe, **given)


def micro_batches(total: int, B: int, T: int, ranks: int) -> int:
    """Micro-batches of each rank that make `total` tokens. CannotGoOn, with the nearest that there are, for no whole
    number of them."""
    of_all = B * T * ranks
    if total % of_all == 0:
        return total // of_all
    below = total // of_all
    near = [n * of_all for n in range(max(1, below - NEAREST + 1), below + NEAREST + 1)]
    by = f"{B} × {T}" + (f" × {ranks} ranks" if ranks > 1 else "")
    raise CannotGoOn(
        f"--total-batch {total:,}: no whole number of micro-batches of {by} = {of_all:,} tokens; "
        f"the nearest are {', '.join(f'{n:,}' for n in near)}",
        cli.USAGE,
    )


def need_what_uses(given: Mapping[str, Any], o: Mapping[str, Any]) -> None:
    """CannotGoOn where a command line names an option that nothing would ever look at."""
    for user, used in USED_BY.items():
        if o[user] or not (idle := [name for name in used if name in given]):
            continue
        names = [f"--{name.replace('_', '-')}" for name in (idle[0], user)]
        raise CannotGoOn(f"{names[0]} does nothing without {names[1]}", cli.USAGE)


def need_same(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """CannotGoOn where an option that changes what is computed is another one than the run was begun with."""
    longer = recorded.get("schedule") == now.get("schedule") == "constant"  # then no rate depends on where it ends
    for name in FIXED:
        if longer and name in ("steps", "epochs"):
            continue
        if plain(recorded.get(name)) != plain(now.get(name)):
            option = name.replace("_", "-")
            raise CannotGoOn(
                f"--{option}: the run was begun with {recorded.get(name)}, not with {now.get(name)}; "
                f"leave it out to go on, or start a new run (--from takes its weights)",
                cli.USAGE,
            )


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def for_json(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else plain(value) for name, value in options.items()}


def restored(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded options as the parser gives them."""
    paths = {name: Path(recorded[name]) for name in PATHS if recorded.get(name)}
    return {**recorded, **paths, "betas": tuple(recorded["betas"]) if recorded["betas"] else None, **NOT_KEPT}


def model_named(name: str) -> Model:
    return MODELS[cli.choose(name, MODELS, "model")]
