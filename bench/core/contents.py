"""New contents for every call, in full, at the price of a copy.

A few draws of a case are kept. Each call gets one of them changed by a seed: every tensor is rolled by a random number
of elements and scaled by a random factor near one, so that no two calls see the same contents, and nothing is where it
was. Slices of one packed tensor (q, k, v) are rolled by whole rows, and each row by some columns: scores of queries and
keys that only changed rows would be the old ones at other places. What belongs together stays together (statistics with
what they are of, a master with its parameter): it is rolled alike, by whole samples or not at all, and not scaled. Of
what a layer names as SUMMED nothing but a sum over all of it comes out, which no rolling changes, and a factor in a
known way: there each few neighbours have a factor of their own, and who wants to know them all must read as much as who
computes.

Where a layer says what is to be kept away from an edge of rounding (`settle` in its contract), that is done after each
change, too, so that whole numbers stay exact. Its tensors are then made as a whole.

The same seed makes the same contents, bit by bit, in every process: the variant's copies them in, the judge's works out
their truth and compares.
"""

import functools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from bench.core import onepass
from bench.core.case import Case, Value, Values, bits, each, map
from reference import contract
from reference.contract import Tensor

# Elements compared at once on a CPU, where they stay in the cache and torch keeps to one thread for so few, and where a
# launch costs more than a read.
BLOCK, DEVICE_BLOCK = 1 << 15, 1 << 26
# Elements that torch works on in one thread; bytes that one thread copies as fast as several.
ALONE, FEW = 1 << 15, 4 << 20
FACTORS = range(7680, 8705)  # of 8192: many, so that norms do not come back either; exact in fp32
NEIGHBOURS = 16  # of a factor: a cache line of fp32 at most


@dataclass(frozen=True)
class Change:
    """`axes` leading axes, taken as one, are rolled by `shift`, and the last axis by `columns`; then everything is
    multiplied by `factor`, or each few neighbours by one of their own, drawn by the seed `factors` unless that is 0."""

    axes: int
    shift: int
    factor: float = 1.0
    factors: int = 0
    columns: int = 0

    @property
    def moves(self) -> bool:
        return bool(self.shift or self.columns)

    @property
    def rolls_only(self) -> bool:
        return self.factor == 1.0 and not self.factors


@functools.lru_cache(maxsize=64)
def _rules(layer: str, phase: str) -> dict[str, tuple[Tensor, str]]:
    """How each tensor that a call reads may change: "free", "summed", "tied" to others of its sizes, "sample" or
    "fixed"."""
    module = contract.load(layer)
    this = contract.pass_of(module, phase)
    read = [*this.inputs, *(t for t in this.outputs if t.inplace or t.accumulates)]
    known = {t.name for t in module.FORWARD.tensors()}
    made = {t.name for t in module.FORWARD.outputs if not t.inplace}
    together = known if phase == "backward" and made & {t.name for t in this.inputs} else set()
    rules = {}
    for t in read:
        rule = "tied" if t.name in getattr(module, "TIED", ()) else "free"
        rule = "summed" if t.name in getattr(module, "SUMMED", ()) else rule
        if t.name in together:
            rule = "sample" if t.shape.split()[:1] == ["B"] else "fixed"
        rules[t.name] = (t, rule if t.many or t.shape else "fixed")
    return rules


def changes(case: Case, values: Values, seed: int) -> dict[str, list[Change]]:
    """The changes that a seed makes to the tensors of each name; seed 0 makes none."""
    gen = random.Random(seed)
    alike = gen.getrandbits(40)
    found = {}
    for name, (t, rule) in _rules(case.layer, case.phase).items():
        found[name] = [_change(part, t, rule, alike, gen) if seed else Change(0, 0) for part in each(values.get(name))]
    return found


