"""One run of `bench.e2e`: contestants train turn about in processes of their own, and the gate judges what they did.

What is finished is on disk: the choice of kernels, our step once it is built, all rows after each turn of everybody,
and again with what the steps with a clock around every call say. A kill costs the turn under way.
"""

import math
import random
import time
from dataclasses import replace
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core import files, progress, variants, world
from bench.core.process import ERROR, TIMEOUT, pause
from bench.core.progress import Progress
from bench.machine import facts, profiling, roofline
from bench.machine.compared import Rest, rest_of
from bench.machine.devices import check_device
from bench.models import chosen
from bench.records.record import Record
from bench.records.run import Run
from bench.show.report import write_beside
from bench.text import corpus, shards
from bench.training import WARM_UP, outcome, pick
from bench.training.contestants import Lost, OutOfMemory
from bench.training.deadline import Deadline
from bench.training.field import OURS, Entrant, Field, baseline
from bench.training.gate import NotFinite, Trajectory, Updates, must_be_finite
from bench.training.outcome import Out
from bench.training.pick import Picked
from bench.training.plan import Plan, Turn
from bench.training.rooms import InContext, StepDone

PYTORCH_RUNS = 3  # at least, besides the centre, to measure the band: the baselines, and perturbed runs
BYTES_A_PARAMETER = 20  # of one contestant: weight, gradient, two moments, a master or temporary
IN_CONTEXT_STEPS = 3
TURNS_ALONE = 2  # timed turns between one baseline's joining and the next one's
COMPILE_SHARE = 0.5  # of what is left of --minutes, for the first baseline to compile
LEAST_COMPILE_S, LEAST_START_S = 20.0, 5.0  # less than this is not worth starting a baseline, compiled or eager
TURN = "turn"  # of everybody: what is counted while it goes on
LATE = 1.2  # times its estimate a turn may take


