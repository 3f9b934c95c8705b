"""docs/roofline.md: its numbers from units.json, the contract and the limits; the words around them stand here."""

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
MEASURED_MEMORY, MEASURED_WGMMA = 4.3e12, 790e12  # bytes/s of a copy, FLOP/s of an 8192^3 bf16 product; told
COMPILED = 132.4e-3  # seconds of a step with torch.compile, published, of as many tokens on an H200
LIBRARIES = {"matmul": ("cuda.cublaslt",), "attention": ("cuda.cudnn", "cuda.cudnn_deterministic")}
WORTH = 0.005e-3  # seconds of a step

HEAD = f"""# How fast the kernels could be on an H200: bounds, not times

Nothing here was timed. For each layer, pass and shape of {units.MODEL} at B={units.B}, T={units.T} in {units.DTYPE},
and each of our GPU variants, this page has a **bound**: what its kernels cannot be faster than, and which resource sets
that. A bound is low by all that it does not know (below): a variant may well take twice its bound; one that took less
would show a mistake here. `python -m bench.roofline` writes the page from
[counts](../results/simulator-sm_90a/units.json); `--check` says whether it still is what they give, `--count` counts
anew what has another source by now."""

HOW = """## How a bound is made

The simulator runs each kernel's PTX at three or four small shapes and counts what is executed: products by `mma.sync`
and by `wgmma`, results of the special-function unit (exp2, reciprocal, root), fp32 arithmetic, wavefronts of shared
memory with their bank conflicts, sectors asked of L1 and of L2. Each count is fitted as a constant for each block or
tile (*item*) and one for each unit of work: M N K of a product, B NH T² of attention, rows or elements elsewhere; and
of what goes on beside it, M N for dbias, rows of logits, or what was cut into parts for a kernel that adds them. There
are always more shapes than constants. What fits all of them, exactly or at least to 0.5 %, and leaves no doubt about
the call, is scaled to the call's own items and work. The machine code says registers, and so how many blocks share a
multiprocessor; the launch, written down at its full size, says how many there are.

    kernel    = max over resources of (count / rate) x imbalance
    call      = max(floor, sum of its kernels)
    floor     = max(compulsory bytes / memory bandwidth, products / wgmma's rate), both by the contract
    imbalance = ceil(items / 132) / (items / 132), where all are equal work: the busiest multiprocessor has that many

| exact | scaled | not known: a dash, or left out |
|---|---|---|
| floors | products | bytes of memory beyond the compulsory, what L2 holds |
| launches, items, waves, imbalance | exp2 and the like, fp32 | latencies, barriers, launches, the first tile's way |
| threads, registers, shared memory | wavefronts of shared memory | clocks under power |
| resident blocks | sectors of L1 and L2 | integer and address instructions; what TMA writes to shared memory |
| | | kernels of libraries |

Counts are of PTX. Where ptxas may fuse sums with products, only the more numerous kind counts. Items of a causal
attention are not equal work, so it has no imbalance."""

COLUMNS = """Columns of a variant, after its bound: **in turn**, what its resources and the compulsory bytes take one
after the other, which is no bound but what a kernel that overlaps nothing would be near; each resource, all kernels of
the call together; results of exp2; then, of the longest kernel, registers a thread, blocks on a multiprocessor, waves
of items, **tail** (by how much the busiest multiprocessor is above the average) and **ends** (the share of an item's
way in and out, had nothing overlapped with its loop). *In part*: not all counts of all kernels scale, see ≥ and
dashes."""


class Check(NamedTuple):
    """A published or measured rate beside the model's bound on the same quantity, all in `unit`."""

    what: str
    quoted: float
    unit: str
    source: str
    bound: float | None
    in_turn: float | None = None  # of a variant, as `bounds.Bound.in_turn`

    @property
    def reached(self) -> float | None:
        return self.quoted / self.bound if self.bound else None

    def cells(self) -> list[str]:
        rates_of = (self.quoted, self.bound, self.in_turn)
        told = [DASH if rate is None else f"{rate:.4g} {self.unit}" for rate in rates_of]
        reached = DASH if self.reached is None else f"{self.reached:.0%}"
        return [self.what, told[0], told[1], reached, told[2], self.source]


def page(entries: dict[str, units.Entry]) -> str:
    """The whole page."""
    found = bounds.bounds(entries)
    calls = bounds.step(found)
    compilers = sorted({entry["by"] for entry in entries.values()})
    head = f"{HEAD} They are of the code of {' and '.join(compilers)}."
    sections = [head, step_section(calls, found), next_section(calls), in_flight_section(entries)]
    sections += [checks_section(found, calls), HOW]
    sections += [limits_section(), f"# Layer by layer\n\n{COLUMNS}"]
    sections += [layer_section(layer, found) for layer in _in_order(calls, found)]
    return "\n\n".join(sections) + "\n"


