"""Proving all variants of a layer: which cases, in whose process, and what a run of them adds up to."""

import math
import re
import secrets
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

from bench.core import variants
from bench.core.case import SLICED, Case, cases_of, cases_whole
from bench.core.process import CRASH, ERROR, TIMEOUT, ProcessFailed
from bench.core.shared import Given
from bench.core.variants import Variant, builds_each_shape
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
COMPILING = re.compile(r"\b(torch\.compile|compiled|cpp_extension|jit\.script|jit\.trace)\b")  # in a variant's source
REDRAWS = 2  # a borderline error is wrong if it is in one of so many further draws
JOIN_SECONDS = 1.0  # of a simulated proof until a second process takes cases of it, and from each to the next
# Of a call on a GPU, at most, until its kernels are launched and the host has seen that they are done. What takes no
# longer says nothing of a speed: torch.compile, which is proved at two small shapes, would be too slow for large ones.
LAUNCHES_S = 2e-3
LEAST_MOVED = 0.95  # of the compulsory bytes: a padding column need not be read, say


# Of a case: what two calls of it came to and what is said of that, or how they failed.
Answered = tuple[Case, Proved | None, Future[Verdict], ProcessFailed | None]


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
    work_per_s: float = 0.0  # FLOPs plus bytes a second in the best case, untuned; infinite where that was too short
    by_simulator: bool = False
    counts: Counts = field(default_factory=Counts)  # of a simulated variant; empty where nobody asked for them
    kernels_ran: dict[str, int] = field(default_factory=dict)  # in one call on a GPU, by name
    sanitizer: str | None = None  # what compute-sanitizer said, where it was asked
    seeds: list[int] = field(default_factory=list)  # that its cases were drawn with

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def simulated(self) -> bool:
        """Right, as the simulator ran it: it can be counted, not timed."""
        return self.ok and self.by_simulator


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
    workers: int = 1,
) -> Iterator[Proof]:
    """Prove a variant's phases in one worker; after a crash or a hang the next phase gets a fresh one.

    timed: shapes, by phase, that it will be timed at; slices of them are proved too. kept: where the worker is put, by
    the variant's name, if it can go on to be timed. thorough: every structured case on every shape; never in the
    simulator. count: what is simulated is also counted, at a larger shape. smoke: a single case, which is a look and no
    proof. workers: so many processes share the cases in the simulator, where it takes more than a moment.
    """
    worker = None
    team: dict[int, Worker] = {}  # the others, by place
    if variants.simulated(variant, setting.device, setting.simulate):
        # The simulator has one thread, and the tensors are small: others of torch's would only wait, spinning.
        setting = replace(setting, device="cpu", simulate=True, threads=1)
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
            proof.by_simulator = setting.simulate
            most = 1 if smoke else None
            side_by_side = setting.simulate and workers > 1 and not smoke
            share = partial(_prove_side_by_side, team=team, most=workers) if side_by_side else None
            free = partial(_member, team, workers, variant, setting) if side_by_side else None
            passed = _prove_phase(proof, cases, worker, judge, yardstick, setting, progress, most, share, free)
            if proof.ok and not side_by_side and not smoke:
                shapes = timed.get(phase, ())
                passed += _prove_whole(proof, cases, passed, shapes, worker, judge, yardstick, setting, progress)
            if passed and proof.ok and setting.device == "cpu" and not setting.simulate:
                _call_sealed(proof, passed[0], worker, judge, setting)
            if counted and proof.ok:
                progress(f"{variant.name} {phase} {dtype}: counting")
                _count(proof, [*counted, *passed], worker, judge, setting)
        except ProcessFailed as failure:
            proof.status, proof.evidence = failure.status, failure.evidence
            if failure.status == "wrong":  # the simulator's finding, by its name
                proof.check = failure.evidence.partition(":")[0]
        yield proof
    for helper in team.values():
        helper.close()
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
    """The cases that prove a variant's phase. timed: the shapes that it will be timed at.

    Shapes with an option that the variant has no parameter for are no part of its contract, and no lack of it, unless
    it is to be timed with that option.
    """
    each_shape = builds_each_shape(variant)
    some, shapes = (SHAPES_COMPILED, ()) if each_shape else (None, timed)
    found = cases_of(variant.layer, phase, dtype, seeds, some, shapes, thorough=thorough and not setting.simulate)
    asked = {name for shape in timed for name in variant.lacks(phase, shape)}
    return [case for case in found if asked.issuperset(variant.lacks(phase, case.shape))]