def _change(part: torch.Tensor, t: Tensor, rule: str, alike: int, gen: random.Random) -> Change:
    count = part.numel()
    if rule == "fixed" or not count:
        return Change(0, 0)
    if rule == "sample":
        return Change(1, alike % part.shape[0])
    if rule == "tied":
        return Change(0, alike % count)
    if rule == "summed":
        return Change(0, gen.randrange(count), factors=gen.getrandbits(40) + 1)
    axes = 2 if t.pack else 0  # slices of one allocation are not contiguous
    shift = gen.randrange(part.shape[0] * part.shape[1] if t.pack else count)
    factor = gen.choice(FACTORS) / 8192 if part.is_floating_point() else 1.0
    return Change(axes, shift, factor, columns=gen.randrange(part.shape[-1]) if t.pack else 0)


def put(into: torch.Tensor, source: torch.Tensor, change: Change) -> None:
    """Copy a tensor, changed."""
    if not change.moves and change.rolls_only:
        copy(into, source)
        return
    to = into.flatten(0, change.axes - 1) if change.axes else into.view(-1)
    by = source.flatten(0, change.axes - 1) if change.axes else source.reshape(-1)
    for rows, from_rows in _rolled(len(to), change.shift):
        for columns, from_columns in _rolled(to.shape[-1], change.columns):
            there, here = to[rows][..., columns], by[from_rows][..., from_columns]
            if change.factor == 1.0:
                there.copy_(here)
            else:
                torch.mul(here, change.factor, out=there)
    if change.factors:
        factors, whole = _factors(change.factors, len(to), to.device), len(to) // NEIGHBOURS * NEIGHBOURS
        blocks, rest = to[:whole].view(-1, NEIGHBOURS), to[whole:]
        blocks.copy_(blocks * factors[: len(blocks), None])
        rest.copy_(rest * factors[-1:])


def copy(into: torch.Tensor, source: torch.Tensor) -> None:
    parts = pieces(into)
    if len(parts) == 1 or not (source.is_cpu and source.is_contiguous()):
        into.copy_(source)
        return
    for to, part in zip(parts, source.view(-1).split(ALONE), strict=True):
        to.copy_(part)


def pieces(x: torch.Tensor) -> Sequence[torch.Tensor]:
    """All of a tensor, as views. On a CPU small ones are worked on by the thread that asks: torch's others would have
    to be woken, and spin for a while after that, in a core that is somebody else's."""
    if x.device.type != "cpu" or not x.is_contiguous() or not ALONE < x.numel() <= FEW // x.itemsize:
        return [x]
    return x.view(-1).split(ALONE)


def _rolled(size: int, shift: int) -> list[tuple[slice, slice]]:
    """Which part of an axis goes where, and from where, when it is rolled."""
    if not shift:
        return [(slice(None), slice(None))]
    return [(slice(shift, None), slice(size - shift)), (slice(shift), slice(size - shift, None))]


