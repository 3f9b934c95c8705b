"""docs/roofline.md: every number of it from units.json, the contract and the limits; the words around them stand here."""

import itertools
from collections.abc import Iterable
from dataclasses import fields
from typing import NamedTuple

from bench.gpu import bounds, units
from bench.gpu.bounds import Bound, StepCall
from bench.machine import limits as rates
from bench.machine.limits import H200, Limit
from bench.records import DASH
from reference.models import MODELS

AIM = 97e-3  # seconds of a step: the project's
MEASURED_MEMORY, MEASURED_WGMMA = 4.3e12, 790e12  # bytes/s of a copy, FLOP/s of an 8192^3 product, bf16: perf.md
LAYERS_LIBRARIES = {"matmul": ("cuda.cublaslt",), "attention": ("cuda.cudnn", "cuda.cudnn_deterministic")}

HEAD = f"""# How fast the kernels could be on an H200: bounds, not times

Nothing here was timed. For each layer, pass and shape of {units.MODEL} at B={units.B}, T={units.T} in {units.DTYPE}, and each of our GPU
variants, this page has a **bound**: what its kernels cannot be faster than, and which resource sets that. A bound is
low by all that it does not know (below), so a variant may well take twice its bound; none can take less. Written by
`python -m bench.roofline` from [counts](../results/simulator-sm_90a/units.json); `--check` says whether it still is what
they give, `--count` counts anew what has changed."""

HOW = """## How a bound is made

The simulator runs each kernel's PTX at three or four small shapes and counts what is executed: products by `mma.sync` and by
`wgmma`, results of the special-function unit (exp2, reciprocal, root), fp32 arithmetic, wavefronts of shared memory with
their bank conflicts, sectors asked of L1 and of L2. Each count is fitted as a constant for each block or tile (*item*)
and one for each unit of work (M N K of a product, B NH T² of attention, rows or elements elsewhere; M N for dbias), always
on more shapes than constants. What fits to 0.5 % is scaled to the call's own items and work; the rest is a dash. The
machine code says registers and so how many blocks share a multiprocessor; the launch says how many there are.

    kernel   = max over resources of (count / rate) x imbalance
    call     = max(floor, sum of its kernels)
    floor    = max(compulsory bytes / memory bandwidth, products / wgmma's rate), both by the contract
    imbalance = ceil(items / 132) / (items / 132) where items are equal work: the busiest multiprocessor has that many

| exact | scaled | not known, and so a dash or left out |
|---|---|---|
| floor; items, launches, threads, registers, shared memory, resident blocks, waves, imbalance | products, special functions, fp32, wavefronts, sectors: by the constants, which hit every small shape to 0.5 %, most of them exactly | latencies, launches, barriers, what is in L2 and what goes to memory beyond the compulsory bytes, clocks under power, integer and address instructions, kernels of libraries |

Counts are of PTX: where ptxas can fuse sums with products only the more numerous kind counts. A causal attention's
items are not equal work, so it has no imbalance."""


class Check(NamedTuple):
    """A published or measured rate beside the model's bound on the same quantity, both in `unit`."""

    what: str
    quoted: float
    unit: str
    source: str
    bound: float | None

    def cells(self) -> list[str]:
        if self.bound is None:
            return [self.what, f"{self.quoted:g} {self.unit}", DASH, DASH, self.source]
        share = f"{self.quoted / self.bound:.0%}"
        return [self.what, f"{self.quoted:g} {self.unit}", f"{self.bound:.4g} {self.unit}", share, self.source]


def page(entries: dict[str, units.Entry]) -> str:
    """The whole page."""
    found = bounds.bounds(entries)
    calls = bounds.step(found)
    sections = [
        HEAD,
        step_section(calls, found),
        next_section(calls, found),
        checks_section(found),
        HOW,
        limits_section(),
    ]
    sections += [layer_section(layer, found) for layer in _in_order(calls, found)]
    return "\n\n".join(sections) + "\n"


def _in_order(calls: list[StepCall], found: list[Bound]) -> list[str]:
    """Layers by what they take of the step, then those that are not in it."""
    shares: dict[str, float] = dict.fromkeys((b.layer for b in found), 0.0)
    for call in calls:
        shares[call.layer] = shares.get(call.layer, 0.0) + call.seconds
    return sorted(shares, key=lambda layer: (-shares[layer], layer))


