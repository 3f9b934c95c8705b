"""Every GPU kernel compiled for several GPUs, without one: what it needs, and what is wrong with it."""

import contextlib
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.text import Text

from bench import cli
from bench.core.case import DTYPES as TORCH
from bench.core.case import Case
from bench.core.evidence import bounded, cause_of
from bench.core.files import make_folder, need_cache, write_atomically
from bench.core.progress import track
from bench.core.variants import Variant, discover
from bench.gpu import cubin
from bench.gpu.launches import Build, KernelUse, launches_of, tables_of
from bench.machine.facts import usable_cores
from bench.show import terminal, texts
from bench.show.sheet import Col, Sheet
from kernels import Unavailable, cuda
from kernels.cuda.compiler import CompileError, compile_source
from reference import contract
from reference.models import MODELS

DTYPES = ("fp32", "bf16")
WORTH_PROCESSES = 8  # pairs of variant and architecture: fewer are compiled sooner than processes start
MODEL = "gpt2-124m"
BATCHES = (contract.DEFAULT_B, 64)  # sequences of the calls that are timed: a kernel may have other constants at each
OPTION = 64  # of an optional scalar, as attention's window: less than any model's keys but the tiny ones'
MESSAGE = 4000  # characters of a compiler's message

Found = cubin.Resources | str  # the second: why there are none


@dataclass
class Compiled:
    """One kernel of one variant on one architecture; `fault` is why it fails, or empty."""

    layer: str
    variant: str
    phase: str
    dtype: str
    arch: str
    kernel: str
    threads: int
    dynamic_shared_bytes: int
    configuration: str = ""  # of a Triton variant's table, where it is not the default
    facts: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    def row(self) -> dict[str, object]:
        own = {k: v for k, v in vars(self).items() if k not in ("facts", "fault")}
        return {**own, **self.facts, "fault": self.fault}


def chosen(layers: list[str], only: str | None, kernels: list[str]) -> list[Variant]:
    """GPU variants of these layers, or of all; `only`: a comma list of names, `kernels`: folders of more variants."""
    names = contract.layer_names()
    layers = [cli.choose(name, names, "layer") for name in layers] or list(names)
    found = discover(tuple(map(Path, kernels)))
    variants = [v for v in found if v.gpu_code and v.layer in layers and not v.fault]
    known = sorted({v.name for v in variants})
    wanted = cli.choose_all(only, known, "variant") if only else known
    return [v for v in variants if v.name in wanted]


def prepare(folder: Path | None) -> None:
    """Make sure, before anything is compiled, that the cache and the folder of the results can be written to."""
    need_cache()
    if folder:
        make_folder(folder)


def compile_all(variants: list[Variant], archs: list[str], dtypes: list[str], jobs: int = 0) -> list[Compiled]:
    """Every kernel that the variants launch, on every architecture that they can run on."""
    work = [(v, arch, dtypes) for v in variants for arch in archs if runs_on(v, arch)]
    told = [f"compiling {v} for {arch}" for v, arch, _ in work]
    if len(work) < WORTH_PROCESSES:
        pairs = track(list(zip(work, told, strict=True)), "compilation", lambda pair: pair[1])
        return [row for job, _ in pairs for row in compile_variant(job)]

    context = multiprocessing.get_context("spawn")  # Triton has one driver a process, and so one architecture at once
    with ProcessPoolExecutor(jobs or usable_cores(), context) as pool:
        with cli.deaf_to_ctrl_c():
            parts = pool.map(compile_variant, work)
        try:
            return [row for _ in track(told, "compilation", str) for row in next(parts)]
        except BaseException:  # Ctrl-C: nobody waits for the others
            threading.excepthook = lambda _: None  # the pool's own would tell of its end in a traceback
            for process in multiprocessing.active_children():
                process.kill()
            raise


def compile_variant(job: tuple[Variant, str, list[str]]) -> list[Compiled]:
    """Every kernel and configuration of one variant on one architecture, at some dtypes."""
    variant, arch, dtypes = job
    rows = []
    for dtype in [d for d in dtypes if d in variant.dtypes]:
        try:
            uses = kernels_of(variant, dtype, arch)
            known = compile_builds(sorted({use.build for _, _, use in uses}, key=str), arch)
        except Exception as error:
            fault = f"cannot be called: {cause_of(error)}"
            rows.append(Compiled(variant.layer, variant.name, "", dtype, arch, "", 0, 0, fault=fault))
            continue
        for phase, configuration, use in uses:
            names = (variant.layer, variant.name, phase, dtype, arch, use.build.label)
            row = Compiled(*names, use.threads, use.shared, configuration)
            _fill(row, known[use.build])
            rows.append(row)
    _judge(variant, rows)
    return rows


