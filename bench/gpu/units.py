"""What a unit of a GPU kernel's work costs: counts at small shapes, in a table in results/, and how they scale.

    {"schema": 1, "variants": {"matmul cuda.mma": {"source": …, "by": …,
     "samples": {"forward {\\"K\\": 128, …}": {"matmul_forward": {"items": 4, "work": …, "counts": {"l2_reads": …}}}},
     "calls": {"forward fc": {"small": ["forward {…}", …], "kernels": {"matmul_forward": {"launches": 1, "items": 12288,
      "before": 0, "threads": 128, "registers": …, "shared_bytes": …, "resident": 2}}}}}}}

An *item* is a block, or a tile where blocks are persistent; *work* and *side* are what `work` and `side` say, *before*
the items of the kernel that is launched before (parts that are added up). A count is fitted as a sum of one to three
of these, each times a constant, on more small shapes than it has constants. Where several such sums fit and agree about
the call, the least is taken, so that a bound made of it is none too high; where they do not agree, or none fits to
TOLERANCE, the count is not known. Items, threads, registers, shared memory and resident blocks are those of the call
itself, at B=64, T=1024: launches are written down there, and nothing is run.

`python -m bench.roofline --count` writes it.
"""

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from bench import HOME, cli
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw
from bench.core.evidence import cause_of
from bench.core.files import write_atomically
from bench.core.variants import Variant, discover
from bench.gpu import cubin, table
from bench.gpu.executed import Counting, Executed
from bench.gpu.launches import KernelUse, launches_of, launching_with
from bench.gpu.resources import compile_builds, runs_on
from kernels import Unavailable
from kernels.cuda import persistent
from reference import contract
from reference.models import MODELS

TABLE = HOME / "results" / "simulator-sm_90a" / "units.json"
SCHEMA = 1
MODEL, B, T, DTYPE, ARCH = "gpt2-124m", 64, 1024, "bf16", "sm_90a"
TOLERANCE, EXACT = 0.005, 1e-6  # relative
AGREE = 1.02  # sums that fit, at the call's size
FEATURES = ("items", "work", "side", "before")
COUNTS = tuple(f.name for f in fields(Executed))
Shape = contract.Shape
Entry = dict[str, Any]


# --- what work is, and where it is counted ---


def work(layer: str, shape: Shape) -> int:
    """M N K of a product; B NH T^2 of attention, B NH T S of a step's; rows or elements of what goes over its tensors
    once."""
    if layer in ("matmul", "gemv", "q8_matmul"):
        return shape["M"] * shape["N"] * shape["K"]
    if layer == "q8_quantise":
        return shape["M"] * shape["K"]
    if layer == "attention":
        return shape["B"] * shape["NH"] * shape["T"] ** 2
    if layer == "decode_attention":
        return shape["B"] * shape["NH"] * shape["T"] * shape["S"]
    if "tensors" in shape:
        return sum(math.prod(s) for s in shape["tensors"])
    if "N" in shape:
        return shape["N"]
    if "VP" in shape:
        return shape["B"] * shape.get("T", 1) * shape["VP"]
    if layer == "swiglu":
        return shape["M"] * shape["H"]
    return shape["R"] if layer == "softmax" else shape["B"] * shape["T"]


def side(layer: str, phase: str, shape: Shape) -> int:
    """What goes on beside the work: M N of a product's backward, over which dbias is summed; the rows of logits; else
    0, nothing."""
    if layer == "matmul" and phase == "backward":
        return shape["M"] * shape["N"]
    return shape["B"] * shape.get("T", 1) if "VP" in shape else 0


