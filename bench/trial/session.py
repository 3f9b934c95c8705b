"""One run of `bench.layer`: variants are proved, then timed, and each case that is finished is written down."""

import contextlib
import itertools
import shlex
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bench import cli
from bench.core import files, process
from bench.core.case import Case
from bench.core.process import TIMEOUT, ProcessFailed
from bench.core.variants import Variant, builds_each_shape, discover, simulated, unavailable
from bench.machine import ceilings, devices, profiling
from bench.machine import facts as machine
from bench.records.record import Record, Resources
from bench.records.run import Run
from bench.show import limits, report, terminal
from bench.trial import beside
from bench.trial import rows as records
from bench.trial.judge import Judge
from bench.trial.ledger import Ledger, grounds
from bench.trial.plan import Plan, cases, check
from bench.trial.prove import Proof, prove, seeds
from bench.trial.race import Contestant, Timing, race
from bench.trial.room import MESSAGE, MESSAGES
from bench.trial.worker import Worker
from kernels import cache_dir
from reference import contract

MOST_WORKERS = 8  # that share the cases of a simulated proof; each is an interpreter with a variant's libraries
PROOF, CASE = "proof", "case"  # what is counted while it goes on
WORTH_A_LOOK_S = 1.0  # of a race: a shorter one is a first impression, and takes the ceilings as they are remembered


def list_layers(folders: list[str], device: str, as_json: bool) -> int:
    """Print which variants there are, those in `folders` too, and why some cannot run on this device."""
    rows = [(v, unavailable(v, device, v.dtypes[0])) for v in discover(tuple(map(Path, folders)))]
    if as_json:
        found = [
            dict(layer=v.layer, variant=v.name, story=v.story, phases=sorted(v.functions), skipped=reason)
            for v, reason in rows
        ]
        cli.print_json({"variants": found})
    else:
        terminal.print_list(rows)
    return cli.OK


class Stopped(Exception):
    """Another lane ended the session."""


