"""How far an output is from the truth, and how far it may be.

**One element.** An error is measured in units of what it may be: half a unit in the last place of its own value, in
its own output's dtype and in fp32 arithmetic, plus the noise of the tensor (what honest arithmetic is off beyond
rounding: where terms cancel it does not shrink with the result). `share * |truth| + noise` is that unit.

**Whole outputs are compared**, by three figures, each against the yard's (the errors of honest arithmetic: truth.py):
the rms over all elements, the rms of the worst stretch (some 128 to 1024 neighbours: a row, where rows are of that
length), and the largest error. The last one alone is noisy, so an element may be K_ONE, not K, times the largest
(docs/false_alarms.md says how seldom an honest variant meets these limits); so may all in fp32, where a structured case
makes them all by one operation (contract.alike): there is one error then, however many elements have it, and torch's
may be nothing by luck. Where the truth is not finite the same must come out, and nowhere else anything not finite,
unless the truth rounds to infinity in the output's dtype.

**Rounding** to a narrow dtype errs to both sides alike: errors of many elements that lean to one side by LEAN of a
unit, and K times as far as the yard's, are of values that were cut off. Each is small, and their sum is not.

**Positions.** What comes of many positions (a causal row of few keys, and one of thousands) may be noisy in the first
and hardly in the last. Where the yard's noise differs so, each stretch of positions is held to its own as well.

**Whole numbers are compared exactly**: an index, or a value in int8, is the truth's or it is wrong. That rounding
decides none of them is for the contract to see to (`settle`), which tests hold to the formula in fp32.
"""

import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace

import torch

from bench.core import onepass
from bench.trial.cuts import Recomputed