def _prove_phase(
    proof: Proof,
    cases: list[Case],
    worker: Worker,
    judge: Judge,
    yardstick: Variant | None,
    setting: Setting,
    progress: Callable[[str], None],
    most: int | None = None,
    share: Callable[..., Generator[Answered, None, None]] | None = None,
    free: Callable[[], Worker] | None = None,
) -> list[Case]:
    """The cases that are passed, the one with most work first. most: so many are enough. share: what has them called
    and looked at in several processes (`_prove_side_by_side`), and free: one that is not at work meanwhile."""
    variant = proof.variant
    # The first call of a shape may compile.
    limit = max(setting.time_limit, setting.prepare_limit if may_compile(variant) else 0)
    proof.cases_all = len(cases)
    right: list[Case] = []

    def call(case: Case) -> Proved:
        return _called(case, free() if free else worker, judge, setting, limit)

    def attempt(case: Case) -> tuple[Proved | None, ProcessFailed | None]:
        try:
            return call(case), None
        except ProcessFailed as failure:
            return None, failure

    declined: list[tuple[Case, str]] = []

    def fell_out(case: Case, failure: ProcessFailed | None) -> None:
        if failure and failure.status == "skipped":
            proof.unsupported += [failure.evidence] if failure.evidence not in proof.unsupported else []
            declined.append((case, failure.evidence))
        elif failure:
            raise failure

    def passed(case: Case, proved: Proved, looked: Future[Verdict]) -> bool:
        verdict = looked.result()
        if verdict.borderline:
            verdict = _drawn_again(proof, case, verdict, judge, yardstick, call)
        if _passed(proof, case, proved, verdict, LAUNCHES_S if devices.is_gpu(setting.device) else 0.0):
            right.append(case)
        return proof.ok

    if share:
        with closing(share(proof, cases, worker, judge, setting, limit, progress)) as answers:
            for case, proved, looked, failure in answers:
                if proved and not passed(case, proved, looked):
                    return []
                if not proved:
                    fell_out(case, failure)
    with ThreadPoolExecutor(max_workers=1) as pool:
        last: tuple[Case, Proved, Future[Verdict]] | None = None  # the judge looks at it while the next is called
        for case in cases if not share else ():
            if most is not None and proof.cases >= most:
                break
            progress(f"{variant.name} {proof.phase} {proof.dtype}: {case.name}")
            proved, failure = attempt(case)
            if last:
                again = _looked_at(last[2], failure).borderline
                if not passed(*last):
                    return []
                if again:  # what it left lay where the further draws went
                    proved, failure = attempt(case)
            last = None
            if proved:
                last = case, proved, pool.submit(judged, variant, case, proved, judge)
                if not judge.behind or most is not None:
                    if not passed(*last):
                        return []
                    last = None
            else:
                fell_out(case, failure)
        if last and not passed(*last):
            return []
    if not proof.cases:
        proof.status, proof.evidence = "skipped", "; ".join(proof.unsupported)
    elif told := _by_contents(declined, right):
        proof.status, proof.check, proof.evidence = "wrong", "declined", f"declined: {told}"
    elif found := [] if devices.is_made_up(setting.device) else source.foreign(variant):
        proof.status, proof.check = "wrong", "source"
        proof.evidence = f"source: {'; '.join(found[:3])}"
    return sorted(right, key=lambda c: -contract.min_bytes(c.module, c.shape, c.phase))


def _prove_whole(
    proof: Proof,
    cases: list[Case],
    passed: list[Case],
    timed: Sequence[Shape],
    worker: Worker,
    judge: Judge,
    yardstick: Variant | None,
    setting: Setting,
    progress: Callable[[str], None],
) -> list[Case]:
    """Of a variant that takes no slice of the shapes that are timed: those shapes, whole, with each structured case,
    for nobody has seen it at any like them. The cases that are passed. What is too large for that is not timed."""
    slices = {case.name for case in cases if SLICED in case.name}
    if not slices or slices & {case.name for case in passed}:
        return []
    whole = cases_whole(proof.variant.layer, proof.phase, proof.dtype, proof.seeds, timed)
    if not whole:
        proof.status, proof.evidence = "skipped", "takes no slice of what is timed, which is too large to prove it at"
        return []
    judge.prepare(whole, yardstick)
    before = proof.cases_all
    passed = _prove_phase(proof, whole, worker, judge, yardstick, setting, progress)
    proof.cases_all += before
    return passed