def small_shapes(variant: Variant, phase: str, shape: Shape) -> list[Shape]:
    """Three or four of a few whole tiles each, alike in what is not cut."""
    layer, naive = variant.layer, variant.stem == "naive"
    if layer == "matmul":
        return [{**shape, **dict(zip("MNK", sizes, strict=True))} for sizes in _products(naive, phase, shape)]
    if layer == "attention":
        return [{**shape, "B": 1, "NH": 2, "NKV": 2, "T": t} for t in ((64, 128, 96) if naive else (128, 256, 384))]
    if layer in ("gemv", "q8_matmul"):
        return [{**shape, "N": n * 256} for n in (1, 2, 3)]
    if layer == "q8_quantise":
        return [{**shape, "M": n * 32} for n in (1, 2, 3)]
    if layer == "sampling":
        return [{**shape, "B": b, "VP": vp, "V": vp - 47} for b, vp in ((2, 8192), (4, 8192), (2, 16384))]
    if layer == "decode_attention":
        return [{**shape, "B": 1, "S": s} for s in (128, 256, 384)]
    if "tensors" in shape:
        return [_list_of(shape, rows) for rows in (32, 64, 96)]
    if "N" in shape:
        return [{**shape, "N": n * 24576} for n in (1, 2, 3)]
    if layer == "softmax":
        return [{**shape, "R": n * shape["S"]} for n in (1, 2, 3)]
    if layer == "swiglu":
        return [{**shape, "M": m} for m in (16, 32, 48)]
    if layer == "rope":
        return [{**shape, "B": b, "T": 64} for b in (1, 2, 3)]
    if layer == "embedding":
        return [{**shape, "B": 1, "T": t, "V": 512} for t in (128, 256, 384)]
    if "VP" in shape:  # some launch no more than 264 blocks, which have several rows each
        sizes = (
            ((32, 8192), (64, 8192), (32, 16384)) if naive else ((264, 8192), (528, 8192), (264, 16384), (396, 8192))
        )
        return [{**shape, "B": 1, "T": t, "VP": vp, "V": vp - 47} for t, vp in sizes]
    return [{**shape, "B": b, "T": 128 if naive else 1056} for b in (2, 4, 3)]


def _products(naive: bool, phase: str, shape: Shape) -> list[tuple[int, int, int]]:
    if naive:
        return [(64, 256, 64), (128, 256, 64), (64, 256, 128)]
    if phase == "forward":
        return [(256, 256, 128), (256, 512, 256), (512, 256, 192)]
    if shape["epilogue"] == "none":  # the head, whose dweight has tiles enough and is not cut into parts
        return [(128, 1024, 512), (256, 2048, 256), (256, 1024, 512), (128, 2048, 512)]
    return [(256, 256, 256), (512, 512, 256), (256, 256, 512), (512, 256, 512)]


def _list_of(shape: Shape, rows: int) -> Shape:
    """One tensor of so many rows, as wide as the first, with all else that the shape lists cut to one."""
    lists = {name: value[:1] for name, value in shape.items() if isinstance(value, list)}
    return {**shape, **lists, "tensors": [(rows, shape["tensors"][0][-1])]}


# --- one call ---


@contextmanager
def every_item(module: ModuleType) -> Iterator[None]:
    """Persistent launches have a block for each item inside, as many as there are: so their number is known."""
    before, many = persistent.SIMULATED, 1 << 40
    asked = vars(module).get("multiprocessors") if module.__name__.startswith("kernels.triton.") else None
    persistent.SIMULATED = many
    if asked:
        vars(module)["multiprocessors"] = lambda: many
    try:
        yield
    finally:
        persistent.SIMULATED = before
        if asked:
            vars(module)["multiprocessors"] = asked


def items_of(module: ModuleType, case: Case) -> list[KernelUse]:
    with every_item(module):
        return launches_of(module, case, ARCH)


def counted(module: ModuleType, case: Case) -> list[Executed]:
    """Of each launch of a call, in order. Runs it in the simulator."""
    run = Counting()
    with launching_with(run, ARCH):  # what a workspace needs may be asked of the driver
        arena = Arena(case, "cpu", workspace_of(module, case))
        arena.load(draw(case))
        arena.reset()
        arena.call(getattr(module, case.phase))
    return run.found


def kernel_name(use: KernelUse) -> str:
    return use.build.label.partition("<")[0]


Point = dict[str, float]  # FEATURES of a call's launches of one kernel