# --- the step ---


def step_section(calls: list[StepCall], found: list[Bound]) -> str:
    total, floor = sum(c.seconds for c in calls), sum(c.calls * c.floor for c in calls)
    measured = bounds.slower(H200, MEASURED_MEMORY, MEASURED_WGMMA)
    again = [bounds.bound(b.layer, b.variant, b.phase, b.name, _kernels(b), measured) for b in found]
    at_measured = sum(c.seconds for c in bounds.step(again, measured))
    rows = [
        [
            _call(c.layer, c.phase, c.name),
            str(c.calls),
            _us(c.floor),
            c.best.variant if c.best else DASH,
            _us(c.best.seconds) if c.best else DASH,
            c.best.set_by if c.best else c.floor_by,
            _ms(c.seconds),
            _ms(c.gap),
        ]
        for c in calls
    ]
    header = ["call", "a step", "floor, µs", "least bound", "bound, µs", "set by", "all, ms", "above the floor, ms"]
    return f"""## The step

| | ms |
|---|--:|
| sum of the floors | {_ms(floor)} |
| **sum of the least bounds of what we have** | **{_ms(total)}** |
| the same with the ceilings that were measured on a card, {MEASURED_WGMMA / 1e12:.0f} TFLOP/s and {MEASURED_MEMORY / 1e12:g} TB/s | {_ms(at_measured)} |
| the aim | {_ms(AIM)} |

The aim is {AIM / total:.2f} of the bound: a step of {_ms(AIM)} ms has all kernels together at {total / AIM:.0%} of their bounds, or at
{at_measured / AIM:.0%} of what measured ceilings leave. Where nothing was counted whole, the floor stands for it.

{_table(header, rows, "lrrlrlrr")}"""


def _kernels(b: Bound) -> dict[str, units.Entry]:
    names = ("launches", "items", "threads", "registers", "shared_bytes", "resident", "counts")
    return {p.kernel: {name: getattr(p, name) for name in names} for p in b.parts}


def next_section(calls: list[StepCall], found: list[Bound]) -> str:
    """Where a better kernel, and not a better tuned one, is what is missing."""
    gaps = sorted((c for c in calls if c.gap > 0.005e-3), key=lambda c: -c.gap)
    if not gaps:
        return "## Which rung next\n\nEvery call has a variant whose bound is its floor: what is left is to reach it."
    rows = []
    for c in gaps:
        assert c.best
        longest = max(c.best.parts, key=lambda p: p.bound)
        second = sorted(c.best.by_resource().items(), key=lambda pair: -pair[1])[1]
        rows.append(
            [
                _call(c.layer, c.phase, c.name),
                c.best.variant,
                _ms(c.gap),
                c.best.set_by,
                longest.kernel,
                f"{longest.imbalance - 1:.1%}" if longest.even else DASH,
                f"{second[0]}, {_us(second[1])}",
            ]
        )
    first = gaps[0]
    header = ["call", "variant", "above the floor, ms", "set by", "longest kernel", "its tail", "second, µs a call"]
    return f"""## Which rung next

What the best of ours cannot but lose, whoever tunes it: the gap between its bound and the floor, for all calls of a
step. **{_call(first.layer, first.phase, first.name)} comes first: {_ms(first.gap)} ms of {_ms(sum(c.gap for c in calls))} ms, and {first.best.set_by if first.best else first.floor_by} sets it.** A gap that tensor
cores set where products are by `mma.sync` closes with `wgmma`; one of shared memory, with operands that stay in
registers or larger tiles; one of imbalance, with smaller or split tiles. Calls that are not listed have a variant whose bound is
its floor: there, only being measured tells more.

{_table(header, rows, "llrllrl")}"""


# --- checks ---


