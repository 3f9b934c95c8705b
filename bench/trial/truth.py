"""What a right answer is: the fp64 truth of a case, and how far plain torch is from it at the same dtype.

The limit for a variant's error is not a number set by hand. It is K times a yard, plus one unit in the last
place. The yard is the worst of three errors on the very same inputs:

    the `torch.eager` variant at the working dtype,
    the reference's own formula in fp32, with rounded outputs,
    the truth itself after its inputs moved by half a unit in the last place of fp32 (a statistic, kept in fp32 beside
    bf16 tensors: of the working dtype), because where terms cancel, plain torch may be exact by luck, and nobody can
    be sharper than fp32 arithmetic, or a statistic sharper than the numbers it is of.
"""

import functools
import random
from dataclasses import dataclass

import torch

from bench.core.arena import Arena, workspace_of
from bench.core.case import DTYPES, Case, Value, Values, draw, each, map, scalars, truth_of
from bench.core.variants import Variant
from reference import contract

K = 4.0  # a variant may be this much further from the truth than plain torch
FLOOR = 1.0  # ulps at the largest (for the maximum) and at the typical (for the rms) value, always allowed
SANE = 0.05  # and nobody, torch included, may be off by more than this share of the truth's rms
NOTHING = 1e-6  # a truth this small, from inputs of size one, is all cancellation: no share of it can be asked for
DEAR = 1e9  # FLOPs, or bytes, of a case whose truth is not worked out a second time for the third error
MAX_COMPARED = 1 << 22  # of a larger tensor, a random sample of this many elements is compared


@dataclass
class Yard:
    """Truth of one output tensor and plain torch's errors against it."""

    name: str
    truth: torch.Tensor  # fp64, flat: all elements or the sampled ones
    sample: torch.Tensor | None  # flat indices, where only a sample is compared
    sizes: tuple[int, ...]
    max_error: float  # of plain torch, the worse of the two
    rms_error: float
    formula_rms: float  # of the reference in fp32

    def pick(self, tensor: torch.Tensor) -> torch.Tensor:
        """The compared elements of a tensor, fp64, flat."""
        flat = tensor.detach().cpu().reshape(-1)
        return (flat if self.sample is None else flat[self.sample]).double()


@dataclass
class Brief:
    """Everything needed to prove one case: what goes in, and what must come out."""

    case: Case
    values: Values
    yards: list[Yard]


@dataclass
class Finding:
    """How one output compares: `ratio` is the error in units of plain torch's; it passes up to K."""

    name: str
    max_error: float
    rms_error: float
    ratio: float
    evidence: str = ""


def brief(case: Case, yardstick: Variant | None, device: str = "cpu") -> Brief:
    """Draw a case's inputs and work out its truth and its yards."""
    values = draw(case)
    return Brief(case, values, yards_of(case, values, yardstick, device))


def yards_of(case: Case, values: Values, yardstick: Variant | None, device: str = "cpu") -> list[Yard]:
    truth = truth_of(case, values)
    eager = _run_eager(case, values, yardstick, device) if yardstick else None
    formula = _run_formula(case, values)
    moved = _move_inputs(case, values)
    yards = []
    for t in contract.pass_of(case.module, case.phase).outputs:
        if not t.when(case.shape):
            continue
        for i, one in enumerate(each(truth[t.name])):
            name = f"{t.name}[{i}]" if t.many else t.name
            sample = _sample(one.numel())
            yard = Yard(name, one.reshape(-1), sample, tuple(one.shape), 0.0, 0.0, 0.0)
            yard.truth = yard.pick(one).clone()
            dtype = DTYPES[t.dtype_in(case.shape)]
            found = [errors(yard.pick(each(formula[t.name])[i].to(dtype)), yard.truth)]
            if eager:
                found.append(errors(yard.pick(each(eager[t.name])[i]), yard.truth))
            if moved:
                found.append(errors(yard.pick(each(moved[t.dtype][t.name])[i]), yard.truth))
            yard.formula_rms = found[0][1]
            # An overflow in plain torch is no licence: it leaves the floor alone.
            finite = [e for e in found if all(x < float("inf") for x in e)]
            yard.max_error = max((e[0] for e in finite), default=0.0)
            yard.rms_error = max((e[1] for e in finite), default=0.0)
            yards.append(yard)
    return yards


