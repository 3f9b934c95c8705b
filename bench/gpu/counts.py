"""What a GPU variant is counted to need: memory traffic, bank conflicts, registers. Counts, never times.

Traffic is counted while the simulator runs one call at a small shape of a training step (gpt2-tiny, B=1, T=64); there
is no cache in it, so it is what the kernels ask of the L1 cache and not of memory. Resources are the compiler's: of
that call on the architecture that the simulator runs, or of a call that was timed on a GPU, on that one's.
"""

from dataclasses import fields
from types import ModuleType

from bench import simulate
from bench.core.arena import Arena
from bench.core.case import Case
from bench.gpu import cubin
from bench.gpu.launches import KernelUse, configured_call, launches_as
from bench.gpu.resources import compile_builds
from bench.records.record import Counts, Resources
from bench.simulate import Traffic
from bench.simulate.launcher import ARCH
from reference import contract
from reference.models import MODELS

MODEL, B, T = "gpt2-tiny", 1, 64
SECTOR_BYTES = 32


def counted_case(layer: str, phase: str, dtype: str) -> Case:
    """The call whose traffic is counted: the first of a small model's training step."""
    module = contract.load(layer)
    name, call = next(iter(MODELS[MODEL].shapes(layer, B, T).items()))
    shape = contract.overwriting(module, phase, call.shape, dtype)
    return Case(layer, phase, shape, f"{MODEL}/{name}" if name else MODEL, 0)


def counted(module: ModuleType, arena: Arena) -> Counts:
    """The fields of a record that can be counted without a GPU. Runs the variant in the simulator, once, on an arena
    that is loaded and reset."""
    case = arena.case
    with simulate.count() as launches:
        _, configuration = configured_call(module, lambda: arena.call(getattr(module, case.phase)))
    total = Traffic()
    for launch in launches:
        for f in fields(Traffic):
            setattr(total, f.name, getattr(total, f.name) + getattr(launch.total, f.name))
    minimum = contract.min_bytes(case.module, case.shape, case.phase)
    where = Counts(counted_shape=f"{case.name} B={B} T={T}", configuration=configuration)
    return where | traffic(total, minimum) | resources(module, case, ARCH, configuration)


def traffic(total: Traffic, minimum: int) -> Counts:
    """Ratios of a call's traffic; `minimum` is the contract's compulsory bytes. A ratio without a divisor is None."""
    sectors = total.load_sectors + total.store_sectors + total.atomic_sectors
    ideal = total.ideal_load_sectors + total.ideal_store_sectors + total.ideal_atomic_sectors
    requests = total.load_requests + total.store_requests + total.atomic_requests
    return Counts(
        sectors=sectors,
        moved_of_minimum=_ratio(sectors * SECTOR_BYTES, minimum),
        sectors_per_request=_ratio(sectors, requests),
        sectors_of_ideal=_ratio(sectors, ideal),
        shared_wavefronts=total.shared_wavefronts,
        wavefronts_of_ideal=_ratio(total.shared_wavefronts, total.ideal_shared_wavefronts),
    )


def resources(module: ModuleType, case: Case, arch: str, configuration: str) -> Resources:
    """Of all kernels of the call: the most registers, the least occupancy, instructions added up.

    configuration: the tile sizes that they are launched with, as a record tells them.
    """
    uses = launches_as(module, case, arch, configuration)
    if not uses:
        raise RuntimeError("the call launches no kernel")
    return resources_of(uses, arch)


def resources_of(uses: list[KernelUse], arch: str) -> Resources:
    """`resources` of these launches. Raises RuntimeError with the compiler's message."""
    known = compile_builds(sorted({use.build for use in uses}, key=str), arch)
    needs = []
    for use in uses:
        found = known[use.build]
        if isinstance(found, str):
            raise RuntimeError(found)
        needs.append((use, found))
    shares = [cubin.occupancy(arch, u.threads, f.registers, f.shared_bytes + u.shared) for u, f in needs]
    return Resources(
        kernels=len(uses),
        registers=max(f.registers for _, f in needs),
        spill_bytes=max(f.spill_bytes for _, f in needs),
        shared_bytes=max(f.shared_bytes + use.shared for use, f in needs),
        occupancy=min((share for share in shares if share is not None), default=None),
        tensor_core_instructions=sum(f.tensor_core_instructions for f in {f for _, f in needs}),
        wide_instructions=sum(f.wide_instructions for f in {f for _, f in needs}),
    )


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None