K = 4.0  # an error may be this many times the yard's
K_ONE = 8.0  # the largest error of one element may be this many times the yard's largest
FLOOR_ALL = 0.5  # units that the yard is at least: the rms of a value rounded correctly is 0.4,
FLOOR_ONE = 1.0  # and its largest error 1; …
# … one that all elements have: K_ONE times that are some thirty units in the last place of fp32. Vector libraries have
# exponentials that are good to twenty (PyTorch's own flash attention uses one), and make sums of many.
FLOOR_ALIKE = 4.0
ANOTHER_DRAW = 1.5  # the noise of one draw may be this many times that of another
SANE = 0.05  # and nobody, torch included, may be off by more than this share of the truth's rms
NOTHING = 1e-6  # a truth this small, from inputs of size one, is all cancellation: no share of it can be asked for
NORMAL_MEDIAN = 0.6745  # of magnitudes, as a share of their rms, where they are normally distributed
SHORT, LONG = 128, 1024  # elements of a stretch
BLOCK = 32_000  # elements compared at once: they stay in the cache, and torch keeps to one thread for so few
DEVICE_BLOCK = 1 << 25  # … and on a GPU, where a launch and a look at its result cost more than a pass
LEAN = 0.3  # of a unit: rounded to nearest it is 0 on average, ties away from zero 0.1 or so, cut off 0.5 to 0.7
LEANING = 1024  # elements that tell an average of 0 from that
LOOKED_AT = 32  # blocks of a large output that are asked for their average
SPANS, SPAN = 8, 64  # stretches of positions, at most, and positions in each, at least
UNEVEN = 3.0  # times as noisy as another is a stretch of positions to be looked at by itself
MANY = 16  # blocks from which another thread is worth its start


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
    lean: float = 0.0  # of errors to one side, in units
    spans: tuple["Limits", ...] = ()  # of each stretch of positions, where they differ

    def elsewhere(self) -> "Limits":
        """For another draw of the same case, which may be as much noisier."""
        honest = replace(self.honest, absolute=self.honest.absolute * ANOTHER_DRAW)
        spans = tuple(limits.elsewhere() for limits in self.spans)
        return replace(self, noise=self.noise * ANOTHER_DRAW, honest=honest, spans=spans)


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
    positions: bool = False  # the second axis is one of positions, whose noise may differ

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

    def span(self, number: int, count: int) -> Iterator[tuple[int, int, "Yard"]]:
        """One of so many stretches of positions: of each sample where it begins and ends, and its yard."""
        samples, positions, *rest = self.sizes
        first, end = (positions * n // count for n in (number, number + 1))
        each = math.prod(rest)
        limits = self.limits.spans[number] if self.limits.spans else Limits()
        for sample in range(samples):
            a, b = ((sample * positions + at) * each for at in (first, end))
            assert isinstance(self.truth, torch.Tensor)
            name, sizes = f"{self.name}[{sample}:{sample + 1}, {first}:{end}]", (1, end - first, *rest)
            yield a, b, replace(self, name=name, truth=self.truth[a:b], sizes=sizes, limits=limits, positions=False)

    @property
    def most_spans(self) -> int:
        """Stretches of positions that it has; 0 where they are not told apart."""
        told = self.positions and not self.exact and isinstance(self.truth, torch.Tensor)
        return min(SPANS, self.sizes[1] // SPAN) if told else 0

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
        parts = (self.truth[start:stop].abs().nan_to_num_(0.0, 0.0, 0.0) for start, stop in blocks_of(self.truth, 1))
        return max((float(part.amax()) for part in parts), default=0.0)


@dataclass
class Finding:
    """How one output compares: `ratio` is the error in units of the yard's; it passes up to K."""

    name: str
    ratio: float
    evidence: str = ""
    check: str = "ok"  # or the name of the check that failed: not_finite, inaccurate


# --- the comparison -------------------------------------------------------------------------------------------------


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
        rms_error = rms_of_error(flat, yard)
        if not rms_error <= allowed:
            share = f"{rms_error / yard.rms:.0%} of the truth's rms {yard.rms:.2g}"
            return replace(finding, evidence=f"{yard.name}: rms error {rms_error:.2g} is {share}", check="inaccurate")
    if sane and abs(leaning := lean(flat, yard)) > max(LEAN, K * yard.limits.lean):
        side = "towards 0" if leaning < 0 else "away from 0"
        told = f"errors lean {side}, by {abs(leaning):.2g} of half a unit in the last place on average"
        return replace(finding, evidence=f"{yard.name}: {told}: cut off, not rounded to nearest", check="inaccurate")
    return _judge_spans(flat, yard, finding)


def _judge_spans(flat: torch.Tensor, yard: Yard, finding: Finding) -> Finding:
    """Each stretch of positions against its own limits, where it has any."""
    spans = len(yard.limits.spans)
    for number in range(spans if isinstance(yard.truth, torch.Tensor) else 0):
        for start, stop, part in yard.span(number, spans):
            found = judge(flat[start:stop], part, sane=False)
            if found.evidence:
                return replace(found, name=yard.name)
            finding = replace(finding, ratio=max(finding.ratio, found.ratio))
    return finding


def lean(flat: torch.Tensor, yard: Yard) -> float:
    """By how many units errors lean to one side on average, in the block of elements where that is most: less than 0
    towards 0. Nothing of outputs that are not narrow, or have few elements."""
    if yard.dtype.itemsize != 2:
        return 0.0
    blocks, worst = list(blocks_of(yard.truth, 1)), 0.0
    for start, stop in blocks[:: math.ceil(len(blocks) / LOOKED_AT)]:
        truth = yard.truth[start:stop]
        there = (truth != 0) & truth.isfinite() & flat[start:stop].isfinite()
        if (count := int(there.sum())) < LEANING:
            continue
        error = (flat[start:stop] - truth).mul_(truth.sign()).div_(truth.abs().mul_(yard.share).add_(yard.noise))
        worst = max(worst, float(error.masked_fill_(~there, 0.0).sum()) / count, key=abs)
    return worst


def _judge_exactly(got: torch.Tensor, yard: Yard) -> Finding:
    """Whole numbers: each is the truth's."""
    flat = got.detach().to(yard.truth.device).reshape(-1)
    wrong = torch.cat(
        [flat[a:b] != yard.truth[a:b].to(yard.dtype) for a, b in blocks_of(yard.truth, 1)] or [flat != flat]
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
    count, length = len(flat), stretch_of(yard.sizes)
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

    blocks = list(blocks_of(yard.truth, length))
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
    return error.masked_fill_(not_as_finite(got, truth, dtype), math.inf)


def not_as_finite(got: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Where one is finite and the other is not, or both are not, in different ways. A finite truth that rounds to
    infinity in the output's dtype may come out as that."""
    same = (got.isnan() & truth.isnan()) | (got == truth) | (got.isinf() & (got == truth.to(dtype)))
    return ~(got.isfinite() & truth.isfinite()) & ~same


def _all_not_as_finite(flat: torch.Tensor, yard: Yard) -> torch.Tensor:
    blocks = blocks_of(yard.truth, 1)
    return torch.cat([not_as_finite(flat[a:b], yard.truth[a:b], yard.dtype) for a, b in blocks])


def beyond(flat: torch.Tensor, yard: Yard) -> float:
    """What the errors are beyond a share of their own elements: the rms, or a quarter of the largest. A normal
    distribution's largest of many is some four times its rms; where few elements are much noisier than the rest
    (attention's first row, a tail of GELU) the rms would hide them, and the next draw show them."""
    total = most = 0.0
    for start, stop in blocks_of(flat, 1):
        truth = yard.truth[start:stop]
        error = (flat[start:stop] - truth).abs_().sub_(truth.abs(), alpha=yard.share).clamp_(min=0)
        error = error.double().nan_to_num_(0.0, 0.0, 0.0)
        total, most = total + float(error.square().sum()), max(most, float(error.amax()))
    return max(math.sqrt(total / max(len(flat), 1)), most / 4)


def rms_of_error(flat: torch.Tensor, yard: Yard) -> float:
    """The rms of the difference, where both are finite."""
    total = 0.0
    for start, stop in blocks_of(flat, 1):
        error = flat[start:stop].double().sub_(yard.truth[start:stop])
        total += float(error.nan_to_num_(0.0, 0.0, 0.0).square_().sum())
    return math.sqrt(total / max(len(flat), 1))


def _rms(flat: torch.Tensor) -> float:
    """Of the finite elements."""
    total, count = 0.0, 0
    for start, stop in blocks_of(flat, 1):
        part = flat[start:stop].double()
        squares = part.square()
        if not float(squares.sum()) < math.inf:
            squares = squares[part.isfinite()]
        total, count = total + float(squares.sum()), count + len(squares)
    return math.sqrt(total / max(count, 1))


def blocks_of(flat: torch.Tensor | Recomputed, length: int) -> Iterator[tuple[int, int]]:
    """Ranges of about BLOCK elements (on a GPU DEVICE_BLOCK), all but the last whole stretches."""
    count = len(flat)
    step = max(1, (BLOCK if flat.device.type == "cpu" else DEVICE_BLOCK) // length) * length
    for start in range(0, count, step):
        yield start, min(start + step, count)


def stretch_of(sizes: tuple[int, ...]) -> int:
    """Elements of a stretch: some whole rows, or a piece of a long one."""
    row = max(1, sizes[-1]) if sizes else 1
    return min(max(1, math.prod(sizes)), row * math.ceil(SHORT / row) if row <= LONG else LONG // 4)


# --- evidence -------------------------------------------------------------------------------------------------------


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
    allowed, length = yard.allowed, stretch_of(yard.sizes)
    worst, at, first, largest, too_far = -1.0, 0, 0, 0.0, []
    for start, stop in blocks_of(yard.truth, length):
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
        f"{yard.name}: rms error {rms_of_error(flat, yard):.2g}, {max(astuple(ratios)):.3g}x plain torch's, "
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