class Session:
    """One command: what its plan says, and the run folder that the records go to."""

    def __init__(self, plan: Plan, screen: terminal.Screen | None = None):
        check(plan)
        files.need_cache()
        if plan.profile:
            files.make_folder(plan.profile)
        self.plan = plan
        self.seeds = seeds(plan.seed)
        self.effort = replace(plan.effort, seed=self.seeds[1])
        self.arch: str | None = None  # of the GPU that is timed
        self.run_ = Run.resume(plan.resume, "layer") if plan.resume else Run.create("layer", plan.out, plan.argv)
        self.done = self.run_.finished() if plan.resume else {}
        self.screen = screen or terminal.Screen()
        self.judge = Judge(device=plan.device)
        self.ledger = Ledger(plan.proofs, plan.setting) if plan.proofs and not plan.smoke else None
        self.stopped = False
        self.writing = threading.Lock()  # lanes write down what they proved
        self.workers: dict[str, Worker] = {}  # that proved a variant of the layer and can go on to time it
        self.records: list[Record] = []
        self.proved: dict[tuple[str, ...], Record] = {}  # of a run that times nothing: layer, variant, phase, dtype
        self.profiled: list[profiling.Row] = []

    def run(self) -> int:
        try:
            return self.run_all()
        except KeyboardInterrupt:
            folder = self.run_.folder
            raise KeyboardInterrupt(f"{folder} (python -m bench.layer --resume {folder} goes on)") from None
        finally:
            self.run_.close()  # the process may go on with another run

    def run_all(self) -> int:
        self.screen.header(self.facts())
        self.expect()
        if self.plan.profile is None and not self.plan.check_only and self.plan.device != "cpu":
            self.arch = beside.measure_ceilings(self.plan.setting)
        with self.judge, self.screen:
            for layer, dtype in itertools.product(self.plan.layers, self.plan.dtypes):
                try:
                    self.run_layer(layer, dtype)
                finally:
                    self.close_workers()
                self.judge.forget()
        self.finish()
        return self.exit_code()

    def expect(self) -> None:
        """How much there is to do, for the line that says how far it is."""
        plan = self.plan
        for layer, dtype in itertools.product(plan.layers, plan.dtypes):
            phases = [p for p in contract.phases_of(contract.load(layer)) if p in plan.phases]
            self.screen.line.expect(PROOF, len(plan.chosen(layer)) * len(phases))
            if not plan.check_only:
                some = [case for phase in phases for case in cases(plan, layer, phase, dtype)]
                self.screen.line.expect(CASE, len(some), None if plan.profile else plan.effort.seconds)

    def exit_code(self) -> int:
        """By the gravest that happened: a wrong result, a call that never ended, a named variant that could not run."""
        untried = self.untried()
        for name, why in untried.items():
            self.screen.say(f"{name} was not tried: {why}")
        bad = {r["status"] for r in self.records} - {"ok", "simulated", "skipped"}
        if bad:
            return cli.TIMED_OUT if bad == {TIMEOUT} else cli.WRONG
        if untried.keys() & {*self.plan.outright}:
            return cli.CANNOT_RUN
        return cli.NOTHING_TRIED if untried and len(untried) == len(set(self.plan.named)) else cli.OK

    def untried(self) -> dict[str, str]:
        """The variants named by --only of which not one case was tried, and why."""
        of: dict[str, list[Record]] = {name: [] for name in self.plan.named}
        for r in (*self.records, *self.done.values()):
            of.get(r["variant"], []).append(r)
        return {
            name: "; ".join(dict.fromkeys(r["evidence"] for r in rows)) or "no record of it"
            for name, rows in of.items()
            if all(r["status"] == "skipped" and not r.get("proof_cases") for r in rows)
        }

    def close_workers(self) -> None:
        """All at once: each takes a while to give its memory back."""
        if workers := list(self.workers.values()):
            with ThreadPoolExecutor(len(workers)) as pool:
                list(pool.map(Worker.close, workers))
        self.workers.clear()

    def facts(self) -> terminal.Conditions:
        threads = self.plan.setting.threads or torch.get_num_threads()
        busy = machine.busy(machine.snapshot())
        clocks = devices.clocks_of(self.plan.device)
        return terminal.Conditions(machine.one_line(), self.seeds, clocks, threads, busy)

    def finish(self) -> None:
        if self.plan.profile and self.profiled:
            profiling.write_csv(self.plan.profile, self.profiled)
            self.screen.note(profiling.command_lines(["python", "-m", "bench.layer", *self.plan.argv]))
        self.run_.write_csv()
        self.screen.footer(self.records, None if self.plan.watch else self.run_.folder)
        full = None if self.plan.watch else self.write_page()
        if self.plan.json:
            cli.print_json({"run": str(self.run_.folder), "records": [_without_samples(r) for r in self.records]})
        if full:
            raise full

    def write_page(self) -> files.DiskFull | None:
        """The page, said in a line; a disk that is full, to be told when all else was."""
        with self.screen:
            self.screen.progress("the page")
            try:
                told = report.write_beside(self.run_.folder)
            except files.DiskFull as full:
                return full
        self.screen.note(told)
        return None

    def run_layer(self, layer: str, dtype: str) -> None:
        phases = [p for p in contract.phases_of(contract.load(layer)) if p in self.plan.phases]
        proofs = self.prove_all(self.plan.chosen(layer), phases, dtype)
        for phase in phases if proofs else ():
            self.run_phase(layer, phase, dtype, [p for p in proofs if p.phase == phase])

    def run_phase(self, layer: str, phase: str, dtype: str, proofs: list[Proof]) -> None:
        plan = self.plan
        if plan.check_only or plan.profile:
            self.screen.proofs(layer, phase, dtype, [self.proved[layer, p.variant.name, phase, dtype] for p in proofs])
        self.screen.counts(layer, phase, dtype, {p.variant.name: p.counts for p in proofs if p.counts})
        for case, calls in () if plan.check_only else cases(plan, layer, phase, dtype):
            self.screen.line.begin(CASE, f"{layer} {phase} {case.name} {dtype}")
            if plan.profile:
                self.profile(case, proofs, plan.profile)
            else:
                self.time(case, calls, proofs)
            self.judge.forget()
            self.screen.line.done(CASE)

    # --- proving ---

    def prove_all(self, variants: list[Variant], phases: list[str], dtype: str) -> list[Proof]:
        """Proofs of all phases of these variants, in their order.

        On a CPU in two lanes at once, each from its own end: those that are mostly compiled or simulated, on one core,
        and the others. Who is through with its kind goes on with the other's. What comes from outside is proved by
        itself, behind them: it may kill whoever is there. Nothing is timed yet.
        """
        ours = deque(sorted((v for v in variants if not v.outside), key=lambda v: v.gpu_code or builds_each_shape(v)))
        others = deque(v for v in variants if v.outside)
        takes = [ours.popleft, ours.pop] if self.plan.device == "cpu" and len(ours) > 1 else [ours.popleft]
        found: dict[str, list[Proof]] = {}
        with ThreadPoolExecutor(max_workers=2) as pool:
            try:
                for lanes in (takes, [others.popleft]):
                    for future in [pool.submit(self.prove_lane, take, phases, dtype) for take in lanes]:
                        found |= future.result()
            except BaseException:  # Ctrl-C, say: no lane waits for its process any more
                self.stopped = True
                process.end_all()
                raise
        return [proof for v in variants for proof in found[v.name]]

    def prove_lane(self, take: Callable[[], Variant], phases: list[str], dtype: str) -> dict[str, list[Proof]]:
        return {v.name: list(self.prove(v, phases, dtype)) for v in _until_empty(take)}

    def progress(self, text: str) -> None:
        if self.stopped:
            raise Stopped
        self.screen.line.begin(PROOF)
        self.screen.progress(text)

    def prove(self, v: Variant, phases: list[str], dtype: str) -> Iterator[Proof]:
        """A proof of each phase, skipped ones first. Where nothing is timed each is written down as it is made."""
        for proof in self.proofs(v, phases, dtype):
            self.screen.line.done(PROOF, took=proof.status != "skipped")
            if self.plan.check_only or self.plan.profile:
                of_it = records.of_smoke if self.plan.smoke else records.of_proof
                row = self.keep(of_it(proof, v.layer, dtype, proof.seeds or self.seeds))
                self.proved[v.layer, v.name, proof.phase, dtype] = row
            yield proof

    def proofs(self, v: Variant, phases: list[str], dtype: str) -> Iterator[Proof]:
        plan = self.plan
        reason = unavailable(v, plan.device, dtype, plan.setting.simulate)
        if plan.no_simulate and simulated(v, plan.device):
            reason = "needs a GPU, and --no-simulate leaves the simulator out"
        if plan.smoke and builds_each_shape(v):
            reason = reason or "compiles for each shape, in seconds: no look at it"
        can = tuple(p for p in phases if v.has(p) and not reason)
        for phase in phases:
            if phase not in can:
                yield Proof(v, phase, dtype, "skipped", evidence=reason or f"has no {phase}")
        yardstick, progress = plan.yardstick(v.layer), self.progress
        timed = {p: [case.shape for case, _ in cases(plan, v.layer, p, dtype)] for p in can}
        ledger = None if simulated(v, plan.device, plan.setting.simulate) else self.ledger
        for phase in can if ledger else ():
            assert ledger
            old = ledger.find(v, phase, dtype, timed[phase], yardstick)
            if old and not (plan.sanitize and old.ok and v.gpu_code and not old.sanitizer):
                can = tuple(p for p in can if p != phase)
                yield old
        before = {p: grounds(v, p, dtype, plan.setting, yardstick) for p in can} if ledger else {}
        kept, smoke = None if plan.check_only or plan.profile else self.workers, plan.smoke
        for proof in prove(
            v,
            can,
            dtype,
            self.seeds,
            self.judge,
            plan.setting,
            yardstick,
            progress,
            timed,
            kept,
            count=plan.count,
            smoke=smoke,
            workers=min(MOST_WORKERS, machine.usable_cores()),
        ):
            if self.stopped and not proof.ok:  # its process was killed because another lane stopped
                raise Stopped
            if plan.sanitize and proof.ok and not proof.simulated and v.gpu_code:
                self.sanitize(proof)
            if ledger:
                ledger.keep(proof, timed[proof.phase], yardstick, before[proof.phase])
            yield proof

    def sanitize(self, proof: Proof) -> None:
        v = proof.variant
        self.screen.progress(f"{v.name} {proof.phase} {proof.dtype}: compute-sanitizer")
        beside.sanitize(proof, self.seeds[-1], self.plan.setting)
        if proof.ok and proof.sanitizer != "ok":
            self.screen.note(f"{v.layer} {v.name} {proof.phase}: compute-sanitizer {proof.sanitizer}")

    # --- at the model's shapes ---

    def profile(self, case: Case, proofs: list[Proof], folder: Path) -> None:
        """Traces of the right variants."""
        for v in [p.variant for p in proofs if p.ok and not p.simulated]:
            self.screen.progress(f"{v.name} {case.phase}: profile of {case.name}")
            try:
                self.judge.prepare([case], None, truth_too=False)
                self.profiled += self.judge.with_inputs(partial(self.trace, v, case, folder))
            except ProcessFailed as failure:
                where = f"{case.layer} {v.name} {case.phase} {case.name}"
                self.screen.note(f"{where}: not profiled: {failure.evidence}")

    def trace(self, v: Variant, case: Case, folder: Path) -> list[profiling.Row]:
        return beside.trace(v, case, self.judge.given(case), folder, self.plan.setting)

    def time(self, case: Case, calls: int, proofs: list[Proof]) -> None:
        """Race the variants that were proved; records of the others say why they were not."""
        rows: list[Record] = []
        ready: list[Proof] = []
        for proof in proofs:
            if old := self.finished(case, proof.variant):
                rows += old
                self.records += old  # the run's end speaks of all that it holds
            elif row := self.untimed(case, calls, proof):
                rows.append(self.keep(row))
            else:
                ready.append(proof)
        timing, raced = self.race(case, calls, ready)
        self.show(case, rows + [self.keep(row) for row in raced], timing)

    def finished(self, case: Case, v: Variant) -> list[Record]:
        """Records of a resumed run that need not be measured again."""
        start = records.case_id(case, v)
        return [r for name, r in self.done.items() if name.split("-")[0] == start]

    def untimed(self, case: Case, calls: int, proof: Proof) -> Record | None:
        """The record of a variant that takes no part in the race; None for one that does."""
        device = self.plan.device
        if proof.simulated:
            if why := beside.cannot_launch(proof.variant, case, self.plan.setting):
                return records.untimed(case, proof, calls, self.seeds, "skipped", why, device)
            return records.simulated(case, proof, calls, self.seeds, device)
        if not proof.ok:
            return records.untimed(case, proof, calls, self.seeds, proof.status, proof.evidence, device)
        if too_slow := predicted_too_slow(proof, case, self.plan.setting.time_limit):
            return records.untimed(case, proof, calls, self.seeds, "skipped", too_slow, device)
        return None

    def race(self, case: Case, calls: int, proofs: list[Proof]) -> tuple[Timing | None, list[Record]]:
        """What the race of proved variants came to, and the records of it."""
        plan = self.plan
        if not proofs:
            return None, []
        if plan.device == "cpu" and self.effort.seconds >= WORTH_A_LOOK_S:
            self.judge.ready()  # nothing else is at work
            ceilings.look_again()
        # The baseline of the noise floor and of the stopping rule comes first.
        proofs = sorted(proofs, key=lambda p: p.variant.name != "torch.eager")
        racing, yardstick = [p.variant for p in proofs], plan.yardstick(case.layer)
        where = f"{case.layer} {case.phase} {case.name} {case.shape['dtype']}"

        def progress(text: str) -> None:
            self.screen.progress(f"{where}: {text}")

        try:
            timing = race(case, racing, yardstick, self.judge, plan.setting, self.effort, progress, self.workers)
        except ProcessFailed as failure:
            why = failure.status, failure.evidence
            return None, [records.untimed(case, p, calls, self.seeds, *why, plan.device) for p in proofs]
        return timing, list(self.timed(timing, calls, {p.variant.name: p for p in proofs}))

    def timed(self, timing: Timing, calls: int, proofs: dict[str, Proof]) -> Iterator[Record]:
        """The records of a race; `proofs` by the variant's name."""
        partial = {name for name, proof in proofs.items() if proof.unsupported}
        baseline, threads = fastest_torch(timing, partial), self.plan.setting.threads
        setting, rest = self.plan.setting, self.plan.compile_resources
        needs = beside.resources_on(self.arch, timing.case, timing.contestants, setting, rest)
        for c in timing.contestants:
            proof = proofs[c.variant.name]
            for row in records.timed(timing.case, proof, calls, self.seeds, c, baseline, timing, threads):
                yield row | needs.get(c.variant.name, Resources())

    def show(self, case: Case, rows: list[Record], timing: Timing | None) -> None:
        # A layer that multiplies more than it moves is told by its FLOP/s, the others by their bytes/s.
        size = contract.min_bytes(case.module, case.shape, case.phase)
        flops_matter = contract.flops(case.module, case.shape, case.phase) > 20 * size
        title = f"{case.layer} {case.phase} {case.name} {case.shape['dtype']}: {records.sizes_text(case)}"
        shown = [r for r in rows if not r["control"]]
        facts, on_gpu = records.facts(rows[0], timing), devices.is_gpu(self.plan.device)
        facts += limits.above_ceiling(shown, ceilings.remembered(self.plan.device))
        self.screen.timings(title, facts, shown, self.effort.caches, flops_matter, on_gpu)

    # --- records ---

    def reproduce(self, row: Record) -> str:
        """The command that measures this row again."""
        parts = ["python", "-m", "bench.layer", row["layer"], "--only", row["variant"], "--pass", row["phase"]]
        looks = {"proof": ["--check-only"], records.SMOKE: ["--smoke"]}
        parts += looks.get(row["shape_name"], ["--shape", row["shape_name"]])
        parts += ["-a", f"dtype={row['dtype']}"]
        parts += itertools.chain.from_iterable(("-a", a) for a in self.plan.axis_texts if not a.startswith("dtype"))
        parts += [] if self.plan.device == "cpu" else ["--device", self.plan.device]
        return shlex.join([*parts, "--seed", str(row["seeds"][-1])])

    def keep(self, row: Record) -> Record:
        row["reproduce"] = self.reproduce(row)
        row["device"] = self.plan.device
        copy_messages(row["evidence"], self.run_.folder)
        with self.writing:
            self.records.append(row)
            self.run_.append(row)
        return row


