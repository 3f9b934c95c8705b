"""What is written down about one variant at one case: a Record (bench/records/record.py), filled in here and, for a
training step, in bench/training/outcome.py.
"""

import hashlib
import json
import statistics
from itertools import chain

import numpy as np
import torch

from bench import cli
from bench.core.case import Case
from bench.core.variants import Variant
from bench.machine import ceilings, roofline
from bench.machine.devices import clocks_of, is_gpu
from bench.records.record import Record
from bench.show.texts import duration
from bench.trial.prove import Proof
from bench.trial.race import WARM, Contestant, Timing, ratio_ci
from reference import contract
from reference.contract import Shape

# The span, or the host's time, is so many times, and so many seconds, longer than the busy time.
LAUNCH_BOUND, LAUNCH_BOUND_S = 1.5, 5e-6
# NVML's reasons for a lower clock. Idling is none, nor is a clock that somebody set.
THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake",
    0x200: "board limit",
    0x400: "reliability limit",
}
# The shape and the evidence of a row that was looked at in one case.
SMOKE, LOOKED_AT = "smoke", "launched, and right in one case: a look, no proof"
# The evidence of a row that was proved without a GPU.
SIMULATED = "right at the proof's small shapes, run by the simulator; a time needs a GPU"


def case_id(case: Case, variant: Variant) -> str:
    """Which row this is, in any run: the same case of the same source has the same id."""
    key = [case.layer, case.phase, case.name, _plain(case.shape), variant.name, variant.source_hash()]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _plain(shape: Shape) -> Shape:
    return {k: [list(s) for s in v] if k == "tensors" else v for k, v in shape.items()}


def of_smoke(proof: Proof, layer: str, dtype: str, seeds: list[int]) -> Record:
    """The record of a variant that was looked at in one case: never `ok`, for that is no proof."""
    row = of_proof(proof, layer, dtype, seeds)
    row["case_id"] = f"{row['case_id']}-{SMOKE}"
    row["shape_name"] = SMOKE
    return row | Record(status="skipped", evidence=LOOKED_AT) if proof.ok else row


def of_proof(proof: Proof, layer: str, dtype: str, seeds: list[int]) -> Record:
    """The record of a variant that was proved and not timed."""
    v = proof.variant
    case = Case(layer, proof.phase, {"dtype": dtype}, "proof")
    row = _identity(case, v, None, seeds) | _proved(proof) | Record(status=proof.status, evidence=proof.evidence)
    return row | _counted(proof) if proof.simulated else row


def _identity(case: Case, v: Variant, calls: int | None, seeds: list[int]) -> Record:
    elsewhere = Record(outside=True) if v.outside else Record()
    return elsewhere | Record(
        case_id=case_id(case, v),
        layer=case.layer,
        variant=v.name,
        story=v.story,
        phase=case.phase,
        shape_name=case.name,
        shape=_summary(case.shape),
        dtype=case.shape["dtype"],
        calls=calls,
        seeds=seeds,
        source_hash=v.source_hash(),
        control=False,
        cache=None,
    )


def _summary(shape: Shape) -> Shape:
    """The shape without adamw's long lists."""
    short = {k: v for k, v in shape.items() if k not in ("tensors", "weight_decays", "dtype")}
    if "tensors" in shape:
        short["tensors"] = len(shape["tensors"])
        short["parameters"] = int(sum(np.prod(s) for s in shape["tensors"]))
    return short


def _proved(proof: Proof) -> Record:
    row = Record(
        error_ratio=proof.ratio if proof.cases else None,
        proof_cases=proof.cases,
        deterministic=proof.deterministic,
    )
    if proof.cases:
        row["compared"] = proof.compared
    if proof.cases_all:
        row["proof_cases_all"] = proof.cases_all
    if proof.unsupported:
        row["not_supported"] = [text.strip() or "a case, by no name" for text in proof.unsupported]
    if proof.notes:
        row["notes"] = proof.notes
    if proof.kernels_ran:
        row["kernels_ran"] = proof.kernels_ran
    if proof.sanitizer:
        row["sanitizer"] = proof.sanitizer
    return row


