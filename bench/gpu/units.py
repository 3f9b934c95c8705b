"""What each unit of a GPU kernel's work costs, counted at small shapes: a table in results/, from which bounds are made.

    {"schema": 1, "variants": {"matmul cuda.mma": {"source": …, "by": …, "calls": {"forward fc": {"matmul_forward":
     {"launches": 1, "items": 12288, "threads": 128, "registers": …, "shared_bytes": …, "resident": 2,
     "counts": {"l2_sectors": {"items": 2048.0, "work": 0.00097, "of": ["items", "work"], "off": 0.0}}}}}}}}

An *item* is a block, or a tile where blocks are persistent; *work* and *side* are what `work` and `side` say. A count is
fitted as a sum of one to three of these, each times a constant, on more small shapes than it has constants; `off` is by
how much it misses at worst, relative. Where several such sums fit, the one that promises least at the call's size is
taken, so that a bound made of it is none too high; where none fits to TOLERANCE the count is not there. Items, threads,
registers, shared memory and resident blocks are those of the call itself, at B=64, T=1024.

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

import torch

from bench import HOME, cli
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw
from bench.core.evidence import telling
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
TOLERANCE = 0.005
FEATURES = ("items", "work", "side")
COUNTS = tuple(f.name for f in fields(Executed))
Shape = contract.Shape
Entry = dict[str, Any]


# --- what work is, and where it is counted ---


def work(layer: str, shape: Shape) -> int:
    """M N K of a product; B NH T^2 of attention; rows or elements of what goes over its tensors once."""
    if layer == "matmul":
        return shape["M"] * shape["N"] * shape["K"]
    if layer == "attention":
        return shape["B"] * shape["NH"] * shape["T"] ** 2
    if "tensors" in shape:
        return sum(math.prod(s) for s in shape["tensors"])
    if "N" in shape:
        return shape["N"]
    return shape["R"] if "R" in shape else shape["B"] * shape["T"]


def side(layer: str, phase: str, shape: Shape) -> int:
    """M N of a product's backward, over which dbias is summed; 0 where there is nothing beside the work."""
    return shape["M"] * shape["N"] if layer == "matmul" and phase == "backward" else 0


def small_shapes(variant: Variant, phase: str, shape: Shape) -> list[Shape]:
    """Three or four of a few whole tiles each, alike in what is not cut."""
    layer, naive = variant.layer, variant.stem == "naive"
    if layer == "matmul":
        return [{**shape, **dict(zip("MNK", sizes, strict=True))} for sizes in _products(naive, phase, shape)]
    if layer == "attention":
        return [{**shape, "B": 1, "NH": 2, "NKV": 2, "T": t} for t in ((64, 128, 96) if naive else (128, 256, 384))]
    if "tensors" in shape:
        return [_list_of(shape, rows) for rows in (32, 64, 96)]
    if "N" in shape:
        return [{**shape, "N": n * 24576} for n in (1, 2, 3)]
    if "R" in shape:
        return [{**shape, "R": n * shape["S"]} for n in (1, 2, 3)]
    if layer == "embedding":
        return [{**shape, "B": 1, "T": t, "V": 512} for t in (128, 256, 384)]
    if "VP" in shape:
        return [{**shape, "B": 1, "T": t} for t in ((32, 64, 96) if naive else (4, 8, 6))]
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


Point = dict[str, float]  # items, work and side of a launch, or of a call's launches of one kernel
Sample = tuple[Point, Executed]


def samples(module: ModuleType, case: Case) -> dict[str, Sample]:
    """By kernel, all its launches together."""
    found: dict[str, Sample] = {}
    for use, one in zip(items_of(module, case), counted(module, case), strict=True):
        point, before = found.get(kernel_name(use), (point_of(case.layer, case.phase, case.shape, 0), Executed()))
        total = Executed(**{name: getattr(before, name) + getattr(one, name) for name in COUNTS})
        found[kernel_name(use)] = ({**point, "items": point["items"] + math.prod(use.grid)}, total)
    return found


def point_of(layer: str, phase: str, shape: Shape, items: int) -> Point:
    return {"items": items, "work": work(layer, shape), "side": side(layer, phase, shape)}


def fit(points: list[Point], values: list[float], wanted: Point) -> Entry | None:
    """The sum of features that fits all values and gives least at `wanted`: a constant for each, which they are (`of`),
    and how far `off` it is at worst. None where none fits, or there are too few points to try one."""
    if points and not any(values):
        return {"of": [], "off": 0.0}
    best: tuple[float, Entry] | None = None
    combinations = itertools.chain.from_iterable(itertools.combinations(FEATURES, n) for n in range(1, len(points)))
    for names in combinations:
        matrix = torch.tensor([[p[name] for name in names] for p in points], dtype=torch.float64)
        scale = matrix.abs().amax(0)
        if not bool((scale > 0).all()) or torch.linalg.matrix_rank(matrix / scale) < len(names):
            continue
        target = torch.tensor(values, dtype=torch.float64)
        constants = torch.linalg.lstsq(matrix / scale, target).solution / scale
        off = max(map(_relative, (matrix @ constants).tolist(), values))
        there = sum(c * wanted[name] for c, name in zip(constants.tolist(), names, strict=True))
        if off <= TOLERANCE and there >= 0 and (best is None or there < best[0] * (1 - 1e-9)):
            rounded = [float(f"{c:.12g}") for c in constants.tolist()]
            best = there, {**dict(zip(names, rounded, strict=True)), "of": list(names), "off": float(f"{off:.1g}")}
    return best[1] if best else None


