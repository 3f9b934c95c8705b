"""Train GPT-2 with registry variants and with PyTorch, side by side: is it right, how fast, and where does the time go?

First the parity gate: loss and gradient norm of every step must stay in the band that PyTorch's own runs span (see
bench/train_gate.py); where they do not, no MFU is printed and the exit code is 2. Steps of all contestants take turns
in random order, each contestant in a process of its own. Memory is planned once.

--kernels is a comma list: `fastest` (the default: the quickest variant here for each layer, shape and pass, measured
now or remembered), a backend (`cpu`), a variant (`cpu.naive`), and overrides `layer=…` or `layer/shape=…`, for example
`fastest,attention=cpu.naive,matmul/qkv=torch.eager`. A folder in the list adds the variants in it.

--baseline names PyTorch's steps: `eager`, as it comes; `compile`, as a careful user writes it (on a GPU: autocast,
max-autotune, the fastest SDPA backend pinned); `compile-plain`, torch.compile(model) and nothing else; `compile-bf16`,
`compile` with bf16 parameters and fp32 masters, as our step keeps them.

On a GPU our whole step is one CUDA graph, unless a kernel cannot be captured (then the page says which) or --no-graph;
without --batch, B is halved until everything fits. Steps are timed by the GPU's events.

MFU is useful FLOPs a second over what the machine can do: the matmul rate measured by bench.ceilings, and the
datasheet's where it is known. PaLM's convention counts 6 (P - wpe) + 12 L C T a token, llm.c's 6 P + 6 L C T.
"""

import random
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import CannotGoOn

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.models.step import Key
    from bench.registry import Variant
    from bench.train_pick import Times
    from bench.train_worker import Built, Contestant, InContext

BASELINES = ("eager", "compile", "compile-plain", "compile-bf16")
CPU_BASELINES, GPU_BASELINES = "eager,compile", "eager,compile,compile-plain"
CPU_B, CPU_T = 4, 64
# Of a GPU with 80 GB; halved where it does not fit.
GPU_B = {"gpt2-124m": 64, "gpt2-350m": 32, "gpt2-774m": 16, "gpt2-1558m": 8}
GPU_T = 1024
RECOMPUTABLE = ("gelu", "layernorm")  # as in bench.train, which imports torch
WARM_UP = 2  # steps before the timed ones; they count for the gate
STEPS, GPU_STEPS, SIMULATED_STEPS = 10, 30, 2
GPU_TURN = 5  # timed steps in a row on a GPU, after one that takes back the memory that was lent to the others
PYTORCH_RUNS = 3  # at least, besides the centre, to measure the band: the baselines, and perturbed runs
BYTES_A_PARAMETER = 20  # of one contestant: weight, gradient, two moments, a master or temporary
IN_CONTEXT_STEPS = 3
PARK_LIMIT_S = 60.0
RACE_LIMIT_S = 300.0  # for one candidate on a GPU, compiling and tuning included
OURS = "ours"


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.e2e", description=__doc__)
    p.add_argument("model", help="gpt2-124m, gpt2-350m, gpt2-774m, gpt2-1558m or gpt2-tiny")
    what = p.add_argument_group("what to run")
    what.add_argument("--kernels", default="fastest", metavar="LIST", help="variants of our step (see above)")
    what.add_argument(
        "--baseline",
        metavar="LIST",
        help=f"of {', '.join(BASELINES)}, or none; default {CPU_BASELINES}, on a GPU {GPU_BASELINES}",
    )
    what.add_argument(
        "--swap",
        action="append",
        default=[],
        metavar="LAYER=VARIANT",
        help="also run our step with this one change: predicted against measured difference (may be repeated)",
    )
    what.add_argument(
        "--batch",
        type=cli.count,
        metavar="B",
        help=f"sequences a micro-batch; default {CPU_B}, on a GPU what fits: at most "
        + ", ".join(f"{b} for {name}" for name, b in GPU_B.items()),
    )
    what.add_argument(
        "--seq", type=cli.count, metavar="T", help=f"tokens a sequence; default {CPU_T}, on a GPU {GPU_T}"
    )
    what.add_argument("--accumulation", type=cli.count, default=1, metavar="N", help="micro-batches a step, default 1")
    what.add_argument("--dtype", choices=("fp32", "bf16"), help="default fp32, on a GPU bf16")
    what.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    what.add_argument(
        "--recompute",
        metavar="LIST",
        help="of gelu, layernorm: outputs that backward computes again, and no block keeps",
    )
    what.add_argument("--no-graph", action="store_true", help="on a GPU, launch our kernels one by one")
    what.add_argument("--data", metavar="PATH", help="text, .bin shards or a folder; default Python's standard library")
    what.add_argument(
        "--simulate",
        action="store_true",
        help="run GPU kernels in the simulator: the gate and the losses, no times (for gpt2-tiny; minutes)",
    )
    what.add_argument("--lr", type=cli.above_zero, default=3e-4, help="learning rate, constant; default 3e-4")
    how = p.add_argument_group("how to measure")
    how.add_argument(
        "--steps",
        type=cli.count,
        metavar="N",
        help=f"timed steps after {WARM_UP}, default {STEPS} ({GPU_STEPS} on a GPU, {SIMULATED_STEPS} with --simulate)",
    )
    how.add_argument("--seed", type=cli.seed, default=0, help="of parameters and batches, default 0")
    how.add_argument("--threads", type=cli.cores, help="CPU threads of every contestant (default: all usable cores)")
    how.add_argument(
        "--time-limit", type=cli.above_zero, default=600.0, metavar="S", help="for one step, default 600 s"
    )
    how.add_argument("--remeasure", action="store_true", help="measure candidates again, whatever is remembered")
    out = p.add_argument_group("results")
    out.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    out.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="afterwards, a trace of one step of ours and of each baseline, and ranges.csv",
    )
    out.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    from reference.models import MODELS

    args.model = MODELS[cli.choose(args.model, MODELS, "model")]
    if args.simulate:
        args.device, args.baseline = "cpu", "none"  # nothing is timed, so there is nothing to compare with
    _defaults(args)
    if args.seq > args.model.max_t:
        raise CannotGoOn(f"--seq {args.seq}: {args.model.name} has {args.model.max_t} positions", cli.USAGE)
    baselines = [] if args.baseline == "none" else _entries(args.baseline)
    args.baseline = [cli.choose(b, BASELINES, "baseline") for b in baselines]
    args.recompute = tuple(
        cli.choose(r, RECOMPUTABLE, "output to compute again") for r in _entries(args.recompute or "")
    )
    args.threads = args.threads or _usable_cores()
    return Session(args, argv).run()