def simulated(case: Case, proof: Proof, calls: int, seeds: list[int], device: str = "cpu") -> Record:
    """The record of a variant that the simulator ran: proved and counted, not timed."""
    return (
        _identity(case, proof.variant, calls, proof.seeds or seeds)
        | _proved(proof)
        | _work(case, device)
        | _counted(proof)
    )


def _counted(proof: Proof) -> Record:
    return Record(status="simulated", evidence=SIMULATED, **proof.counts)


def untimed(
    case: Case, proof: Proof, calls: int, seeds: list[int], status: str, evidence: str, device: str = "cpu"
) -> Record:
    """The record of a variant that was not timed, and why."""
    return (
        _identity(case, proof.variant, calls, proof.seeds or seeds)
        | _proved(proof)
        | _work(case, device)
        | Record(status=status, evidence=evidence)
    )


def _ceilings(device: str) -> ceilings.Ceilings:
    """A GPU's are those that another process has measured (beside.measure_ceilings), on a busy machine too: here they
    would take a CUDA context and, of who is raced, the card."""
    return (ceilings.remembered(device) if is_gpu(device) else None) or ceilings.ceilings(device=device)


def _work(case: Case, device: str) -> Record:
    flops = contract.flops(case.module, case.shape, case.phase)
    size = contract.min_bytes(case.module, case.shape, case.phase)
    spec = contract.pass_of(case.module, case.phase)
    written = sum(t.bytes(case.shape) for t in spec.outputs)
    known = _ceilings(device)
    dtype = case.shape["dtype"]
    floor = roofline.floor_seconds(size, flops, dtype, known, written)
    bytes_rate, flops_rate = roofline.rates(size, dtype, known, written)
    row = Record(flops=flops, bytes=size, floor_s=floor, saved_bytes=contract.saved_bytes(case.module, case.shape))
    row |= Record(ceiling_bytes_per_s=bytes_rate, ceiling_flops_per_s=flops_rate)
    if sheet := roofline.datasheet(known.device):
        row |= Record(datasheet_bytes_per_s=sheet.bytes_per_s, datasheet_flops_per_s=sheet.flops_per_s(dtype))
    return row


def timed(
    case: Case,
    proof: Proof,
    calls: int,
    seeds: list[int],
    contestant: Contestant,
    baseline: Contestant | None,
    timing: Timing,
    threads: int,
) -> list[Record]:
    """The records of a timed variant: one for each cache state it has samples of, or one that says why none."""
    c = contestant
    common = _identity(case, c.variant, calls, proof.seeds or seeds) | _proved(proof) | _work(case, timing.device)
    common |= Record(
        status=c.status,
        evidence=c.evidence,
        control=c.control,
        verified_calls=c.verified,
        workspace_bytes=c.workspace_bytes,
        compile_s=c.prepare_s,
        configuration=c.configuration,
        timer=clocks_of(timing.device)[0],
        threads=threads or torch.get_num_threads(),
        threads_asked=threads,
        noise_floor=timing.noise_floor,
        stopped=timing.stopped,
        canary=timing.canary,
        machine=timing.load,
    )
    if c.running and c.luck:
        common["notes"] = [*proof.notes, f"one of {c.verified} judged calls near the limit, {c.luck}"]
    if is_gpu(timing.device):
        common |= _gpu(c)
    if c.ratio:
        common["error_ratio"] = max(c.ratio, common["error_ratio"] or 0.0)
    if c.cold_only_s is not None and WARM not in c.samples:
        common["cold_only_s"] = c.cold_only_s
    if c.control:
        common["case_id"] += "-again"
    if not c.samples:
        return [common]
    return [common | _times(common, c, cache, baseline, timing.device) for cache in c.samples]


def _gpu(c: Contestant) -> Record:
    """What a GPU's row tells beside its times."""
    clocks = [mhz for state in c.states if (mhz := state.get("sm_mhz"))]
    reasons = [bits for state in c.states if (bits := state.get("throttle_reasons")) is not None]
    host = Record()
    if c.hosts:
        host = Record(host_s=(host_s := statistics.median(c.hosts)), launch_s=host_s / launched(c.kernels_ran))
    return host | Record(
        kernels_ran=c.kernels_ran,
        peak_bytes=c.peak_bytes,
        energy_j=c.energy_j,
        sm_mhz=statistics.median(clocks) if clocks else None,
        throttled=throttles(reasons),
        graph_evidence=c.graph_evidence or None,
    )


