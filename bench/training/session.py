"""One run of `bench.e2e`: contestants train turn about in processes of their own, and the gate judges what they did."""

import random
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import CannotGoOn
from bench.core import files, variants
from bench.core.process import pause
from bench.core.variants import Variant
from bench.machine import facts, profiling
from bench.machine.devices import open_device
from bench.models import choose, gpt2
from bench.models.calls import Key
from bench.models.choose import Times
from bench.records.run import Run
from bench.show.report import write_beside
from bench.text import corpus, shards
from bench.training import (
    CPU_B,
    CPU_BASELINES,
    CPU_T,
    GPU_B,
    GPU_BASELINES,
    GPU_STEPS,
    GPU_T,
    SIMULATED_STEPS,
    STEPS,
    WARM_UP,
    outcome,
)
from bench.training.contestants import SETUP_LIMIT_S, Contestant, Lost, OutOfMemory
from bench.training.outcome import OURS
from bench.training.rooms import Built, InContext, Job, JudgeRoom, OurRoom, TorchRoom

GPU_TURN = 5  # timed steps in a row on a GPU, after one that takes back the memory that was lent to the others
PYTORCH_RUNS = 3  # at least, besides the centre, to measure the band: the baselines, and perturbed runs
BYTES_A_PARAMETER = 20  # of one contestant: weight, gradient, two moments, a master or temporary
IN_CONTEXT_STEPS = 3
PARK_LIMIT_S = 60.0
RACE_LIMIT_S = 300.0  # for one candidate on a GPU, compiling and tuning included


def defaults(args: Namespace) -> None:
    """What the command line leaves open, by device. `halve`: nobody asked for this batch, so it may be made smaller."""
    gpu = args.device != "cpu"
    args.gpu, args.halve = gpu, gpu and args.batch is None
    args.batch = args.batch or (GPU_B.get(args.model.name, max(GPU_B.values())) if gpu else CPU_B)
    args.seq = args.seq or (min(GPU_T, args.model.max_t) if gpu else CPU_T)
    args.dtype = args.dtype or ("bf16" if gpu else "fp32")
    args.baseline = args.baseline or (GPU_BASELINES if gpu else CPU_BASELINES)
    args.steps = args.steps or (SIMULATED_STEPS if args.simulate else GPU_STEPS if gpu else STEPS)


def entries(text: str) -> list[str]:
    return list(dict.fromkeys(entry.strip() for entry in text.split(",") if entry.strip()))


@dataclass(frozen=True)
class Turn:
    """Steps, by number, that a contestant takes before the others have theirs, and those of them that are timed."""

    steps: range
    timed: range


def turns(steps: int, gpu: bool) -> list[Turn]:
    """Turns of `steps` timed steps in all, after WARM_UP others.

    On a CPU every step is a turn. On a GPU, which is at its steady clocks and temperature only under load, a turn is
    several steps, and its first one, for which memory is taken back, is not timed.
    """
    if not gpu:
        warm_up = [Turn(range(t, t + 1), range(0)) for t in range(WARM_UP)]
        return warm_up + [Turn(range(t, t + 1), range(t, t + 1)) for t in range(WARM_UP, WARM_UP + steps)]
    found = [Turn(range(WARM_UP), range(0))]
    while steps > 0:
        first, timed = found[-1].steps.stop, min(steps, GPU_TURN)
        found.append(Turn(range(first, first + 1 + timed), range(first + 1, first + 1 + timed)))
        steps -= timed
    return found


def usable_cores() -> int:
    return facts.usable_cores()


