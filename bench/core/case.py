"""One call to be proved or timed, and the tensors it reads: drawn from a seed, with the fp64 truth of what follows."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    "int8": torch.int8,
}
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}

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

    def __post_init__(self) -> None:
        """ValueError for an attribute that the layer does not have (see contract.need_known)."""
        contract.need_known(self.module, self.shape)

    @property
    def module(self) -> ModuleType:
        return contract.load(self.layer)

    @property
    def accumulate(self) -> bool:
        return bool(self.shape.get("accumulate"))

    @property
    def alike(self) -> bool:
        """Whether one and the same operation made all elements (contract.alike)."""
        return self._marked("alike")

    @property
    def few_roundings(self) -> bool:
        """Whether few roundings decide how far off it is (contract.few_roundings)."""
        return self._marked("few_roundings")

    def _marked(self, mark: str) -> bool:
        return self.edit is not None and getattr(self.module.CASES[self.edit], mark, False)

    def __str__(self) -> str:
        sizes = ", ".join(f"{k}={_short(v)}" for k, v in self.shape.items())
        return f"{self.layer} {self.phase} {self.name} ({sizes}, seed {self.seed})"


def _short(value: object) -> str:
    return f"[{len(value)}]" if isinstance(value, list) and len(value) > 4 else str(value)


def draw(case: Case, place: str = "cpu", forward_truth: "Callable[[Values, set[str]], Values] | None" = None) -> Values:
    """All tensors that a call reads, by name: inputs, in-place contents, and old values of gradients it adds to.

    Values are N(0, 1) times the contract's scale, made meaningful by the layer's `consistent`, changed by the case's
    edit, and rounded to the declared dtype. What forward saves comes from the fp64 truth of forward: from
    `forward_truth`, given forward's inputs and the names of what is wanted, where the whole is too large for a device.
    Drawn where `place` says, by the generator there; the same seed and place, the same bits.
    """
    layer, shape = case.module, case.shape
    gen = torch.Generator(device=place).manual_seed(case.seed)
    this = contract.pass_of(layer, case.phase)
    wanted = {t.name: t for t in this.inputs}
    wanted |= {t.name: t for t in this.outputs if t.inplace or (t.accumulates and case.accumulate)}
    forward = {t.name: t for t in layer.FORWARD.inputs} | {t.name: t for t in layer.FORWARD.outputs if t.inplace}
    saved = {t.name for t in layer.FORWARD.outputs if not t.inplace} & set(wanted)
    specs = {**forward, **{n: t for n, t in wanted.items() if n not in saved}}
    values: Values = {name: _random(t, shape, gen) for name, t in specs.items()}
    with torch.device(place) if place != "cpu" else contextlib.nullcontext():
        if hasattr(layer, "consistent"):
            layer.consistent(values, shape)
        if hasattr(layer, "settle"):
            layer.settle(values, shape)
        if case.edit:
            layer.CASES[case.edit](values, shape)
    values = {name: _cast(v, specs[name], shape) for name, v in values.items()}
    if saved:
        truth = forward_truth(values, saved) if forward_truth else run_truth(layer, "forward", values, shape)
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
        return torch.randint(0, shape[t.high], sizes, generator=gen, device=gen.device)
    if t.dtype == "int8":
        return torch.randint(-127, 128, sizes, generator=gen, device=gen.device, dtype=torch.int8)
    dtype = torch.float64 if shape["dtype"] == "fp64" else torch.float32
    return torch.randn(sizes, generator=gen, dtype=dtype, device=gen.device).mul_(t.scale)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Its bit patterns as whole numbers."""
    return tensor.view(BITS[tensor.dtype.itemsize])


def map(value: Value, f: Callable[[torch.Tensor], torch.Tensor]) -> Value:
    if isinstance(value, list):
        return [f(v) for v in value]
    return None if value is None else f(value)


def scalars(case: Case) -> list[Scalar]:
    """The pass's Python scalars in order, without `accumulate`."""
    return contract.pass_of(case.module, case.phase).scalars_in(case.shape)


def run_truth(layer: ModuleType, phase: str, values: Values, shape: Shape) -> Values:
    """The reference in fp64: {output: tensor or list}. Outputs that the shape does not use are left out."""
    p = contract.pass_of(layer, phase)

    def wide(value: Value) -> Value:
        return map(value, lambda x: x.double() if x.is_floating_point() else x)

    args = [wide(values[t.name]) for t in p.inputs] + p.scalars_in(shape)
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


SLICED = "slice"  # in the name of a case at a slice of what is timed
SLICE = 1 << 16  # elements of a timed shape's slice: every structured case is cheap there
LARGE = 8 << 20  # bytes of the slices that a few structured cases run on: kernels choose a path by size as well
LARGE_EDITS = 2  # of those, drawn by the last seed
DEAR_SLICE = 256 << 20  # bytes: a slice whose width alone costs this much is left out