@functools.lru_cache(maxsize=2)
def _factors(seed: int, count: int, device: torch.device) -> torch.Tensor:
    """One for each few neighbours of so many elements, fp32."""
    gen = torch.Generator(device=device).manual_seed(seed)
    sizes = (-(-count // NEIGHBOURS),)
    return torch.randint(FACTORS.start, FACTORS.stop, sizes, generator=gen, device=device, dtype=torch.int32) / 8192


def changed(case: Case, values: Values, seed: int) -> Values:
    """The contents that a seed makes of a draw, as tensors of their own."""
    by = changes(case, values, seed)

    def anew(name: str, value: Value) -> Value:
        waiting = iter(by[name])

        def one(part: torch.Tensor) -> torch.Tensor:
            made = torch.empty_like(part)
            put(made, part, next(waiting))
            return made

        return map(value, one)

    made = {name: anew(name, value) for name, value in values.items()}
    if seed and settles(case):
        case.module.settle(made, case.shape)
    return made


def settles(case: Case) -> bool:
    """Whether more is done to contents than `put` does."""
    return hasattr(case.module, "settle")


@dataclass(frozen=True)
class Contents:
    """What a call is given: a draw, changed by a seed. Any rows of it can be had without the rest. `by`: the changes,
    where they are not the seed's own: of one tensor out of lists."""

    case: Case
    drawn: Values
    seed: int = 0
    by: dict[str, list[Change]] | None = None

    @functools.cached_property
    def _changes(self) -> dict[str, list[Change]]:
        return changes(self.case, self.drawn, self.seed) if self.by is None else self.by

    @functools.cached_property
    def _settled(self) -> Values | None:
        """All of it, where a layer settles what was changed."""
        return changed(self.case, self.drawn, self.seed) if self.seed and settles(self.case) else None

    def whole(self) -> Values:
        if self._settled is not None:
            return self._settled
        if self.by is not None:
            return self.rows(0, 0, ())
        return changed(self.case, self.drawn, self.seed) if self.seed else self.drawn

    def nth(self, i: int, case: Case) -> "Contents":
        """The i-th tensor of each list, in lists of one, of a layer that settles nothing; case: of these alone."""
        drawn = {name: value[i : i + 1] if isinstance(value, list) else value for name, value in self.drawn.items()}
        by = {n: c[i : i + 1] if isinstance(self.drawn.get(n), list) else c for n, c in self._changes.items()}
        return Contents(case, drawn, self.seed, by)

    def rows(self, start: int, stop: int, names: Collection[str]) -> Values:
        """Everything, of tensors of these names only some rows of the first axis."""

        def value(name: str) -> Value:
            parts = [
                part(source, change, *((start, stop) if name in names else (0, None)))
                for source, change in self._sources(name)
            ]
            return parts if isinstance(self.drawn[name], list) else parts[0] if parts else None

        return {name: value(name) for name in self.drawn}

    def held_by(self, name: str, buffer: Value) -> bool:
        """Whether a buffer holds the tensors of this name, bit by bit, NaNs included."""
        pairs = zip(each(buffer), self._sources(name), strict=True)
        return all(_holds(held, source, change) for held, (source, change) in pairs)

    def _sources(self, name: str) -> list[tuple[torch.Tensor, Change]]:
        """The tensors of a name, and what is still to be done to them."""
        if self._settled is not None:
            return [(source, Change(0, 0)) for source in each(self._settled[name])]
        return list(zip(each(self.drawn[name]), self._changes[name], strict=True))


def part(source: torch.Tensor, change: Change, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Rows of the first axis of a tensor, changed; a view where nothing changes. Of a 0-d tensor the whole."""
    if not source.dim():
        return source if change.factor == 1.0 else source * change.factor
    stop = len(source) if stop is None else stop
    if (not change.moves and change.rolls_only) or not source.numel():
        return source[start:stop]
    by = source.flatten(0, change.axes - 1) if change.axes else source.reshape(-1)
    each_row = len(by) // len(source)
    first, count = (start * each_row - change.shift) % len(by), (stop - start) * each_row
    made = by[first : first + count]
    if len(made) < count:
        made = torch.cat([made, by[: count - len(made)]])
    made = made.roll(change.columns, -1) if change.columns else made
    made = made if change.factor == 1.0 else made * change.factor
    if change.factors:
        which = torch.arange(start * each_row, stop * each_row, device=made.device) // NEIGHBOURS
        made = (made * _factors(change.factors, len(by), made.device)[which]).to(made.dtype)
    return made.reshape(stop - start, *source.shape[1:])


def _holds(held: torch.Tensor, source: torch.Tensor, change: Change) -> bool:
    if held.shape != source.shape or held.dtype != source.dtype:
        return False
    if not held.dim():
        return torch.equal(bits(held), bits(part(source, change)))
    flat = not (change.axes or change.factors) and held.is_contiguous() and source.is_contiguous()
    if flat and onepass.holds(held.view(-1), source.view(-1), change.shift, change.factor):
        return True
    block = BLOCK if held.device.type == "cpu" else DEVICE_BLOCK
    rows = max(1, block * len(held) // max(1, held.numel()))
    return all(
        torch.equal(
            bits(held[at : at + rows].contiguous()),
            bits(part(source, change, at, min(at + rows, len(held))).contiguous()),
        )
        for at in range(0, len(held), rows)
    )
