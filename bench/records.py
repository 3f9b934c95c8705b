"""What is written down about one variant at one case: a flat dict, one line of records.jsonl.

Times are seconds, sizes bytes, rates per second; `share` and `ratio` are plain fractions. A value that was not
measured is None, never a guess.

    layer variant backend story phase dtype shape_id shape   which case; `shape` holds sizes and options
    calls                  how often one training step makes this call (0: only an unfused step does)
    status evidence        ok, or wrong, impossible, error, crash, timeout, skipped; and what was seen
    control                the second entry of the A/A control: for the noise floor, never ranked
    error_ratio            worst error over all proof cases, in units of plain torch's (limit 4)
    proof_cases seeds      how many cases proved it, with which seeds
    verified_calls         timed calls whose outputs were judged too
    deterministic          two calls gave the same bits
    timer threads          clock of the samples; CPU threads (0: torch's choice)
    cold_s cold_low_s cold_high_s cold_noise    median, 95 % interval, IQR/median with flushed caches; warm_* likewise
    cold_cpu_s warm_cpu_s  median process-CPU time of a call, all threads
    flops bytes floor_s    useful operations, compulsory traffic, and the least time both allow at measured ceilings
    bytes_per_s flops_per_s ceiling_share      rates (cold, or warm where there is no cold) and floor_s / time
    saved_bytes workspace_bytes prepare_s      kept for backward; scratch; one-time work
    vs_torch vs_torch_low vs_torch_high torch  speed against the fastest PyTorch entry of the case (above 1 is faster)
    noise_floor            relative; from the A/A control of this case
    rounds_stopped         why no more rounds were taken
    source_hash            of the variant's files and its backend's shared ones
    load                   the machine while it ran (bench.machine.snapshot)
    reproduce              the command that measures it again
    samples_cold samples_warm samples_cold_cpu samples_warm_cpu rounds_cold rounds_warm   raw, a list a round
"""

import hashlib
import json
from typing import Any

import numpy as np

from bench import ceilings, machine
from bench.proof import Proof
from bench.registry import Variant
from bench.tensors import Case
from bench.timing import TIMER, Contestant, Timing, ratio_ci
from reference import contract

SCHEMA = 1


def case_id(case: Case, variant: Variant) -> str:
    """Which row this is, in any run: the same case of the same source has the same id."""
    key = [case.layer, case.phase, case.name, _plain(case.shape), variant.name, variant.source_hash()]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _plain(shape: dict[str, Any]) -> dict[str, Any]:
    return {k: [list(s) for s in v] if k == "tensors" else v for k, v in shape.items()}


def of_proof(proof: Proof, layer: str, dtype: str, seeds: list[int]) -> dict[str, Any]:
    """The row of a variant that was proved and not timed."""
    v = proof.variant
    case = Case(layer, proof.phase, {"dtype": dtype}, "proof")
    return _identity(case, v, None, seeds) | _proved(proof) | dict(status=proof.status, evidence=proof.evidence)


def _identity(case: Case, v: Variant, calls: int | None, seeds: list[int]) -> dict[str, Any]:
    return dict(
        schema=SCHEMA,
        layer=case.layer,
        variant=v.name,
        backend=v.backend,
        story=v.story,
        phase=case.phase,
        dtype=case.shape["dtype"],
        shape_id=case.name,
        shape=_summary(case.shape),
        calls=calls,
        case_id=case_id(case, v),
        source_hash=v.source_hash(),
        seeds=seeds,
        control=False,
    )


def _summary(shape: dict[str, Any]) -> dict[str, Any]:
    """The shape without adamw's long lists."""
    short = {k: v for k, v in shape.items() if k not in ("tensors", "weight_decays", "dtype")}
    if "tensors" in shape:
        short["tensors"] = len(shape["tensors"])
        short["parameters"] = int(sum(np.prod(s) for s in shape["tensors"]))
    return short


def _proved(proof: Proof) -> dict[str, Any]:
    return dict(
        error_ratio=proof.ratio if proof.cases else None,
        proof_cases=proof.cases,
        deterministic=proof.deterministic,
    )