def _until_empty(take: Callable[[], Variant]) -> Iterator[Variant]:
    while True:
        try:
            v = take()
        except IndexError:
            return
        yield v


def copy_messages(evidence: str, folder: Path) -> None:
    """Put what a compiler said beside the run, where a row names it (room.whole_message)."""
    for name in MESSAGE.findall(evidence):
        with contextlib.suppress(OSError):
            shutil.copyfile(cache_dir() / MESSAGES / name, folder / name)


def fastest_torch(timing: Timing, partial: set[str]) -> Contestant | None:
    """The PyTorch entry that the speed column compares with: the fastest one, not a convenient one, of those that have
    the whole contract. partial: names of variants that do not."""
    running = [c for c in timing.contestants if not c.control and c.running]
    entries = [c for c in running if _is_torch(c.variant) and c.variant.name not in partial]
    cold = [(s, c) for c in entries if (s := c.least_median(next(iter(c.samples), "")))]
    return min(cold, key=lambda pair: pair[0])[1] if cold else None


def _is_torch(variant: Variant) -> bool:
    """PyTorch as this repository calls it: a variant from outside is nobody's yardstick."""
    return variant.backend == "torch" and not variant.outside


def predicted_too_slow(proof: Proof, case: Case, limit: float) -> str:
    """A reason to skip where the proof's own speed says that one call would take longer than the limit."""
    if not proof.work_per_s:
        return ""
    work = contract.flops(case.module, case.shape, case.phase)
    work += contract.min_bytes(case.module, case.shape, case.phase)
    seconds = work / proof.work_per_s
    if seconds < limit / 2:  # a call to warm up and one to time must fit
        return ""
    return f"too slow for this shape: by its speed in the proof two calls take longer than --time-limit {limit:g} s"


def _without_samples(record: Record) -> dict[str, object]:
    return {k: v for k, v in record.items() if not k.endswith("samples")}