def _sample(count: int) -> torch.Tensor | None:
    if count <= MAX_COMPARED:
        return None
    gen = torch.Generator().manual_seed(random.SystemRandom().getrandbits(60))
    return torch.randint(0, count, (MAX_COMPARED,), generator=gen).sort().values


def _run_eager(case: Case, values: Values, yardstick: Variant, device: str) -> Values:
    module = yardstick.load()
    arena = Arena(case, device, workspace_of(module, case))
    arena.load(values)
    arena.reset()
    arena.call(getattr(module, case.phase))
    return arena.outputs


def _run_formula(case: Case, values: Values) -> Values:
    """The reference's formula in fp32 (fp64 stays fp64)."""
    layer, shape = case.module, case.shape
    p = contract.pass_of(layer, case.phase)
    dtype = torch.float64 if shape["dtype"] == "fp64" else torch.float32

    def cast(value: Value) -> Value:
        return map(value, lambda x: x.to(dtype) if x.is_floating_point() else x)

    args = [cast(values[t.name]) for t in p.inputs] + scalars(case)
    results = getattr(layer, case.phase)(*args, **{t.name: cast(values[t.name]) for t in p.outputs if t.inplace})
    if case.accumulate:
        for t in p.outputs:
            if t.accumulates and t.when(shape):
                results[t.name] = results[t.name] + cast(values[t.name])
    return results


def _move_inputs(case: Case, values: Values) -> dict[str, Values]:
    """{"work": truths after half an fp32 ulp on each input, "fp32": after half an ulp of the working dtype}."""
    work = contract.flops(case.module, case.shape, case.phase), contract.min_bytes(case.module, case.shape, case.phase)
    if max(work) > DEAR:
        return {}
    ulps = {"work": torch.finfo(torch.float32).eps, "fp32": torch.finfo(DTYPES[case.shape["dtype"]]).eps}
    if case.shape["dtype"] == "fp64":
        ulps["work"] = ulps["fp32"]
    gen = torch.Generator().manual_seed(case.seed)

    def move(x: torch.Tensor, eps: float) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        sign = torch.randint(0, 2, x.shape, generator=gen) * 2 - 1
        return x.double() * (1 + sign * (eps / 2))

    moved: dict[float, Values] = {}
    for eps in set(ulps.values()):
        by = functools.partial(move, eps=eps)
        moved[eps] = truth_of(case, {name: map(value, by) for name, value in values.items()})
    return {kind: moved[eps] for kind, eps in ulps.items()}


