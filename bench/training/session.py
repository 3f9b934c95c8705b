"""One run of `bench.e2e`: contestants train turn about in processes of their own, and the gate judges what they did."""

import math
import random
from dataclasses import replace
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core import files, variants
from bench.core.process import pause
from bench.machine import facts, profiling
from bench.machine.devices import check_device
from bench.records.run import Run
from bench.show.report import write_beside
from bench.text import corpus, shards
from bench.training import WARM_UP, outcome, pick
from bench.training.contestants import Contestant, OutOfMemory
from bench.training.field import OURS, Entrant, Field
from bench.training.gate import NotFinite, Trajectory, Updates, must_be_finite
from bench.training.pick import Picked
from bench.training.plan import Plan
from bench.training.rooms import InContext, JudgeRoom, StepDone

PYTORCH_RUNS = 3  # at least, besides the centre, to measure the band: the baselines, and perturbed runs
BYTES_A_PARAMETER = 20  # of one contestant: weight, gradient, two moments, a master or temporary
IN_CONTEXT_STEPS = 3


class Session:
    """One command. `run` tells the story; the methods below it are its steps."""

    def __init__(self, plan: Plan):
        check_device(plan.job.device)  # says at once where there is none
        self.plan = plan
        job, calls = plan.job, plan.calls
        found = variants.discover(plan.spec.folders)
        self.pool = pick.candidates(plan.spec, found, calls, job)
        self.swaps = {text: pick.swapped(text, spec, found, calls, job) for text, spec in plan.swaps.items()}
        check_memory(plan)
        self.batches = batches_of(plan)
        self.notes: list[str] = []  # what the page must say of the run
        self.trajectories: dict[str, Trajectory] = {}
        self.updates: dict[str, Updates] = {}  # of ours

    @property
    def trained(self) -> outcome.Trained:
        return outcome.Trained(self.plan, self.trajectories)

    def run(self) -> int:
        plan = self.plan
        files.need_cache()
        if plan.profile:
            files.make_folder(plan.profile)
        run = Run.create("e2e", plan.out, plan.argv)
        peaks = outcome.matmul_peaks(plan.job.device, plan.job.dtype)
        try:
            measured = self._measure(peaks)
        except (KeyboardInterrupt, NotFinite) as error:  # an hour of training is not to be lost
            for record in outcome.unjudged(self.trained, str(error)):
                run.append(record)
            raise
        report = outcome.Simulated(measured) if plan.job.simulate else outcome.Report(measured)
        self._report(run, report)
        return cli.OK if report.parity else cli.WRONG

    def _report(self, run: Run, report: outcome.Simulated | outcome.Report) -> None:
        plan = self.plan
        report.print()  # first, for it is minutes' work, and the disk may be full
        for record in report.records():
            run.append(record)
        run.write_csv(outcome.COLUMNS)
        if plan.profile:
            print(f"traces (for ui.perfetto.dev) and ranges.csv: {plan.profile}")
            print(profiling.command_lines(["python", "-m", "bench.e2e", *plan.argv]))
        print(f"results: {run.folder}")
        print(write_beside(run.folder))
        if plan.json:
            cli.print_json({"run": str(run.folder), **report.document()})

    def _measure(self, matmul_peaks: dict[str, float | None]) -> outcome.Measured:
        while True:
            with Field(self.plan, self.notes) as field:
                try:
                    picked = self._set_up(field)
                except OutOfMemory as error:
                    too_large = str(error)
                else:
                    return self._measured(field, picked, matmul_peaks)
            self._halve(too_large)

    def _measured(self, field: Field, picked: Picked, matmul_peaks: dict[str, float | None]) -> outcome.Measured:
        gate_runs = self._judge(field)
        self._train(field)
        timed = not self.plan.job.simulate
        measured = outcome.Measured(
            plan=self.plan,
            trajectories=self.trajectories,
            entrants=field.entrants,
            gate_runs=gate_runs,
            updates={name: judged.excesses for name, judged in self.updates.items()},
            picked=picked,
            swaps=self.swaps,
            built=field.built,
            recipes=field.recipes,
            peak_bytes={e.name: c.ask("peak_bytes") for e, c in field.contestants.items()} if timed else {},
            in_context=self._in_context(field) if timed else {},
            matmul_peaks=matmul_peaks,
            notes=self.notes,
        )
        if self.plan.profile:
            self._profile(field, self.plan.profile.absolute())
        return measured

    def _set_up(self, field: Field) -> Picked:
        """All contestants with their steps built. Raises OutOfMemory where they do not fit into the GPU's memory."""
        field.start(OURS)
        if self.plan.gpu:  # the baselines need the most memory: whether they fit is known before the race
            field.start_baselines()
            self._warm_one_by_one(field)
        picked = pick.pick(field, self.pool, self.swaps)
        outcome.choices(picked.choice, self.pool, picked.times)
        field.build(OURS, picked.choice)
        for text, swap in self.swaps.items():
            e = Entrant(f"{OURS.name}, {text}", swap=text)
            field.start(e)
            field.build(e, {**picked.choice, **swap})
        if not self.plan.gpu:
            field.start_baselines()
        return picked

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

    def _warm_one_by_one(self, field: Field) -> None:
        """Compile, and take one step, each baseline with the whole GPU that ours leaves."""
        for e, c in field.baselines.items():
            cli.say(f"setting up {e.name}")
            limit = self.plan.setup_limit
            field.recipes[e.name] = c.ask("warm", batches=self.batches.step(0), lr=self.plan.lr, limit=limit)
            field.park(e)

    # --- what they do ---

    def _judge(self, field: Field) -> list[Trajectory]:
        """PyTorch's centre run and its perturbed runs. On a CPU the baselines set up and compile meanwhile, untimed."""
        plan, baselines = self.plan, field.baselines
        cli.say("measuring PyTorch's own band" + ("" if plan.gpu else "; compiling the baselines"))
        if not plan.gpu:
            for c in baselines.values():
                c.send("warm", batches=self.batches.step(0), lr=plan.lr)
        steps = self.batches.of(range(plan.turns[-1].steps.stop))
        limit = len(steps) * plan.time_limit
        with Contestant("PyTorch's band", JudgeRoom, plan.job) as judge:
            runs = [judge.ask("run", centre=True, perturbed=None, batches=steps, lr=plan.lr, limit=limit)]
            for seed in range(max(1, PYTORCH_RUNS - len(baselines))):
                runs.append(judge.ask("run", centre=False, perturbed=seed, batches=steps, lr=plan.lr, limit=limit))
        if not plan.gpu:
            field.recipes |= {e.name: c.answer(plan.setup_limit) for e, c in baselines.items()}
        for i, run in enumerate(runs):
            which = f"a perturbed run in {plan.job.dtype}" if i else "the run in fp32"
            must_be_finite(f"PyTorch's own training ({which})", run, plan.lr)
        return runs

    def _train(self, field: Field) -> None:
        """All steps: warm-up and timed, turn by turn, the contestants in random order within each round of turns."""
        plan, entrants = self.plan, field.entrants
        order = random.Random(plan.job.seed)
        self.trajectories |= {e.name: [] for e in entrants}
        self.updates |= {e.name: Updates(plan.job.model, plan.job.dtype) for e in entrants if e.ours}
        cli.say(f"{WARM_UP} + {plan.steps} steps of {', '.join(self.trajectories)}")
        for turn in plan.turns:
            if turn.steps.start == WARM_UP:
                for c in field.contestants.values():
                    c.ask("forget_peak")
            batches = list(self.batches.of(turn.steps))
            for e in order.sample(entrants, len(entrants)):
                pause()
                done = field.contestants[e].ask(
                    "steps",
                    steps=batches,
                    lr=plan.lr,
                    details=turn.steps.start == 0,
                    limit=plan.time_limit * len(batches),
                )
                self.trajectories[e.name] = [*self.trajectories[e.name], *self._judged(e, done, field)]
                field.park(e)
        for e in field.baselines:
            must_be_finite(e.name, self.trajectories[e.name], plan.lr)

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

    def _in_context(self, field: Field) -> dict[str, list[InContext]]:
        """By our contestants: steps with a clock around every call."""
        found: dict[str, list[InContext]] = {e.name: [] for e in field.entrants if e.ours}
        lr, limit = self.plan.lr, self.plan.time_limit
        for batches in self.batches.of(in_context_steps(self.plan)):
            for e in [e for e in field.entrants if e.ours]:
                step = field.contestants[e].ask("step_in_context", batches=batches, lr=lr, limit=limit)
                found[e.name].append(step)
        return found

    def _profile(self, field: Field, folder: Path) -> None:
        rows: list[profiling.Row] = []
        batches, lr, limit = self.batches.step(in_context_steps(self.plan)[-1]), self.plan.lr, self.plan.setup_limit
        for e, c in {OURS: field.contestants[OURS], **field.baselines}.items():
            cli.say(f"a trace of {e.name}")
            rows += c.ask("profile", name=f"step/{e.name}", folder=folder, batches=batches, lr=lr, limit=limit)
            field.park(e)
        profiling.write_csv(folder, rows)


def check_memory(plan: Plan) -> None:
    """Refuse what would not fit, before the system kills somebody for it."""
    have = facts.available_bytes()
    if plan.gpu or have is None:
        return
    contestants = 2 + len(plan.swaps) + len(plan.baselines)  # ours and the judge
    need = contestants * plan.job.model.parameters * BYTES_A_PARAMETER
    if need > have:
        raise CannotGoOn(
            f"{contestants} contestants of {plan.job.model.name} need about {need / 1e9:.0f} GB of memory, "
            f"{have / 1e9:.0f} GB are free: take fewer (--baseline none, no --swap) or a smaller model"
        )


def batches_of(plan: Plan) -> shards.Batches:
    """The micro-batches of each step, the same for all."""
    job = plan.job
    return shards.Batches(corpus.dataset(plan.data), job.B, job.T, job.accumulation, job.seed)


def in_context_steps(plan: Plan) -> range:
    """Numbers of the steps that are timed call by call, after all others."""
    last = plan.turns[-1].steps.stop
    return range(last, last + IN_CONTEXT_STEPS)