def _defaults(args: "Namespace") -> None:
    """What the command line leaves open, by device. `halve`: nobody asked for this batch, so it may be made smaller."""
    gpu = args.device != "cpu"
    args.gpu, args.halve = gpu, gpu and args.batch is None
    args.batch = args.batch or (GPU_B.get(args.model.name, max(GPU_B.values())) if gpu else CPU_B)
    args.seq = args.seq or (min(GPU_T, args.model.max_t) if gpu else CPU_T)
    args.dtype = args.dtype or ("bf16" if gpu else "fp32")
    args.baseline = args.baseline or (GPU_BASELINES if gpu else CPU_BASELINES)
    args.steps = args.steps or (SIMULATED_STEPS if args.simulate else GPU_STEPS if gpu else STEPS)


def _entries(text: str) -> list[str]:
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


def _usable_cores() -> int:
    from bench import machine

    return machine.usable_cores()


class Session:
    """One command. `run` tells the story; the methods below it are its steps."""

    def __init__(self, args: "Namespace", argv: list[str]):
        from bench import registry, train_pick
        from bench.devices import open_device
        from bench.train_worker import Job

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
        self.spec = train_pick.parse(args.kernels)
        self.variants = registry.discover(self.spec.folders)
        self.pool = self._candidates(self.spec)
        self.swaps = {text: self._swap(text) for text in args.swap}
        self._check_memory()
        self._plan_batches()
        self.trajectories: dict[str, list[dict[str, Any]]] = {}

    def _plan(self) -> None:
        """The calls of the step, and what each needs a variant for."""
        from bench.models.step import step_keys, step_shapes

        job = self.job
        sizes = (job.model, job.B, job.T, job.dtype, job.recompute)
        self.calls, self.keys = step_shapes(*sizes), step_keys(*sizes)

    def run(self) -> int:
        from bench import train_report
        from bench.records.run import Run, make_folder, need_cache
        from bench.report import write_beside

        args = self.args
        need_cache()
        if args.profile:
            make_folder(args.profile)
        run = Run.create("e2e", self.args.out, self.argv[3:])
        self.matmul_peaks = train_report.matmul_peaks(self.args.device, self.args.dtype)
        try:
            with ExitStack() as self.stack:
                self._measure_all()
        except KeyboardInterrupt:  # an hour of training is not to be lost
            for record in train_report.interrupted(self):
                run.append(record)
            raise
        report = train_report.Simulated(self) if args.simulate else train_report.Report(self)
        report.print()  # first, for it is minutes' work, and the disk may be full
        for record in report.records():
            run.append(record)
        run.write_csv(train_report.COLUMNS)
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
        from bench import train_report
        from bench.train_worker import OutOfMemory

        self.contestants: dict[str, Contestant] = {}
        self.built: dict[str, Built] = {}
        try:
            self._start_ours(OURS)
            if self.args.gpu:  # the baselines need the most memory: whether they fit is known before the race
                self._start_baselines()
                self._warm_one_by_one()
            self.choice, self.times = self._choose()
            self.swap_times = {text: self._race_swap(swap) for text, swap in self.swaps.items()}
            train_report.choices(self.choice, self.pool, self.times)
            self._build(OURS, self.choice)
            for text, swap in self.swaps.items():
                self._start_ours(f"{OURS}, {text}")
                self._build(f"{OURS}, {text}", {**self.choice, **swap})
            if not self.args.gpu:
                self._start_baselines()
        except OutOfMemory as error:
            self.too_large = str(error)
            return False
        ours = [name for name in self.contestants if name.startswith(OURS)]
        theirs = [name for name in self.contestants if not name.startswith(OURS)]
        self.contestants = {name: self.contestants[name] for name in [*ours, *theirs]}
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
        from bench import machine

        have = machine.available_bytes()
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

    def _candidates(self, spec: Any) -> "dict[Key, list[Variant]]":
        from bench import train_pick

        pool = train_pick.candidates(
            spec, self.variants, self.keys, self.args.device, self.args.dtype, self.args.simulate
        )
        # What is simulated has no times to choose by: the first by name, unless --kernels names another.
        return {key: found[:1] for key, found in pool.items()} if self.args.simulate else pool

    def _swap(self, text: str) -> "dict[Key, Variant]":
        """{(id, phase): the variant to swap in}."""
        from bench import train_pick

        spec = train_pick.parse(text)
        if not spec.overrides or spec.default != train_pick.FASTEST or spec.folders:
            raise CannotGoOn(f"--swap {text!r} is not LAYER=VARIANT", cli.USAGE)
        touched = [k for k in self.keys if k[0] in spec.overrides or k[0].partition("/")[0] in spec.overrides]
        pool = train_pick.candidates(
            spec, self.variants, touched, self.args.device, self.args.dtype, self.args.simulate
        )
        several = [id for (id, _), found in pool.items() if len(found) > 1]
        if several:
            raise CannotGoOn(f"--swap {text!r}: name one variant of {several[0]}, for example cpu.naive", cli.USAGE)
        return {key: found[0] for key, found in pool.items()}

    def _choose(self) -> "tuple[dict[Key, Variant], Times]":
        """One variant for each call: named, remembered, or measured now."""
        from bench import machine, train_pick

        open_pool = {key: found for key, found in self.pool.items() if len(found) > 1}
        cache = train_pick.open_cache(self.args.device, self.args.threads)
        shapes = {id: call.shape for id, call in self.calls.items()}
        times = train_pick.Times() if self.args.remeasure else cache.take(open_pool, shapes)
        missing = {key: found for key, found in open_pool.items() if key not in times.ms}
        if missing:
            cli.say(f"measuring {sum(map(len, missing.values()))} candidates for {len(missing)} calls")
            new = self._measure(missing)
            if reason := machine.busy(machine.snapshot()):
                cli.say(f"busy machine, so these choices are not remembered: {reason}")
            else:
                cache.keep(missing, shapes, new)
            times.ms |= new.ms
            times.skipped |= new.skipped
        return train_pick.fastest(self.pool, times), times

    def _measure(self, pool: "dict[Key, list[Variant]]") -> "Times":
        """The race of all candidates. One that kills its process, hangs, or leaves the GPU unusable is out, and a new
        process goes on without it."""
        from bench import train_pick
        from bench.train_worker import Lost

        found = train_pick.Times()
        out: dict[tuple[str, str], str] = {}  # (layer, variant): why
        left = pool
        gpu = self.args.gpu
        budget = train_pick.GPU_BUDGET_S if gpu else train_pick.BUDGET_S
        limit = RACE_LIMIT_S if gpu else self._setup_limit()
        while left:
            contestant = self.contestants[OURS]
            try:
                new = contestant.ask("race", pool=left, budget=budget, limit=limit)
                culprit = new.broke
                why = f"left the GPU unusable: {new.skipped[culprit[0]][culprit[1]]}" if culprit else ""
            except Lost as error:
                new, culprit, why = *train_pick.told(contestant.heard), str(error)
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

    def _race_swap(self, swap: "dict[Key, Variant]") -> "Times":
        """Both variants of each swapped call, measured against each other in isolation."""
        pool = {key: [self.choice[key], v] for key, v in swap.items() if v != self.choice[key]}
        unlimited = dict(budget=float("inf"), hopeless=float("inf"))
        times = self.contestants[OURS].ask("race", pool=pool, **unlimited, limit=self._setup_limit())
        if times.broke:
            raise CannotGoOn(f"{times.broke[1]} left the GPU unusable at {' '.join(times.broke[0])}", cli.CANNOT_RUN)
        return times

    # --- the processes ---

    def _setup_limit(self) -> float:
        from bench.train_worker import SETUP_LIMIT_S

        return max(SETUP_LIMIT_S, self.args.time_limit)

    def _start_ours(self, name: str) -> None:
        from bench.train_worker import Contestant, OurRoom

        self.contestants[name] = self.stack.enter_context(Contestant(name, OurRoom, self.job))
        self._park(name, self._setup_limit())  # and so allocate all memory now, before others are tried beside it

    def _park(self, name: str, limit: float = PARK_LIMIT_S) -> None:
        """Have a contestant on a GPU lend the memory that it does not use to the others."""
        if self.args.gpu:
            self.contestants[name].ask("park", limit=limit)

    def _restart_ours(self, name: str) -> None:
        self.contestants[name].close()
        self._start_ours(name)

    def _build(self, name: str, choice: "dict[Key, Variant]") -> None:
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
        from bench.train_worker import Contestant, TorchRoom

        for mode in self.args.baseline:
            name = f"torch.{mode}"
            self.contestants[name] = self.stack.enter_context(Contestant(name, TorchRoom, self.job, mode))

    def _baselines(self) -> "dict[str, Contestant]":
        return {name: c for name, c in self.contestants.items() if not name.startswith(OURS)}

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
        from bench import data

        tokens = data.open_tokens(data.dataset(self.args.data))
        source = data.batches(tokens, self.job.B, self.job.T, self.job.seed)
        steps = self.turns[-1].steps.stop + IN_CONTEXT_STEPS
        self.batches = [[next(source) for _ in range(self.job.accumulation)] for _ in range(steps)]

    def _judge(self) -> list[list[dict[str, Any]]]:
        """PyTorch's centre run and its perturbed runs. On a CPU the baselines set up and compile meanwhile, untimed."""
        from bench.train_worker import Contestant, JudgeRoom

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
        from bench.worker import pause

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

    def _in_context(self) -> "dict[str, list[InContext]]":
        """By our contestants: steps with a clock around every call."""
        found: dict[str, list[InContext]] = {name: [] for name in self.contestants if name.startswith(OURS)}
        for batches in self.batches[self.turns[-1].steps.stop :]:
            for name, steps in found.items():
                limit = self.args.time_limit
                steps.append(
                    self.contestants[name].ask("step_in_context", batches=batches, lr=self.args.lr, limit=limit)
                )
        return found

    def _profile(self, folder: Path) -> None:
        from bench import profiling

        rows: list[dict[str, Any]] = []
        for name, c in {OURS: self.contestants[OURS], **self._baselines()}.items():
            cli.say(f"a trace of {name}")
            step = dict(batches=self.batches[-1], lr=self.args.lr, limit=self._setup_limit())
            rows += c.ask("profile", name=f"step/{name}", folder=folder, **step)
            self._park(name)
        profiling.write_csv(folder, rows)

    def _print_profile(self) -> None:
        from bench import profiling

        print(f"traces (for ui.perfetto.dev) and ranges.csv: {self.args.profile}")
        print(profiling.command_lines(self.argv))


if __name__ == "__main__":
    cli.run(main)