def _in_order(calls: list[StepCall], found: list[Bound]) -> list[str]:
    """Layers by what they take of the step, then those that are not in it."""
    shares: dict[str, float] = dict.fromkeys((b.layer for b in found), 0.0)
    for call in calls:
        if call.layer in shares:
            shares[call.layer] += call.seconds
    return sorted(shares, key=lambda layer: (-shares[layer], layer))


# --- the step ---


def step_section(calls: list[StepCall], found: list[Bound]) -> str:
    total, floor = sum(c.seconds for c in calls), sum(c.calls * c.floor for c in calls)
    measured = bounds.slower(H200, MEASURED_MEMORY, MEASURED_WGMMA)
    at_measured = sum(c.seconds for c in bounds.step(bounds.at(measured, found), measured))
    ceilings = f"{MEASURED_WGMMA / 1e12:.0f} TFLOP/s and {MEASURED_MEMORY / 1e12:g} TB/s"
    sums = [
        ["floors", _ms(floor)],
        ["**least bounds of what we have**", f"**{_ms(total)}**"],
        [f"the same at ceilings told of a card whose result set is not here, {ceilings}", _ms(at_measured)],
        ["the aim", _ms(AIM)],
    ]
    rows = [
        [
            _call(c.layer, c.phase, c.name),
            str(c.calls),
            _us(c.floor),
            _named(c.best) if c.best else DASH,
            _us(c.best.seconds) if c.best else DASH,
            c.best.set_by if c.best else c.floor_by,
            _ms(c.seconds),
            _ms(c.gap),
            _at_least(c.best, _ms(c.calls * (c.best.in_turn - c.best.seconds))) if c.best else DASH,
        ]
        for c in calls
    ]
    header = ["call", "a step", "floor, µs", "least bound", "bound, µs", "set by", "all, ms", "above the floors, ms"]
    header.append("by overlap, ms")
    return f"""## The step

{_table(["sum over all calls of a step", "ms"], sums, "lr")}

A step of {_ms(AIM)} ms has its kernels, together, at {total / AIM:.0%} of their bounds, and at
{at_measured / AIM:.0%} of what those ceilings leave. Where nothing was counted, the floor stands for the bound.

*By overlap* is what all of them would take longer, were nothing in a multiprocessor to overlap: how much there is to
win, or to lose, by the order of a kernel's work, where bounds say nothing more.

{_table(header, rows, "lrrlrlrrr")}"""


def next_section(calls: list[StepCall]) -> str:
    """Where another kernel, and not a better tuned one, is what is missing."""
    gaps = sorted((c for c in calls if c.best and c.gap > WORTH), key=lambda c: float(f"{-c.gap:.4g}"))
    if not gaps:
        return "## Which rung next\n\nEvery call has a variant whose bound is its floor: what is left is to reach it."
    header = ["call", "variant", "above the floors, ms", "set by", "longest kernel", "its tail", "products", "second"]
    first, all_of_them = gaps[0], sum(c.gap for c in gaps)
    name = _call(first.layer, first.phase, first.name)
    return f"""## Which rung next

What the best of ours cannot but lose, whoever tunes it: its bound above the floor, for all calls of a step.
**First comes {name}: {_ms(first.gap)} of {_ms(all_of_them)} ms.** *Products* is what tensor cores multiply, in units
of what the contract asks for: more than 1 is tiles that a mask or an edge leaves half empty, or a product made twice.
*Second* is the next resource and its µs a call: where it is near the bound, both must shrink. Calls that are not listed
have a variant whose bound is its floor; there, only a card can tell more.

{_table(header, map(_gap_row, gaps), "llrllrrl")}"""


def _gap_row(c: StepCall) -> list[str]:
    assert c.best
    longest = c.best.longest
    ranked = sorted(c.best.by_resource().items(), key=lambda pair: -pair[1])
    second = next((pair for pair in ranked if pair[0] != c.best.set_by), ranked[0])
    wanted = bounds.products(c.layer, c.phase, units.shape_of(c.layer, c.phase, c.name))
    return [
        _call(c.layer, c.phase, c.name),
        _named(c.best),
        _ms(c.gap),
        c.best.set_by,
        longest.kernel,
        f"{longest.imbalance - 1:.1%}" if longest.even else DASH,
        f"{c.best.multiplied() / wanted:.2f}" if wanted else DASH,
        f"{second[0]}, {_us(second[1])}",
    ]