def _call_sealed(proof: Proof, case: Case, worker: Worker, judge: Judge, setting: Setting) -> None:
    """Call it once more, with inputs that cannot be written to: who uses one as scratch memory, and puts it back bit by
    bit, leaves nothing to see."""
    given = judge.given(case, setting.device)
    try:
        worker.ask("call_sealed", limit=setting.prepare_limit, case=case, given=given, seed=secrets.randbits(40))
    except ProcessFailed as failure:
        if failure.status != CRASH or signal.SIGSEGV.name not in failure.evidence:
            raise
        proof.status, proof.check = "wrong", "input_changed"
        proof.evidence = (
            "input_changed: it writes to an input, and puts back what was there: where inputs could not be written to, "
            f"{failure.evidence} [{case.name}]"
        )


def _by_contents(declined: list[tuple[Case, str]], right: list[Case]) -> str:
    """What a variant declined at a shape that it took with other contents; "" for nothing. It may choose its shapes,
    not the numbers that it is right for."""
    for case, why in declined:
        if taken := next((c for c in right if c.shape == case.shape), None):
            return f"{case.name}, seed {case.seed} ({why}); of the same shape it took {taken.name}, seed {taken.seed}"
    return ""


def _prove_side_by_side(
    proof: Proof,
    cases: list[Case],
    worker: Worker,
    judge: Judge,
    setting: Setting,
    limit: float,
    progress: Callable[[str], None],
    team: dict[int, Worker],
    most: int,
) -> Generator[Answered, None, None]:
    """What comes of each case, in their order, from this worker and others of the same variant, at most so many, who
    join one after the other while it goes on. Each is called, and at once looked at, in one of them. Every second one
    begins at the other end: neighbours are of one shape, and two who take them compile one kernel at once.

    What is said is of the first case that fails, whichever is done first: the cases before it have been taken by then.
    Once nobody asks for more, those who are at work are ended. team: the others, kept for the next phase.
    """
    variant = proof.variant
    answers: list[Future[tuple[Proved | None, ProcessFailed | None]]] = [Future() for _ in cases]
    verdicts: list[Future[Verdict]] = [Future() for _ in cases]
    waiting, over = deque(range(len(cases))), threading.Event()
    busy, finished = {0: worker}, False

    def take(one: Worker, i: int) -> None:
        try:
            progress(f"{variant.name} {proof.phase} {proof.dtype}: {cases[i].name}")
            proved = _called(cases[i], one, judge, setting, limit)
        except ProcessFailed as failure:
            answers[i].set_result((None, failure))
            return
        except BaseException as error:
            answers[i].set_exception(error)
            return
        answers[i].set_result((proved, None))
        try:
            verdicts[i].set_result(judged(variant, cases[i], proved, judge))
        except BaseException as error:
            verdicts[i].set_exception(error)

    def work(place: int) -> None:
        if place and over.wait(place * JOIN_SECONDS):
            return
        while not over.is_set():
            try:
                i = waiting.pop() if place % 2 else waiting.popleft()
            except IndexError:
                return
            try:
                busy[place] = _member(team, place, variant, setting) if place else worker
            except BaseException as error:
                answers[i].set_exception(error)
                return
            take(busy[place], i)

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(most)]
    for thread in threads:
        thread.start()
    try:
        for case, answer, verdict in zip(cases, answers, verdicts, strict=True):
            proved, failure = answer.result()
            yield case, proved, verdict, failure
        finished = True
    finally:
        over.set()
        for thread in threads:
            while thread.is_alive():
                for one in list(busy.values()) if not finished else ():
                    one.kill()
                thread.join(0.1)


def _member(team: dict[int, Worker], place: int, variant: Variant, setting: Setting) -> Worker:
    if place not in team or not team[place].alive:
        team[place] = Worker(variant, setting)
    return team[place]


