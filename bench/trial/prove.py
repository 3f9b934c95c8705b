"""Proving all variants of a layer: which cases, in whose process, and what a run of them adds up to."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from bench.core import variants
from bench.core.case import Case, cases_of
from bench.core.process import ProcessFailed
from bench.core.variants import Variant
from bench.gpu.counts import counted_case
from bench.machine import devices
from bench.records.record import Counts
from bench.trial import checks, source
from bench.trial.checks import Verdict
from bench.trial.judge import Judge
from bench.trial.room import Proved, Setting
from bench.trial.worker import Worker
from reference import contract
from reference.contract import Shape

# What builds anew for each shape is proved on two ragged shapes, besides the timed one.
SHAPES_COMPILED = 2
SMOKE_CASES = 3  # of a first look, which ends with the first that the variant has
FIXED_SEED = 0
LEAST_MOVED = 0.95  # of the compulsory bytes: a padding column need not be read, say


@dataclass
class Proof:
    """What the cases of one variant, phase and dtype add up to."""

    variant: Variant
    phase: str
    dtype: str
    status: str = "ok"  # ok, wrong, error, crash, timeout, skipped
    check: str = "ok"  # the check that failed, where status is wrong
    evidence: str = ""
    compared: str = "whole"  # how much of each output was
    notes: list[str] = field(default_factory=list)  # what was seen that is no fault
    ratio: float = 0.0  # the worst error, in units of plain torch's
    cases: int = 0  # that it passed
    cases_all: int = 0  # that it was asked for
    unsupported: list[str] = field(default_factory=list)  # what it says that it does not have
    deterministic: bool | None = None
    work_per_s: float = 0.0  # FLOPs plus bytes a second in the best case, untuned
    counts: Counts = field(default_factory=Counts)  # of a simulated variant
    kernels_ran: dict[str, int] = field(default_factory=dict)  # in one call on a GPU, by name
    sanitizer: str | None = None  # what compute-sanitizer said, where it was asked
    seeds: list[int] = field(default_factory=list)  # that its cases were drawn with

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
    judge: Judge,
    setting: Setting,
    yardstick: Variant | None,
    progress: Callable[[str], None] = lambda _: None,
    timed: Mapping[str, Sequence[Shape]] = {},
    kept: dict[str, Worker] | None = None,
    thorough: bool = True,
    count: bool = True,
    smoke: bool = False,
) -> Iterator[Proof]:
    """Prove a variant's phases in one worker; after a crash or a hang the next phase gets a fresh one.

    timed: shapes, by phase, that it will be timed at; slices of them are proved too. kept: where the worker is put, by
    the variant's name, if it can go on to be timed. thorough: every structured case on every shape; never in the
    simulator. count: what is simulated is also counted, at a larger shape. smoke: a single case, which is a look and no
    proof.
    """
    worker = None
    if variants.simulated(variant, setting.device, setting.simulate):
        setting = replace(setting, device="cpu", simulate=True)
    else:
        setting = replace(setting, simulate=False)
    for phase in phases:
        proof = Proof(variant, phase, dtype, seeds=list(seeds))
        cases = cases_for(variant, phase, dtype, seeds, timed.get(phase, ()), setting, thorough)
        cases = cases[:SMOKE_CASES] if smoke else cases
        counted = [counted_case(variant.layer, phase, dtype)] if setting.simulate and count else []
        try:
            judge.prepare([*cases, *counted], yardstick)
            if worker is None or not worker.alive:
                worker = Worker(variant, setting)
            _prove_phase(proof, cases, worker, judge, setting, progress, most=1 if smoke else None)
            if counted and proof.ok:
                progress(f"{variant.name} {phase} {dtype}: counting")
                _count(proof, worker, judge, setting)
        except ProcessFailed as failure:
            proof.status, proof.evidence = failure.status, failure.evidence
            if failure.status == "wrong":  # the simulator's finding, by its name
                proof.check = failure.evidence.partition(":")[0]
        yield proof
    if worker and worker.alive and kept is not None and not setting.simulate:
        kept[variant.name] = worker
    elif worker:
        worker.close()


def cases_for(
    variant: Variant,
    phase: str,
    dtype: str,
    seeds: list[int],
    timed: Sequence[Shape],
    setting: Setting,
    thorough: bool = True,
) -> list[Case]:
    """The cases that prove a variant's phase. timed: the shapes that it will be timed at."""
    each_shape = builds_each_shape(variant)
    some, shapes = (SHAPES_COMPILED, ()) if each_shape else (None, timed)
    return cases_of(variant.layer, phase, dtype, seeds, some, shapes, thorough=thorough and not setting.simulate)