# --- checks ---


def checks(found: list[Bound]) -> list[Check]:
    """Published rates, and two told of a card, beside the bounds on the same."""
    flops, tiles = 2 * 8192**3, (8192 // 128) ** 2
    product = flops / (rates.product_seconds(flops) * rates.imbalance(tiles)) / 1e12
    by_mma = flops / (rates.product_seconds(0, flops) * rates.imbalance(tiles)) / 1e12
    memory = H200.memory.value / 1e12
    quoted: list[tuple[str, float, str, str, float | None]] = [
        ("matmul 8192³, H200, torch", 790, "TFLOP/s", OURS, product),
        ("matmul 8192³, H100, hand-written wgmma", 807.7, "TFLOP/s", FAST_CU, product),
        ("matmul 8192³, H100, mma.sync", 446, "TFLOP/s", "a published comparison, 68 % of torch there", by_mma),
        ("copy, H200", 4.3, "TB/s", OURS, memory),
        ("RMSNorm forward 16384 x 4096, H200, cuDNN", 3.708, "TB/s", NORMS, memory),
        ("RMSNorm backward, the same", 3.801, "TB/s", NORMS, memory),
        ("RMSNorm backward, the same, torch.compile", 1.704, "TB/s", NORMS, memory),
    ]
    beside = [
        ("matmul 8192³, H100, tiles in shared memory", 32.4, FAST_CU, "matmul", "cuda.shared", "forward", "fcproj"),
        ("attention forward, H100, FlashAttention 2", 229, FLASH_3, "attention", "cuda.mma", "forward", ""),
        ("the same, Triton's tutorial", 291, FLASH_3, "attention", "triton.flash", "forward", ""),
        ("the same, FlashAttention 3", 265, FLASH_3, "attention", "triton.hopper", "forward", ""),
        ("attention backward, H100, FlashAttention 2", 180, DERIVED, "attention", "cuda.mma", "backward", ""),
        ("the same, FlashAttention 3", 275, DERIVED, "attention", "triton.hopper", "backward", ""),
    ]
    found_checks = [Check(*one) for one in quoted]
    for what, rate, source, layer, variant, phase, name in beside:
        both = _tflops(found, layer, variant, phase, name)
        found_checks.append(Check(f"{what}; bound of {variant}", rate, "TFLOP/s", source, *both))
    return found_checks


OURS = "told, no result set"
FAST_CU = "github.com/pranjalssh/fast.cu"
FLASH_3 = "Dao-AILab/flash-attention, fp16 forward of FA3: heads of 64, causal, 1k"
DERIVED = "arXiv 2407.08608, fig. 6, times the share of causal"
NORMS = "NVIDIA/cudnn-frontend, benchmark/norms"


def _tflops(found: list[Bound], layer: str, variant: str, phase: str, name: str) -> tuple[float | None, float | None]:
    """The contract's FLOPs of a call over its bound, and over what its resources take in turn."""
    mine = [b for b in found if (b.layer, b.variant, b.phase, b.name) == (layer, variant, phase, name) and b.complete]
    flops = bounds.products(layer, phase, units.shape_of(layer, phase, name)) / 1e12
    return (flops / mine[0].seconds, flops / mine[0].in_turn) if mine else (None, None)


def checks_section(found: list[Bound], calls: list[StepCall]) -> str:
    step, all_checks = sum(c.seconds for c in calls), checks(found)
    rows = [check.cells() for check in all_checks]
    share, published = f"{step / COMPILED:.0%}", "public script with logs; 65,536 tokens a step"
    rows.append(["the step, H200, torch.compile", f"{_ms(COMPILED)} ms", f"{_ms(step)} ms", share, DASH, published])
    flops = MODELS[units.MODEL].flops_per_token(units.T)["palm"] * units.B * units.T
    mfu = flops / step / H200.wgmma.value
    products, copy = _most(all_checks, "wgmma"), _most(all_checks, "copy")
    attention = _most(all_checks, "Flash", "tutorial")
    both = [c for c in all_checks if c.bound is not None and c.in_turn is not None]
    between = sum((c.in_turn or 0) < c.quoted < (c.bound or 0) for c in both)
    header = ["what", "measured", "bound", "reached", "in turn", "source"]
    return f"""## How far off bounds are

Rates that were measured by others, and what this model bounds them by. None may be above 100 %: that
would be a mistake in the model, and a test looks. The best products reach {products} of their bound, a copy {copy} of
memory's, attention no more than {attention}, for its resources take turns more than they overlap, and waiting is not
counted: of {len(both)} measured rates that have both, {between} lie between the bound and what resources take **in
turn**, one after the other. An H100 computes as an H200 does, but its memory is slower (3.35 TB/s). A step at the bound
would have an MFU of {mfu:.0%} (PaLM's convention).

{_table(header, rows, "lrrrrl")}"""


def _most(all_checks: list[Check], *words: str) -> str:
    shares = [c.reached for c in all_checks if c.reached is not None and any(word in c.what for word in words)]
    return f"{max(shares):.0%}" if shares else DASH


def limits_section() -> str:
    rows = []
    for each in fields(H200):
        limit: Limit = getattr(H200, each.name)
        rows.append([limit.what, f"{_engineering(limit.value)}{limit.unit}".strip(), limit.source])
    return f"""## The limits of an H200

Always the highest that a source names. Rates a cycle are those of one multiprocessor.

{_table(["what", "at most", "source"], rows, "lrl")}"""


# --- bytes on their way ---

LATENCY = 700e-9  # seconds from a load to its data, of a memory that is not yet busy: assumed
AT_MOST, ALWAYS = "until they are used", "at any time"
# Of the kernel that goes over the tensors, in bf16: bytes of a resident thread's loads that are asked for before one of
# them is used, and whether the next ones are asked for before these are worked on.
ASKED = (
    ("gelu forward", "gelu_forward", "cuda.shared", 2 * 16, AT_MOST),
    ("gelu backward", "gelu_backward", "cuda.shared", 2 * 16, AT_MOST),
    ("residual forward", "residual_forward", "cuda.shared", 2 * 16, AT_MOST),
    ("swiglu forward", "swiglu_forward", "cuda.shared", 2 * 16, AT_MOST),
    ("swiglu backward", "swiglu_backward", "cuda.shared", 3 * 16, AT_MOST),
    ("adamw forward", "adamw", "cuda.shared", 8 + 3 * 16, AT_MOST),
    ("softmax forward scores", "softmax_forward_row", "cuda.shared", 4 * 16, AT_MOST),
    ("softmax backward scores", "softmax_backward_row", "cuda.shared", 2 * 4 * 16, AT_MOST),
    ("layernorm forward", "layernorm_forward", "cuda.shared", 3 * 16, AT_MOST),
    ("layernorm forward", "layernorm_forward", "cuda.vector", 2 * 3 * 16, ALWAYS),
    ("layernorm backward", "layernorm_backward_rows", "cuda.shared", 3 * 3 * 16, ALWAYS),
    ("residual_layernorm forward block", "residual_layernorm_forward", "cuda.shared", 2 * 3 * 16, AT_MOST),
    ("residual_layernorm forward block", "residual_layernorm_forward", "cuda.vector", 2 * 3 * 16, ALWAYS),
    ("cross_entropy forward", "cross_entropy_forward", "cuda.shared", 4 * 16, AT_MOST),
    ("cross_entropy forward", "cross_entropy_forward", "cuda.vector", 2 * 2 * 16, ALWAYS),
    ("cross_entropy backward", "cross_entropy_backward", "cuda.shared", 4 * 16, AT_MOST),
    ("cross_entropy backward", "cross_entropy_backward", "cuda.vector", 2 * 2 * 16, ALWAYS),
)


def in_flight_section(entries: dict[str, units.Entry]) -> str:
    """What memory-bound kernels ask for ahead, beside what the bandwidth asks for."""
    rows = []
    for call, kernel, variant, size, how in ASKED:
        layer, _, name = call.partition(" ")
        if entry := entries.get(f"{layer} {variant}"):
            facts = entry["calls"][name]["kernels"][kernel]
            threads = facts["threads"] * facts["resident"]
            rows.append(
                [_call(layer, *_split(name)), variant, str(threads), str(size), f"{threads * size / 1024:.0f}", how]
            )
    wanted = H200.memory.value * LATENCY / H200.multiprocessors.value / 1024
    header = ["call", "variant", "resident threads", "bytes each", "KiB", "on their way"]
    return f"""## Bytes on their way

Where memory sets the pace, a multiprocessor must have its share of the bandwidth times the latency on its way (Little's
law): {wanted:.0f} KiB at {LATENCY * 1e9:.0f} ns, which is assumed, 40 to 64 as latency grows under load, and of reads
alone less where a kernel also writes. Bounds do not know this. *Until they are used*: what threads ask for before they
use the first of it; while a warp computes, reduces or begins it has nothing on its way, and others must. *At any time*:
the next is asked for before. Layers that only go over their elements (gelu, residual, swiglu, adamw), and softmax of
rows that registers hold, have enough of independent warps in `shared`, and so no rung `vector` of their own; it pays
where rows are reduced, or where a row's length leaves narrow accesses (kernels/cuda/cross_entropy/vector.py).

{_table(header, rows, "llrrrl")}"""


def _split(name: str) -> tuple[str, str]:
    phase, _, rest = name.partition(" ")
    return phase, rest


# --- one layer ---

# By resource, the counts that it is made of.
NEEDS = {
    bounds.TENSOR: ("mma_flops", "wgmma_flops"),
    bounds.SPECIAL: ("special",),
    bounds.FP32: ("fp32",),
    bounds.SHARED: ("shared_wavefronts",),
    bounds.L1: ("l1_sectors",),
    bounds.L2: ("l2_reads", "l2_writes"),
}
SHORT = {bounds.SPECIAL: "special", bounds.SHARED: "shared", bounds.TENSOR: "tensor", bounds.L2: "L2"}
HEADER = [
    *("variant", "bound, µs", "set by", "of floor", "in turn, µs"),
    *(f"{SHORT.get(r, r)}, µs" for r in NEEDS),
    *("exp2, 10⁶", "registers", "blocks", "waves", "tail", "ends"),
]


def layer_section(layer: str, found: list[Bound]) -> str:
    text = [f"## {layer}"]
    if layer in LIBRARIES:
        text.append("Kernels of NVIDIA's libraries cannot be counted: dashes.")
    mine = [b for b in found if b.layer == layer]
    for (phase, name), group in itertools.groupby(mine, key=lambda b: (b.phase, b.name)):
        ranked = sorted(group, key=bounds.rank)
        rows = [_variant_row(b) for b in ranked]
        rows += [[v, *[DASH] * (len(HEADER) - 1)] for v in LIBRARIES.get(layer, ())]
        text.append(f"**{_call(layer, phase, name)}**, floor {_floor_text(ranked[0])}")
        text.append(_table(HEADER, rows, "lrl" + "r" * (len(HEADER) - 3)))
    return "\n\n".join(text)


def _floor_text(b: Bound) -> str:
    """µs and the resource of a call's floor, and what it is made of."""
    flops = bounds.products(b.layer, b.phase, units.shape_of(b.layer, b.phase, b.name))
    products = f", {flops / 1e9:.1f} GFLOP of products" if flops else ""
    return f"{_us(b.floor)} µs ({b.floor_by}): {b.nbytes / 1e6:.1f} MB{products}"


def _variant_row(b: Bound) -> list[str]:
    longest = b.longest
    by = b.by_resource()
    return [
        _named(b),
        _us(b.seconds),
        b.set_by,
        f"{b.seconds / b.floor:.2f}x",
        _at_least(b, _us(b.in_turn)),
        *(_known(b, by[r], counts) for r, counts in NEEDS.items()),
        f"{sum(p.amount('exp2') or 0 for p in b.parts) * rates.WARP / 1e6:.4g}" if b.knows("exp2") else DASH,
        str(longest.registers),
        str(longest.resident),
        DASH if longest.waves is None else f"{longest.waves:.1f}",
        f"{longest.imbalance - 1:.1%}" if longest.even and longest.launches == 1 else DASH,
        DASH if longest.ends is None else f"{longest.ends:.0%}",
    ]


def _at_least(b: Bound, told: str) -> str:
    """Of what resources take in turn; a dash where too little of them is known."""
    if b.complete:
        return told
    return f"≥ {told}" if b.knows("mma_flops", "wgmma_flops", "shared_wavefronts") and b.multiplied() else DASH


def _known(b: Bound, seconds: float, counts: tuple[str, ...]) -> str:
    """µs of a resource; "≥" where its counts are not known of all kernels, and a dash where of none."""
    if b.knows(*counts):
        return _us(seconds)
    return f"≥ {_us(seconds)}" if any(set(counts) <= part.counts.keys() for part in b.parts) else DASH


# --- text ---


def _named(b: Bound) -> str:
    return b.variant if b.complete else f"{b.variant} (in part)"


def _call(layer: str, phase: str, name: str) -> str:
    return " ".join(part for part in (layer, name, phase) if part)


def _us(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 0.05 else "0"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _engineering(value: float) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9)):
        if value >= scale:
            return f"{value / scale:.4g} {prefix}"
    return f"{value:g} "


def _table(header: list[str], rows: Iterable[list[str]], aligned: str) -> str:
    """Markdown; `aligned`: l or r for each column."""
    marks = {"l": "---", "r": "--:"}
    lines = [header, [marks[a] for a in aligned], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
