"""What a right answer is: the fp64 truth of a case, and how far honest arithmetic is from it.

The limit of an error is not set by hand: it is K times the yard (accuracy.py has the unit), the largest error of

    the reference's own formula in fp32, rounded once to the output's dtype (the tensors that came in were rounded
    before, and are exact from there on: a statistic that stays fp32 beside bf16 tensors is held to fp32);
    the same where a tensor that is handed out in a narrow dtype is also used further on: used as it was handed out
    (residual_out and the moments of it);
    the truth after each input and each Python scalar moved by half a unit in the last place of fp32, because where
    terms cancel torch may be exact by luck, and nobody can be sharper than fp32 arithmetic;
    `torch.eager`, which may round between operators. Where a wider statistic comes out of it further off than half a
    unit of the *working* dtype, it says nothing and does not count. On edited values its noise is at least the share
    that it is on plain ones, where it is exact by luck less often.

Small cases draw these errors from several seeds: the largest error of few elements is a matter of luck.

Truth is kept in fp64 for outputs in fp32 and fp64. For narrower outputs it is kept in fp32: its rounding is at most
2^-12 of half a unit of theirs.

**On a GPU** all of this happens there (`Where`). What is large is worked out in pieces (cuts.py), and truth that is
too large to keep is worked out anew while it is compared. The yard of a large shape comes from a piece of it; where an
output is a sum over all pieces, from the whole. Every element is compared in both.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch.overrides import TorchFunctionMode

from bench.core.arena import Arena, workspace_of
from bench.core.case import DTYPES, Case, Value, Values, draw, each, map, one, scalars, truth_of
from bench.core.contents import Contents
from bench.core.variants import Variant
from bench.machine.devices import Device
from bench.trial import cuts
from bench.trial.accuracy import (
    BLOCK,
    MANY,
    UNEVEN,
    Limits,
    Yard,
    beyond,
    blocks_of,
    lean,
    measure,
    not_as_finite,
    rms_of_error,
)
from bench.trial.cuts import Cut, Formula, Recomputed, Run, cut_of
from bench.trial.yards import key_of, recalled, remember
from reference import contract

DEAR = 1e9  # FLOPs plus bytes of a case of plain values whose truth is not worked out a second time, with moved inputs
CHEAP = 2e7  # FLOPs plus bytes that all seeds of a case may cost
WORTH = 2e8  # … where many elements are no help, for they share few roundings
SEEDS, ENOUGH = 8, 256  # seeds that are drawn, until so many elements were seen of each output
LARGE = 1e9  # FLOPs plus bytes from which a GPU works in pieces, …
IN_BLOCKS = 1e7  # … and a CPU in blocks, where it can
YARD = 1 << 22  # elements of the piece that the yard of a large shape comes from
ON_THE_WAY = 3  # times its truth that a piece of lists takes
DRAWN_HERE = 16 << 20  # bytes of inputs up to which the CPU draws them for a GPU: the same for both


@dataclass(frozen=True)
class Where:
    """Where truth is worked out, and how much memory that may take."""

    place: str = "cpu"  # where tensors are
    key: str = "cpu"  # what yards on disk are kept under
    device: Device | None = None  # None: the CPU, where nothing is cut
    piece_bytes: int = 4 << 30  # that a piece takes, with all that a formula makes on its way; 0: lists are not cut
    kept_bytes: int = 4 << 30  # of truth of one call's outputs; what is larger is worked out anew each time

    def cut(self, case: Case) -> Cut | None:
        """Where a case is cut, if it is large."""
        return cut_of(case) if self.device and work_of(case) > LARGE else None

    def lists(self, case: Case) -> str | None:
        """Where a case's tensors come in lists and are each other's in nothing, if it is large: on a CPU, too, for
        a model's parameters with all that belongs to them are gigabytes."""
        return cuts.list_of(case) if self.piece_bytes and work_of(case) > LARGE else None

    def formula(self, case: Case, contents: Contents, run: Run, cut: Cut) -> Formula:
        assert self.device
        rows = cuts.rows_within(case, contents, run, cut, self.device, self.piece_bytes)
        return Formula(case, contents, run, cut, rows, self.device.release_unused)