def checks(found: list[Bound]) -> list[Check]:
    """Rates of perf.md, which has their sources, beside the bounds on the same."""
    tiles = (8192 // 128) ** 2
    product = 2 * 8192**3 / rates.product_seconds(2 * 8192**3) / rates.imbalance(tiles) / 1e12
    by_mma = 2 * 8192**3 / rates.product_seconds(0, 2 * 8192**3) / rates.imbalance(tiles) / 1e12
    memory = H200.memory.value / 1e12

    def attention(variant: str, phase: str) -> float | None:
        return _tflops(found, "attention", variant, phase, "")

    return [
        Check("matmul 8192³, H200, this project", 790, "TFLOP/s", "perf.md, head", product),
        Check("matmul 8192³, H100, hand-written wgmma", 807.7, "TFLOP/s", "perf.md 5.1", product),
        Check("matmul 8192³, H100, mma.sync", 446, "TFLOP/s", "perf.md 5.1", by_mma),
        Check("matmul by fp32 arithmetic, H100", 32.4, "TFLOP/s", "perf.md 5.1", _tflops(found, "matmul", "cuda.shared", "forward", "fcproj")),
        Check("attention forward, FlashAttention 2, H100 (bound: ours by mma.sync)", 229, "TFLOP/s", "perf.md 2.1", attention("cuda.mma", "forward")),
        Check("attention forward, FlashAttention 3, H100 (bound: ours by wgmma)", 265, "TFLOP/s", "perf.md 2.1", attention("triton.hopper", "forward")),
        Check("attention forward, cuDNN, H100 (bound: the floor)", 288, "TFLOP/s", "perf.md 2.1", _floor_tflops("attention", "forward", "")),
        Check("attention backward, FlashAttention 2, H100 (bound: ours by mma.sync)", 180, "TFLOP/s", "perf.md 2.2, derived", attention("cuda.mma", "backward")),
        Check("attention backward, FlashAttention 3, H100 (bound: ours by wgmma)", 275, "TFLOP/s", "perf.md 2.2, derived", attention("triton.hopper", "backward")),
        Check("copy, H200, this project", 4.3, "TB/s", "perf.md, head", memory),
        Check("RMSNorm forward, H200, cuDNN, 16384 x 4096", 3.708, "TB/s", "perf.md 3.2", memory),
        Check("RMSNorm backward, H200, cuDNN, 16384 x 4096", 3.801, "TB/s", "perf.md 3.2", memory),
        Check("RMSNorm backward, H200, torch.compile", 1.704, "TB/s", "perf.md 3.2", memory),
    ]  # fmt: skip


def _tflops(found: list[Bound], layer: str, variant: str, phase: str, name: str) -> float | None:
    """The contract's FLOPs of a call over its bound."""
    mine = [b for b in found if (b.layer, b.variant, b.phase, b.name) == (layer, variant, phase, name) and b.complete]
    return _flops(layer, phase, name) / mine[0].seconds / 1e12 if mine else None


def _floor_tflops(layer: str, phase: str, name: str) -> float:
    shape = next(c.shape for p, n, c in units.calls_of(layer) if (p, n) == (phase, name))
    return _flops(layer, phase, name) / bounds.floor(layer, phase, shape)[0] / 1e12


def _flops(layer: str, phase: str, name: str) -> int:
    shape = next(c.shape for p, n, c in units.calls_of(layer) if (p, n) == (phase, name))
    return bounds.products(layer, phase, shape)


def checks_section(found: list[Bound]) -> str:
    tokens = units.B * units.T
    step = sum(c.seconds for c in bounds.step(found))
    rows = [check.cells() for check in checks(found)]
    rows.append(
        [
            "a step of the same tokens, H200, torch.compile",
            "132.4 ms",
            f"{_ms(step)} ms",
            f"{step / 132.4e-3:.0%}",
            "perf.md 1.2",
        ]
    )
    header = ["what", "measured or published", "bound", "reached", "source"]
    flops = MODELS[units.MODEL].flops_per_token(units.T)["palm"] * tokens
    return f"""## How far off bounds are

Rates that others measured, and what this model bounds them by. None may be above 100 %: that would be a mistake in
the model (a test looks). The best kernels reach four fifths of a product's bound and nine tenths of memory's; attention
reaches half, because its bound knows nothing of waiting. An H100's memory is slower than an H200's (3.35 TB/s), which is why
only products and attention are compared with it. At the bound a step would have an MFU of {flops / step / H200.wgmma.value:.0%} (PaLM's convention).

{_table(header, rows, "lrrrl")}"""


def limits_section() -> str:
    rows = []
    for each in fields(H200):
        limit: Limit = getattr(H200, each.name)
        rows.append([limit.what, f"{_engineering(limit.value)} {limit.unit}".strip(), limit.source])
    return f"""## The limits of an H200

Always the highest that a source names. Rates a cycle are those of one multiprocessor.

{_table(["what", "at most", "source"], rows, "lrl")}"""


# --- one layer ---


def layer_section(layer: str, found: list[Bound]) -> str:
    mine = [b for b in found if b.layer == layer]
    text = [f"## {layer}", _about_layer(layer)]
    for (phase, name), group in itertools.groupby(mine, key=lambda b: (b.phase, b.name)):
        ranked = sorted(group, key=lambda b: (not b.complete, b.seconds, b.of_kernels))
        rows = [_variant_row(b) for b in ranked]
        rows += [[v, *[DASH] * 16] for v in LAYERS_LIBRARIES.get(layer, ())]
        header = [
            "variant",
            "bound, µs",
            "set by",
            "of floor",
            "in turn, µs",
            *(f"{r}, µs" for r in bounds.RESOURCES[1:]),
        ]
        header += ["exp2, 10⁶", "registers", "blocks", "waves", "tail", "ends"]
        text.append(f"**{_call(layer, phase, name)}**, floor {_us(ranked[0].floor)} µs ({ranked[0].floor_by})")
        text.append(_table(header, rows, "lrl" + "r" * 14))
    return "\n\n".join(text)


def _about_layer(layer: str) -> str:
    told = (
        "Of the longest kernel: registers a thread, blocks of a multiprocessor, waves of items, `tail` (what the busiest "
        "multiprocessor has above the average), `ends` (share of an item's way in and out, were nothing beside its loop)."
    )
    if layer in LAYERS_LIBRARIES:
        told += " Kernels of NVIDIA's libraries cannot be counted: dashes."
    return told


def _variant_row(b: Bound) -> list[str]:
    longest = max(b.parts, key=lambda p: p.bound)
    known = [p for p in b.parts if p.complete]
    missing = {r for r, names in NEEDS.items() if any(n not in p.counts for p in b.parts for n in names)}
    by = b.by_resource()
    return [
        b.variant if len(known) == len(b.parts) else f"{b.variant} (in part)",
        _us(b.seconds),
        b.set_by,
        f"{b.seconds / b.floor:.2f}x",
        _us(b.in_turn) if b.complete else DASH,
        *(DASH if r in missing else _us(by[r]) for r in bounds.RESOURCES[1:]),
        DASH if any("exp2" not in p.counts for p in b.parts) else _millions(b),
        str(longest.registers),
        str(longest.resident),
        DASH if longest.waves is None else f"{longest.waves:.3g}",
        f"{longest.imbalance - 1:.1%}" if longest.even and longest.launches == 1 else DASH,
        DASH if longest.ends is None else f"{longest.ends:.0%}",
    ]


# By resource, the counts that it is made of.
NEEDS = {
    bounds.TENSOR: ("mma_flops", "wgmma_flops"),
    bounds.SPECIAL: ("special",),
    bounds.FP32: ("fp32",),
    bounds.SHARED: ("shared_wavefronts",),
    bounds.L1: ("l1_sectors",),
    bounds.L2: ("l2_reads", "l2_writes"),
}


# --- text ---


def _call(layer: str, phase: str, name: str) -> str:
    return f"{layer} {name} {phase}".replace("  ", " ")


def _us(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 0.05 else "0"


def _millions(b: Bound) -> str:
    """Results of exp2, 32 an instruction."""
    return f"{sum(p.amount('exp2') or 0 for p in b.parts) * rates.WARP / 1e6:.4g}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _engineering(value: float) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9)):
        if value >= scale:
            return f"{value / scale:.4g} {prefix}"
    return f"{value:g}"


def _table(header: list[str], rows: Iterable[list[str]], aligned: str) -> str:
    """Markdown; `aligned`: l or r for each column."""
    marks = {"l": "---", "r": "--:"}
    lines = [header, [marks[a] for a in aligned], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