def of_case(
    case: Case,
    variant: Variant,
    calls: int,
    seeds: list[int],
    proof: Proof,
    contestant: Contestant | None,
    baseline: Contestant | None,
    timing: Timing | None,
    status: str,
    evidence: str,
    threads: int,
) -> dict[str, Any]:
    """The row of a variant at a timed case; `contestant` None where it was not timed."""
    row = _identity(case, variant, calls, seeds) | _proved(proof) | dict(status=status, evidence=evidence)
    flops = contract.flops(case.module, case.shape, case.phase)
    size = contract.min_bytes(case.module, case.shape, case.phase)
    dtype = case.shape["dtype"]
    row |= dict(flops=flops, bytes=size, saved_bytes=contract.saved_bytes(case.module, case.shape))
    ceiling = ceilings.ceilings()
    row["floor_s"] = ceilings.floor_seconds(size, flops, dtype, ceiling)
    row |= dict(timer=TIMER, threads=threads)
    if contestant is None or timing is None:
        return row
    c = contestant
    row |= dict(
        control=c.control,
        case_id=row["case_id"] + ("-again" if c.control else ""),
        verified_calls=c.verified,
        workspace_bytes=c.workspace_bytes,
        prepare_s=c.prepare_s,
        noise_floor=timing.noise_floor,
        rounds_stopped=timing.stopped,
        canary=timing.canary,
        load=machine.snapshot(),
    )
    if c.ratio:
        row["error_ratio"] = max(c.ratio, row["error_ratio"] or 0.0)
    for cache, rounds in c.wall.items():
        row |= _times(c, cache, rounds)
    best = next((cache for cache in ("cold", "warm") if c.wall.get(cache)), None)
    if best is None:
        return row
    seconds = row[f"{best}_s"]
    row |= dict(
        bytes_per_s=size / seconds,
        flops_per_s=flops / seconds,
        ceiling_share=row["floor_s"] / seconds if row["floor_s"] else None,
    )
    if baseline and status == "ok" and (found := ratio_ci(baseline, c, best)):
        row |= dict(zip(("vs_torch", "vs_torch_low", "vs_torch_high"), found, strict=True), torch=baseline.variant.name)
    for cache in c.wall:
        if reason := ceilings.impossible(row[f"{cache}_s"], size, flops, dtype, cache):
            row |= dict(status="impossible", evidence=reason)
    return row


def _times(c: Contestant, cache: str, rounds: list[list[float]]) -> dict[str, Any]:
    interval = c.median_ci(cache)
    assert interval
    median, low, high = interval
    return {
        f"{cache}_s": median,
        f"{cache}_low_s": low,
        f"{cache}_high_s": high if np.isfinite(high) else None,
        f"{cache}_noise": c.noise(cache),
        f"{cache}_cpu_s": float(np.median(np.concatenate(c.cpu[cache]))),
        f"samples_{cache}": rounds,
        f"samples_{cache}_cpu": c.cpu[cache],
        f"rounds_{cache}": c.rounds[cache],
    }


def sizes_text(case: Case) -> str:
    """B=4 T=1024 C=768 …"""
    return " ".join(f"{k}={v}" for k, v in _summary(case.shape).items() if k not in ("eps", "accumulate"))


def facts(case: Case, calls: int, rows: list[dict[str, Any]], timing: Timing | None) -> list[str]:
    """The lines under a table: what the work is, and how far the numbers can be trusted."""
    row = rows[0]
    lines = [
        f"{calls} calls a step; {row['flops'] / 1e9:.3g} GFLOP, at least {row['bytes'] / 1e6:.3g} MB moved, "
        f"{row['saved_bytes'] / 1e6:.3g} MB saved for backward"
    ]
    if row["floor_s"]:
        lines[0] += f"; floor at measured ceilings {row['floor_s'] * 1e3:.3g} ms"
    if timing and timing.noise_floor is not None:
        control = next(c for c in timing.contestants if c.control)
        lines.append(f"noise floor ±{timing.noise_floor:.1%} ({control.variant.name} against itself); {timing.stopped}")
    if timing and timing.canary:
        warm, cold = timing.canary["warm"] / 1e9, timing.canary["cold"] / 1e9
        said = "cold is cold" if cold < 0.9 * warm else "COLD IS NOT COLD: the flush did not empty the caches"
        lines.append(f"canary: 8 MB read at {warm:.3g} GB/s warm, {cold:.3g} GB/s after the flush; {said}")
    return lines