def _prove_phase(
    proof: Proof,
    cases: list[Case],
    worker: Worker,
    judge: Judge,
    setting: Setting,
    progress: Callable[[str], None],
    most: int | None = None,
) -> None:
    """most: so many cases that are passed are enough."""
    variant = proof.variant
    # The first call of a shape may compile.
    compiles = variant.gpu_code or builds_each_shape(variant)
    limit = max(setting.time_limit, setting.prepare_limit if compiles else 0)
    proof.cases_all = len(cases)
    with ThreadPoolExecutor(max_workers=1) as pool:
        last: Future[bool] | None = None  # whether the case before was passed: the judge looks while the next is called
        for case in cases:
            if most is not None and proof.cases >= most:
                break
            progress(f"{variant.name} {proof.phase} {proof.dtype}: {case.name}")

            def ask(case: Case = case) -> Proved:
                given, seed = judge.given(case, setting.device), secrets.randbits(40)
                return worker.ask("prove", limit=limit, case=case, given=given, seed=seed)

            proved, failure = None, None
            try:
                proved = judge.with_inputs(ask)
            except ProcessFailed as error:
                failure = error
            if last and not last.result():
                return
            last = None
            if proved:
                last = pool.submit(_passed, proof, case, proved, judge)
                if (most is not None or not judge.behind) and not last.result():
                    return
            elif failure and failure.status == "skipped":
                proof.unsupported += [failure.evidence] if failure.evidence not in proof.unsupported else []
            elif failure:
                failure.evidence = f"{failure.evidence} [{case.name}, seed {case.seed}]"
                raise failure
        if last and not last.result():
            return
    if not proof.cases:
        proof.status, proof.evidence = "skipped", "; ".join(proof.unsupported)
    elif found := [] if devices.is_made_up(setting.device) else source.foreign(variant):
        proof.status, proof.check = "wrong", "source"
        proof.evidence = f"source: {'; '.join(found[:3])}"


def _passed(proof: Proof, case: Case, proved: Proved, judge: Judge) -> bool:
    """Whether two calls of a case were right, which is added to the proof."""
    verdict = judged(proof.variant, case, proved, judge)
    proof.cases += 1
    proof.ratio = max(proof.ratio, verdict.ratio)
    if not verdict.ok:
        proof.status, proof.check = "wrong", verdict.check
        proof.evidence = f"{verdict.check}: {verdict.evidence} [{case.name}, seed {case.seed}]"
        return False
    if verdict.deterministic is not None:
        proof.deterministic = verdict.deterministic and proof.deterministic is not False
    proof.kernels_ran = proof.kernels_ran or proved["counts"]
    proof.notes += [note for note in proved["notes"] if note not in proof.notes]
    if proved["seconds"]:
        work = contract.flops(case.module, case.shape, case.phase)
        work += contract.min_bytes(case.module, case.shape, case.phase)
        proof.work_per_s = max(proof.work_per_s, work / proved["seconds"])
    return True


def builds_each_shape(variant: Variant) -> bool:
    """Whether a variant is compiled anew, in seconds, for each shape that it is called with."""
    return variant.backend == "torch" and variant.stem == "compile"


def _count(proof: Proof, worker: Worker, judge: Judge, setting: Setting) -> None:
    """Have the simulator count a call, which must be right and move what it cannot do without."""
    case = counted_case(proof.variant.layer, proof.phase, proof.dtype)
    given, seed = judge.given(case, setting.device), secrets.randbits(40)
    counts, handed = worker.ask("count", limit=setting.prepare_limit, case=case, given=given, seed=seed)
    verdict = judge.judge(case, handed)
    moved = counts["moved_of_minimum"]
    if verdict.ok and moved is not None and moved < LEAST_MOVED:
        evidence = f"the simulator counted {moved:.3g} of the bytes that this call cannot do without"
        verdict = Verdict("too_little_work", evidence)
    if verdict.ok:
        proof.counts = counts
    else:
        proof.status, proof.check = "wrong", verdict.check
        proof.evidence = f"{verdict.check}: {verdict.evidence} [{case.name}, counted]"


def judged(variant: Variant, case: Case, proved: Proved, judge: Judge) -> Verdict:
    """What two calls of a case come to: what they left counts first, then how they went about it."""
    watched = checks.facts(variant, proved["watched"])
    if watched.check in ("returned", "not_the_output"):
        return watched
    first, second = proved["handed"]
    verdict = judge.judge(case, first)
    if not verdict.ok:
        return verdict
    if not watched.ok:
        return watched
    again = judge.judge(case, second)
    again.ratio = max(again.ratio, verdict.ratio)
    again.deterministic = judge.same(case, first, second)
    if again.ok and variant.deterministic and not again.deterministic:
        again.check = "nondeterministic"
        again.evidence = "two calls on the same inputs differ, yet DETERMINISTIC is True"
    return again