def errors(got: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """(max, rms) of the absolute error; inf where anything is not finite."""
    if not got.numel():
        return 0.0, 0.0
    difference = (got - truth).abs_()
    worst = float(difference.max())
    if not worst < float("inf"):  # NaN is not less either
        return float("inf"), float("inf")
    return worst, float(difference.square_().mean().sqrt())


def judge(got: torch.Tensor, yard: Yard, sane: bool = True) -> Finding:
    """Compare one output. Not finite, or further off than K times plain torch, is evidence against it.

    `sane` also asks for an error that is small beside the truth, whatever plain torch's may be. A structured case is
    made to be ill-conditioned, and is not asked.
    """
    picked = yard.pick(got)
    bad = ~picked.isfinite() & yard.truth.isfinite()
    if bad.any():
        share, first = float(bad.double().mean()), int(bad.nonzero()[0])
        evidence = f"{yard.name} is not finite in {share:.0%} of it, first at {_place(yard, first)}{_shared(bad, yard)}"
        return Finding(yard.name, float("inf"), float("inf"), float("inf"), evidence)
    max_error, rms_error = errors(picked, yard.truth)
    eps = torch.finfo(got.dtype).eps
    peak = float(yard.truth.abs().max()) if picked.numel() else 0.0
    rms = float(yard.truth.square().mean().sqrt()) if picked.numel() else 0.0
    unit = yard.max_error + FLOOR * eps * peak / K
    ratio = max(_ratio(max_error, unit), _ratio(rms_error, yard.rms_error + FLOOR * eps * rms / K))
    finding = Finding(yard.name, max_error, rms_error, ratio)
    if not ratio <= K:
        worst = int((picked - yard.truth).abs().argmax())
        finding.evidence = (
            f"{yard.name}: error {max_error:.2g} (rms {rms_error:.2g}) is {ratio:.3g}x plain torch's, limit {K:g}x; "
            f"worst at {_place(yard, worst)}: {picked[worst]:.6g} instead of {yard.truth[worst]:.6g}"
        )
        finding.evidence += pattern((picked - yard.truth).abs() > K * unit, yard)
    elif sane and rms > NOTHING and not rms_error <= max(SANE * rms, K * yard.formula_rms):
        finding.evidence = (
            f"{yard.name}: rms error {rms_error:.2g} is {rms_error / rms:.0%} of the truth's rms {rms:.2g}"
        )
    return finding


def pattern(wrong: torch.Tensor, yard: Yard) -> str:
    """Where the wrong elements lie, in words: how many, the first, and what they have in common."""
    count = int(wrong.sum())
    if not count or count == len(wrong):
        return ""
    first = int(wrong.nonzero()[0])
    return f"; {count} of {len(wrong)} are off, the first at {_place(yard, first)}{_shared(wrong, yard)}"


def _shared(wrong: torch.Tensor, yard: Yard) -> str:
    at = wrong.nonzero().flatten()
    return common(at if yard.sample is None else yard.sample[at], yard.sizes)


def survivors(left: torch.Tensor) -> str:
    """Where the poison is that a call left in an output, in words; left: True where it is, in the output's shape."""
    count, total = int(left.sum()), left.numel()
    if count == total:
        return "100%"
    flat, sizes = left.flatten().nonzero().flatten(), tuple(left.shape)
    return f"{count} of {total} elements, the first at {_index(int(flat[0]), sizes)}{common(flat, sizes)},"


def common(flat: torch.Tensor, sizes: tuple[int, ...]) -> str:
    """What elements at these flat indices have in common along each axis: ", only the last 3 of axis 1"."""
    indices = torch.unravel_index(flat, sizes) if sizes else ()
    found = [_along(axis, i.unique(), size) for axis, (i, size) in enumerate(zip(indices, sizes, strict=True))]
    return "".join(f", {what}" for what in found if what)


def _along(axis: int, where: torch.Tensor, size: int) -> str:
    """What the sorted indices along an axis have in common; nothing where they are all over it."""
    count, first, last = len(where), int(where[0]), int(where[-1])
    if count == size:
        return ""
    if count == 1:
        return f"only index {first} of axis {axis}"
    if last - first + 1 == count:
        edge = "last" if last == size - 1 else "first" if first == 0 else None
        return f"only the {edge} {count} of axis {axis}" if edge else f"only {first} to {last} of axis {axis}"
    steps = where.diff()
    if count > 2 and bool((steps == steps[0]).all()):
        return f"one in {int(steps[0])} along axis {axis}, from {first}"
    return ""


def _ratio(error: float, unit: float) -> float:
    if error == 0:
        return 0.0
    return error / unit if unit > 0 else float("inf")


def _place(yard: Yard, position: int) -> list[int]:
    """Index in the tensor of a compared element."""
    return _index(position if yard.sample is None else int(yard.sample[position]), yard.sizes)


def _index(flat: int, sizes: tuple[int, ...]) -> list[int]:
    index = []
    for size in reversed(sizes):
        flat, rest = divmod(flat, size)
        index.append(rest)
    return index[::-1]
