"""A formula on one piece of a shape after the other: what a shape of gigabytes needs in fp64 fits no device.

A shape is cut along the first of its long axes (`contract.LONG`) that leads every tensor that has it: the batch, or
rows. An output that has the axis comes in pieces; one that has not is a sum over it, and the pieces' are added. Whether
that is so of a layer is not believed but tried, on a small shape (`cut_of`): a formula of which it is not so is worked
out in one piece. A layer over lists of tensors (an optimiser) is cut into the tensors of its lists, and those along
their first axis, where that is so (`list_of`).
"""

import functools
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch

from bench.core.case import Case, Value, Values, draw, each, one, run_truth
from bench.core.contents import Contents
from bench.machine.devices import Device
from reference import contract
from reference.contract import Pass, Shape

Run = Callable[[Case, Values], Values | None]  # a formula: its outputs of a case; None where it has nothing to say
LEAST = 1 << 20  # elements of the largest tensor of the piece by which memory is measured
TRIED = 1 << 14  # elements of the shape on which cutting is tried
TOLERANCE = 1e-9  # relative: sums in fp64 in another order


@dataclass(frozen=True)
class Cut:
    """Where a shape may be cut: along this axis, after whole granules (rows of a causal mask belong together)."""

    axis: str
    granule: int = 1

    def names(self, case: Case) -> set[str]:
        """The tensors that have the axis."""
        p = contract.pass_of(case.module, case.phase)
        return {t.name for t in p.tensors() if not t.many and t.shape.split()[:1] == [self.axis]}

    def rows(self, case: Case, elements: int) -> int:
        """As many whole granules as hold no more elements in the largest tensor, and one at least."""
        p = contract.pass_of(case.module, case.phase)
        most = max(math.prod(t.sizes(case.shape)) for t in p.tensors() if t.name in self.names(case))
        total = case.shape[self.axis]
        granules = max(1, elements * total // max(1, most) // self.granule)
        return min(total, granules * self.granule)


def cut_of(case: Case) -> Cut | None:
    """Where the formula of a case may be cut; None where nowhere."""
    return _cut_of(case.layer, case.phase, json.dumps(case.shape, sort_keys=True))


@functools.lru_cache(maxsize=256)
def _cut_of(layer: str, phase: str, told: str) -> Cut | None:
    module, shape = contract.load(layer), json.loads(told)
    p = contract.pass_of(module, phase)
    for axis in getattr(module, "LONG", contract.LONG):
        if axis not in shape or axis in p.scalars or not _leads(p, shape, axis):
            continue
        others = {s for t in p.tensors() if axis in t.shape.split() for s in t.shape.split()[1:] if s in shape}
        for symbol in (None, *sorted(others)):
            granule = shape[symbol] if symbol else 1
            if _holds(module, layer, phase, shape, Cut(axis, granule), symbol):
                return Cut(axis, granule)
    return None


def list_of(case: Case) -> str | None:
    """The name in the shape of the lists' sizes, where each tensor that comes out is made of those at its own place in
    the lists, row by row; None where that is not so."""
    return _list_of(case.layer, case.phase, json.dumps(case.shape, sort_keys=True))


@functools.lru_cache(maxsize=256)
def _list_of(layer: str, phase: str, told: str) -> str | None:
    module, shape = contract.load(layer), json.loads(told)
    p = contract.pass_of(module, phase)
    names = {t.shape for t in p.tensors() if t.many}
    if len(names) != 1 or not all(t.many for t in p.outputs) or hasattr(module, "settle"):
        return None
    (name,) = names
    if not all(shape[name]):  # a tensor without axes
        return None
    count = len(shape[name])
    few = sorted({0, count // 3, 2 * count // 3, count - 1})
    small = only(shape, name, *few)
    small[name] = [(5, 3), (7,), (4, 2, 2), (6,)][: len(few)]
    case = Case(layer, phase, small, "cut")
    contents = Contents(case, draw(case), seed=1)
    whole = truth(case, contents.whole())
    for i in range(len(few)):
        for start, stop, found in in_lists(case, contents, truth, name, i, 2).pieces():
            assert found is not None
            if not all(torch.equal(one(x), each(whole[out])[i][start:stop]) for out, x in found.items()):
                return None
    return name


def only(shape: Shape, name: str, *places: int) -> Shape:
    """The shape of lists that have these places alone; so have a shape's own lists of numbers, one a tensor."""
    count = len(shape[name])
    return {
        key: [value[i] for i in places] if isinstance(value, list) and len(value) == count else value
        for key, value in shape.items()
    }


def in_lists(case: Case, contents: Contents, run: Run, name: str, i: int, rows: int, **how: Any) -> "OfLists":
    """The formula of the i-th tensor of each list, so many rows at a time. how: as `OfLists` has it."""
    alone = replace(case, shape=only(case.shape, name, i))
    return OfLists(alone, contents.nth(i, alone), run, Cut(name), rows, **how)


def _leads(p: Pass, shape: Shape, axis: str) -> bool:
    """Whether the axis is the first of each tensor that has it, and of an input."""
    if any(t.many for t in p.tensors()):
        return False
    having = [t for t in p.tensors() if t.when(shape) and axis in re.split(r"[ *]", t.shape)]
    alone = all(t.shape.split()[0] == axis and re.split(r"[ *]", t.shape).count(axis) == 1 for t in having)
    return alone and any(t in having for t in p.inputs + tuple(t for t in p.outputs if t.inplace))


def _holds(module: ModuleType, layer: str, phase: str, shape: Shape, cut: Cut, symbol: str | None) -> bool:
    """Whether three granules of a small shape give the same in one piece and in two."""
    small = contract.sliced(module, shape, TRIED)
    if symbol:
        small[symbol] = cut.granule
    small[cut.axis] = 3 * cut.granule
    small.pop("accumulate", None)
    if contract.min_bytes(module, small, phase) > 1 << 28:
        return False
    case = Case(layer, phase, small, "cut")
    contents = Contents(case, draw(case))
    whole = truth(case, contents.whole())
    cut_up = Formula(case, contents, truth, cut, 2 * cut.granule).collect()
    assert cut_up is not None
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(b.abs().amax()))
        for name, value in whole.items()
        for a, b in zip(each(cut_up[name]), each(value), strict=True)
        if b.numel()
    )


def truth(case: Case, values: Values) -> Values:
    """The reference in fp64, without what gradients are added to."""
    return run_truth(case.module, case.phase, values, case.shape)


@dataclass
class Formula:
    """What a formula makes of contents, so many rows at a time. The last piece is kept."""

    case: Case
    contents: Contents
    run: Run
    cut: Cut
    rows: int
    release: Callable[[], None] = lambda: None  # memory that is kept for later

    def __post_init__(self) -> None:
        self.names = self.cut.names(self.case)
        self.total: int = self.case.shape[self.cut.axis]
        self._last: tuple[int, Values | None] | None = None

    def piece(self, number: int) -> Values | None:
        if self._last is None or self._last[0] != number:
            self._last = None  # its memory first
            start = number * self.rows
            self._last = number, self.between(start, min(start + self.rows, self.total))
        return self._last[1]

    def let_go(self) -> None:
        self._last = None

    def between(self, start: int, stop: int) -> Values | None:
        """Some rows; in two halves where that takes more memory than there is."""
        shape = {**self.case.shape, self.cut.axis: stop - start}
        case = replace(self.case, shape=shape | ({"accumulate": False} if self.case.accumulate else {}))
        if stop - start <= self.cut.granule:
            return self.run(case, self.contents.rows(start, stop, self.names))
        try:
            return self.run(case, self.contents.rows(start, stop, self.names))
        except torch.OutOfMemoryError:
            pass  # what it held is let go with the error
        self.release()
        middle = start + max(1, (stop - start) // 2 // self.cut.granule) * self.cut.granule
        one_half, other = self.between(start, middle), self.between(middle, stop)
        return None if one_half is None or other is None else self._joined(one_half, other)

    def _joined(self, a: Values, b: Values) -> Values:
        return {
            name: torch.cat([one(a[name]), one(b[name])]) if name in self.names else _added(a[name], b[name])
            for name in a
        }

    def pieces(self) -> Iterator[tuple[int, int, Values | None]]:
        for number in range(-(-self.total // self.rows)):
            start = number * self.rows
            yield start, min(start + self.rows, self.total), self.piece(number)

    def collect(
        self, only: Collection[str] | None = None, dtype: Callable[[str], torch.dtype | None] = lambda _: None
    ) -> Values | None:
        """The outputs of these names, put together, in a dtype of their own; None where the formula says nothing."""
        made: Values = {}
        for start, stop, found in self.pieces():
            if found is None:
                return None
            for name in found if only is None else [n for n in found if n in only]:
                if name not in self.names:
                    made[name] = _added(made[name], found[name]) if name in made else found[name]
                    continue
                rows = one(found[name])
                if name not in made:
                    made[name] = rows.new_empty((self.total, *rows.shape[1:]), dtype=dtype(name) or rows.dtype)
                one(made[name])[start:stop] = rows
        self.let_go()
        return made

    def side_by_side(self, dtype: Callable[[str], torch.dtype], workers: int) -> Values:
        """`collect`, of a formula that has something to say, by so many threads: for pieces that stay in the caches,
        too small for torch to share one among its own."""
        count = -(-self.total // self.rows)
        first = self.between(0, min(self.rows, self.total))
        assert first is not None
        made: Values = {
            name: one(rows).new_empty((self.total, *one(rows).shape[1:]), dtype=dtype(name))
            for name, rows in first.items()
            if name in self.names
        }

        def share(worker: int) -> Values:
            sums: Values = {}
            for number in range(worker, count, workers):
                start, stop = number * self.rows, min((number + 1) * self.rows, self.total)
                found = self.between(start, stop) if number else first
                assert found is not None
                for name, value in found.items():
                    if name in made:
                        one(made[name])[start:stop] = one(value)
                    else:
                        sums[name] = _added(sums[name], value) if name in sums else value
            return sums

        with ThreadPoolExecutor(workers) as pool:
            for sums in pool.map(share, range(workers)):
                for name, value in sums.items():
                    made[name] = _added(made[name], value) if name in made else value
        return made


@dataclass
class OfLists(Formula):
    """What a formula makes of one tensor of each list. One piece of all of a case is kept, `held` says whose."""

    held: "list[OfLists]" = field(default_factory=list)
    block: int = 0  # elements that are worked out at once, by several threads where there is more; 0: a piece
    dtype: Callable[[str], torch.dtype] = lambda _: torch.float64  # that truth is kept in

    def __post_init__(self) -> None:
        (sizes,) = self.case.shape[self.cut.axis]
        self.names = {t.name for t in contract.pass_of(self.case.module, self.case.phase).tensors() if t.many}
        self.total, self.row = sizes[0], math.prod(sizes[1:])
        self._last = None

    def piece(self, number: int) -> Values | None:
        for other in self.held:
            if other is not self:
                other.let_go()
        self.held[:] = [self]
        return super().piece(number)

    def between(self, start: int, stop: int) -> Values | None:
        rows = max(1, self.block // self.row)
        if not self.block or stop - start <= rows:
            return self._rows(start, stop)
        starts = range(start, stop, rows)
        first = self._rows(start, start + rows)
        made: Values = {n: one(x).new_empty((stop - start, *one(x).shape[1:])) for n, x in first.items()}

        def put(at: int) -> None:
            for name, value in self._rows(at, min(at + rows, stop)).items():
                one(made[name])[at - start : at - start + rows] = one(value)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(put, starts))
        return made

    def _rows(self, start: int, stop: int) -> Values:
        shape = self.case.shape | {self.cut.axis: [(stop - start, *self.case.shape[self.cut.axis][0][1:])]}
        made = self.run(replace(self.case, shape=shape), self.contents.rows(start, stop, self.names))
        assert made is not None
        return {name: each(value)[0].to(self.dtype(name)) for name, value in made.items()}


def _added(a: Value, b: Value) -> Value:
    sums = [x + y for x, y in zip(each(a), each(b), strict=True)]
    return sums if isinstance(a, list) else sums[0]


def rows_within(case: Case, contents: Contents, run: Run, cut: Cut, device: Device, budget: int) -> int:
    """How many rows a piece may have for its memory to stay within so many bytes, by what a small one was seen to take:
    no shape tells how large what a formula makes on its way is."""
    first = cut.rows(case, LEAST)
    formula = Formula(case, contents, run, cut, first, device.release_unused)
    before = device.memory()[0]
    device.forget_peak()
    formula.piece(0)
    taken = device.memory()[1] - before
    granules = first * budget // max(1, taken) // cut.granule
    return min(case.shape[cut.axis], max(1, granules) * cut.granule)


class Recomputed:
    """Truth that is worked out anew, piece by piece, whenever somebody looks at it: flat, and only ever sliced."""

    def __init__(self, formula: Formula, name: str, dtype: torch.dtype, sizes: tuple[int, ...], device: torch.device):
        self.formula, self.name, self.dtype, self.device = formula, name, dtype, device
        self.row = math.prod(sizes[1:])
        self.count = math.prod(sizes)

    def __len__(self) -> int:
        return self.count

    def numel(self) -> int:
        return self.count

    def __getitem__(self, where: slice | int) -> torch.Tensor:
        if isinstance(where, int):
            return self[where : where + 1][0]
        start, stop, _ = where.indices(self.count)
        size = self.formula.rows * self.row
        found = []
        for number in range(start // size, -(-stop // size)):
            piece = self.formula.piece(number)
            assert piece is not None
            flat = one(piece[self.name]).reshape(-1)
            found.append(flat[max(0, start - number * size) : stop - number * size].to(self.dtype))
        return torch.cat(found) if len(found) != 1 else found[0]

    @functools.cached_property
    def rms_and_peak(self) -> tuple[float, float]:
        """Of what is finite, by one look at all of it."""
        total = peak = 0.0
        count = 0
        for start in range(0, self.count, self.formula.rows * self.row):
            part = self[start : start + self.formula.rows * self.row].double()
            part = part[part.isfinite()] if not bool(part.isfinite().all()) else part
            total, count = total + float(part.square().sum()), count + len(part)
            peak = max(peak, float(part.abs().amax()) if len(part) else 0.0)
        return math.sqrt(total / max(1, count)), peak
