"""What one run of `bench.layer` is to do, parsed from what was asked for, and the cases that follow from it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core import WORKING_DTYPES
from bench.core.case import Case
from bench.core.variants import Variant, discover, unavailable
from bench.machine import devices
from bench.trial.prove import FIXED_SEED
from bench.trial.race import COLD, WARM, Effort
from bench.trial.room import Setting
from reference import contract
from reference.models import MODELS, Model

FIRST_CALLS = 5  # times the limit of a call may one take that compiles

AxisValue = int | bool | str
Axes = dict[str, list[AxisValue]]


@dataclass(frozen=True)
class Plan:
    layers: tuple[str, ...]
    named: tuple[str, ...]  # the variants to run; none: all
    outright: tuple[str, ...]  # those of them that were named in full, and must be able to run
    without: tuple[str, ...]  # those that do not run
    folders: tuple[Path, ...]  # of more variants
    variants: tuple[Variant, ...]  # of the layers, named or not
    phases: tuple[str, ...]
    dtypes: tuple[str, ...]
    model: Model
    shape_name: str  # of the model's shapes this one; "": all
    axes: Axes
    setting: Setting
    effort: Effort
    seed: int | None  # the proof's second one; None: random
    no_simulate: bool
    check_only: bool
    count: bool  # what simulated kernels move, where nothing is timed too
    smoke: bool  # one case of each variant and no more
    proofs: Path | None  # a folder of proofs to take over, and to add to
    compile_resources: bool  # what is not known of a timed kernel is found by compiling it
    sanitize: bool
    profile: Path | None
    out: Path | None
    resume: Path | None
    json: bool
    watch: bool  # nothing is kept
    axis_texts: tuple[str, ...]  # as they were written
    argv: tuple[str, ...]

    @property
    def device(self) -> str:
        return self.setting.device

    def chosen(self, layer: str) -> list[Variant]:
        """The variants of a layer that run; of `all` layers, some may have none of a name."""
        found = [v for v in self.variants if v.layer == layer and (not self.named or v.name in self.named)]
        return [v for v in found if v.name not in self.without]

    def yardstick(self, layer: str) -> Variant | None:
        return next((v for v in self.variants if v.layer == layer and v.name == "torch.eager" and not v.outside), None)


def plan_of(
    *,
    layer: str,
    all: bool,  # the default
    only: str | None,
    without: str | None,
    phase: str,
    shape: str,
    axis: list[str],
    check_only: bool,
    count: bool,
    smoke: bool,
    proofs: Path | None,
    device: str,
    simulate: bool,
    no_simulate: bool,
    kernels: list[str],
    seed: int | None,
    seconds: float,
    cache: str,
    processes: int,
    time_limit: float,
    watch: bool,
    sanitize: bool,
    profile: Path | None,
    threads: int,
    out: Path | None,
    resume: Path | None,
    json: bool,
    argv: list[str],
) -> Plan:
    """The plan of a command line. CannotGoOn for what makes no sense."""
    folders = tuple(map(Path, kernels))
    names = contract.layer_names()
    layers = names if layer == "all" else [cli.choose(layer, names, "layer")]
    found = discover(folders, layers)
    known, what = sorted({v.name for v in found}), f"variant of {', '.join(layers)}"
    axes = parse_axes(axis)
    dtypes = axes.pop("dtype", ["fp32"])
    chosen = cli.choose_all(cache, (COLD, WARM), "cache state")
    caches = tuple(state for state in (COLD, WARM) if state in chosen)  # cold first, whatever the order: see the race
    model, _, shape_name = shape.partition("/")
    return Plan(
        layers=tuple(layers),
        named=tuple(cli.choose_all(only, known, what)) if only else (),
        outright=tuple(name for name in map(str.strip, only.split(",")) if not cli.is_pattern(name)) if only else (),
        without=tuple(cli.choose_all(without, known, what)) if without else (),
        folders=folders,
        variants=tuple(found),
        phases=contract.PHASES if phase == "both" else (phase,),
        dtypes=tuple(cli.choose(str(d), WORKING_DTYPES, "dtype") for d in dtypes),
        model=MODELS[cli.choose(model, MODELS, "model")],
        shape_name=shape_name,
        axes=axes,
        setting=Setting(device, threads, time_limit, FIRST_CALLS * time_limit, simulate),
        effort=Effort(seconds, caches=caches, processes=processes),
        seed=seed,
        no_simulate=no_simulate,
        check_only=check_only or smoke,
        count=count or not (check_only or smoke),
        smoke=smoke,
        proofs=proofs,
        compile_resources=proofs is None,
        sanitize=sanitize,
        profile=profile,
        out=out,
        resume=resume,
        json=json,
        watch=watch,
        axis_texts=tuple(axis),
        argv=tuple(argv),
    )


def parse_axes(texts: list[str]) -> Axes:
    """{"T": [256, 1024], "dtype": ["bf16"]} from T=256,1024 and dtype=bf16."""
    axes: Axes = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise CannotGoOn(f"axis {text!r} is not NAME=VALUE,…", cli.USAGE)
        axes[name] = [_axis_value(name, v) for v in values.strip("[]").split(",")]
    return axes


def _axis_value(name: str, text: str) -> AxisValue:
    if name in ("dtype", "epilogue"):
        return text
    if text in ("true", "false"):
        return text == "true"
    if not text.isdecimal() or int(text) < 1:
        raise CannotGoOn(f"axis {name}: {text!r} is not a positive whole number", cli.USAGE)
    return int(text)


def check(plan: Plan) -> None:
    """CannotGoOn where there is no such device, variant, shape or axis, or a named variant cannot run here."""
    devices.check_device(plan.device)
    _check_names(plan)
    for layer in plan.layers:
        list(cases(plan, layer, "forward", plan.dtypes[0]))


def _check_names(plan: Plan) -> None:
    for name in plan.outright:
        for v in plan.variants:
            for dtype in plan.dtypes if v.name == name else ():
                if reason := unavailable(v, plan.device, dtype, plan.setting.simulate):
                    raise CannotGoOn(f"{v.layer} {name} cannot run: {reason}", cli.CANNOT_RUN)


def cases(plan: Plan, layer: str, phase: str, dtype: str) -> Iterator[tuple[Case, int]]:
    """What is timed of a layer: each shape of the model at every point of the axes, and its calls a training step."""
    module, model = contract.load(layer), plan.model
    options = contract.pass_of(module, phase).optional
    for point in itertools.product(*plan.axes.values()):
        axes = dict(zip(plan.axes, point, strict=True))
        B, T = axes.pop("B", contract.DEFAULT_B), axes.pop("T", min(contract.DEFAULT_T, model.max_t))
        calls = model.shapes(layer, int(B), int(T))
        if plan.shape_name and list(calls) == [""]:
            raise CannotGoOn(
                f"{layer} has one shape in {model.name}, without a name: --shape {model.name}, not {plan.shape_name!r}",
                cli.USAGE,
            )
        if plan.shape_name:
            calls = {plan.shape_name: calls[cli.choose(plan.shape_name, calls, f"shape of {layer}")]}
        for name, call in calls.items():
            if unknown := [a for a in axes if a not in call.shape and a not in options]:
                raise CannotGoOn(
                    f"{layer} has no axis {unknown[0]!r} (it has B, T, {', '.join(call.shape)})", cli.USAGE
                )
            try:
                shape = contract.overwriting(module, phase, {**call.shape, **axes}, dtype)
            except ValueError as error:
                raise CannotGoOn(str(error), cli.USAGE) from None
            told = f"{model.name}/{name}" if name else model.name
            yield Case(layer, phase, shape, told, FIXED_SEED), call.calls