def _called(case: Case, worker: Worker, judge: Judge, setting: Setting, limit: float) -> Proved:
    """Two calls of a case. Raises ProcessFailed, which says of which case."""
    given: Given | None = None

    def ask() -> Proved:
        nonlocal given
        given = judge.given(case, setting.device)
        return worker.ask("prove", limit=limit, case=case, given=given, seed=secrets.randbits(40))

    try:
        try:
            return judge.with_inputs(ask)
        except ProcessFailed as failure:
            # A judge that somebody killed takes the inputs with it: those of the one that took its place lie elsewhere.
            if failure.status != ERROR or judge.given(case, setting.device) == given:
                raise
            return judge.with_inputs(ask)
    except ProcessFailed as failure:
        if failure.status != "skipped":
            failure.evidence = f"{failure.evidence} [{case.name}, seed {case.seed}]"
        raise


def _looked_at(verdict: Future[Verdict], failure: ProcessFailed | None) -> Verdict:
    """What is said of the last case. Where the next one ended the process, before the judge had opened what the last
    had left there, that end is the finding: nothing is known to be wrong with the truth."""
    try:
        return verdict.result()
    except ProcessFailed:
        if failure and failure.status in (CRASH, TIMEOUT):
            raise failure from None
        raise


def _passed(proof: Proof, case: Case, proved: Proved, verdict: Verdict, launches_s: float = 0.0) -> bool:
    """Whether two calls of a case were right, which is added to the proof. launches_s: of a call, that launching may
    take."""
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
        seconds = proved["seconds"] - launches_s
        proof.work_per_s = max(proof.work_per_s, work / seconds if seconds > 0 else math.inf)
    return True


def _drawn_again(
    proof: Proof, case: Case, first: Verdict, judge: Judge, yardstick: Variant | None, call: Callable[[Case], Proved]
) -> Verdict:
    """What a case comes to whose error was near the limit: honest arithmetic is beyond it in one draw of thousands, a
    fault in most. The first finding stands where another draw has one too; else a note tells of it."""
    others = [replace(case, seed=secrets.randbelow(2**31)) for _ in range(REDRAWS)]
    judge.prepare(others, yardstick)
    worst = 0.0
    for other in others:
        verdict = judged(proof.variant, other, call(other), judge)
        if not verdict.ok:
            evidence = f"{first.evidence}; drawn again with seed {other.seed}: {verdict.evidence}"
            return replace(verdict, check=first.check, evidence=evidence, ratio=max(first.ratio, verdict.ratio))
        worst = max(worst, verdict.ratio)
    luck = f"in {REDRAWS} further draws at most {worst:.2g}x, so one draw's luck"
    proof.notes.append(f"{case.name}, seed {case.seed}: {first.evidence}; {luck}")
    return replace(verdict, ratio=first.ratio)


def may_compile(variant: Variant) -> bool:
    """Whether a call may take as long as a compiler does: of a GPU, of torch.compile, or in what it prepares."""
    if variant.gpu_code or builds_each_shape(variant) or variant.has("prepare"):
        return True
    return bool(COMPILING.search(variant.path.read_text(errors="replace")))


def _count(proof: Proof, cases: Sequence[Case], worker: Worker, judge: Judge, setting: Setting) -> None:
    """Have the simulator count a call, which must be right and move what it cannot do without: of the first of these
    cases that the variant takes."""
    for case in cases:
        given, seed = judge.given(case, setting.device), secrets.randbits(40)
        try:
            counts, handed = worker.ask("count", limit=setting.prepare_limit, case=case, given=given, seed=seed)
            break
        except ProcessFailed as failure:
            if failure.status != "skipped" or case is cases[-1]:
                raise
    verdict = judge.judge(case, handed)
    moved = counts["moved_of_minimum"]
    if verdict.ok and moved is not None and moved < LEAST_MOVED:
        evidence = f"the simulator counted {moved:.3g} of the bytes that this call cannot do without"
        verdict = Verdict("too_little_work", evidence)
    if verdict.ok and counts.get("occupancy") == 0:
        needs = f"{counts['registers']} registers a thread, {counts['shared_bytes']} bytes of shared memory"
        verdict = Verdict("launch", f"no multiprocessor holds a block of a kernel that it launches ({needs})")
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
