"""What a right answer is: the fp64 truth of a case, and how far honest arithmetic is from it.

**One element.** An error is measured in units of what it may be: half a unit in the last place of its own value, in
its own output's dtype and in fp32 arithmetic, plus the noise of the tensor (what honest arithmetic is off beyond
rounding: where terms cancel it does not shrink with the result). `share * |truth| + noise` is that unit.

**The limit** is not set by hand: it is K times the yard, the largest error in these units of

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

**Whole outputs are compared**, by three figures, each against the yard's: the rms over all elements, the rms of the
worst stretch (some 128 to 1024 neighbours: a row, where rows are of that length), and the largest error. The last one
alone is noisy, so an element may be K_ONE, not K, times the largest (docs/false_alarms.md says how seldom an honest
variant meets these limits); so may all in fp32, where a structured case makes them all by one operation
(contract.alike): there is one error then, however many elements have it, and torch's may be nothing by luck. Where the
truth is not finite the same must come out, and nowhere else anything not finite, unless the truth rounds to infinity in
the output's dtype.

Truth is kept in fp64 for outputs in fp32 and fp64. For narrower outputs it is kept in fp32: its rounding is at most
2^-12 of half a unit of theirs.

**Whole numbers are compared exactly**: an index, or a value in int8, is the truth's or it is wrong. That rounding
decides none of them is for the contract to see to (`settle`), which tests hold to the formula in fp32.

**On a GPU** all of this happens there (`Where`). What is large is worked out in pieces (cuts.py), and truth that is
too large to keep is worked out anew while it is compared. The yard of a large shape comes from a piece of it; where an
output is a sum over all pieces, from the whole. Every element is compared in both.
"""

import contextlib
import functools
import hashlib
import inspect
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch.overrides import TorchFunctionMode

from bench.core import files, onepass
from bench.core.arena import Arena, workspace_of
from bench.core.case import DTYPES, Case, Value, Values, draw, each, map, one, scalars, truth_of
from bench.core.contents import Contents
from bench.core.variants import Variant
from bench.machine import facts
from bench.machine.devices import Device
from bench.trial import cuts
from bench.trial.cuts import Cut, Formula, Recomputed, Run, cut_of
from kernels import cache_dir
from reference import contract

K = 4.0  # an error may be this many times the yard's
K_ONE = 8.0  # the largest error of one element may be this many times the yard's largest
FLOOR_ALL = 0.5  # units that the yard is at least: the rms of a value rounded correctly is 0.4,
FLOOR_ONE = 1.0  # and its largest error 1; …
FLOOR_ALIKE = (
    4.0  # … one that all elements have: K_ONE times that are some thirty units in the last place of fp32. Vector
)
# libraries have exponentials that are good to twenty (PyTorch's own flash attention uses one), and make sums of many.
ANOTHER_DRAW = 1.5  # the noise of one draw may be this many times that of another
SANE = 0.05  # and nobody, torch included, may be off by more than this share of the truth's rms
NOTHING = 1e-6  # a truth this small, from inputs of size one, is all cancellation: no share of it can be asked for
DEAR = 1e9  # FLOPs plus bytes of a case whose truth is not worked out a second time, with moved inputs
CHEAP = 2e7  # FLOPs plus bytes that all seeds of a case may cost
WORTH = 2e8  # … where many elements are no help, for they share few roundings
SEEDS, ENOUGH = 8, 256  # seeds that are drawn, until so many elements were seen of each output
NORMAL_MEDIAN = 0.6745  # of magnitudes, as a share of their rms, where they are normally distributed
SHORT, LONG = 128, 1024  # elements of a stretch
BLOCK = 32_000  # elements compared at once: they stay in the cache, and torch keeps to one thread for so few
DEVICE_BLOCK = 1 << 25  # … and on a GPU, where a launch and a look at its result cost more than a pass
LARGE = 1e9  # FLOPs plus bytes from which a GPU works in pieces, …
IN_BLOCKS = 1e7  # … and a CPU in blocks, where it can
YARD = 1 << 22  # elements of the piece that the yard of a large shape comes from
ON_THE_WAY = 3  # times its truth that a piece of lists takes
DRAWN_HERE = 16 << 20  # bytes of inputs up to which the CPU draws them for a GPU: the same for both
MANY = 16  # blocks from which another thread is worth its start
KEPT = 4096  # yards kept on disk, at most