class Session:
    """One command. `run` tells the story; the methods below it are its steps."""

    def __init__(self, plan: Plan, begin: float | None = None):
        """begin: when the command began, in seconds of time.monotonic()."""
        check_device(plan.job.device)  # says at once where there is none
        self.plan = plan
        self.deadline = Deadline(plan.minutes, time.monotonic() if begin is None else begin)
        job, calls = plan.job, plan.calls
        found = variants.discover(plan.spec.folders)
        self.candidates = pick.candidates(plan.spec, found, calls, job)
        self.swaps = {text: pick.swapped(text, spec, found, calls, job) for text, spec in plan.swaps.items()}
        check_memory(plan)
        self.batches = batches_of(plan)
        self.notes: list[str] = []  # what the page must say of the run
        self.matmul_peaks: dict[str, float | None] = {}
        self.written: dict[str, Record] = {}  # by case, as it was appended last
        self.full_disk: CannotGoOn | None = None
        self.line = Progress()
        self.side_by_side = plan.gpu  # ours is built while a baseline compiles
        self._forget()

    def _forget(self) -> None:
        """No step was taken, and nobody was picked."""
        self.picked: Picked | None = None
        self.waiting: list[Entrant] = []  # baselines that may join while there is time
        self.turns: list[Turn] = []  # that everybody has had
        self.gate_runs: list[Trajectory] = []  # PyTorch's: the centre, and perturbed ones
        self.trajectories: dict[str, list[StepDone]] = {}
        self.updates: dict[str, Updates] = {}  # of ours
        self.rests: dict[str, Rest] = {}
        self.strange: dict[str, str] = {}  # of ours: what all turns together tell
        self.spot = random.SystemRandom().randrange(self.plan.turns[-1].steps.stop)  # a step that is judged by itself
        self.caught_up: dict[str, int] = {}  # steps that a late one took before it joined
        self.out: dict[str, Out] = {}
        self.peak_bytes: dict[str, int] = {}
        self.in_context: dict[str, list[InContext]] = {}
        self.stopped = ""  # why there are no more turns
        self.failed: Out | None = None  # how our step did
        self.judge_s = self.turn_s = 0.0  # what a step of the last turn took: of the judge's runs, and of all others

    def run(self) -> int:
        plan = self.plan
        files.need_cache()
        if plan.profile:
            files.make_folder(plan.profile)
        self.run_ = Run.create("e2e", plan.out, plan.argv)
        if not plan.gpu:  # a GPU's are measured where there is a CUDA context
            self.matmul_peaks = roofline.matmul_peaks(plan.job.device, plan.job.dtype)
        with self.line:
            try:
                report = self._measure()
            except (KeyboardInterrupt, CannotGoOn) as error:  # an hour of training is not to be lost
                self._keep_what_there_is(error)
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt(self.run_.folder) from None
                raise
            return self._report(report)

    def _report(self, report: outcome.Judged) -> int:
        plan = self.plan
        report.print()  # first, for it is minutes' work, and the disk may be full
        if self.full_disk:
            raise self.full_disk
        self.run_.write_csv(outcome.COLUMNS)
        if plan.profile:
            print(f"traces (for ui.perfetto.dev) and ranges.csv: {plan.profile}")
            print(profiling.command_lines(["python", "-m", "bench.e2e", *plan.argv]))
        print(f"results: {self.run_.folder}")
        try:
            progress.tell("the page")
            print(write_beside(self.run_.folder))
        except files.DiskFull as full:
            self.full_disk = full
        if plan.json:
            cli.print_json({"run": str(self.run_.folder), **report.document()})
        if self.full_disk:
            raise self.full_disk
        return cli.OK if report.parity else cli.WRONG

    def _measure(self) -> outcome.Judged:
        while True:
            with Field(self.plan, self.notes, self.deadline) as field:
                self.field = field
                try:
                    self._set_up(field)
                except OutOfMemory as error:
                    too_large = str(error)
                else:
                    return self._measured(field)
            if self.side_by_side:  # it may have been the other's memory: once more, one after the other
                self.side_by_side = False
            else:
                self._halve(too_large)

    def _measured(self, field: Field) -> outcome.Judged:
        self._train(field)
        if not any(turn.timed for turn in self.turns):
            raise CannotGoOn(
                f"no step was timed within --minutes {self.plan.minutes:g}; the page says how far it came",
                cli.TIMED_OUT,
            )
        if not self.plan.job.simulate:
            self._look_inside(field)
        report = self._keep()
        if self.plan.profile:
            self._profile(field, self.plan.profile.absolute())
        return report

    # --- what is on disk ---

    def _keep(self) -> outcome.Judged:
        """Append the rows of what was found out so far."""
        s = self._found()
        report = outcome.Simulated(s) if self.plan.job.simulate else outcome.Report(s)
        self._append(report.records())
        return report

    def _found(self) -> outcome.Measured:
        assert self.picked
        return outcome.Measured(
            plan=self.plan,
            trajectories=self.trajectories,
            turns=self.turns,
            caught_up=self.caught_up,
            entrants=[e for e in self.field.entrants if e.name in self.trajectories],
            out=self.out,
            gate_runs=self.gate_runs,
            updates={
                name: [*judged.excesses, *filter(None, [self.strange.get(name)])]
                for name, judged in self.updates.items()
            },
            picked=self.picked,
            swaps=self.swaps,
            built=self.field.built,
            recipes=self.field.recipes,
            peak_bytes=self.peak_bytes,
            in_context=self.in_context,
            matmul_peaks=self.matmul_peaks,
            notes=self.notes,
            stopped=self.stopped,
            failed=self.failed,
        )

    def _append(self, records: list[Record]) -> None:
        """Those that say something new. A full disk is told when everything was shown."""
        for record in records:
            told = record | Record(machine=None)
            if self.full_disk or self.written.get(record["case_id"]) == told:
                continue
            try:
                self.run_.append(record)
            except CannotGoOn as error:
                cli.say(f"{error}; the run goes on, and is shown when it ends")
                self.full_disk = error
            self.written[record["case_id"]] = told

    def _keep_what_there_is(self, error: BaseException) -> None:
        """The rows of a run that ends before its time."""
        if isinstance(error, NotFinite) or not self.turns:
            self._append(outcome.unjudged(outcome.Trained(self.plan, self.trajectories), str(error)))
            if self.failed and self.picked:
                row = outcome.begun(self.plan, OURS.name, self.field.built[OURS.name], self.picked)
                self._append([row | Record(status=self.failed.status, evidence=self.failed.evidence)])
            return
        how = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
        self.stopped = self._how_far(how) + (f": {error}" if str(error) else "")
        self._keep()

    def _how_far(self, how: str) -> str:
        taken = self.turns[-1].steps.stop if self.turns else 0
        return f"{how} after {taken} of {self.plan.turns[-1].steps.stop} steps"

    # --- setting up ---

    def _set_up(self, field: Field) -> None:
        """All contestants with their steps built; with --minutes one baseline, and the others wait. Raises OutOfMemory
        where they do not fit into the GPU's memory."""
        self._forget()
        plan = self.plan
        baselines = [baseline(mode) for mode in plan.baselines]
        first, self.waiting = (baselines[:1], baselines[1:]) if self.deadline.bounded else (baselines, [])
        racing = bool(self.swaps) or any(len(found) > 1 for found in self.candidates.pool.values())
        self.side_by_side &= not racing and bool(first)
        if plan.gpu or not racing:  # on a CPU their imports would disturb a race
            field.spawn(OURS, *(baselines if plan.gpu else first))
        field.start(OURS)
        compiling: list[Entrant] = []
        if plan.gpu:  # the baselines need the most memory: whether they fit is known before the race
            compiling = self._compile_on_gpu(field, first)
        self._pick(field)
        if not plan.gpu:
            for e in first:
                self._begin_to_compile(field, e)
            compiling = first
            self._judge(field, plan.turns[0].steps.stop)
        for e in compiling:
            self._end_compiling(field, e, plan.compile_limit)
        while self.waiting and not field.baselines:  # nothing to compare with yet
            self._join(field)

    def _compile_on_gpu(self, field: Field, first: list[Entrant]) -> list[Entrant]:
        """Each with the whole GPU that ours leaves. Where nothing is to be measured the last one compiles on while ours
        is built; it is returned."""
        last = first[-1:]
        for e in first:
            self._begin_to_compile(field, e)
            if e not in last:
                self._end_compiling(field, e, self.plan.compile_limit)
        self._measure_peaks(field)
        if self.side_by_side:
            return last
        for e in last:
            self._end_compiling(field, e, self.plan.compile_limit)
        return []

    def _measure_peaks(self, field: Field) -> None:
        """In the judge's process, which has a CUDA context anyway. Without them there is no MFU."""
        try:
            self.matmul_peaks = field.judge.ask("peaks", limit=self.deadline.limit(self.plan.setup_limit))
        except CannotGoOn as error:
            field.note(f"no MFU, the rate of large matmuls could not be measured: {error}")
            field.new_judge()

    def _pick(self, field: Field) -> None:
        """Pick, build and load ours, and write down what it is."""
        plan = self.plan
        progress.tell("picking our kernels")
        self.picked = picked = pick.pick(field, self.candidates, self.swaps)
        outcome.print_choice(picked.choice, picked.times)
        if not plan.job.simulate:
            self._keep_choice(field, picked)
        progress.tell("building our step")
        field.build(OURS, picked.choice)
        self._append([outcome.begun(plan, OURS.name, field.built[OURS.name], picked)])
        for text, swap in self.swaps.items():
            e = Entrant(f"{OURS.name}, {text}", swap=text)
            try:
                field.start(e)
                field.build(e, {**picked.choice, **swap})
            except OutOfMemory:
                raise
            except CannotGoOn as error:
                self._drop(field, e, Out(_status(error), str(error)))

    def _keep_choice(self, field: Field, picked: Picked) -> None:
        """kernels.json, for `--kernels` of another run."""
        job, chip, folder = self.plan.job, field.chip(), self.run_.folder
        model, dtype = job.model.name, job.dtype
        try:
            chosen.write(folder, picked.choice, chip=chip, run=folder.name, model=model, dtype=dtype, B=job.B, T=job.T)
        except CannotGoOn as error:
            self.full_disk = self.full_disk or error

    def _halve(self, too_large: str) -> None:
        """Half the batch, where nobody asked for this one; CannotGoOn where that cannot be."""
        job = self.plan.job
        B = job.B
        text = f"{job.model.name} does not fit on this GPU with --batch {B} ({too_large})"
        if not self.plan.halve or B == 1:
            smaller = f"take --batch {B // 2} and --accumulation" if B > 1 else "take a smaller --seq or --recompute"
            raise CannotGoOn(f"{text}: {smaller}, or fewer contestants (--baseline, --swap)")
        note = f"B={B} does not fit ({too_large}): B={B // 2}"
        cli.say(note)
        self.notes.append(note)
        self.plan = replace(self.plan, job=replace(job, B=B // 2))
        self.batches = batches_of(self.plan)

    # --- baselines ---

    def _begin_to_compile(self, field: Field, e: Entrant) -> None:
        """Compile, and take one step, which touches all memory."""
        cli.say(f"setting up {e.name}")
        progress.tell(f"compiling {e.name}")
        field.enter(e).send("warm", batches=self.batches.step(0), lr=self.plan.lr)

    def _end_compiling(self, field: Field, e: Entrant, limit: float, late: bool = False) -> bool:
        """Whether it takes part. What fails, or takes too long, has a row that says so; what does not fit beside ours
        is raised where the batch may still be made smaller: not for one that comes late."""
        limit = self.deadline.limit(limit, 1.0 if self.turns else COMPILE_SHARE)
        try:
            field.recipes[e.name] = field.contestants[e].answer(limit)
            field.park(e)
            return True
        except OutOfMemory as error:
            if not late and (self.plan.halve or self.side_by_side):
                raise
            self._drop(field, e, Out("skipped", f"it does not fit beside the others: {error}"))
        except Lost as error:
            slow = Out("skipped", f"given up: it was not ready after {limit:.0f} s of compiling")
            self._drop(field, e, slow if error.status == TIMEOUT else Out(error.status, str(error)))
        except CannotGoOn as error:
            self._drop(field, e, Out(ERROR, str(error)))
        return False

    def _drop(self, field: Field, e: Entrant, out: Out) -> None:
        """Somebody who takes part no longer; the others go on."""
        field.note(f"{e.name} is out: {out.evidence}")
        self.out[e.name] = out
        field.leave(e)

    def _join(self, field: Field) -> None:
        """The next baseline that waits and gets ready in time. It takes the steps that the others have had, untimed."""
        while self.waiting:
            e = self.waiting.pop(0)
            taken = self.turns[-1].steps.stop if self.turns else 0
            limit = min(self.plan.compile_limit, self.deadline.left - self._reserve(taken + self._turn_steps))
            if limit < (LEAST_START_S if e.baseline == "eager" else LEAST_COMPILE_S):
                self.out[e.name] = Out("skipped", "no time was left for it")
                continue
            self._begin_to_compile(field, e)
            if self._end_compiling(field, e, limit, late=True) and self._catch_up(field, e, taken):
                return

    def _catch_up(self, field: Field, e: Entrant, taken: int) -> bool:
        if not taken:
            return True
        steps, c = list(self.batches.of(range(taken))), field.contestants[e]
        try:
            limit = self.deadline.limit(self.plan.time_limit * taken)
            done = c.ask("steps", steps=steps, lr=self.plan.lr, details=True, limit=limit)
            c.ask("forget_peak")
            field.park(e)
        except CannotGoOn as error:
            self._drop(field, e, Out(_status(error), str(error)))
            return False
        must_be_finite(e.name, done, self.plan.lr)
        self.trajectories[e.name], self.caught_up[e.name] = done, taken
        return True

    # --- what they do ---

    def _judge(self, field: Field, stop: int) -> None:
        """PyTorch's centre run and its perturbed runs, up to a step: as far as anybody trains, and no further."""
        plan, judge = self.plan, field.judge
        if not self.gate_runs:
            cli.say("measuring PyTorch's own band" + ("" if plan.gpu else "; compiling the baselines"))
            seeds = list(range(max(1, PYTORCH_RUNS - len(field.baselines))))
            judge.ask("begin", perturbed=seeds, limit=self.deadline.limit(plan.setup_limit))
            self.gate_runs = [[] for _ in (None, *seeds)]
        taken = len(self.gate_runs[0])
        if taken >= stop:
            return
        progress.tell(f"PyTorch's own runs, up to step {stop}")
        steps = list(self.batches.of(range(taken, stop)))
        limit = self.deadline.limit(len(steps) * len(self.gate_runs) * plan.time_limit)
        begin = time.monotonic()
        more = judge.ask("go_on", steps=steps, lr=plan.lr, limit=limit)
        self.judge_s = (time.monotonic() - begin) / len(steps)
        if plan.gpu:
            judge.ask("park", limit=limit)
        self.gate_runs = [[*run, *new] for run, new in zip(self.gate_runs, more, strict=True)]
        for i, run in enumerate(self.gate_runs):
            which = f"a perturbed run in {plan.job.dtype}" if i else "the run in fp32"
            must_be_finite(f"PyTorch's own training ({which})", run, plan.lr)

    def _train(self, field: Field) -> None:
        """All steps: warm-up and timed, turn by turn, the contestants in random order within each round of turns."""
        plan = self.plan
        order = random.Random(plan.job.seed)
        self.trajectories |= {e.name: [] for e in field.entrants}
        self.updates |= {e.name: Updates(plan.job.model, plan.job.dtype) for e in field.entrants if e.ours}
        cli.say(f"{WARM_UP} + {plan.steps} steps of {', '.join(self.trajectories)}")
        self.line.expect(TURN, len(plan.turns))
        alone = 0  # timed turns since a baseline joined
        for turn in plan.turns:
            if alone >= TURNS_ALONE and self.waiting:
                self._join(field)
                alone = 0
            if self.deadline.left < self._turn_seconds(len(turn.steps)) + self._reserve(0):
                self.stopped = self._how_far(f"--minutes {plan.minutes:g}: stopped")
                field.note(self.stopped)
                break
            self.line.begin(TURN)
            self._judge(field, turn.steps.stop)
            begin = time.monotonic()
            self._turn(field, turn, order)
            self.turn_s = (time.monotonic() - begin) / len(turn.steps)
            self.turns.append(turn)
            self.line.done(TURN)
            alone += bool(turn.timed)
            if self._worth_keeping(turn):
                self._keep()
        self.out |= {e.name: Out("skipped", "no turn was left for it") for e in self.waiting}
        self._look_back(field)

    def _look_back(self, field: Field) -> None:
        """What all turns of ours together tell: of cores that were not given, and of work while others are timed."""
        for e in (e for e in field.entrants if e.ours):
            others = [rest for name, rest in self.rests.items() if name in {b.name for b in field.baselines}]
            told = self.rests[e.name].evidence(others) if e.name in self.rests else ""
            if not self.plan.gpu and not self.plan.job.simulate:
                steps = self.trajectories[e.name]
                cpu, wall = ([step[what] for step in steps] for what in ("cpu_s", "wall_s"))
                told = told or world.cpu_over_wall(cpu, wall, self.plan.job.threads)
            if told:
                self.strange[e.name] = f"global_state in timed steps: {told}"
                self._keep()

    def _worth_keeping(self, turn: Turn) -> bool:
        """A row has all samples: of a long run not every turn is written down."""
        every = max(1, len(self.plan.turns) // 100)
        return len(self.turns) % every == 0 or turn == self.plan.turns[-1]

    def _turn(self, field: Field, turn: Turn, order: random.Random) -> None:
        """Everybody's turn. Whoever fails is out, but for our step and the judge: without them there is no run."""
        plan = self.plan
        if turn.steps.start == WARM_UP:
            for c in field.contestants.values():
                c.ask("forget_peak")
        batches = list(self.batches.of(turn.steps))
        limit = self.deadline.limit(plan.time_limit * len(batches))
        details = turn.steps.start == 0
        for e in order.sample(field.entrants, len(field.entrants)):
            pause()
            progress.tell(f"{steps_text(turn)} of {self.plan.turns[-1].steps.stop}: {e.name}")
            c = field.contestants[e]
            rest = self.rests.setdefault(e.name, rest_of(c.process.pid))
            rest.end()
            try:
                spot = {"spot": self.spot - turn.steps.start} if e.ours and self.spot in turn.steps else {}
                done = c.ask("steps", steps=batches, lr=plan.lr, details=details, limit=limit, **spot)
                if spot:
                    self._judge_by_itself(field, e, done[spot["spot"]], limit)
                if turn.timed and not plan.job.simulate and not (spot and e.name in self.peak_bytes):
                    self.peak_bytes[e.name] = c.ask("peak_bytes")
                field.park(e)
            except CannotGoOn as error:
                if e == OURS:
                    self.failed = Out(_status(error), str(error)) if self.deadline.left > 0 else None
                    raise
                self._drop(field, e, Out(_status(error), str(error)))
                continue
            rest.begin()
            self.trajectories[e.name] = [*self.trajectories[e.name], *self._judged(e, done, field)]
        for e in field.baselines:
            must_be_finite(e.name, self.trajectories[e.name], plan.lr)

    def _judge_by_itself(self, field: Field, e: Entrant, done: StepDone, limit: float) -> None:
        """A step of ours, drawn when the run begins, by what plain PyTorch makes of its parameters and batches: norms,
        which the gate judges, say nothing of where a gradient points to, and in bf16 its band is wide."""
        c, batches = field.contestants[e], self.batches.step(self.spot)
        given = c.ask("handed")
        if math.isfinite(done["loss"]) and math.isfinite(done["norm"]):  # the gate says what is not
            told = dict(loss=done["loss"], norm=done["norm"], step=self.spot + 1)
            try:
                found = field.judge.ask("again", given=given, batches=batches, limit=limit, **told)
            except OutOfMemory as error:
                field.note(f"no step of {e.name} was judged by itself: {error}")
                found = []
            self.updates[e.name].excesses += found
        c.ask("forget")

    def _judged(self, e: Entrant, steps: list[StepDone], field: Field) -> list[StepDone]:
        """The steps, their updates judged and let go of. What was skipped is said at once."""
        for step in steps if e.ours else ():
            judge = self.updates[e.name]
            assert step["update"]
            judge.judge(step["update"], step["norm"])
            step["update"] = None
            if not math.isfinite(step["norm"]):
                field.note(
                    f"{e.name}: the gradient norm of step {judge.steps} is {step['norm']}: its update was skipped"
                )
        return steps

    @property
    def _turn_steps(self) -> int:
        return max(len(turn.steps) for turn in self.plan.turns)

    def _reserve(self, steps: int) -> float:
        """Seconds that must be left for so many steps of somebody who joins and a turn after them, and for looking
        inside ours at the end."""
        if not self.deadline.bounded:
            return 0.0
        ours = [step["wall_s"] for step in self.trajectories.get(OURS.name, [])]
        step = max(ours[-self._turn_steps :], default=0.0)
        looks = IN_CONTEXT_STEPS * len([e for e in self.field.entrants if e.ours])
        inside = looks * (4 * step + (2.0 if self.plan.gpu else 0.0))  # a GPU's profiler is read, too
        return inside + 2 * steps * step + (self._turn_seconds(self._turn_steps) if steps else 0.0)

    def _turn_seconds(self, steps: int) -> float:
        """What a turn of so many steps may take, judge and all."""
        return LATE * steps * (self.judge_s + self.turn_s)

    def _look_inside(self, field: Field) -> None:
        """Of our contestants: steps with a clock around every call, after all others."""
        if self.deadline.left < 0:
            field.note("no time was left for the steps with a clock around every call")
            return
        lr, ours = self.plan.lr, [e for e in field.entrants if e.ours]
        found: dict[str, list[InContext]] = {e.name: [] for e in ours}
        limit = self.deadline.limit(self.plan.time_limit)
        progress.tell("steps with a clock around every call")
        try:
            for batches in self.batches.of(in_context_steps(self.turns)):
                for e in ours:
                    step = field.contestants[e].ask("step_in_context", batches=batches, lr=lr, limit=limit)
                    found[e.name].append(step)
        except CannotGoOn as error:
            field.note(f"no times of the calls inside the step: {error}")
            return
        self.in_context = found

    def _profile(self, field: Field, folder: Path) -> None:
        if self.deadline.left < 0:
            field.note("no time was left for traces")
            return
        rows: list[profiling.Row] = []
        batches, lr = self.batches.step(in_context_steps(self.turns)[-1]), self.plan.lr
        for e, c in {OURS: field.contestants[OURS], **field.baselines}.items():
            cli.say(f"a trace of {e.name}")
            limit = self.deadline.limit(self.plan.setup_limit)
            rows += c.ask("profile", name=f"step/{e.name}", folder=folder, batches=batches, lr=lr, limit=limit)
            field.park(e)
        profiling.write_csv(folder, rows)


def _status(error: CannotGoOn) -> str:
    return error.status if isinstance(error, Lost) else ERROR


def steps_text(turn: Turn) -> str:
    """step 4; steps 4 to 8"""
    first, last = turn.steps.start + 1, turn.steps.stop
    return f"step {last}" if first == last else f"steps {first} to {last}"


def check_memory(plan: Plan) -> None:
    """Refuse what would not fit, before the system kills somebody for it."""
    have = facts.available_bytes()
    if plan.gpu or have is None:
        return
    # Ours, and the judge with its runs side by side.
    judged = 1 + max(1, PYTORCH_RUNS - len(plan.baselines))
    contestants = 1 + judged + len(plan.swaps) + len(plan.baselines)
    need = contestants * plan.job.model.parameters * BYTES_A_PARAMETER
    if need > have:
        raise CannotGoOn(
            f"{contestants} trainings of {plan.job.model.name} side by side need about {need / 1e9:.1f} GB of memory, "
            f"{have / 1e9:.1f} GB are free: take fewer (--baseline none, no --swap) or a smaller model"
        )


def batches_of(plan: Plan) -> shards.Batches:
    """The micro-batches of each step, the same for all."""
    job = plan.job
    data = corpus.dataset(plan.data, job.model.tokenizer)
    return shards.Batches(data, job.B, job.T, job.accumulation, job.seed, vocabulary=job.model.v)


def in_context_steps(turns: list[Turn]) -> range:
    """Numbers of the steps that are timed call by call, after all others."""
    last = turns[-1].steps.stop
    return range(last, last + IN_CONTEXT_STEPS)