def samples(module: ModuleType, case: Case) -> dict[str, Entry]:
    """By kernel, its launches together: its point, and what was executed."""
    found: dict[str, Entry] = {}
    points = points_of(case, items_of(module, case))
    for (name, _), one in zip(points, counted(module, case), strict=True):
        counts = found.setdefault(name, {**dict(points)[name], "counts": dict.fromkeys(COUNTS, 0)})["counts"]
        for count in COUNTS:
            counts[count] += getattr(one, count)
    return found


def points_of(case: Case, uses: list[KernelUse]) -> list[tuple[str, Point]]:
    """(kernel, point of all its launches) of each launch."""
    items: dict[str, int] = {}
    before: dict[str, int] = {}
    last = 0
    for use in uses:
        name = kernel_name(use)
        before.setdefault(name, last)
        items[name] = items.get(name, 0) + (last := math.prod(use.grid))
    at = {"work": work(case.layer, case.shape), "side": side(case.layer, case.phase, case.shape)}
    names = [kernel_name(use) for use in uses]
    return [(name, {"items": items[name], **at, "before": before[name]}) for name in names]


def fit(points: list[Point], values: list[float], wanted: Point) -> Entry | None:
    """The sum of features that fits all values, and gives least at `wanted`: a constant for each, which they are
    (`of`), and how far `off` it is at worst. None where none fits, where several do that do not agree at `wanted`, or
    where there are too few points. A sum that is exact is taken before one that is not, for what is little at small
    shapes may be all at large ones; and what was launched before is asked for only where the kernel's own features do
    not do."""
    if points and not any(values):
        return {"of": [], "off": 0.0}
    for tolerance in (EXACT, TOLERANCE):
        for features in (FEATURES[:-1], FEATURES):
            if found := _sums(points, values, wanted, features, tolerance):
                least = min(found, key=lambda pair: pair[0])
                agree = max(there for there, _ in found) <= least[0] * AGREE
                return least[1] if agree else None
    return None


def _sums(
    points: list[Point], values: list[float], wanted: Point, features: tuple[str, ...], tolerance: float
) -> list[tuple[float, Entry]]:
    """All sums of these features that fit, and what each gives at `wanted`; those of fewer first."""
    found = []
    combinations = itertools.chain.from_iterable(itertools.combinations(features, n) for n in range(1, len(points)))
    for names in combinations:
        constants, off = _solved([[p[name] for name in names] for p in points], values)
        if not constants or off > tolerance:
            continue
        there = sum(c * wanted[name] for c, name in zip(constants, names, strict=True))
        if there >= 0:
            there = float(f"{there:.6g}")  # of equal ones the first is the least, whatever the last digits are
            found.append((there, {**dict(zip(names, constants, strict=True)), "of": list(names), "off": off}))
    return found


def _solved(rows: list[list[float]], values: list[float]) -> tuple[list[float], float]:
    """(constants, the worst relative error) by least squares; no constants where they are not determined."""
    matrix, target = np.array(rows, dtype=float), np.array(values, dtype=float)
    scale = np.abs(matrix).max(axis=0)
    if not scale.all() or np.linalg.matrix_rank(matrix / scale) < len(scale):
        return [], math.inf
    solved = np.linalg.lstsq(matrix / scale, target, rcond=None)[0] / scale
    constants = [float(f"{c:.9g}") for c in solved]  # the last digits depend on the machine
    return constants, max(map(_relative, (matrix @ constants).tolist(), values))


def _relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def fitted(entry: Entry, call: str, kernel: str) -> tuple[Point, dict[str, Entry]]:
    """(the call's point, the fit of each count that is known) of a kernel, by a variant's entry."""
    facts, at = entry["calls"][call]["kernels"][kernel], entry["calls"][call]
    here = [entry["samples"][key][kernel] for key in at["small"] if kernel in entry["samples"][key]]
    wanted = {name: facts[name] for name in FEATURES}
    found = {c: fit(here, [one["counts"][c] for one in here], wanted) for c in COUNTS}
    return wanted, {count: one for count, one in found.items() if one}


