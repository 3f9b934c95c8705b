"""The least time that a call can take on an H200 with a variant's kernels: a bound from counts, never a time.

Kernels of one stream run one after the other, so a call's bound is the sum of its kernels'; a kernel's is the largest
of what its resources take, as if all worked at their limit and side by side (bench.machine.limits). A call is never
below its floor. What was not counted takes nothing here, so that a bound that misses something is low, not high.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from bench.gpu import units
from bench.machine import limits as rates
from bench.machine.limits import H200, Limits
from reference import contract

MEMORY, TENSOR, SPECIAL, FP32, SHARED, L1, L2 = RESOURCES = (
    "memory",
    "tensor cores",
    "special functions",
    "fp32",
    "shared memory",
    "L1",
    "L2 to multiprocessor",
)
PRODUCTS = ("matmul", "attention")  # layers whose FLOPs are products, which tensor cores can compute


def floor(layer: str, phase: str, shape: contract.Shape, limits: Limits = H200) -> tuple[float, str]:
    """(seconds, resource) that no kernel can be below: the contract's compulsory bytes, and its products by wgmma."""
    nbytes = compulsory(layer, phase, shape)
    flops = products(layer, phase, shape)
    seconds = rates.floor_seconds(nbytes, flops, limits)
    return seconds, TENSOR if seconds > rates.memory_seconds(nbytes, limits) else MEMORY


def compulsory(layer: str, phase: str, shape: contract.Shape) -> int:
    """Bytes that the contract says must be moved."""
    module = contract.load(layer)
    return contract.min_bytes(module, contract.overwriting(module, phase, shape, units.DTYPE), phase)


def products(layer: str, phase: str, shape: contract.Shape) -> int:
    """FLOPs of a call's matrix products; 0 of a layer that has none."""
    module = contract.load(layer)
    full = contract.overwriting(module, phase, shape, units.DTYPE)
    return contract.flops(module, full, phase) if layer in PRODUCTS else 0


@dataclass(frozen=True)
class Part:
    """One kernel of a call, all its launches together."""

    kernel: str
    launches: int
    items: int
    threads: int
    registers: int
    shared_bytes: int
    resident: int  # blocks of a multiprocessor
    point: units.Point
    counts: dict[str, Any]  # fits of those that are known
    even: bool  # items are equal work
    limits: Limits = H200

    def amount(self, name: str, features: tuple[str, ...] = units.FEATURES) -> float | None:
        """A count at the call's size, or the share that some features have in it; None where it is not known."""
        fitted = self.counts.get(name)
        if fitted is None:
            return None
        return sum(fitted[f] * self.point[f] for f in fitted["of"] if f in features)

    @property
    def waves(self) -> float | None:
        return rates.waves(self.items, self.resident, self.limits) if self.launches == 1 and self.resident else None

    @property
    def imbalance(self) -> float:
        """Of the busiest multiprocessor, where it is known that there is one."""
        return rates.imbalance(self.items, self.limits) if self.even and self.launches == 1 else 1.0

    @cached_property
    def seconds(self) -> dict[str, float]:
        """By resource of a multiprocessor."""
        return {r: s * self.imbalance for r, s in self._seconds(units.FEATURES).items()}

    def _seconds(self, features: tuple[str, ...]) -> dict[str, float]:
        n = {name: self.amount(name, features) or 0.0 for name in units.COUNTS}
        return {
            TENSOR: rates.product_seconds(n["wgmma_flops"], n["mma_flops"], self.limits),
            SPECIAL: rates.special_seconds(n["special"], self.limits),
            FP32: rates.fp32_seconds(n["fp32"], self.limits),
            SHARED: rates.shared_seconds(n["shared_wavefronts"], self.limits),
            L1: rates.l1_seconds(n["l1_sectors"], self.limits),
            L2: rates.l2_seconds(max(n["l2_reads"], n["l2_writes"]), self.limits),
        }

    @property
    def bound(self) -> float:
        return max(self.seconds.values())

    @property
    def ends(self) -> float | None:
        """Share of the way in and out of an item where nothing overlaps with its loop: what grows with items, against
        all, each at its own slowest resource. None where counts do not tell both apart."""
        told = [f["of"] for f in self.counts.values() if f["of"]]
        if not any("work" in of for of in told) or not any("items" in of for of in told):
            return None
        ends, loop = (max(0.0, *self._seconds(of).values()) for of in (("items", "before"), ("work", "side")))
        return ends / (ends + loop) if ends + loop else None


