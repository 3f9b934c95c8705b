"""What the calls of a training step need on a GPU, compiled beforehand: a table in results/, read before anything is.

    {"schema": 1, "variants": {"matmul triton.tiled": {"source": "0123456789abcdef", "by": "Triton 3.6.0",
     "calls": {"sm_90a backward {\\"C\\": …} TILES BM=128 …": {"registers": 128, …}}}}}

`python -m bench.static --table` writes it. An entry holds for the same source, and for the compiler that is installed
where it is asked for; what is missing, or does not hold, is compiled (bench.gpu.counts).
"""

import functools
import importlib.metadata
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, cast

from bench import HOME, cli
from bench.core.case import Case
from bench.core.evidence import cause_of
from bench.core.files import write_atomically
from bench.core.variants import Variant
from bench.gpu import counts
from bench.gpu.launches import configured_call, launches_of, without_origin
from bench.gpu.resources import configurations_of, runs_on, step_cases
from bench.machine.facts import usable_cores
from bench.records.record import Resources
from kernels import Unavailable
from reference import contract

TABLE = HOME / "results" / "simulator-sm_90a" / "resources.json"
ARCH = "sm_90a"
SCHEMA = 1
Entry = dict[str, Any]


def known(variant: Variant, case: Case, arch: str, configuration: str, table: Path = TABLE) -> Resources | None:
    """The resources of a call, if they were compiled beforehand from this source by this compiler."""
    entry = read(table).get(str(variant))
    if entry is None or entry["by"] != compiler(variant.backend) or entry["source"] != variant.source_hash():
        return None
    found = entry["calls"].get(_call(case.phase, case.shape, arch, configuration))
    return cast(Resources, dict(found)) if found else None


def _call(phase: str, shape: contract.Shape, arch: str, configuration: str) -> str:
    entries = " ".join(sorted(without_origin(configuration)))
    return f"{arch} {phase} {json.dumps(shape, sort_keys=True)} {entries}".strip()


@functools.cache
def compiler(backend: str) -> str:
    """What turns a backend's kernels into machine code here; "" where it is not installed."""
    try:
        if backend == "triton":
            return f"Triton {importlib.metadata.version('triton')}"
        from kernels.cuda.compiler import version  # needs cuda-bindings

        return f"NVRTC {version().split()[0]}"
    except (importlib.metadata.PackageNotFoundError, Unavailable):
        return ""


@functools.cache
def read(table: Path) -> dict[str, Entry]:
    """Entries by layer and variant. A table that is missing or damaged is empty: then everything is compiled."""
    try:
        document = json.loads(table.read_text())
        variants = document["variants"] if document["schema"] == SCHEMA else {}
        return {name: e for name, e in variants.items() if {"source", "by", "calls"} <= e.keys()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


# --- writing it ---


def update(variants: list[Variant], archs: list[str], dtypes: list[str], jobs: int = 0, table: Path = TABLE) -> int:
    """Compile what the table lacks of these variants, and what it has of another source or compiler; written after
    each variant, so that an end before time costs one. How many were compiled."""
    entries = dict(read(table))
    lacking = [(v, _lacking(_held(entries.get(str(v)), v), v, archs, dtypes)) for v in variants]
    work = [(v, covers) for v, covers in lacking if covers]
    for variant, entry in _compiled(work, jobs):
        if held := _held(entries.get(str(variant)), variant):
            both = [*map(tuple, held["covers"]), *entry["covers"]]
            entry = entry | {"covers": sorted(both), "calls": held["calls"] | entry["calls"]}
        if entry["calls"]:  # else it launches nothing that is compiled here: a library's kernels
            entries[str(variant)] = entry
            _write(table, entries)
        cli.say(f"{variant}: {len(entry['calls'])} calls")
    read.cache_clear()
    return len(work)


def _held(entry: Entry | None, variant: Variant) -> Entry | None:
    """The entry, if it is of this source and compiler."""
    if not entry or (entry["by"], entry["source"]) != (compiler(variant.backend), variant.source_hash()):
        return None
    return entry | {"covers": entry.get("covers", [])}


def _lacking(held: Entry | None, variant: Variant, archs: list[str], dtypes: list[str]) -> list[tuple[str, str]]:
    """The architectures and dtypes that an entry has no calls of."""
    there = {tuple(covered) for covered in held["covers"]} if held else set()
    wanted = [(a, d) for a in archs if runs_on(variant, a) for d in dtypes if d in variant.dtypes]
    return [cover for cover in wanted if cover not in there]


def _write(table: Path, entries: dict[str, Entry]) -> None:
    document = {"schema": SCHEMA, "variants": dict(sorted(entries.items()))}
    write_atomically(table, json.dumps(document, indent=0, sort_keys=True) + "\n")


def _compiled(work: list[tuple[Variant, list[tuple[str, str]]]], jobs: int) -> Iterator[tuple[Variant, Entry]]:
    if len(work) == 1:
        yield work[0][0], compile_calls(*work[0])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or usable_cores(), context) as pool:
        with cli.deaf_to_ctrl_c():
            parts = {pool.submit(compile_calls, *each): each[0] for each in work}
        for part in as_completed(parts):
            yield parts[part], part.result()


def compile_calls(variant: Variant, covers: list[tuple[str, str]]) -> Entry:
    """The entry of a variant: every call of the model's step, in every configuration of its tables, for these
    architectures and dtypes."""
    calls: dict[str, Resources] = {}
    covered = []
    for arch, dtype in covers:
        try:
            calls |= _calls(variant, arch, dtype)
            covered.append((arch, dtype))
        except Exception as error:
            cli.say(f"{variant} {arch} {dtype}: {cause_of(error)}")
    return {
        "source": variant.source_hash(),
        "by": compiler(variant.backend),
        "covers": covered,
        "calls": calls,
    }


def _calls(variant: Variant, arch: str, dtype: str) -> dict[str, Resources]:
    module = variant.load()
    found: dict[str, Resources] = {}
    for _ in configurations_of(module, dtype, arch):
        for case in step_cases(variant, dtype):
            uses, ran = configured_call(module, functools.partial(launches_of, module, case, arch))
            name = _call(case.phase, case.shape, arch, ran)
            if uses and name not in found:
                found[name] = counts.resources_of(uses, arch)
    return found
