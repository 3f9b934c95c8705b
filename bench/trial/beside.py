"""What a session asks of processes beside proving and timing: ceilings, resources, traces, compute-sanitizer."""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bench.cli import CannotGoOn
from bench.core.case import Case
from bench.core.process import ProcessFailed
from bench.core.shared import Given
from bench.core.variants import Variant
from bench.gpu import sanitizer, table
from bench.machine.profiling import Row
from bench.records.record import Resources
from bench.trial.prove import Proof
from bench.trial.race import Contestant
from bench.trial.room import Setting
from bench.trial.worker import Worker
from kernels import cache_dir

MEASURED: dict[tuple[str, Path], str | None] = {}  # a GPU's architecture, by its name and the cache of its ceilings
COMPILE_LIMIT_S = 20.0  # for all variants of a case together


def measure_ceilings(setting: Setting) -> str | None:
    """Have the device's ceilings measured and remembered; a GPU's architecture.

    In a process of its own: this one never makes a CUDA context, and a GPU that hangs does not stop it. Once for all
    sessions of a process: to start one takes seconds, in which the GPU waits.
    """
    known = setting.device, cache_dir()
    if known not in MEASURED:
        MEASURED[known] = _measured(setting)
    return MEASURED[known]


def _measured(setting: Setting) -> str | None:
    worker = Worker(None, setting)
    try:
        worker.ask("measure_ceilings", limit=setting.prepare_limit)
        return worker.ask("arch")
    except ProcessFailed as failure:
        raise CannotGoOn(f"the ceilings of {setting.device} cannot be measured: {failure.evidence}") from failure
    finally:
        worker.close()


def resources_on(
    arch: str | None, case: Case, contestants: list[Contestant], setting: Setting, compile_rest: bool = True
) -> dict[str, Resources]:
    """`resources` of the variants that were timed on a GPU of this architecture, by name; what cannot be compiled, or
    not in time, is missing.

    What was compiled beforehand is read (bench.gpu.table). The rest is, in processes of their own that have no CUDA
    context: the driver that only writes launches down replaces Triton's. Not compile_rest: nothing is compiled while
    a GPU waits.
    """
    setting = replace(setting, device="cpu", simulate=False)
    timed = {c.variant.name: c for c in contestants if arch and c.running and c.variant.gpu_code}
    found: dict[str, Resources] = {}
    for name, c in timed.items():
        if arch and (beforehand := table.known(c.variant, case, arch, c.configuration)):
            found[name] = beforehand
    rest = {name: c for name, c in timed.items() if name not in found} if compile_rest else {}
    workers = {name: Worker(c.variant, setting) for name, c in rest.items()}
    end = time.monotonic() + COMPILE_LIMIT_S
    for name, worker in workers.items():
        with suppress(ProcessFailed):
            worker.send("resources", case=case, arch=arch, configuration=timed[name].configuration)
    for name, worker in workers.items():
        with suppress(ProcessFailed):
            found[name] = worker.answer(max(0.0, end - time.monotonic()))
        worker.close()
    return found


def cannot_launch(variant: Variant, case: Case, setting: Setting) -> str:
    """Why a GPU kernel does not have a case that it was not run at, by its own word; "" where it says nothing."""
    worker = Worker(variant, replace(setting, device="cpu", simulate=False))
    try:
        worker.ask("launches", limit=COMPILE_LIMIT_S, case=case)
    except ProcessFailed as failure:
        return failure.evidence if failure.status == "skipped" else ""
    finally:
        worker.close()
    return ""


def trace(variant: Variant, case: Case, given: Given, folder: Path, setting: Setting) -> list[Row]:
    """A trace of a variant, made in its own worker; its rows. Raises ProcessFailed."""
    worker = Worker(variant, setting)
    try:
        return worker.ask("profile", limit=setting.prepare_limit, case=case, given=given, folder=folder)
    finally:
        worker.close()


def sanitize(proof: Proof, seed: int, setting: Setting) -> None:
    """Run a proved variant under compute-sanitizer; what it finds makes the variant wrong."""
    limit, device = setting.prepare_limit, setting.device
    status, evidence = sanitizer.sanitize(proof.variant, proof.phase, proof.dtype, seed, limit, device)
    proof.sanitizer = status if status == "ok" else f"{status}: {evidence}"
    if status == "wrong":
        proof.status, proof.check, proof.evidence = "wrong", "sanitizer", f"sanitizer: {evidence}"
