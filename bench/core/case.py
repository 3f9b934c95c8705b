"""One call to be proved or timed, and the tensors it reads: drawn from a seed, with the fp64 truth of what follows."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from reference import contract
from reference.contract import Shape, Tensor

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int": torch.int64,
}


Value = torch.Tensor | list[torch.Tensor] | None  # of an argument: None where the shape does not use it
Values = dict[str, Value]
Scalar = int | float | bool | str | list  # an entry of a shape, handed to a variant


@dataclass(frozen=True)
class Case:
    """One call to be proved or timed: a layer's phase at a shape, with a seed and perhaps a structured edit."""

    layer: str
    phase: str
    shape: Shape
    name: str  # how a person calls it: "ragged 2", "huge_logit", "gpt2-124m/qkv"
    seed: int = 0
    edit: str | None = None

    @property
    def module(self) -> ModuleType:
        return contract.load(self.layer)

    @property
    def accumulate(self) -> bool:
        return bool(self.shape.get("accumulate"))

    def __str__(self) -> str:
        sizes = ", ".join(f"{k}={_short(v)}" for k, v in self.shape.items())
        return f"{self.layer} {self.phase} {self.name} ({sizes}, seed {self.seed})"


def _short(value: object) -> str:
    return f"[{len(value)}]" if isinstance(value, list) and len(value) > 4 else str(value)


def draw(case: Case) -> Values:
    """All tensors that a call reads, by name: inputs, in-place contents, and old values of gradients it adds to.

    Values are N(0, 1) times the contract's scale, made meaningful by the layer's `consistent`, changed by the case's
    edit, and rounded to the declared dtype. What forward saves comes from the fp64 truth of forward. CPU tensors.
    """
    layer, shape = case.module, case.shape
    gen = torch.Generator().manual_seed(case.seed)
    this = contract.pass_of(layer, case.phase)
    wanted = {t.name: t for t in this.inputs}
    wanted |= {t.name: t for t in this.outputs if t.inplace or (t.accumulates and case.accumulate)}
    forward = {t.name: t for t in layer.FORWARD.inputs} | {t.name: t for t in layer.FORWARD.outputs if t.inplace}
    saved = {t.name for t in layer.FORWARD.outputs if not t.inplace} & set(wanted)
    specs = {**forward, **{n: t for n, t in wanted.items() if n not in saved}}
    values: Values = {name: _random(t, shape, gen) for name, t in specs.items()}
    if hasattr(layer, "consistent"):
        layer.consistent(values, shape)
    if case.edit:
        layer.CASES[case.edit](values, shape)
    values = {name: _cast(v, specs[name], shape) for name, v in values.items()}
    if saved:
        truth = run_truth(layer, "forward", values, shape)
        values |= {name: _cast(truth[name], wanted[name], shape) for name in saved}
    return {name: values[name] for name in wanted}


def _cast(value: Value, t: Tensor, shape: Shape) -> Value:
    """Rounded to the dtype that the contract declares."""
    dtype = DTYPES[t.dtype_in(shape)]
    return map(value, lambda x: x.to(dtype))


def _random(t: Tensor, shape: Shape, gen: torch.Generator) -> Value:
    if not t.when(shape):
        return None
    made = [_random_one(t, sizes, shape, gen) for sizes in t.many_sizes(shape)]
    return made if t.many else made[0]


def _random_one(t: Tensor, sizes: tuple[int, ...], shape: Shape, gen: torch.Generator) -> torch.Tensor:
    if t.dtype == "int":
        return torch.randint(0, shape[t.high], sizes, generator=gen)
    dtype = torch.float64 if shape["dtype"] == "fp64" else torch.float32
    return torch.randn(sizes, generator=gen, dtype=dtype).mul_(t.scale)


def map(value: Value, f: Callable[[torch.Tensor], torch.Tensor]) -> Value:
    if isinstance(value, list):
        return [f(v) for v in value]
    return None if value is None else f(value)


def scalars(case: Case) -> list[Scalar]:
    """The pass's Python scalars in order, without `accumulate`."""
    return [case.shape[name] for name in contract.pass_of(case.module, case.phase).scalars]


def run_truth(layer: ModuleType, phase: str, values: Values, shape: Shape) -> Values:
    """The reference in fp64: {output: tensor or list}. Outputs that the shape does not use are left out."""
    p = contract.pass_of(layer, phase)

    def wide(value: Value) -> Value:
        return map(value, lambda x: x.double() if x.is_floating_point() else x)

    args = [wide(values[t.name]) for t in p.inputs] + [shape[s] for s in p.scalars]
    inplace = {t.name: wide(values[t.name]) for t in p.outputs if t.inplace}
    with torch.no_grad():
        results = getattr(layer, phase)(*args, **inplace)
    used = [t for t in p.outputs if t.when(shape)]
    return {t.name: results[t.name] for t in used}


def truth_of(case: Case, values: Values) -> Values:
    """`run_truth`, plus the old values where gradients accumulate."""
    truth = run_truth(case.module, case.phase, values, case.shape)
    if case.accumulate:
        for t in contract.pass_of(case.module, case.phase).outputs:
            if t.accumulates and t.name in truth:
                truth[t.name] = one(truth[t.name]) + one(values[t.name]).double()
    return truth


def each(value: Value) -> list[torch.Tensor]:
    """The tensors of an argument: those of a list, the one, or none."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def one(value: Value) -> torch.Tensor:
    """An argument that is a single tensor."""
    assert isinstance(value, torch.Tensor)
    return value


# --- which cases prove a variant -----------------------------------------------------------------------------


def cases_of(layer: str, phase: str, dtype: str, seeds: list[int], shapes: int | None = None) -> list[Case]:
    """All ragged shapes with every seed, every structured case, and both ways of writing parameter gradients.

    `shapes` limits the ragged shapes to the first few, for variants that compile anew for each.
    """
    module = contract.load(layer)
    accumulates = contract.pass_of(module, phase).accumulates
    cases = []
    ragged = module.RAGGED[:shapes]
    for i, sizes in enumerate(ragged):
        base = {**sizes, "dtype": dtype}
        for n, seed in enumerate(seeds):
            # With two seeds, one overwrites and the other accumulates: both ways on every shape.
            shape = {**base, "accumulate": n % 2 == 1} if accumulates else base
            cases.append(Case(layer, phase, shape, f"ragged {i}", seed))
    for edit in module.CASES:
        shape = contract.overwriting(module, phase, ragged[0], dtype)
        cases.append(Case(layer, phase, shape, edit, seeds[0], edit))
    return cases
