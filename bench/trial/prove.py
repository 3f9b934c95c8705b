"""Proving all variants of a layer: which cases, in whose process, and what a run of them adds up to."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from bench.core import variants
from bench.core.case import cases_of
from bench.core.process import ProcessFailed
from bench.core.variants import Variant
from bench.gpu.counts import counted_case
from bench.records.record import Counts
from bench.trial.briefs import Briefs
from bench.trial.checks import Verdict
from bench.trial.room import Setting
from bench.trial.worker import Worker
from reference import contract

# torch.compile builds anew for each shape, in seconds: two ragged shapes must do, besides the timed one.
SHAPES_COMPILED = 2
FIXED_SEED = 0


@dataclass
class Proof:
    """What the cases of one variant, phase and dtype add up to."""

    variant: Variant
    phase: str
    dtype: str
    status: str = "ok"  # ok, wrong, error, crash, timeout, skipped
    check: str = "ok"  # the check that failed, where status is wrong
    evidence: str = ""
    ratio: float = 0.0  # the worst error, in units of plain torch's
    cases: int = 0
    deterministic: bool | None = None
    work_per_s: float = 0.0  # FLOPs plus bytes a second in the best case, untuned
    counts: Counts = field(default_factory=Counts)  # of a simulated variant
    kernels_ran: dict[str, int] = field(default_factory=dict)  # in one call on a GPU, by name
    sanitizer: str | None = None  # what compute-sanitizer said, where it was asked

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def simulated(self) -> bool:
        """Right, as the simulator ran it: it can be counted, not timed."""
        return self.ok and bool(self.counts)


def seeds(seed: int | None) -> list[int]:
    """The fixed seed and another one: random unless given."""
    return [FIXED_SEED, secrets.randbelow(2**31) if seed is None else seed]


def prove(
    variant: Variant,
    phases: tuple[str, ...],
    dtype: str,
    seeds: list[int],
    briefs: Briefs,
    setting: Setting,
    yardstick: Variant | None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Proof]:
    """Prove a variant's phases in one worker; after a crash or a hang the next phase gets a fresh one."""
    worker = None
    if variants.simulated(variant, setting.device, setting.simulate):
        setting = replace(setting, device="cpu", simulate=True)
    else:
        setting = replace(setting, simulate=False)
    for phase in phases:
        proof = Proof(variant, phase, dtype)
        if worker is None or not worker.alive:
            worker = Worker(variant, setting)
        try:
            _prove_phase(proof, worker, seeds, briefs, setting, yardstick, progress)
            if setting.simulate and proof.ok:
                progress(f"{variant.name} {phase} {dtype}: counting")
                case = counted_case(variant.layer, phase, dtype)
                proof.counts = worker.ask("count", limit=setting.prepare_limit, case=case)
        except ProcessFailed as failure:
            proof.status, proof.evidence = failure.status, failure.evidence
            if failure.status == "wrong":  # the simulator's finding, by its name
                proof.check = failure.evidence.partition(":")[0]
        yield proof
    if worker:
        worker.close()


def _prove_phase(
    proof: Proof,
    worker: Worker,
    seeds: list[int],
    briefs: Briefs,
    setting: Setting,
    yardstick: Variant | None,
    progress: Callable[[str], None],
) -> None:
    variant = proof.variant
    compiled = variant.backend == "torch" and variant.stem == "compile"
    shapes = SHAPES_COMPILED if compiled else None
    # The first call of a shape may compile.
    compiles = compiled or variant.gpu_code
    for case in cases_of(variant.layer, proof.phase, proof.dtype, seeds, shapes):
        progress(f"{variant.name} {proof.phase} {proof.dtype}: {case.name}")
        path = briefs.get(case, yardstick)
        limit = max(setting.time_limit, setting.prepare_limit if compiles else 0)
        verdict: Verdict = worker.ask("prove", limit=limit, path=path)
        proof.cases += 1
        proof.ratio = max(proof.ratio, verdict.ratio)
        if not verdict.ok:
            proof.status, proof.check = "wrong", verdict.check
            proof.evidence = f"{verdict.check}: {verdict.evidence} [{case.name}, seed {case.seed}]"
            return
        if verdict.deterministic is not None:
            proof.deterministic = verdict.deterministic and proof.deterministic is not False
        proof.kernels_ran = proof.kernels_ran or verdict.kernels
        if verdict.seconds:
            work = contract.flops(case.module, case.shape, case.phase)
            work += contract.min_bytes(case.module, case.shape, case.phase)
            proof.work_per_s = max(proof.work_per_s, work / verdict.seconds)