def launched(kernels: dict[str, int]) -> int:
    """How many kernels, copies and fills a call launched; at least one."""
    return max(1, sum(kernels.values()))


def throttles(reasons: list[int]) -> str | None:
    """NVML's bit masks in words: "" where nothing lowered the clock, None where nothing is known."""
    if not reasons:
        return None
    return ", ".join(word for bit, word in THROTTLES.items() if any(mask & bit for mask in reasons))


def _times(common: Record, c: Contestant, cache: str, baseline: Contestant | None, device: str) -> Record:
    interval = c.median_ci(cache)
    assert interval
    median, low, high = interval
    row = Record(
        case_id=f"{common['case_id']}-{cache}",
        cache=cache,
        samples=c.samples[cache],
        cpu_samples=c.cpu[cache],
        processes=[process for process, _ in c.rounds[cache]],
        median_s=median,
        low_s=low,
        high_s=high,
        noise=c.noise(cache),
        bytes_per_s=common["bytes"] / median,
        flops_per_s=common["flops"] / median,
        of_ceiling=common["floor_s"] / median if common["floor_s"] else None,
    )
    if c.copies and (least := c.least_median(cache)) is not None:
        row |= Record(uncopied_s=least, copies=c.copies)
    if cache in c.spans:
        span = statistics.median(chain(*c.spans[cache]))
        paced = max(span, common.get("host_s", 0.0))  # call after call, the GPU waits for what takes longest
        bound = paced > LAUNCH_BOUND * median and paced - median > LAUNCH_BOUND_S
        row |= Record(span_s=span, span_samples=c.spans[cache], launch_bound=1 - median / paced if bound else None)
    if cache == WARM and c.graphs:
        row |= Record(graph_s=statistics.median(chain(*c.graphs)), graph_samples=c.graphs)
    whole = not common.get("not_supported")
    if baseline and c.running and whole and (found := ratio_ci(baseline, c, cache)):
        speedup, least, most = found
        row |= Record(speedup=speedup, speedup_low=least, speedup_high=most, baseline=baseline.variant.name)

    known = _ceilings(device)
    reason = roofline.impossible(median, common["bytes"], common["flops"], common["dtype"], cache, known)
    if c.running and reason:
        row |= Record(status="impossible", evidence=reason)
    return row


def sizes_text(case: Case) -> str:
    """B=4 T=1024 C=768 …"""
    return " ".join(f"{k}={v}" for k, v in _summary(case.shape).items() if k not in ("eps", "accumulate"))


def facts(row: Record, timing: Timing | None) -> list[str]:
    """The lines under a table: what the work is, and how far the numbers can be trusted."""
    lines = [
        f"{cli.several(row['calls'] or 0, 'call')} a step; {row['flops'] / 1e9:.3g} GFLOP, at least "
        f"{row['bytes'] / 1e6:.3g} MB moved, {row['saved_bytes'] / 1e6:.3g} MB saved for backward"
    ]
    if row["floor_s"]:
        lines[0] += f"; floor at measured ceilings {duration(row['floor_s'])}"
    control = next((c for c in timing.contestants if c.control), None) if timing else None
    if control and not control.running:  # it has no row, and the exit code knows of it
        lines.append(f"{control.variant.name} against itself: {control.status}: {control.evidence}")
    if timing and control and timing.noise_floor is not None:
        lines.append(f"noise floor ±{timing.noise_floor:.1%} ({control.variant.name} against itself); {timing.stopped}")
    if timing and timing.canary:
        warm, cold = timing.canary["warm"] / 1e9, timing.canary["cold"] / 1e9
        size = f"{timing.canary['bytes'] / 2**20:.3g} MiB"
        lines.append(
            f"canary: {size} read at {warm:.3g} GB/s warm, {cold:.3g} GB/s after the flush; {_canary_says(warm, cold)}"
        )
    return lines


def _canary_says(warm: float, cold: float) -> str:
    if cold < 0.9 * warm:
        return "cold is cold"
    if cold > 1.25 * warm:  # no flush makes memory faster
        return "which says nothing: other programs were at work meanwhile"
    return "COLD IS NOT COLD: the flush did not empty the caches"