CPU = Where()
RATE_SIZE = 1024  # of the matrices by which a GPU's rates are seen
PIECE_SHARE, KEPT_SHARE = 32, 40  # of a GPU's memory: one part in so many


def where_of(device: Device, name: str) -> Where:
    """On a GPU of this name (as given to `open_device`)."""
    free = device.free_bytes()
    return Where(device.place, f"{name} {device.chip()[0]}", device, free // PIECE_SHARE, free // KEPT_SHARE)


class Means(TypedDict):
    """What a GPU has for judging: bytes that are free, and what it was seen to do a second."""

    free_bytes: int
    context_bytes: int  # that a process takes before it has a tensor: context, modules, workspaces
    flops_per_s: float  # in fp64
    bytes_per_s: float


def rates_of(device: Device) -> tuple[float, float]:
    """FLOP/s of a product in fp64, and bytes/s of a copy: cards differ by fifty in the first. Short, and so rather too
    low."""
    a = torch.ones(RATE_SIZE, RATE_SIZE, dtype=torch.float64, device=device.place)
    seconds = []
    for work in (lambda: a @ a, lambda: a.clone()):
        taken = []
        for _ in range(3):
            device.synchronize()
            start = time.perf_counter()
            work()
            device.synchronize()
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))
    return 2 * RATE_SIZE**3 / seconds[0], 2 * a.numel() * 8 / seconds[1]


def let_go(yards: "list[Yard]") -> None:
    """Of the pieces that were worked out last."""
    for yard in yards:
        if isinstance(yard.truth, Recomputed):
            yard.truth.formula.let_go()


def drawn(case: Case, where: Where = CPU) -> Values:
    """A draw of a case, where truth is worked out. Small ones come from the CPU's generator, and are the same for all
    devices; large ones come from the device's own. What forward saved is worked out there in both."""
    if where.device is None:
        return draw(case)
    p = contract.pass_of(case.module, case.phase)
    size = sum(t.bytes(case.shape) for t in p.tensors() if t in p.inputs or t.inplace or t.accumulates)

    def there(values: Values) -> Values:
        return {name: map(value, lambda x: x.to(where.place).contiguous()) for name, value in values.items()}

    def saved(values: Values, names: set[str]) -> Values:
        shape = {name: size for name, size in case.shape.items() if name != "accumulate"}
        known = values.keys() - names
        read = there({t.name: values[t.name] for t in case.module.FORWARD.tensors() if t.name in known})
        return _answer(cuts.truth, replace(case, phase="forward", shape=shape), read, where, names) or {}

    return there(draw(case, "cpu" if case.edit or size <= DRAWN_HERE else where.place, saved))


@dataclass
class Brief:
    """Everything needed to prove one case: what goes in, and what must come out."""

    case: Case
    contents: Contents
    yards: list[Yard]

    @property
    def values(self) -> Values:
        return self.contents.whole()


# --- yards ----------------------------------------------------------------------------------------------------------


def brief(case: Case, yardstick: Variant | None, where: Where = CPU) -> Brief:
    """Draw a case's inputs and work out its truth and its yards."""
    contents = Contents(case, drawn(case, where))
    return Brief(case, contents, yards_of(case, contents, yardstick, where))


def yards_of(
    case: Case,
    values: Values | Contents,
    yardstick: Variant | None,
    where: Where = CPU,
    like: list[Yard] | None = None,
) -> list[Yard]:
    """The truth of each output tensor of a case, in the contract's order, and its yard.

    With `like`, the yards of another draw of the same case, only the truth is worked out: for timed shapes, without an
    edit (which may make one draw much noisier than the next). Else the yard comes from
    the cache where this case was seen before with the same torch, formula, yardstick and rules (yards.py).
    May run in several threads at once.
    """
    if like is None:
        found = recalled(case, yardstick, where.key, len(list(_names(case))))
        if found is None:
            yards = worked_out(case, values, yardstick, where)
            remember(case, yardstick, where.key, [yard.limits for yard in yards])
            return yards
    else:
        found = [yard.limits.elsewhere() for yard in like]
    yards = _truths(case, values, where)
    return _limited(case, yards, found)