def _relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def call_entry(variant: Variant, phase: str, shape: Shape, known: dict[str, dict[str, Sample]]) -> Entry:
    """The kernels of a call: its launches at its own size, and what was counted at small ones. known: by small shape,
    what was counted for other calls of this phase."""
    module, layer = variant.load(), contract.load(variant.layer)
    case = Case(variant.layer, phase, contract.overwriting(layer, phase, shape, DTYPE), MODEL, 0)
    kernels = launched(module, case)
    found_at: list[dict[str, Sample]] = []
    try:
        for small in small_shapes(variant, phase, case.shape):
            key = f"{phase} {json.dumps(small, sort_keys=True)}"
            if key not in known:
                known[key] = samples(module, Case(variant.layer, phase, small, "small", 0))
            found_at.append(known[key])
    except (Unavailable, RuntimeError) as error:
        cli.say(f"{variant.layer} {variant.name} {phase}: not counted: {type(error).__name__}: {telling(error)[:300]}")
        found_at = []
    for name, one in kernels.items():
        here = [found[name] for found in found_at if name in found]
        wanted = point_of(variant.layer, phase, shape, one["items"])
        points = [point for point, _ in here]
        fitted = {count: fit(points, [getattr(e, count) for _, e in here], wanted) for count in COUNTS}
        one["counts"] = {count: found for count, found in fitted.items() if found}
    return kernels


def launched(module: ModuleType, case: Case) -> dict[str, Entry]:
    """By kernel: launches, items, and what the compiler says of it. Nothing is run."""
    uses = items_of(module, case)
    known = compile_builds(sorted({use.build for use in uses}, key=str), ARCH)
    kernels: dict[str, Entry] = {}
    for use in uses:
        found = known[use.build]
        if isinstance(found, str):
            raise RuntimeError(found)
        shared = found.shared_bytes + use.shared
        resident = cubin.blocks_per_multiprocessor(ARCH, use.threads, found.registers, shared)
        facts = dict(threads=use.threads, registers=found.registers, shared_bytes=shared, resident=resident)
        one = kernels.setdefault(kernel_name(use), {"launches": 0, "items": 0, **facts})
        one["launches"] += 1
        one["items"] += math.prod(use.grid)
    return kernels


# --- the table ---


def calls_of(layer: str) -> Iterator[tuple[str, str, contract.Call]]:
    """(phase, name, call) of the model at B=64, T=1024."""
    for phase in contract.phases_of(contract.load(layer)):
        for name, call in MODELS[MODEL].shapes(layer, B, T).items():
            yield phase, name, call


def call_name(phase: str, name: str) -> str:
    return f"{phase} {name}".strip()


def variants() -> list[Variant]:
    """All GPU variants of this project that run on the architecture."""
    return [v for v in discover(()) if v.gpu_code and not v.fault and DTYPE in v.dtypes and runs_on(v, ARCH)]


def read(file: Path = TABLE) -> dict[str, Entry]:
    """Entries by layer and variant. Raises OSError or ValueError where there is no such table."""
    document = json.loads(file.read_text())
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{file.name} has schema {document.get('schema')}, not {SCHEMA}")
    return document["variants"]


def stale(entries: dict[str, Entry]) -> list[str]:
    """Variants that were counted with another source than they have now, or not at all."""
    return [
        f"{v.layer} {v.name}"
        for v in variants()
        if not is_library(v) and entries.get(f"{v.layer} {v.name}", {}).get("source") != v.source_hash()
    ]


def is_library(variant: Variant) -> bool:
    """Whether its kernels are a library's, of which nothing can be counted."""
    return any(need in ("cublaslt", "cudnn") for need in variant.requires)


def update(layers: list[str], only: list[str], everything: bool = False, file: Path = TABLE) -> int:
    """Count what is stale, of these layers and variants (none: all); written after each variant. How many were."""
    torch.set_num_threads(1)
    entries = read(file) if file.exists() else {}
    old = set(stale(entries))
    chosen = [v for v in variants() if not is_library(v) and (not layers or v.layer in layers)]
    chosen = [v for v in chosen if (not only or v.name in only) and (everything or f"{v.layer} {v.name}" in old)]
    for variant in chosen:
        entry: Entry = {"source": variant.source_hash(), "by": table.compiler(variant.backend), "calls": {}}
        counted_at: dict[str, dict[str, Sample]] = {}
        for phase, name, call in calls_of(variant.layer):
            if variant.has(phase):
                entry["calls"][call_name(phase, name)] = call_entry(variant, phase, call.shape, counted_at)
        known = read(file) if file.exists() else {}  # another process may have written meanwhile
        known[f"{variant.layer} {variant.name}"] = entry
        document = {"schema": SCHEMA, "variants": dict(sorted(known.items()))}
        write_atomically(file, json.dumps(document, indent=0, sort_keys=True) + "\n")
        cli.say(f"{variant.layer} {variant.name}: {len(entry['calls'])} calls")
    return len(chosen)