@dataclass(frozen=True)
class Size:
    """How large the errors of an output are, in units of what each may be."""

    one: float = 0.0  # the largest
    stretch: float = 0.0  # rms of the worst stretch
    all: float = 0.0  # rms
    absolute: float = 0.0  # the largest, not in units

    def __or__(self, other: "Size") -> "Size":
        """The larger of each."""
        return Size(*(max(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Limits:
    """What the yard says of one output, without its truth: the same for all draws of a case."""

    noise: float = 0.0  # absolute: what honest arithmetic is off beyond rounding
    honest: Size = Size()
    formula_rms: float = 0.0  # absolute: of the reference in fp32
    beside: float = 0.0  # noise again, as a share of what is typical of an element's own stretch

    def elsewhere(self) -> "Limits":
        """For another draw of the same case, which may be as much noisier."""
        absolute = self.honest.absolute * ANOTHER_DRAW
        return replace(self, noise=self.noise * ANOTHER_DRAW, honest=replace(self.honest, absolute=absolute))


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
class Yard:
    """Truth of one output tensor and the errors that honest arithmetic makes against it."""

    name: str
    truth: torch.Tensor | Recomputed  # flat, fp64 or fp32
    sizes: tuple[int, ...]
    dtype: torch.dtype  # the output's own
    work: torch.dtype  # the case's working dtype
    limits: Limits = Limits()
    alike: bool = False  # one operation made all elements, and no rounding to a narrow dtype hides its error

    @property
    def exact(self) -> bool:
        """Of whole numbers: nothing but the truth will do."""
        return not self.dtype.is_floating_point

    @property
    def share(self) -> float:
        """The unit of an error, as a share of the element's value."""
        arithmetic = torch.float64 if self.work == torch.float64 else torch.float32
        return (torch.finfo(self.dtype).eps + torch.finfo(arithmetic).eps) / 2

    @property
    def noise(self) -> float:
        """What every error may be: at least the smallest number of the dtype, or of fp32, which may be flushed to 0."""
        info = torch.finfo(self.dtype)
        return self.limits.noise + max(info.smallest_normal * info.eps, torch.finfo(torch.float32).tiny)

    @property
    def faint(self) -> float:
        """What is lost beside the rest of the tensor, and may be off where all that were drawn happen to be exact: an
        ulp of fp32 arithmetic at the rms for narrow outputs (whose rounding hides it), else at a thousandth of that."""
        arithmetic = torch.float64 if self.work == torch.float64 else torch.float32
        return torch.finfo(arithmetic).eps * self.rms * (1.0 if self.dtype.itemsize == 2 else 1e-3)

    @property
    def allowed(self) -> Size:
        """How large errors may be."""
        honest, largest, count = self.limits.honest, self.share * self.peak + self.noise, len(self.truth)
        floor = FLOOR_ALIKE if self.alike else FLOOR_ONE
        one = K_ONE * max(honest.one, floor)
        # Of few elements the rms is as noisy as the largest: one that may be so far off must not fail it. Elements that
        # are all one operation's are few, however many they are.
        count = min(count, 1) if self.alike else count
        alone = one / math.sqrt(count) if 0 < count < SHORT else 0.0
        return Size(
            one,
            max(alone, K * max(honest.stretch, FLOOR_ALL)),
            max(alone, K * max(honest.all, FLOOR_ALL)),
            K_ONE * max(honest.absolute, floor * largest),
        )

    def look(self) -> None:
        """Work out beforehand what is asked of the truth of each call that is judged."""
        if not self.exact and not isinstance(self.truth, Recomputed):
            _ = self.rms, self.peak

    @functools.cached_property
    def rms(self) -> float:
        """Of the truth, where it is finite."""
        return self.truth.rms_and_peak[0] if isinstance(self.truth, Recomputed) else _rms(self.truth)

    @functools.cached_property
    def typical(self) -> float:
        """The rms as the median tells it, which few large elements do not move. No more than the rms."""
        assert isinstance(self.truth, torch.Tensor)
        finite = self.truth[self.truth.isfinite()].abs()
        return min(self.rms, float(finite.median()) / NORMAL_MEDIAN) if len(finite) else 0.0

    @functools.cached_property
    def peak(self) -> float:
        """The largest magnitude of the truth, where it is finite."""
        if isinstance(self.truth, Recomputed):
            return self.truth.rms_and_peak[1]
        parts = (self.truth[start:stop].abs().nan_to_num_(0.0, 0.0, 0.0) for start, stop in _blocks(self.truth, 1))
        return max((float(part.amax()) for part in parts), default=0.0)


@dataclass
class Brief:
    """Everything needed to prove one case: what goes in, and what must come out."""

    case: Case
    contents: Contents
    yards: list[Yard]

    @property
    def values(self) -> Values:
        return self.contents.whole()


@dataclass
class Finding:
    """How one output compares: `ratio` is the error in units of the yard's; it passes up to K."""

    name: str
    ratio: float
    evidence: str = ""
    check: str = "ok"  # or the name of the check that failed: not_finite, inaccurate


# --- yards -----------------------------------------------------------------------------------------------------


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
    the cache where this case was seen before with the same torch, formula, yardstick and rules (this file).
    May run in several threads at once.
    """
    if like is None:
        found = _recalled(case, yardstick, where.key)
        if found is None:
            yards = worked_out(case, values, yardstick, where)
            _remember(case, yardstick, where.key, [yard.limits for yard in yards])
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
        yards.append(Yard(name, part.to(_kept_as(dtype)).reshape(-1), tuple(part.shape), dtype, work))
    return yards


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
        yards.append(Yard(t.name, truth, sizes[t.name], dtypes[t.name], DTYPES[shape["dtype"]]))
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


_SHARES: dict[str, list[float]] = {}  # by `_key`: a shape has many edits


def _plain_shares(plain: Case, yardstick: Variant, where: Where) -> list[float]:
    """How far off torch is on a case without an edit, as shares of the truth's rms: statistics, and outputs in a
    narrow dtype beyond their rounding; 0 for all other outputs."""
    key = _key(plain, yardstick, where.key)
    if key not in _SHARES:
        values = drawn(plain, where)
        eager, shares = _run_eager(plain, values, yardstick, where), []
        for yard, (t, _, i) in zip(_truths(plain, values, where), _names(plain), strict=True):
            sample = _Sample("eager", each(eager[t.name])[i].reshape(-1), yard)
            off = _rms_error if _is_statistic(yard) else _beyond if yard.dtype.itemsize == 2 else None
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
    noise = max((_beyond(s.got, s.yard) for s in samples), default=0.0)
    noise = max(noise, least.noise, samples[0].yard.faint if samples else 0.0)
    limits = unit = Limits(noise, beside=least.beside)
    for s in samples:
        limits = replace(limits, honest=limits.honest | measure(s.got, replace(s.yard, limits=unit)))
    formula = max((_rms_error(s.got, s.yard) for s in samples if s.one == "formula"), default=0.0)
    return replace(limits, formula_rms=formula)


def _as_finite(sample: _Sample) -> bool:
    got, yard = sample.got, sample.yard
    return not any(
        bool(_not_as_finite(got[start:stop], yard.truth[start:stop], yard.dtype).any())
        for start, stop in _blocks(yard.truth, 1)
    )


def _says_nothing(sample: _Sample) -> bool:
    """Torch's own statistic, further off than half a unit of the working dtype."""
    yard = sample.yard
    if sample.one != "eager" or not _is_statistic(yard):
        return False
    return not _rms_error(sample.got, yard) <= torch.finfo(yard.work).eps / 2 * yard.rms


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
    if work_of(case) <= DEAR:
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


# --- yards on disk ---------------------------------------------------------------------------------------------

_YARDS = threading.RLock()  # on disk, and what is known of them


def _file(case: Case) -> Path:
    return cache_dir() / "yards" / f"{case.layer}.jsonl"


def _key(case: Case, yardstick: Variant | None, device: str) -> str:
    """Of all that a yard depends on."""
    parts = (
        *(case.layer, case.phase, case.shape, case.edit, case.seed),
        *(torch.__version__, torch.backends.cpu.get_cpu_capability(), device),
        *facts.library_settings(),
        *(yardstick.source_hash() if yardstick else None, _sources()),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _sources() -> str:
    """Hash of what defines truths and yards: this file, how cases are drawn and cut, the formulas."""
    digest = hashlib.sha256()
    for path in (
        Path(__file__),
        Path(cuts.__file__),
        Path(inspect.getfile(Case)),
        *sorted(Path(contract.__file__).parent.glob("*.py")),
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class _Read:
    """What a file was found to hold, and how far it was read."""

    inode: int
    end: int = 0
    entries: dict[str, Any] = field(default_factory=dict)


_READ: dict[Path, _Read] = {}


def _entries(file: Path) -> dict[str, Any]:
    """What a file holds, a line an entry; of one that grew what is new is read. What is no entry is left out."""
    try:
        with file.open("rb") as lines:
            found = os.fstat(lines.fileno())
            read = _READ.get(file)
            if read is None or read.inode != found.st_ino or read.end > found.st_size:
                read = _READ[file] = _Read(found.st_ino)
            lines.seek(read.end)
            whole, _, _ = lines.read(found.st_size - read.end).rpartition(b"\n")
    except OSError:
        return {}
    read.end += len(whole) + bool(whole)
    for line in whole.splitlines():
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            key, entry = json.loads(line)
            read.entries[key] = entry
    return read.entries


def _recalled(case: Case, yardstick: Variant | None, device: str) -> list[Limits] | None:
    """What an earlier run found, or None; an entry that is not whole counts as none."""
    with _YARDS:
        entry = _entries(_file(case)).get(_key(case, yardstick, device))
    try:
        found = [
            Limits(float(noise), Size(*(float(x) for x in size)), float(formula), float(beside))
            for noise, size, formula, beside in entry or []
        ]
    except (TypeError, ValueError):
        return None
    return found if len(found) == len(list(_names(case))) else None


def _remember(case: Case, yardstick: Variant | None, device: str, found: list[Limits]) -> None:
    """Keep what was found for later runs. A cache that cannot be written costs time, not the run."""
    entry = [(limits.noise, astuple(limits.honest), limits.formula_rms, limits.beside) for limits in found]
    key = _key(case, yardstick, device)
    with _YARDS, contextlib.suppress(OSError):
        file = _file(case)
        entries = _entries(file)
        if len(entries) >= KEPT:  # half of them go, so that a file is seldom written anew
            newest = [*list(entries.items())[-(KEPT // 2) :], (key, entry)]
            files.put(file, b"".join(_line(*line) for line in newest))
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        # One write at the end of the file: several processes have their lines there whole.
        with file.open("ab", buffering=0) as lines:
            lines.write(_line(key, entry))


def _line(key: str, entry: object) -> bytes:
    return json.dumps([key, entry]).encode() + b"\n"


# --- the comparison --------------------------------------------------------------------------------------------


def judge(got: torch.Tensor, yard: Yard, sane: bool = True) -> Finding:
    """Compare one output, every element of it. Not finite, or further off than K yards, is evidence against it.

    `sane` also asks for an error that is small beside the truth, whatever plain torch's may be. A structured case is
    made to be ill-conditioned, and is not asked.
    """
    if yard.exact:
        return _judge_exactly(got, yard)
    flat, most = got.detach().to(yard.truth.device).reshape(-1), yard.allowed
    size = measure(flat, yard, most.absolute)
    if size.one == math.inf and (wrong := _all_not_as_finite(flat, yard)).any():
        return Finding(yard.name, math.inf, _not_finite(flat, yard, wrong), "not_finite")
    ratios = Size(*(K * a / b for a, b in zip(astuple(size), astuple(most), strict=True)))
    ratios = replace(ratios, absolute=ratios.absolute if size.absolute > most.absolute else 0.0)
    finding = Finding(yard.name, max(astuple(ratios)))
    if not finding.ratio <= K:
        return replace(finding, evidence=_inaccurate(flat, yard, ratios), check="inaccurate")
    # The error is worked out only where this bound on it does not settle the matter.
    allowed = max(SANE * yard.rms, K * yard.limits.formula_rms)
    if sane and yard.rms > NOTHING and size.one * (yard.share * yard.rms + yard.noise) > allowed:
        rms_error = _rms_error(flat, yard)
        if not rms_error <= allowed:
            share = f"{rms_error / yard.rms:.0%} of the truth's rms {yard.rms:.2g}"
            return replace(finding, evidence=f"{yard.name}: rms error {rms_error:.2g} is {share}", check="inaccurate")
    return finding


def _judge_exactly(got: torch.Tensor, yard: Yard) -> Finding:
    """Whole numbers: each is the truth's."""
    flat = got.detach().to(yard.truth.device).reshape(-1)
    wrong = torch.cat(
        [flat[a:b] != yard.truth[a:b].to(yard.dtype) for a, b in _blocks(yard.truth, 1)] or [flat != flat]
    )
    if not bool(wrong.any()):
        return Finding(yard.name, 0.0)
    first = _first(wrong)
    told = f"{int(flat[first])} instead of {int(yard.truth[first])} at {_index(first, yard.sizes)}"
    share = f"{int(wrong.sum())} of {len(wrong)} whole numbers are wrong"
    where = common(wrong.view(yard.sizes)) if len(wrong) > 1 else ""
    return Finding(yard.name, math.inf, f"{yard.name}: {share}, the first {told}{where}", "inaccurate")


def measure(flat: torch.Tensor, yard: Yard, small: float = 0.0) -> Size:
    """How large the errors of a flat output are, each in units of what it may be; infinite where it is not as finite
    as the truth. An absolute error that cannot exceed `small` is not worked out: that bound stands for it.

    A block at a time; a large output in as many threads as torch has, and on a CPU in one pass where that can be.
    """
    count, length = len(flat), _stretch(yard.sizes)
    if not count:
        return Size()
    if size := _measured_at_once(flat, yard, length):
        return size
    largest_unit = (yard.share + yard.limits.beside / NORMAL_MEDIAN) * yard.peak + yard.noise

    def part(blocks: list[tuple[int, int]]) -> list[float]:
        one = stretch = total = absolute = 0.0
        for start, stop in blocks:
            got, truth = flat[start:stop], yard.truth[start:stop]
            squares, most = _squares(got, truth, yard, length)
            bound = math.sqrt(most) * largest_unit
            one, absolute = max(one, most), max(absolute, bound if bound < small else _absolute(got, truth, yard))
            whole = len(squares) // length * length
            if whole:
                sums = squares[:whole].view(-1, length).sum(-1)
                stretch, total = max(stretch, float(sums.amax())), total + float(sums.sum())
            if whole < len(squares):  # the end: as a stretch of the same length
                total += float(squares[whole:].sum())
                first = max(0, count - length)
                last, _ = _squares(flat[first:], yard.truth[first:], yard, length)
                stretch = max(stretch, float(last.mean()) * length)
        return [one, stretch, total, absolute]

    blocks = list(_blocks(yard.truth, length))
    alone = isinstance(yard.truth, Recomputed) or yard.truth.device.type != "cpu"
    workers = 1 if alone else min(torch.get_num_threads(), 1 + len(blocks) // MANY)
    if workers == 1:
        found = [part(blocks)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(part, [blocks[i::workers] for i in range(workers)]))
    one, stretch, total, absolute = zip(*found, strict=True)
    return Size(math.sqrt(max(one)), math.sqrt(max(stretch) / length), math.sqrt(sum(total) / count), max(absolute))


def _measured_at_once(flat: torch.Tensor, yard: Yard, length: int) -> Size | None:
    """`measure` in one pass over memory; None where that cannot be, or not everything is finite."""
    count, whole = len(flat), len(flat) // length * length
    if isinstance(yard.truth, Recomputed) or yard.limits.beside:
        return None
    found = onepass.errors(flat[:whole], yard.truth[:whole], yard.share, yard.noise, length)
    if found is None:
        return None
    one, stretch, total, absolute = found
    if whole < count:  # the end: as a stretch of the same length
        end, truth = flat[count - length :], yard.truth[count - length :]
        last, most = _squares(end, truth, yard, length)
        one, absolute = max(one, most), max(absolute, _absolute(end, truth, yard))
        stretch, total = max(stretch, float(last.mean()) * length), total + float(last[whole - count :].sum())
    return Size(math.sqrt(one), math.sqrt(stretch / length), math.sqrt(total / count), absolute)


def _squares(got: torch.Tensor, truth: torch.Tensor, yard: Yard, length: int) -> tuple[torch.Tensor, float]:
    """Of errors, each in units of what it may be; and the largest of them. length: of a stretch."""
    unit = truth.abs().mul_(yard.share).add_(yard.noise)
    if yard.limits.beside:
        unit += yard.limits.beside * _typical_beside(truth, length)
    squares = (got - truth).div_(unit).square_()
    most = float(squares.amax())
    if not most < math.inf:  # NaN neither
        squares = _settled(squares, got, truth, yard.dtype)
        most = float(squares.amax())
    return squares, most


def _typical_beside(truth: torch.Tensor, length: int) -> torch.Tensor:
    """For each element the rms of its stretch, as the median tells it; the end is a stretch, too."""
    finite, whole = truth.abs().nan_to_num_(0.0, 0.0, 0.0), len(truth) // length * length
    stretches = [finite[:whole].view(-1, length), finite[whole:].view(1, -1)]
    typical = [x.median(-1, keepdim=True).values.expand_as(x).reshape(-1) for x in stretches if x.numel()]
    return torch.cat(typical) / NORMAL_MEDIAN


def _absolute(got: torch.Tensor, truth: torch.Tensor, yard: Yard) -> float:
    """The largest error."""
    error = got - truth
    largest = float(error.abs().amax())
    return largest if largest < math.inf else float(_settled(error, got, truth, yard.dtype).abs_().amax())


def _settled(error: torch.Tensor, got: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """No error where both are the same and not finite, infinity where only one is."""
    error = error.masked_fill(~(got.isfinite() & truth.isfinite()), 0.0)
    return error.masked_fill_(_not_as_finite(got, truth, dtype), math.inf)


def _not_as_finite(got: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Where one is finite and the other is not, or both are not, in different ways. A finite truth that rounds to
    infinity in the output's dtype may come out as that."""
    same = (got.isnan() & truth.isnan()) | (got == truth) | (got.isinf() & (got == truth.to(dtype)))
    return ~(got.isfinite() & truth.isfinite()) & ~same


def _all_not_as_finite(flat: torch.Tensor, yard: Yard) -> torch.Tensor:
    blocks = _blocks(yard.truth, 1)
    return torch.cat([_not_as_finite(flat[a:b], yard.truth[a:b], yard.dtype) for a, b in blocks])


def _beyond(flat: torch.Tensor, yard: Yard) -> float:
    """What the errors are beyond a share of their own elements: the rms, or a quarter of the largest. A normal
    distribution's largest of many is some four times its rms; where few elements are much noisier than the rest
    (attention's first row, a tail of GELU) the rms would hide them, and the next draw show them."""
    total = most = 0.0
    for start, stop in _blocks(flat, 1):
        truth = yard.truth[start:stop]
        error = (flat[start:stop] - truth).abs_().sub_(truth.abs(), alpha=yard.share).clamp_(min=0)
        error = error.double().nan_to_num_(0.0, 0.0, 0.0)
        total, most = total + float(error.square().sum()), max(most, float(error.amax()))
    return max(math.sqrt(total / max(len(flat), 1)), most / 4)


def _rms_error(flat: torch.Tensor, yard: Yard) -> float:
    """The rms of the difference, where both are finite."""
    total = 0.0
    for start, stop in _blocks(flat, 1):
        error = flat[start:stop].double().sub_(yard.truth[start:stop])
        total += float(error.nan_to_num_(0.0, 0.0, 0.0).square_().sum())
    return math.sqrt(total / max(len(flat), 1))


def _rms(flat: torch.Tensor) -> float:
    """Of the finite elements."""
    total, count = 0.0, 0
    for start, stop in _blocks(flat, 1):
        part = flat[start:stop].double()
        squares = part.square()
        if not float(squares.sum()) < math.inf:
            squares = squares[part.isfinite()]
        total, count = total + float(squares.sum()), count + len(squares)
    return math.sqrt(total / max(count, 1))


def _blocks(flat: torch.Tensor | Recomputed, length: int) -> Iterator[tuple[int, int]]:
    """Ranges of about BLOCK elements (on a GPU DEVICE_BLOCK), all but the last whole stretches."""
    count = len(flat)
    step = max(1, (BLOCK if flat.device.type == "cpu" else DEVICE_BLOCK) // length) * length
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _stretch(sizes: tuple[int, ...]) -> int:
    """Elements of a stretch: some whole rows, or a piece of a long one."""
    row = max(1, sizes[-1]) if sizes else 1
    return min(max(1, math.prod(sizes)), row * math.ceil(SHORT / row) if row <= LONG else LONG // 4)


# --- evidence --------------------------------------------------------------------------------------------------


def _not_finite(flat: torch.Tensor, yard: Yard, wrong: torch.Tensor) -> str:
    first = _first(wrong)
    share, where = int(wrong.sum()) / len(wrong), f"first at {_index(first, yard.sizes)}"
    common_to_all = common(wrong.view(yard.sizes))
    if not bool((wrong & ~flat.isfinite()).any()):  # where the truth is NaN or infinite
        told = f"{flat[first]:.6g} instead of {yard.truth[first]:.6g}"
        return (
            f"{yard.name} is finite where the truth is not finite, in {share:.0%} of it, {where}: {told}{common_to_all}"
        )
    return f"{yard.name} is not finite in {share:.0%} of it, {where}{common_to_all}"


def _inaccurate(flat: torch.Tensor, yard: Yard, ratios: Size) -> str:
    """The worst element, and what those that are too far off have in common; or the worst stretch."""
    allowed, length = yard.allowed, _stretch(yard.sizes)
    worst, at, first, largest, too_far = -1.0, 0, 0, 0.0, []
    for start, stop in _blocks(yard.truth, length):
        units = _squares(flat[start:stop], yard.truth[start:stop], yard, length)[0].sqrt_()
        error = (flat[start:stop] - yard.truth[start:stop]).abs_()
        too_far.append((units > allowed.one).logical_or_(error > allowed.absolute))
        if float(units.max()) > worst:
            worst, at = float(units.max()), start + int(units.argmax())
        whole = len(units) // length * length
        squares = units.square()
        sums = torch.cat([squares[:whole].view(-1, length).sum(-1), squares[whole:].sum(0, keepdim=True)])
        if float(sums.max()) > largest:
            largest, first = float(sums.max()), start + length * int(sums.argmax())
    evidence = (
        f"{yard.name}: rms error {_rms_error(flat, yard):.2g}, {max(astuple(ratios)):.3g}x plain torch's, "
        f"limit {K:g}x; worst at {_index(at, yard.sizes)}: {flat[at]:.6g} instead of {yard.truth[at]:.6g}"
    )
    if max(ratios.one, ratios.absolute) > K:
        return evidence + pattern(torch.cat(too_far), yard)
    if ratios.all > K:
        return f"{evidence}; small errors all over it"
    last = min(first + length, len(flat)) - 1
    return f"{evidence}; small errors all over {_index(first, yard.sizes)} to {_index(last, yard.sizes)}"


def pattern(wrong: torch.Tensor, yard: Yard) -> str:
    """Where the wrong elements lie, in words: how many, the first, and what they have in common. wrong: flat."""
    count = int(wrong.sum())
    if not count or count == len(wrong):
        return ""
    first = _index(_first(wrong), yard.sizes)
    return f"; {count} of {len(wrong)} are off, the first at {first}{common(wrong.view(yard.sizes))}"


def survivors(left: torch.Tensor) -> str:
    """Where the poison is that a call left in an output, in words; left: True where it is, in the output's shape."""
    count, total = int(left.sum()), left.numel()
    if count == total:
        return "100%"
    first = _index(_first(left), tuple(left.shape))
    return f"{count} of {total} elements, the first at {first}{common(left)},"


def common(which: torch.Tensor) -> str:
    """What the True elements of a tensor have in common along each axis: ", only the last 3 of axis 1"."""
    found = []
    for axis, size in enumerate(which.shape):
        others = [a for a in range(which.dim()) if a != axis]
        along = which.any(dim=others) if others else which
        found.append(_along(axis, along.nonzero().flatten(), size))
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


def _first(which: torch.Tensor) -> int:
    """The flat place of the first True. Not of a list of all: where all of a large output is wrong that has eight bytes
    for each of its elements, on a card that others fill."""
    return int(which.reshape(-1).view(torch.uint8).argmax())


def _index(flat: int, sizes: tuple[int, ...]) -> list[int]:
    index = []
    for size in reversed(sizes):
        flat, rest = divmod(flat, size)
        index.append(rest)
    return index[::-1]