class Session:
    """One command. `run` tells the story; the methods below it are its steps."""

    def __init__(self, args: Namespace, argv: list[str]):
        self.args = args
        self.argv = ["python", "-m", "bench.e2e", *argv]
        self.job = Job(
            model=args.model,
            B=args.batch,
            T=args.seq,
            dtype=args.dtype,
            device=args.device,
            threads=args.threads,
            accumulation=args.accumulation,
            seed=args.seed,
            simulate=args.simulate,
            recompute=args.recompute,
        )
        open_device(args.device)  # says at once where there is none
        self.notes: list[str] = []  # what the page must say of the run
        self.turns = turns(args.steps, args.gpu)
        self._plan()
        self.spec = choose.parse(args.kernels)
        self.variants = variants.discover(self.spec.folders)
        self.pool = self._candidates(self.spec)
        self.swaps = {text: self._swap(text) for text in args.swap}
        self._check_memory()
        self._plan_batches()
        self.trajectories: dict[str, list[dict[str, Any]]] = {}

    def _plan(self) -> None:
        """The calls of the step, and what each needs a variant for."""
        job = self.job
        sizes = (job.model, job.B, job.T, job.dtype, job.recompute)
        self.calls, self.keys = gpt2.step_shapes(*sizes), gpt2.step_keys(*sizes)

    def run(self) -> int:
        args = self.args
        files.need_cache()
        if args.profile:
            files.make_folder(args.profile)
        run = Run.create("e2e", self.args.out, self.argv[3:])
        self.matmul_peaks = outcome.matmul_peaks(self.args.device, self.args.dtype)
        try:
            with ExitStack() as self.stack:
                self._measure_all()
        except KeyboardInterrupt:  # an hour of training is not to be lost
            for record in outcome.interrupted(self):
                run.append(record)
            raise
        report = outcome.Simulated(self) if args.simulate else outcome.Report(self)
        report.print()  # first, for it is minutes' work, and the disk may be full
        for record in report.records():
            run.append(record)
        run.write_csv(outcome.COLUMNS)
        if args.profile:
            self._print_profile()
        print(f"results: {run.folder}")
        print(write_beside(run.folder))
        if self.args.json:
            cli.print_json({"run": str(run.folder), **report.document()})
        return cli.OK if report.parity else cli.WRONG

    def _measure_all(self) -> None:
        while not self._set_up():
            self._halve()
        self.gate_runs = self._judge()
        self._train()
        if not self.args.simulate:
            self.peaks = {name: c.ask("peak_bytes") for name, c in self.contestants.items()}
            self.in_context = self._in_context()
        if self.args.profile:
            self._profile(self.args.profile.absolute())

    def _set_up(self) -> bool:
        """All contestants with their steps built; False where they do not fit into the GPU's memory."""
        self.contestants: dict[str, Contestant] = {}
        self.built: dict[str, Built] = {}
        try:
            self._start_ours(OURS)
            if self.args.gpu:  # the baselines need the most memory: whether they fit is known before the race
                self._start_baselines()
                self._warm_one_by_one()
            self.choice, self.times = self._choose()
            self.swap_times = {text: self._race_swap(swap) for text, swap in self.swaps.items()}
            outcome.choices(self.choice, self.pool, self.times)
            self._build(OURS, self.choice)
            for text, swap in self.swaps.items():
                self._start_ours(f"{OURS}, {text}")
                self._build(f"{OURS}, {text}", {**self.choice, **swap})
            if not self.args.gpu:
                self._start_baselines()
        except OutOfMemory as error:
            self.too_large = str(error)
            return False
        self.contestants = dict(sorted(self.contestants.items(), key=lambda named: not named[1].ours))
        return True

    def _halve(self) -> None:
        """Half the batch, where nobody asked for this one; CannotGoOn where that cannot be."""
        B = self.job.B
        text = f"{self.job.model.name} does not fit on this GPU with --batch {B} ({self.too_large})"
        if not self.args.halve or B == 1:
            smaller = f"take --batch {B // 2} and --accumulation" if B > 1 else "take a smaller --seq or --recompute"
            raise CannotGoOn(f"{text}: {smaller}, or fewer contestants (--baseline, --swap)")
        note = f"B={B} does not fit ({self.too_large}): B={B // 2}"
        cli.say(note)
        self.notes.append(note)
        self.stack.close()
        self.job = replace(self.job, B=B // 2)
        self._plan()
        self._plan_batches()

    def _check_memory(self) -> None:
        """Refuse what would not fit, before the system kills somebody for it."""
        have = facts.available_bytes()
        if self.args.gpu or have is None:
            return
        contestants = 2 + len(self.swaps) + len(self.args.baseline)  # ours and the judge
        need = contestants * self.job.model.parameters * BYTES_A_PARAMETER
        if need > have:
            raise CannotGoOn(
                f"{contestants} contestants of {self.job.model.name} need about {need / 1e9:.0f} GB of memory, "
                f"{have / 1e9:.0f} GB are free: take fewer (--baseline none, no --swap) or a smaller model"
            )

    # --- which variants ---

    def _candidates(self, spec: Any) -> dict[Key, list[Variant]]:
        pool = choose.candidates(spec, self.variants, self.keys, self.args.device, self.args.dtype, self.args.simulate)
        # What is simulated has no times to choose by: the first by name, unless --kernels names another.
        return {key: found[:1] for key, found in pool.items()} if self.args.simulate else pool

    def _swap(self, text: str) -> dict[Key, Variant]:
        """{(id, phase): the variant to swap in}."""
        spec = choose.parse(text)
        if not spec.overrides or spec.default != choose.FASTEST or spec.folders:
            raise CannotGoOn(f"--swap {text!r} is not LAYER=VARIANT", cli.USAGE)
        touched = [k for k in self.keys if k[0] in spec.overrides or k[0].partition("/")[0] in spec.overrides]
        pool = choose.candidates(spec, self.variants, touched, self.args.device, self.args.dtype, self.args.simulate)
        several = [id for (id, _), found in pool.items() if len(found) > 1]
        if several:
            raise CannotGoOn(f"--swap {text!r}: name one variant of {several[0]}, for example cpu.naive", cli.USAGE)
        return {key: found[0] for key, found in pool.items()}

    def _choose(self) -> tuple[dict[Key, Variant], Times]:
        """One variant for each call: named, remembered, or measured now."""
        open_pool = {key: found for key, found in self.pool.items() if len(found) > 1}
        cache = choose.open_cache(self.args.device, self.args.threads)
        shapes = {id: call.shape for id, call in self.calls.items()}
        times = choose.Times() if self.args.remeasure else cache.take(open_pool, shapes)
        missing = {key: found for key, found in open_pool.items() if key not in times.ms}
        if missing:
            cli.say(f"measuring {sum(map(len, missing.values()))} candidates for {len(missing)} calls")
            new = self._measure(missing)
            if reason := facts.busy(facts.snapshot()):
                cli.say(f"busy machine, so these choices are not remembered: {reason}")
            else:
                cache.keep(missing, shapes, new)
            times.ms |= new.ms
            times.skipped |= new.skipped
        return choose.fastest(self.pool, times), times

    def _measure(self, pool: dict[Key, list[Variant]]) -> Times:
        """The race of all candidates. One that kills its process, hangs, or leaves the GPU unusable is out, and a new
        process goes on without it."""
        found = choose.Times()
        out: dict[tuple[str, str], str] = {}  # (layer, variant): why
        left = pool
        gpu = self.args.gpu
        budget = choose.GPU_BUDGET_S if gpu else choose.BUDGET_S
        limit = RACE_LIMIT_S if gpu else self._setup_limit()
        while left:
            contestant = self.contestants[OURS]
            try:
                new = contestant.ask("race", pool=left, budget=budget, limit=limit)
                culprit = new.broke
                why = f"left the GPU unusable: {new.skipped[culprit[0]][culprit[1]]}" if culprit else ""
            except Lost as error:
                new, culprit, why = *choose.told(contestant.heard), str(error)
                if culprit is None:
                    raise
            found.ms |= new.ms
            found.skipped |= new.skipped
            if culprit is None:
                break
            key, name = culprit
            out[key[0].partition("/")[0], name] = why
            self.notes.append(f"{name} of {' '.join(key)} is out: {why}")
            cli.say(self.notes[-1])
            self._restart_ours(OURS)
            left = {
                key: [v for v in candidates if (v.layer, v.name) not in out]
                for key, candidates in pool.items()
                if key not in found.ms
            }
        for (layer, name), why in out.items():
            for key in pool:
                if key[0].partition("/")[0] == layer:
                    found.ms.get(key, {}).pop(name, None)
                    found.skipped.setdefault(key, {})[name] = why
        return found

    def _race_swap(self, swap: dict[Key, Variant]) -> Times:
        """Both variants of each swapped call, measured against each other in isolation."""
        pool = {key: [self.choice[key], v] for key, v in swap.items() if v != self.choice[key]}
        unlimited = dict(budget=float("inf"), hopeless=float("inf"))
        times = self.contestants[OURS].ask("race", pool=pool, **unlimited, limit=self._setup_limit())
        if times.broke:
            raise CannotGoOn(f"{times.broke[1]} left the GPU unusable at {' '.join(times.broke[0])}", cli.CANNOT_RUN)
        return times

    # --- the processes ---

    def _setup_limit(self) -> float:
        return max(SETUP_LIMIT_S, self.args.time_limit)

    def _start_ours(self, name: str) -> None:
        self.contestants[name] = self.stack.enter_context(Contestant(name, OurRoom, self.job))
        self._park(name, self._setup_limit())  # and so allocate all memory now, before others are tried beside it

    def _park(self, name: str, limit: float = PARK_LIMIT_S) -> None:
        """Have a contestant on a GPU lend the memory that it does not use to the others."""
        if self.args.gpu:
            self.contestants[name].ask("park", limit=limit)

    def _restart_ours(self, name: str) -> None:
        self.contestants[name].close()
        self._start_ours(name)

    def _build(self, name: str, choice: dict[Key, Variant]) -> None:
        """Our step, built and loaded: on a GPU as a graph, or where that fails by plain launches in a new process."""
        graph = self.args.gpu and not self.args.no_graph
        limit = self._setup_limit()
        built = self.contestants[name].ask("build", choice=choice, graph=graph, limit=limit)
        if graph and not built.graph:
            self.notes.append(f"{name} is no graph, its kernels are launched one by one: {built.graph_evidence}")
            cli.say(self.notes[-1])
            self._restart_ours(name)
            plain = self.contestants[name].ask("build", choice=choice, graph=False, limit=limit)
            built = replace(plain, graph_evidence=built.graph_evidence)
        elif self.args.gpu and not graph:
            built = replace(built, graph_evidence="--no-graph")
        self.built[name] = built
        self.contestants[name].ask("load")
        self._park(name)

    def _start_baselines(self) -> None:
        for mode in self.args.baseline:
            name = f"torch.{mode}"
            self.contestants[name] = self.stack.enter_context(Contestant(name, TorchRoom, self.job, mode))

    def _baselines(self) -> dict[str, Contestant]:
        return {name: c for name, c in self.contestants.items() if not c.ours}

    def _warm_one_by_one(self) -> None:
        """Compile, and take one step, each baseline with the whole GPU that ours leaves."""
        self.recipes = {}
        for name, c in self._baselines().items():
            cli.say(f"setting up {name}")
            self.recipes[name] = c.ask("warm", batches=self.batches[0], lr=self.args.lr, limit=self._setup_limit())
            self._park(name)

    # --- what they do ---

    def _plan_batches(self) -> None:
        """The micro-batches of each step, the same for all."""
        tokens = shards.open_tokens(corpus.dataset(self.args.data))
        source = shards.batches(tokens, self.job.B, self.job.T, self.job.seed)
        steps = self.turns[-1].steps.stop + IN_CONTEXT_STEPS
        self.batches = [[next(source) for _ in range(self.job.accumulation)] for _ in range(steps)]

    def _judge(self) -> list[list[dict[str, Any]]]:
        """PyTorch's centre run and its perturbed runs. On a CPU the baselines set up and compile meanwhile, untimed."""
        baselines = self._baselines()
        cli.say("measuring PyTorch's own band" + ("" if self.args.gpu else "; compiling the baselines"))
        if not self.args.gpu:
            for c in baselines.values():
                c.send("warm", batches=self.batches[0], lr=self.args.lr)
        steps = self.batches[: self.turns[-1].steps.stop]
        limit = len(steps) * self.args.time_limit
        with Contestant("PyTorch's band", JudgeRoom, self.job) as judge:
            runs = [judge.ask("run", centre=True, perturbed=None, batches=steps, lr=self.args.lr, limit=limit)]
            for seed in range(max(1, PYTORCH_RUNS - len(baselines))):
                runs.append(judge.ask("run", centre=False, perturbed=seed, batches=steps, lr=self.args.lr, limit=limit))
        if not self.args.gpu:
            self.recipes = {name: c.answer(self._setup_limit()) for name, c in baselines.items()}
        return runs

    def _train(self) -> None:
        """All steps: warm-up and timed, turn by turn, the contestants in random order within each round of turns."""
        order = random.Random(self.args.seed)
        names = list(self.contestants)
        self.trajectories = {name: [] for name in names}
        cli.say(f"{WARM_UP} + {self.args.steps} steps of {', '.join(names)}")
        for turn in self.turns:
            if turn.steps.start == WARM_UP:
                for c in self.contestants.values():
                    c.ask("forget_peak")
            batches = self.batches[turn.steps.start : turn.steps.stop]
            for name in order.sample(names, len(names)):
                pause()
                c = self.contestants[name]
                done = c.ask(
                    "steps",
                    steps=batches,
                    lr=self.args.lr,
                    details=turn.steps.start == 0,
                    limit=self.args.time_limit * len(batches),
                )
                self.trajectories[name] += done
                self._park(name)

    def _in_context(self) -> dict[str, list[InContext]]:
        """By our contestants: steps with a clock around every call."""
        found: dict[str, list[InContext]] = {name: [] for name, c in self.contestants.items() if c.ours}
        for batches in self.batches[self.turns[-1].steps.stop :]:
            for name, steps in found.items():
                limit = self.args.time_limit
                steps.append(
                    self.contestants[name].ask("step_in_context", batches=batches, lr=self.args.lr, limit=limit)
                )
        return found

    def _profile(self, folder: Path) -> None:
        rows: list[dict[str, Any]] = []
        for name, c in {OURS: self.contestants[OURS], **self._baselines()}.items():
            cli.say(f"a trace of {name}")
            step = dict(batches=self.batches[-1], lr=self.args.lr, limit=self._setup_limit())
            rows += c.ask("profile", name=f"step/{name}", folder=folder, **step)
            self._park(name)
        profiling.write_csv(folder, rows)

    def _print_profile(self) -> None:
        print(f"traces (for ui.perfetto.dev) and ranges.csv: {self.args.profile}")
        print(profiling.command_lines(self.argv))