def runs_on(variant: Variant, arch: str) -> bool:
    """Whether the variant's REQUIRES allow an architecture: `sm80` is a minimum, `sm90a` that one alone."""
    for need in variant.requires:
        if need.startswith("sm") and need.endswith("a") and need[2:] != arch[3:]:
            return False
        if need.startswith("sm") and need[2:].isdigit() and int(need[2:]) > int(arch[3:].rstrip("a")):
            return False
    return True


def kernels_of(variant: Variant, dtype: str, arch: str) -> list[tuple[str, str, KernelUse]]:
    """(phase, configuration, kernel) of every launch at the models' shapes, each instance and block once."""
    module = variant.load()
    found: dict[tuple, tuple[str, str, KernelUse]] = {}

    def write_down(configuration: str, case: Case) -> None:
        for use in launches_of(module, case, arch):
            # Grids of the different shapes differ, and change nothing here.
            key = (case.phase, use.build, use.block, use.shared)
            found.setdefault(key, (case.phase, configuration, use))

    for configuration in configurations_of(module, dtype, arch):
        for case in step_cases(variant, dtype):
            write_down(configuration, case)
        for case in other_cases(variant, dtype, with_options=not configuration):
            with contextlib.suppress(Unavailable):  # a variant may not take them
                write_down(configuration, case)
    return list(found.values())


def step_cases(variant: Variant, dtype: str) -> Iterator[Case]:
    """The calls of the model's step that a variant has, with each number of sequences that is timed."""
    layer = contract.load(variant.layer)
    for phase in contract.phases_of(layer):
        for B in BATCHES if variant.has(phase) else ():
            for name, call in MODELS[MODEL].shapes(variant.layer, B, contract.DEFAULT_T).items():
                shape = contract.overwriting(layer, phase, call.shape, dtype)
                yield Case(variant.layer, phase, shape, f"{MODEL}/{name}" if name else MODEL, 0)


def other_cases(variant: Variant, dtype: str, with_options: bool) -> Iterator[Case]:
    """The calls of the other models' steps: heads of other sizes and in groups, longer rows, other epilogues; of a list
    of tensors, whose sizes are no kernel's constants, none. with_options: also all models' with each of the layer's
    options, which the defaults of a table must do for."""
    layer = contract.load(variant.layer)
    for phase in filter(variant.has, contract.phases_of(layer)):
        options = [{option: OPTION} for option in contract.pass_of(layer, phase).optional if with_options]
        for name, model in MODELS.items():
            calls = model.calls(contract.DEFAULT_B, min(contract.DEFAULT_T, model.max_t)).get(variant.layer, {})
            for call in calls.values():
                if "tensors" in call.shape:
                    continue
                for more in options if name == MODEL else ({}, *options):
                    shape = contract.overwriting(layer, phase, {**call.shape, **more}, dtype)
                    yield Case(variant.layer, phase, shape, name, 0)


def configurations_of(module: ModuleType, dtype: str, arch: str) -> Iterator[str]:
    """Put each configuration of a Triton variant's tables in turn; "" first, for the defaults."""
    yield ""
    if tables := tables_of(module):
        from bench.simulate import triton_driver  # needs Triton
        from kernels.triton.tuning import text_of  # sets what Triton reads
    for name, table in tables.items():
        with triton_driver.launching_with(lambda _: None, arch):
            candidates = table.candidates(TORCH[dtype])
        for config in candidates[1:]:
            table.trying = config
            try:
                yield text_of(name, config)
            finally:
                table.trying = None


def compile_builds(builds: list[Build], arch: str) -> dict[Build, Found]:
    """Resources of each build, or the compiler's message. One compilation for all instances of a source."""
    found: dict[Build, Found] = {}
    ours = [b for b in builds if isinstance(b, cuda.Build)]
    found |= {b: _assembled(b, arch) for b in builds if not isinstance(b, cuda.Build)}
    for source, defines, appended in sorted({(b.source, b.defines, b.appended) for b in ours}, key=str):
        group = [b for b in ours if (b.source, b.defines, b.appended) == (source, defines, appended)]
        try:
            binary = compile_source(source, tuple(b.name for b in group), arch, "cubin", defines, appended)
        except CompileError as error:
            found |= dict.fromkeys(group, bounded(error, MESSAGE))
            continue
        by_symbol = cubin.resources(binary.code, binary.log)
        found |= {b: by_symbol[binary.names[b.name]] for b in group}
    return found