def variant_entry(variant: Variant) -> Entry:
    """All calls of a variant. What cannot be counted at a small shape is said, and has no samples."""
    module, layer = variant.load(), contract.load(variant.layer)
    entry: Entry = {"source": variant.source_hash(), "by": table.compiler(variant.backend), "calls": {}, "samples": {}}
    for phase, name, call in calls_of(variant.layer):
        if not variant.has(phase):
            continue
        case = Case(variant.layer, phase, contract.overwriting(layer, phase, call.shape, DTYPE), MODEL, 0)
        keys = []
        for small in small_shapes(variant, phase, case.shape):
            key = f"{phase} {json.dumps(small, sort_keys=True)}"
            try:
                if key not in entry["samples"]:
                    entry["samples"][key] = samples(module, Case(variant.layer, phase, small, "small", 0))
                keys.append(key)
            except (Unavailable, RuntimeError) as error:
                told = cause_of(error)[:300]
                cli.say(f"{variant} {key[:100]}: not counted: {told}")
        entry["calls"][call_name(phase, name)] = {"kernels": launched(module, case), "small": keys}
    return entry


def launched(module: ModuleType, case: Case) -> dict[str, Entry]:
    """By kernel: launches, its point, and what the compiler says of it. Nothing is run."""
    uses = items_of(module, case)
    known = compile_builds(sorted({use.build for use in uses}, key=str), ARCH)
    kernels: dict[str, Entry] = {}
    for use, (name, point) in zip(uses, points_of(case, uses), strict=True):
        found = known[use.build]
        if isinstance(found, str):
            raise RuntimeError(found)
        shared = found.shared_bytes + use.shared
        resident = cubin.blocks_per_multiprocessor(ARCH, use.threads, found.registers, shared)
        facts = dict(threads=use.threads, registers=found.registers, shared_bytes=shared, resident=resident)
        kernels.setdefault(name, {"launches": 0, **point, **facts})["launches"] += 1
    return kernels


# --- the table ---


def calls_of(layer: str) -> Iterator[tuple[str, str, contract.Call]]:
    """(phase, name, call) of the model at B=64, T=1024."""
    for phase in contract.phases_of(contract.load(layer)):
        for name, call in MODELS[MODEL].shapes(layer, B, T).items():
            yield phase, name, call


def shape_of(layer: str, phase: str, name: str) -> Shape:
    return next(call.shape for p, n, call in calls_of(layer) if (p, n) == (phase, name))


def call_name(phase: str, name: str) -> str:
    return f"{phase} {name}".strip()


def variants() -> list[Variant]:
    """All GPU variants of this project that run on the architecture."""
    return [v for v in discover(()) if v.gpu_code and not v.fault and DTYPE in v.dtypes and runs_on(v, ARCH)]


def read(file: Path = TABLE) -> dict[str, Entry]:
    """Entries by layer and variant. Raises CannotGoOn where there is no such table."""
    try:
        document = json.loads(file.read_text())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, not {SCHEMA}")
        return document["variants"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise cli.CannotGoOn(
            f"cannot read the counts in {file.name} ({told}): python -m bench.roofline --count"
        ) from error


def stale(entries: dict[str, Entry]) -> list[str]:
    """Variants that were counted with another source than they have now, or not at all. Of a library's kernels nothing
    can be counted."""
    return [str(v) for v in variants() if not v.kernels and entries.get(str(v), {}).get("source") != v.source_hash()]


def update(layers: list[str], only: list[str], everything: bool = False, file: Path = TABLE) -> int:
    """Count what is stale, of these layers and variants (none: all); written after each variant. How many were."""
    torch.set_num_threads(1)
    entries = read(file) if file.exists() else {}
    old = set(stale(entries))
    chosen = [v for v in variants() if not v.kernels and (not layers or v.layer in layers)]
    chosen = [v for v in chosen if (not only or v.name in only) and (everything or str(v) in old)]
    for variant in chosen:
        entry = variant_entry(variant)
        known = read(file) if file.exists() else {}  # another process may have written meanwhile
        known[str(variant)] = entry
        document = {"schema": SCHEMA, "variants": dict(sorted(known.items()))}
        write_atomically(file, json.dumps(document, indent=0, sort_keys=True) + "\n")
        cli.say(f"{variant}: {len(entry['calls'])} calls")
    return len(chosen)