def _limited(case: Case, yards: list[Yard], found: list[Limits]) -> list[Yard]:
    return [
        replace(yard, limits=limits, alike=case.alike and yard.dtype.itemsize > 2)
        for yard, limits in zip(yards, found, strict=True)
    ]


def worked_out(case: Case, values: Values | Contents, yardstick: Variant | None, where: Where = CPU) -> list[Yard]:
    """`yards_of` without a look at what is kept."""
    yards = _truths(case, values, where)
    found = _limits(case, values, yards, yardstick, where)
    return _limited(case, yards, found)


def _contents(case: Case, values: Values | Contents) -> Contents:
    return values if isinstance(values, Contents) else Contents(case, values)


def _truths(case: Case, values: Values | Contents, where: Where = CPU) -> list[Yard]:
    """The yards of a case with their truth alone."""
    shape, contents, cut = case.shape, _contents(case, values), where.cut(case)
    work = DTYPES[shape["dtype"]]
    if cut:
        return _truths_in_pieces(case, contents, where.formula(case, contents, cuts.truth, cut), where)
    if name := where.lists(case):
        return _truths_of_lists(case, contents, name, where)
    truth = (None if where.device else _truth_in_blocks(case, contents)) or truth_of(case, contents.whole())
    yards = []
    for t, name, i in _names(case):
        part, dtype = each(truth[t.name])[i], DTYPES[t.dtype_in(shape)]
        flat = part.to(_kept_as(dtype)).reshape(-1)
        yards.append(Yard(name, flat, tuple(part.shape), dtype, work, positions=_has_positions(case, t)))
    return yards


def _has_positions(case: Case, t: contract.Tensor) -> bool:
    """Whether an output's second axis is one of positions; not of an edit's case, which has noise where it likes."""
    return case.edit is None and t.shape.split()[:2] == ["B", "T"] and len(t.shape.split()) > 2