def _assembled(build: Any, arch: str) -> Found:
    """Resources of a kernel that Triton compiled, or ptxas's message."""
    try:
        return cubin.resources(*cubin.assemble(build.ptx, arch))[build.name]
    except cubin.AssemblyError as error:
        return bounded(error, MESSAGE)


def _fill(row: Compiled, found: Found) -> None:
    if isinstance(found, str):
        row.fault = found
        return
    shared = found.shared_bytes + row.dynamic_shared_bytes
    row.facts = {k: v for k, v in vars(found).items() if k != "symbol"}
    row.facts["occupancy"] = cubin.occupancy(row.arch, row.threads, found.registers, shared)
    if row.facts["occupancy"] == 0:
        row.fault = (
            f"no block fits: {row.threads} threads, {found.registers} registers, {shared} bytes of shared memory"
        )


def _judge(variant: Variant, rows: list[Compiled]) -> None:
    """Mark spills that were not declared, tensor cores that are claimed and not used, and products that wait."""
    for row in rows:
        spilled = row.facts.get("spill_bytes", 0)
        if not row.fault and spilled > (most := variant.may_spill(row.arch)):
            row.fault = f"spills {spilled} bytes, SPILLS allows {most}"
        if not row.fault and row.facts.get("serialized"):
            row.fault = "wgmma is serialized: no product is in flight while another begins"
    compiled = [r for r in rows if r.facts]
    if variant.tensor_cores and compiled and not any(r.facts["tensor_core_instructions"] for r in compiled):
        compiled[0].fault = compiled[0].fault or "TENSOR_CORES is True, but no kernel has a tensor-core instruction"


def show(rows: list[Compiled]) -> None:
    """One line a kernel; where the architectures differ, their counts stand side by side in the order of --arch."""
    archs = list(dict.fromkeys(r.arch for r in rows if r.arch))
    counts = [("threads", 5), ("registers", 0), ("spills", 0), ("shared", 2), ("occupancy", 1), ("tensor", 3)]
    heads = [*(Col(name, right=True, rank=rank) for name, rank in (*counts, ("128-bit", 4))), Col("")]
    title = f"resources on {', '.join(archs)}: from the compiler and the machine code, no times"
    grid = Sheet(title, [Col("layer"), Col("variant"), Col("kernel", prose=True), *heads])
    last = ("", "")
    for group in _by_kernel(rows):
        r = group[0]
        named = ("", "") if (r.layer, r.variant) == last else (r.layer, r.variant)
        last = (r.layer, r.variant)
        faults = {f"{g.arch}: {g.fault}": None for g in group if g.fault}
        grid.add(*named, r.kernel, str(r.threads), *_cells(group), Text("fault" if faults else "", style="red"))
        for fault in faults:
            grid.tell(f"{r.layer} {r.variant} {r.kernel}: {fault}", "red")
    grid.print(terminal.console())
    faulty = sum(bool(r.fault) for r in rows)
    terminal.console().print(f"{len(rows)} compiled: {len(rows) - faulty} fine, {faulty} with a fault", highlight=False)


def _by_kernel(rows: list[Compiled]) -> list[list[Compiled]]:
    groups: dict[tuple, dict[str, Compiled]] = {}
    for r in rows:
        groups.setdefault((r.layer, r.variant, r.kernel, r.threads, r.dynamic_shared_bytes), {})[r.arch] = r
    return [list(group.values()) for group in groups.values()]


def _cells(group: list[Compiled]) -> list[str]:
    columns = []
    for r in group:
        f = r.facts
        if not f:
            columns.append([texts.DASH] * 6)
            continue
        shared = f["shared_bytes"] + r.dynamic_shared_bytes
        counts = [f["registers"], f["spill_bytes"], shared, texts.percent(f["occupancy"])]
        columns.append([str(c) for c in (*counts, f["tensor_core_instructions"], f["wide_instructions"])])
    return [" ".join(values) if len(set(values)) > 1 else values[0] for values in zip(*columns, strict=True)]


def write_csv(rows: list[Compiled], folder: Path) -> None:
    """static.csv: one line a kernel and architecture; columns as in `Compiled` and `bench.gpu.cubin.Resources`."""
    import pandas as pd

    write_atomically(folder / "static.csv", pd.DataFrame([r.row() for r in rows]).to_csv(index=False))