def cases_of(
    layer: str,
    phase: str,
    dtype: str,
    seeds: list[int],
    shapes: int | None = None,
    timed: Sequence[Shape] = (),
    thorough: bool = True,
) -> list[Case]:
    """The proof's cases of a layer's phase at a dtype.

    All ragged shapes with every seed, parameter gradients overwritten with one and added to with the next; every
    structured case on every ragged shape, both ways of writing parameter gradients. `shapes` limits the ragged shapes
    to the first few, for variants that compile anew for each.

    Of each shape in `timed` a small slice of the same width, alignment and options (`contract.sliced`), with every
    seed and every structured case, and a slice as large as the outputs that kernels treat in a way of their own, with
    LARGE_EDITS structured cases, which ones being the last seed's choice, and those that are `at_large_sizes`.

    Not `thorough`, for the simulator: each structured case on one ragged and one aligned shape only, in turn, so that
    between them they see every shape, and each of them both ways of writing gradients; and no large slices.
    """
    module = contract.load(layer)
    ways, case = _ways(module, phase), partial(_case, layer, phase)
    ragged = [(f"ragged {i}", {**sizes, "dtype": dtype}) for i, sizes in enumerate(module.RAGGED[:shapes])]
    small = _slices(module, phase, dtype, timed, SLICE, SLICED)

    # With two seeds, one overwrites and the other accumulates: both ways on every shape.
    cases = [case(*on, ways[n % len(ways)], seed) for on in ragged + small for n, seed in enumerate(seeds)]
    if not thorough:
        turn = _in_turn(module, phase, ragged + small)
        return cases + [case(*on, ways[n % len(ways)], seeds[0], edit) for edit, on, n in turn]
    for on in ragged + small:
        cases += [case(*on, way, seeds[0], edit) for edit in _edits(module, phase, on) for way in ways]
    for on in _slices(module, phase, dtype, timed, LARGE // contract.ITEM_SIZE[dtype], f"large {SLICED}"):
        if on[1] not in [shape for _, shape in small]:
            edits = _edits(module, phase, on)
            some = [edits[(seeds[-1] + k) % len(edits)] for k in range(min(LARGE_EDITS, len(edits)))]
            some += [e for e in edits if getattr(module.CASES[e], "large", False) and e not in some]
            cases += [case(*on, ways[k % len(ways)], seeds[0], edit) for k, edit in enumerate(some)]
    return cases


def cases_whole(layer: str, phase: str, dtype: str, seeds: list[int], timed: Sequence[Shape]) -> list[Case]:
    """Each shape that is timed as it is, with a plain draw and every structured case, in turn with both ways of writing
    parameter gradients; none where one of them is too large."""
    module, found = contract.load(layer), []
    ways = _ways(module, phase)
    for number, sizes in enumerate(timed):
        on = f"timed {number}", {**sizes, "dtype": dtype}
        if contract.min_bytes(module, on[1], phase) > DEAR_SLICE:
            return []
        edits = [None, *_edits(module, phase, on)]
        found += [_case(layer, phase, *on, ways[n % len(ways)], seeds[0], edit) for n, edit in enumerate(edits)]
    return found


def _ways(module: ModuleType, phase: str) -> tuple[bool | None, ...]:
    """Of writing parameter gradients: over what is there, and added to it; None where there are none."""
    return (False, True) if contract.pass_of(module, phase).accumulates else (None,)


def _case(
    layer: str, phase: str, name: str, shape: Shape, way: bool | None, seed: int, edit: str | None = None
) -> Case:
    if way is not None:
        shape = {**shape, "accumulate": way}
    told = f"{edit}, {name}" if edit else name
    return Case(layer, phase, shape, f"{told}, accumulate" if way else told, seed, edit)


Named = tuple[str, Shape]


def _edits(module: ModuleType, phase: str, on: Named) -> list[str]:
    return contract.edits_of(module, phase, on[1])


def _slices(
    module: ModuleType, phase: str, dtype: str, timed: Sequence[Shape], elements: int, name: str
) -> list[Named]:
    """Each slice once: the shapes of a model often differ only along the axes that are cut."""
    found: list[Shape] = []
    for shape in timed:
        one = {**contract.sliced(module, shape, elements), "dtype": dtype}
        one.pop("accumulate", None)
        if one not in found and contract.min_bytes(module, one, phase) <= DEAR_SLICE:
            found.append(one)
    return [(f"{name} {i}", shape) for i, shape in enumerate(found)]


def _in_turn(module: ModuleType, phase: str, shapes: list[Named]) -> list[tuple[str, Named, int]]:
    """Each edit on one ragged and on one aligned shape, going through both kinds, and each shape at least once.

    With the number by which to choose how gradients are written: the other way on the other kind.
    """
    found: list[tuple[str, Named, int]] = []
    for kind in (0, 1):
        seen = {on[0]: 0 for on in shapes if contract.aligned(module, on[1]) == bool(kind)}
        alike = [(on, _edits(module, phase, on)) for on in shapes if on[0] in seen]

        def add(edit: str, on: Named, number: int, seen: dict[str, int] = seen) -> None:
            seen[on[0]] += 1
            found.append((edit, on, number))

        for n, edit in enumerate(module.CASES):
            if on := min((on for on, edits in alike if edit in edits), key=lambda on: seen[on[0]], default=None):
                add(edit, on, n + kind)
        for n, (on, edits) in enumerate(alike):
            if edits and not seen[on[0]]:
                add(edits[n % len(edits)], on, n)
    return found