def _truth_in_blocks(case: Case, contents: Contents) -> Values | None:
    """The truth of what is large on a CPU, a block of rows after the other: what a formula makes on its way then stays
    in the cache, where whole tensors in fp64 do not. None where that is no gain: of a small case; where one row is
    larger than a block; where there is more beside the rows (a weight) than in a block of them."""
    if work_of(case) < IN_BLOCKS or case.shape["dtype"] == "fp64" or (cut := cut_of(case)) is None:
        return None
    rows, names, shape = cut.rows(case, BLOCK), cut.names(case), case.shape
    p = contract.pass_of(case.module, case.phase)
    sizes = {t.name: math.prod(t.sizes(shape)) for t in p.tensors() if t.when(shape)}
    row = max(size for name, size in sizes.items() if name in names) // shape[cut.axis]
    if rows * row > BLOCK or sum(size for name, size in sizes.items() if name not in names) > BLOCK:
        return None
    dtypes = {t.name: DTYPES[t.dtype_in(shape)] for t, _, _ in _names(case)}
    workers = min(torch.get_num_threads(), 1 + shape[cut.axis] // rows // MANY)
    formula = Formula(case, contents, cuts.truth, cut, rows)
    return _with_old(case, contents, formula.side_by_side(lambda name: _kept_as(dtypes[name]), workers))


def _truths_of_lists(case: Case, contents: Contents, name: str, where: Where) -> list[Yard]:
    """Truth that is worked out anew, one tensor of the lists after the other."""
    p, shape = contract.pass_of(case.module, case.phase), case.shape
    dtypes = {t.name: DTYPES[t.dtype_in(shape)] for t in p.outputs if t.when(shape)}
    how = dict(held=[], block=0 if where.device else BLOCK, dtype=lambda name: _kept_as(dtypes[name]))
    element = ON_THE_WAY * sum(_kept_as(dtype).itemsize for dtype in dtypes.values())
    formulas = []
    for i, sizes in enumerate(shape[name]):
        rows = min(sizes[0], max(1, where.piece_bytes // (element * math.prod(sizes[1:]))))
        formulas.append(cuts.in_lists(case, contents, cuts.truth, name, i, rows, **how))
    yards = []
    for t, told, i in _names(case):
        dtype, sizes = dtypes[t.name], tuple(shape[name][i])
        again = Recomputed(formulas[i], t.name, _kept_as(dtype), sizes, torch.device(where.place))
        yards.append(Yard(told, again, sizes, dtype, DTYPES[shape["dtype"]]))
    return yards


def _kept_as(dtype: torch.dtype) -> torch.dtype:
    """What the truth of an output in this dtype is kept in."""
    return torch.float32 if dtype.itemsize <= 2 else torch.float64


def _truths_in_pieces(case: Case, contents: Contents, formula: Formula, where: Where) -> list[Yard]:
    """Truth that there is room for, the smallest first; the rest is worked out anew where it is needed."""
    shape = case.shape
    outputs = [t for t, _, _ in _names(case)]
    dtypes = {t.name: DTYPES[t.dtype_in(shape)] for t in outputs}
    sizes = {t.name: t.sizes(shape) for t in outputs}
    kept, room = set(), where.kept_bytes
    for name in sorted(sizes, key=lambda name: math.prod(sizes[name])):
        room -= math.prod(sizes[name]) * _kept_as(dtypes[name]).itemsize
        if name not in formula.names or room >= 0:
            kept.add(name)
    found = formula.collect(kept, lambda name: _kept_as(dtypes[name])) if kept else {}
    assert found is not None
    found = _with_old(case, contents, found)
    yards = []
    for t in outputs:
        again = Recomputed(formula, t.name, _kept_as(dtypes[t.name]), sizes[t.name], torch.device(where.place))
        truth = one(found[t.name]).to(_kept_as(dtypes[t.name])).reshape(-1) if t.name in kept else again
        yard = Yard(t.name, truth, sizes[t.name], dtypes[t.name], DTYPES[shape["dtype"]])
        yards.append(replace(yard, positions=_has_positions(case, t)))
    return yards


def _with_old(case: Case, contents: Contents, results: Values) -> Values:
    """Where gradients accumulate: the old values are added to what pieces came to."""
    outputs = [t for t in contract.pass_of(case.module, case.phase).outputs if t.accumulates and t.name in results]
    if case.accumulate and outputs:
        old = contents.rows(0, 0, contents.drawn.keys() - {t.name for t in outputs})
        results |= {t.name: one(results[t.name]) + one(old[t.name]).to(one(results[t.name]).dtype) for t in outputs}
    return results


def _answer(
    run: Run, case: Case, values: Values | Contents, where: Where = CPU, only: set[str] | None = None
) -> Values | None:
    """What a formula makes of a case, in pieces where it is large; of those outputs alone, if any are named."""
    contents, cut = _contents(case, values), where.cut(case)
    if cut is None:
        return run(case, contents.whole())
    found = where.formula(case, contents, run, cut).collect(only)
    return None if found is None else _with_old(case, contents, found)


def _names(case: Case) -> Iterator[tuple[contract.Tensor, str, int]]:
    """Each output tensor of a case: its contract, its name, and its place in the list where there are many."""
    for t in contract.pass_of(case.module, case.phase).outputs:
        if t.when(case.shape):
            for i in range(len(t.many_sizes(case.shape))):
                yield t, f"{t.name}[{i}]" if t.many else t.name, i


@dataclass
class _Sample:
    """What honest arithmetic made of one output in one draw; `one` says which arithmetic."""

    one: str
    got: torch.Tensor  # flat
    yard: Yard


def _limits(
    case: Case, values: Values | Contents, yards: list[Yard], yardstick: Variant | None, where: Where
) -> list[Limits]:
    """The yard of each output, from this draw and, where that is cheap, from further ones; of a large case on a GPU
    from some rows of it, unless an output is a sum over all of them; of large lists from some rows of each tensor."""
    if name := where.lists(case):
        return _limits_of_lists(case, _contents(case, values), name, yardstick, where)
    cut = where.cut(case)
    if cut and cut.names(case) >= {t.name for t, _, _ in _names(case)}:
        rows = cut.rows(case, YARD)
        part = replace(case, shape={**case.shape, cut.axis: rows})
        values = _contents(case, values).rows(0, rows, cut.names(case))
        small = replace(where, device=None)  # in one piece
        found = _samples(part, values, _truths(part, values, small), yardstick, small)
        return [_limits_of(samples, Limits()) for samples in found]
    samples = _samples(case, values, yards, yardstick, where)
    for n in range(1, _draws(case, yards)):
        another = replace(case, seed=(case.seed + 7919 * n) % 2**31)
        values = drawn(another, where)
        more = _samples(another, values, _truths(another, values, where), yardstick, where)
        samples = [a + b for a, b in zip(samples, more, strict=True)]
    least = _plain_noise(case, yards, yardstick, where)
    return [_limits_of(found, plain) for found, plain in zip(samples, least, strict=True)]


def _limits_of_lists(
    case: Case, contents: Contents, name: str, yardstick: Variant | None, where: Where
) -> list[Limits]:
    small = replace(where, device=None, piece_bytes=0)  # in one piece
    by_place = []
    for i, sizes in enumerate(case.shape[name]):
        rows = min(sizes[0], max(1, YARD // math.prod(sizes[1:])))
        part = replace(case, shape=cuts.only(case.shape, name, i) | {name: [(rows, *sizes[1:])]})
        alone = contents.nth(i, part)
        values = alone.rows(0, rows, {n for n, value in alone.drawn.items() if isinstance(value, list)})
        found = _samples(part, values, _truths(part, values, small), yardstick, small)
        by_place.append([_limits_of(samples, Limits()) for samples in found])
    return [limits for output in zip(*by_place, strict=True) for limits in output]


def _plain_noise(case: Case, yards: list[Yard], yardstick: Variant | None, where: Where) -> list[Limits]:
    """What torch's noise would be were it the share of the truth that it is on values without the case's edit: on
    edited ones it may be exact by luck (scores that are all equal need no rounding).

    For statistics a share of the truth's rms. For outputs in a narrow dtype of what is typical of it, and of what is
    typical of an element's own stretch, if that is more: an edit's few large elements are no licence for the others,
    and its many small ones make none of those noise. 0 for all other outputs."""
    if not (case.edit and yardstick and any(yard.dtype.itemsize == 2 or _is_statistic(yard) for yard in yards)):
        return [Limits()] * len(yards)
    shares = _plain_shares(replace(case, edit=None), yardstick, where)
    return [
        Limits(share * yard.rms)
        if _is_statistic(yard)
        else Limits(share * yard.typical if share else 0.0, beside=share)
        for share, yard in zip(shares, yards, strict=True)
    ]


_SHARES: dict[str, list[float]] = {}  # by `key_of`: a shape has many edits


def _plain_shares(plain: Case, yardstick: Variant, where: Where) -> list[float]:
    """How far off torch is on a case without an edit, as shares of the truth's rms: statistics, and outputs in a
    narrow dtype beyond their rounding; 0 for all other outputs."""
    key = key_of(plain, yardstick, where.key)
    if key not in _SHARES:
        values = drawn(plain, where)
        eager, shares = _run_eager(plain, values, yardstick, where), []
        for yard, (t, _, i) in zip(_truths(plain, values, where), _names(plain), strict=True):
            sample = _Sample("eager", each(eager[t.name])[i].reshape(-1), yard)
            off = rms_of_error if _is_statistic(yard) else beyond if yard.dtype.itemsize == 2 else None
            counts = off and yard.rms > 0 and _as_finite(sample) and not _says_nothing(sample)
            shares.append(off(sample.got, yard) / yard.rms if off and counts else 0.0)
        _SHARES[key] = shares
    return _SHARES[key]


def _is_statistic(yard: Yard) -> bool:
    """Wider than the working dtype."""
    return not yard.exact and yard.dtype.itemsize > yard.work.itemsize


def work_of(case: Case) -> float:
    """FLOPs plus bytes of a call."""
    layer, shape = case.module, case.shape
    return contract.flops(layer, shape, case.phase) + contract.min_bytes(layer, shape, case.phase)


def _draws(case: Case, yards: list[Yard]) -> int:
    fewest = min((yard.truth.numel() for yard in yards if not yard.exact), default=ENOUGH)
    wanted, most = math.ceil(ENOUGH / max(fewest, 1)), CHEAP
    if case.few_roundings and DTYPES[case.shape["dtype"]].itemsize > 2:  # the roundings of a narrow dtype are many
        wanted, most = SEEDS, WORTH
    return max(1, min(wanted, SEEDS, int(most / max(1, work_of(case)))))


def _limits_of(samples: list[_Sample], least: Limits) -> Limits:
    """The yard of one output; its noise is at least so much."""
    if any(s.yard.exact for s in samples):
        return Limits()
    # An overflow in plain torch is no licence: a sample that is not finite where the truth is says nothing.
    samples = [s for s in samples if _as_finite(s) and not _says_nothing(s)]
    noise = max((beyond(s.got, s.yard) for s in samples), default=0.0)
    noise = max(noise, least.noise, samples[0].yard.faint if samples else 0.0)
    limits = unit = Limits(noise, beside=least.beside)
    for s in samples:
        limits = replace(limits, honest=limits.honest | measure(s.got, replace(s.yard, limits=unit)))
    formula = max((rms_of_error(s.got, s.yard) for s in samples if s.one == "formula"), default=0.0)
    leaning = max((abs(lean(s.got, replace(s.yard, limits=unit))) for s in samples), default=0.0)
    return replace(limits, formula_rms=formula, lean=leaning, spans=_spans_of(samples))


def _spans_of(samples: list[_Sample]) -> tuple[Limits, ...]:
    """The yard of each stretch of positions, where their noise differs."""
    count = samples[0].yard.most_spans if samples else 0
    spans = []
    for number in range(count if count > 1 else 0):
        parts = [_Sample(s.one, s.got[a:b], y) for s in samples for a, b, y in s.yard.span(number, count)]
        spans.append(_limits_of(parts, Limits()))
    noises = [limits.noise for limits in spans]
    return tuple(spans) if spans and max(noises) > UNEVEN * min(noises) else ()


def _as_finite(sample: _Sample) -> bool:
    got, yard = sample.got, sample.yard
    return not any(
        bool(not_as_finite(got[start:stop], yard.truth[start:stop], yard.dtype).any())
        for start, stop in blocks_of(yard.truth, 1)
    )


def _says_nothing(sample: _Sample) -> bool:
    """Torch's own statistic, further off than half a unit of the working dtype."""
    yard = sample.yard
    if sample.one != "eager" or not _is_statistic(yard):
        return False
    return not rms_of_error(sample.got, yard) <= torch.finfo(yard.work).eps / 2 * yard.rms


def _samples(
    case: Case, values: Values | Contents, yards: list[Yard], yardstick: Variant | None, where: Where
) -> list[list[_Sample]]:
    """By output: the formula's, the moved truth's and torch's answer to one draw."""
    made = {"formula": _answer(_run_formula, case, values, where)}
    if (stored := _answer(_run_stored, case, values, where)) is not None:
        made["stored"] = stored
    if yardstick:
        # On a GPU that has no room for it the formula alone is the yard: a stricter one.
        with contextlib.suppress(*([torch.OutOfMemoryError] if where.device else [])):
            made["eager"] = _run_eager(case, _contents(case, values).whole(), yardstick, where)
    if work_of(case) <= DEAR or case.edit:  # whose numbers may be such that torch's own arithmetic is exact
        made["moved"] = _run_moved(case, _contents(case, values).whole())
    found = []
    for yard, (t, _, i) in zip(yards, _names(case), strict=True):
        outputs = {one: each(results[t.name])[i] for one, results in made.items() if results is not None}
        # A moved truth has arithmetic's error alone: rounding it too would count that twice.
        flat = {n: (x if n == "moved" else x.to(yard.dtype)).reshape(-1) for n, x in outputs.items()}
        found.append([_Sample(n, x, yard) for n, x in flat.items()])
    return found


def _run_eager(case: Case, values: Values, yardstick: Variant, where: Where) -> Values:
    module = yardstick.load()
    arena = Arena(case, where.place, workspace_of(module, case))
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
    with torch.no_grad():
        results = getattr(layer, case.phase)(*args, **{t.name: cast(values[t.name]) for t in p.outputs if t.inplace})
    if case.accumulate:
        for t in p.outputs:
            if t.accumulates and t.when(shape):
                results[t.name] = results[t.name] + cast(values[t.name])
    return results


class _Steps(TorchFunctionMode):
    """Counts the operators of a formula, says which results were used further on, and rounds some of them."""

    def __init__(self, rounded: dict[int, torch.dtype] | None = None):
        super().__init__()
        self.rounded = rounded or {}
        self.count = 0
        self.made: dict[int, int] = {}  # the latest step whose result has this id
        self.used: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        for arg in (*args, *(kwargs or {}).values()):
            if id(arg) in self.made:
                self.used.add(self.made[id(arg)])
        result = func(*args, **(kwargs or {}))
        if self.count in self.rounded:
            result = result.to(self.rounded[self.count]).to(result.dtype)
        self.made[id(result)] = self.count
        self.count += 1
        return result


def _run_stored(case: Case, values: Values) -> Values | None:
    """The formula, where outputs in a narrow dtype are used further on as they were handed out; None if none is."""
    dtype = DTYPES[case.shape["dtype"]]
    if dtype.itemsize > 2:
        return None
    with _Steps() as steps:
        results = _run_formula(case, values)
    made: dict[str, set[int]] = {"work": set(), "fp32": set()}
    for t in contract.pass_of(case.module, case.phase).outputs:
        for x in each(results.get(t.name)) if t.dtype in made else ():
            made[t.dtype].add(steps.made.get(id(x), -1))
    # What also comes out in fp32 (AdamW's masters) is used as that.
    narrow = (made["work"] - made["fp32"]) & steps.used
    if not narrow:
        return None
    with _Steps(dict.fromkeys(narrow, dtype)):
        return _run_formula(case, values)


def _run_moved(case: Case, values: Values) -> Values:
    """The truth after half a unit in the last place, up or down, on each element and each Python scalar."""
    eps = torch.finfo(torch.float64 if case.shape["dtype"] == "fp64" else torch.float32).eps
    gen = torch.Generator().manual_seed(case.seed)

    def move(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        sign = (torch.randint(0, 2, x.shape, generator=gen) * 2 - 1).to(x.device)
        return x.double() * (1 + sign * (eps / 2))

    def move_scalar(x: object) -> object:
        if isinstance(x, list):
            return [move_scalar(one) for one in x]
        return float(move(torch.tensor(x, dtype=torch.float64))) if isinstance(x, float) else x

    p = contract.pass_of(case.module, case.phase)
    names = (*p.scalars, *p.options_in(case.shape))
    moved = replace(case, shape=case.shape | {name: move_scalar(case.shape[name]) for name in names})
    return truth_of(moved, {name: map(value, move) for name, value in values.items()})