@dataclass(frozen=True)
class Bound:
    """Of one call with one variant; `parts` is empty where its kernels are a library's."""

    layer: str
    variant: str
    phase: str
    name: str
    floor: float
    floor_by: str
    nbytes: int  # compulsory
    parts: list[Part] = field(default_factory=list)

    @property
    def of_kernels(self) -> float:
        return sum(part.bound for part in self.parts)

    @property
    def seconds(self) -> float:
        return max(self.floor, self.of_kernels)

    @property
    def complete(self) -> bool:
        """Whether all of all kernels was counted."""
        return self.knows(*units.COUNTS)

    def knows(self, *counts: str) -> bool:
        """Whether these were counted of all kernels."""
        return bool(self.parts) and all(count in part.counts for part in self.parts for count in counts)

    def multiplied(self) -> float:
        """FLOPs of tensor cores, whatever for."""
        counts = ("mma_flops", "wgmma_flops")
        return sum(part.amount(count) or 0.0 for part in self.parts for count in counts)

    @property
    def longest(self) -> Part:
        """Of several kernels that with the highest bound; where not all is known of them, that with most threads."""
        known = self.complete or (self.knows("mma_flops", "wgmma_flops") and self.multiplied() > 0)
        return max(self.parts, key=lambda part: part.bound if known else part.items * part.threads)

    @property
    def set_by(self) -> str:
        """The resource that decides, and of several kernels that of the longest."""
        if self.of_kernels <= self.floor:
            return self.floor_by
        seconds = max(self.parts, key=lambda part: part.bound).seconds
        return max(seconds, key=lambda r: seconds[r])

    @property
    def in_turn(self) -> float:
        """What it would take if no two resources ever worked at the same time, and nobody waited: no bound, but what a
        kernel that overlaps nothing is near."""
        others = sum(self.by_resource().values())
        return others + rates.memory_seconds(self.nbytes, self.parts[0].limits if self.parts else H200)

    def by_resource(self) -> dict[str, float]:
        """Seconds of each resource of a multiprocessor, all kernels together."""
        return {r: sum(part.seconds[r] for part in self.parts) for r in RESOURCES if r != MEMORY}


def bound(layer: str, variant: str, phase: str, name: str, entry: units.Entry, limits: Limits = H200) -> Bound:
    """entry: the variant's, as in units.json."""
    shape = units.shape_of(layer, phase, name)
    call = units.call_name(phase, name)
    parts = []
    for kernel, facts in entry["calls"][call]["kernels"].items():
        point, counts = units.fitted(entry, call, kernel)
        kept = {key: facts[key] for key in ("launches", "items", "threads", "registers", "shared_bytes", "resident")}
        parts.append(Part(kernel, point=point, counts=counts, even=not shape.get("causal"), limits=limits, **kept))
    seconds, by = floor(layer, phase, shape, limits)
    return Bound(layer, variant, phase, name, seconds, by, compulsory(layer, phase, shape), parts)


def bounds(entries: dict[str, units.Entry], limits: Limits = H200) -> list[Bound]:
    """Of every call and variant that was counted, in the model's order of calls."""
    found = []
    for layer in contract.layer_names():
        mine = {key.partition(" ")[2]: entry for key, entry in entries.items() if key.partition(" ")[0] == layer}
        for phase, name, _ in units.calls_of(layer):
            key = units.call_name(phase, name)
            for variant, entry in mine.items():
                if key in entry["calls"]:
                    found.append(bound(layer, variant, phase, name, entry, limits))
    return found


def best(of_call: list[Bound]) -> Bound | None:
    """The least bound of one call; of equal ones, that whose multiprocessors have least to do. What was not counted
    whole is no candidate, for its bound is low for that reason alone; but where nothing was, what has known products
    is."""
    candidates = [b for b in of_call if b.complete]
    candidates = candidates or [b for b in of_call if b.layer in PRODUCTS and b.knows("mma_flops", "wgmma_flops")]
    return min(candidates, key=rank, default=None)


def rank(b: Bound) -> tuple[float, float, str]:
    """Of an order by bounds that the last digits of a float do not decide."""
    return float(f"{b.seconds:.4g}"), float(f"{b.in_turn:.4g}"), b.variant


@dataclass(frozen=True)
class StepCall:
    """A call of the training step: how many of it there are, and the best that was counted for it."""

    layer: str
    phase: str
    name: str
    calls: int
    floor: float
    floor_by: str
    best: Bound | None

    @property
    def seconds(self) -> float:
        """Of all of them; the floor where nothing was counted."""
        return self.calls * (self.best.seconds if self.best else self.floor)

    @property
    def gap(self) -> float:
        """What the best variant's kernels cannot but take above the floor, all of them, in seconds."""
        return self.seconds - self.calls * self.floor


def step(all_bounds: list[Bound], limits: Limits = H200) -> list[StepCall]:
    """The calls of one step of the model at B=64, T=1024, longest first."""
    found = []
    for layer in contract.layer_names():
        for phase, name, call in units.calls_of(layer):
            if call.calls:
                mine = [b for b in all_bounds if (b.layer, b.phase, b.name) == (layer, phase, name)]
                seconds, by = floor(layer, phase, call.shape, limits)
                found.append(StepCall(layer, phase, name, call.calls, seconds, by, best(mine)))
    return sorted(found, key=lambda c: float(f"{-c.seconds:.4g}"))


def at(limits: Limits, found: list[Bound]) -> list[Bound]:
    """The same bounds on another card, or at other ceilings."""
    moved = []
    for b in found:
        shape = units.shape_of(b.layer, b.phase, b.name)
        seconds, by = floor(b.layer, b.phase, shape, limits)
        moved.append(replace(b, floor=seconds, floor_by=by, parts=[replace(p, limits=limits) for p in b.parts]))
    return moved


def slower(limits: Limits, memory: float, wgmma: float) -> Limits:
    """The same card with ceilings that were measured: bytes/s, FLOP/s of wgmma; mma.sync keeps its share."""
    share = limits.mma.value / limits.wgmma.value
    return replace(
        limits,
        memory=replace(limits.memory, value=memory),
        wgmma=replace(limits.wgmma, value=wgmma),
        mma=replace(limits.mma, value=share * wgmma),
    )
