"""Train GPT-2 with registry variants and with PyTorch, side by side: is it right, how fast, and where does the time go?

First the parity gate: loss and gradient norm of every step must stay in the band that PyTorch's own runs span (see
bench/train_gate.py); where they do not, no MFU is printed and the exit code is 2. Steps of all contestants take turns
in random order, each contestant in a process of its own. Memory is planned once.

--kernels is a comma list: `fastest` (the default: the quickest variant here for each layer, shape and pass, measured
now or remembered), a backend (`cpu`), a variant (`cpu.naive`), and overrides `layer=…` or `layer/shape=…`, for example
`fastest,attention=cpu.naive,matmul/qkv=torch.eager`. A folder in the list adds the variants in it.

MFU is useful FLOPs a second over what the machine can do: the matmul rate measured by bench.ceilings, and the
datasheet's where it is known. PaLM's convention counts 6 (P - wpe) + 12 L C T a token, llm.c's 6 P + 6 L C T.
"""

import random
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import CannotGoOn

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.registry import Variant
    from bench.train import Key
    from bench.train_pick import Times
    from bench.train_worker import Contestant, NumpyBatch

BASELINES = ("eager", "compile")
WARM_UP = 2  # steps before the timed ones; they count for the gate
STEPS, SIMULATED_STEPS = 10, 2
PYTORCH_RUNS = 3  # at least, besides the centre, to measure the band: the baselines, and perturbed runs
BYTES_A_PARAMETER = 20  # of one contestant: weight, gradient, two moments, a master or temporary
IN_CONTEXT_STEPS = 3
OURS = "ours"


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.e2e", description=__doc__)
    p.add_argument("model", help="gpt2-124m, gpt2-350m, gpt2-774m, gpt2-1558m or gpt2-tiny")
    what = p.add_argument_group("what to run")
    what.add_argument("--kernels", default="fastest", metavar="LIST", help="variants of our step (see above)")
    what.add_argument(
        "--baseline", default="eager,compile", metavar="LIST", help="eager, compile, both (default), none"
    )
    what.add_argument(
        "--swap",
        action="append",
        default=[],
        metavar="LAYER=VARIANT",
        help="also run our step with this one change: predicted against measured difference (may be repeated)",
    )
    what.add_argument("--batch", type=_positive, default=4, metavar="B", help="sequences a micro-batch, default 4")
    what.add_argument("--seq", type=_positive, default=64, metavar="T", help="tokens a sequence, default 64")
    what.add_argument("--accumulation", type=_positive, default=1, metavar="N", help="micro-batches a step, default 1")
    what.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="default fp32")
    what.add_argument("--device", default="cpu", help="default cpu")
    what.add_argument("--data", metavar="PATH", help="text, .bin shards or a folder; default Python's standard library")
    what.add_argument(
        "--simulate",
        action="store_true",
        help="run GPU kernels in the simulator: the gate and the losses, no times (for gpt2-tiny; minutes)",
    )
    what.add_argument("--lr", type=float, default=3e-4, help="learning rate, constant; default 3e-4")
    how = p.add_argument_group("how to measure")
    how.add_argument(
        "--steps",
        type=_positive,
        metavar="N",
        help=f"timed steps after {WARM_UP}, default {STEPS} ({SIMULATED_STEPS} with --simulate)",
    )
    how.add_argument("--seed", type=int, default=0, help="of parameters and batches, default 0")
    how.add_argument("--threads", type=_positive, help="CPU threads of every contestant (default: all usable cores)")
    how.add_argument("--time-limit", type=float, default=600.0, metavar="S", help="for one step, default 600 s")
    how.add_argument("--remeasure", action="store_true", help="measure candidates again, whatever is remembered")
    out = p.add_argument_group("results")
    out.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    out.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "whole number above 0"  # argparse prints the name: "invalid … value: '0'"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    from reference.models import MODELS

    args.model = MODELS[cli.choose(args.model, MODELS, "model")]
    if args.seq > args.model.max_t:
        raise CannotGoOn(f"--seq {args.seq}: {args.model.name} has {args.model.max_t} positions", cli.USAGE)
    baselines = [] if args.baseline == "none" else args.baseline.split(",")
    args.baseline = [cli.choose(b, (*BASELINES, "none"), "baseline") for b in baselines]
    args.threads = args.threads or _usable_cores()
    if args.simulate:
        args.device, args.baseline = "cpu", []  # nothing is timed, so there is nothing to compare with
    args.steps = args.steps or (SIMULATED_STEPS if args.simulate else STEPS)
    return Session(args, argv).run()


def _usable_cores() -> int:
    from bench import machine

    return machine.usable_cores()


class Session:
    """One command. `run` tells the story; the methods below it are its steps."""

    def __init__(self, args: "Namespace", argv: list[str]):
        from bench import registry, train, train_pick
        from bench.train_worker import Job

        self.args = args
        self.argv = ["python", "-m", "bench.e2e", *argv]
        self.job = Job(
            *(
                args.model,
                args.batch,
                args.seq,
                args.dtype,
                args.device,
                args.threads,
                args.accumulation,
                args.seed,
                args.simulate,
            )
        )
        sizes = (args.model, args.batch, args.seq, args.dtype)
        self.calls = train.step_shapes(*sizes)
        self.keys = train.step_keys(*sizes)
        self.spec = train_pick.parse(args.kernels)
        self.variants = registry.discover(self.spec.folders)
        self.pool = self._candidates(self.spec)
        self.swaps = {text: self._swap(text) for text in args.swap}
        self._check_memory()
        self.batches = self._batches(WARM_UP + args.steps + IN_CONTEXT_STEPS)
        self.trajectories: dict[str, list[dict[str, Any]]] = {}

    def run(self) -> int:
        from bench import results, train_report

        args = self.args
        run = results.Run.create("e2e", self.args.out, self.argv)
        self.matmul_peaks = train_report.matmul_peaks(self.args.device, self.args.dtype)
        with ExitStack() as self.stack:
            ours = self._start_ours(OURS)
            self.choice, self.times = self._choose(ours)
            self.swap_times = {text: self._race_swap(ours, swap) for text, swap in self.swaps.items()}
            train_report.choices(self.choice, self.pool, self.times)
            self.planned_bytes = self._build(ours, self.choice)
            self.contestants = {OURS: ours}
            for text, swap in self.swaps.items():
                self.contestants[f"{OURS}, {text}"] = other = self._start_ours(f"{OURS}, {text}")
                self._build(other, {**self.choice, **swap})
            self._start_baselines()
            self.gate_runs = self._judge()
            self._train()
            if not args.simulate:
                self.peaks = {name: c.ask("peak_bytes") for name, c in self.contestants.items()}
                self.in_context = self._in_context()
        report = train_report.Simulated(self) if args.simulate else train_report.Report(self)
        for record in report.records():
            run.append(record)
        run.write_csv(train_report.COLUMNS)
        report.print()
        print(f"results: {run.folder}")
        if self.args.json:
            cli.print_json({"run": str(run.folder), **report.document()})
        return cli.OK if report.parity else cli.WRONG

    def _check_memory(self) -> None:
        """Refuse what would not fit, before the system kills somebody for it."""
        import psutil

        if self.args.device != "cpu":
            return
        contestants = 2 + len(self.swaps) + len(self.args.baseline)  # ours and the judge
        need = contestants * self.job.model.parameters * BYTES_A_PARAMETER
        have = psutil.virtual_memory().available
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

    def _choose(self, ours: "Contestant") -> "tuple[dict[Key, Variant], Times]":
        """One variant for each call: named, remembered, or measured now."""
        from bench import machine, train_pick

        open_pool = {key: found for key, found in self.pool.items() if len(found) > 1}
        cache = train_pick.open_cache(self.args.device, self.args.threads)
        shapes = {id: call.shape for id, call in self.calls.items()}
        times = train_pick.Times() if self.args.remeasure else cache.take(open_pool, shapes)
        missing = {key: found for key, found in open_pool.items() if key not in times.ms}
        if missing:
            cli.say(f"measuring {sum(map(len, missing.values()))} candidates for {len(missing)} calls")
            new = ours.ask("race", pool=missing, budget=train_pick.BUDGET_S, limit=self._setup_limit())
            if reason := machine.busy(machine.snapshot()):
                cli.say(f"busy machine, so these choices are not remembered: {reason}")
            else:
                cache.keep(missing, shapes, new)
            times.ms |= new.ms
            times.skipped |= new.skipped
        return train_pick.fastest(self.pool, times), times

    def _race_swap(self, ours: "Contestant", swap: "dict[Key, Variant]") -> "Times":
        """Both variants of each swapped call, measured against each other in isolation."""
        pool = {key: [self.choice[key], v] for key, v in swap.items() if v != self.choice[key]}
        return ours.ask("race", pool=pool, budget=float("inf"), hopeless=float("inf"), limit=self._setup_limit())

    # --- the processes ---

    def _setup_limit(self) -> float:
        from bench.train_worker import SETUP_LIMIT_S

        return max(SETUP_LIMIT_S, self.args.time_limit)

    def _start_ours(self, name: str) -> "Contestant":
        from bench.train_worker import Contestant, OurRoom

        return self.stack.enter_context(Contestant(name, OurRoom, self.job))

    def _build(self, contestant: "Contestant", choice: "dict[Key, Variant]") -> int:
        planned = contestant.ask("build", choice=choice, limit=self._setup_limit())
        contestant.ask("load")
        return planned

    def _start_baselines(self) -> None:
        from bench.train_worker import Contestant, TorchRoom

        for mode in self.args.baseline:
            name = f"torch.{mode}"
            self.contestants[name] = self.stack.enter_context(Contestant(name, TorchRoom, self.job, mode))

    # --- what they do ---

    def _batches(self, steps: int) -> "list[list[NumpyBatch]]":
        """The micro-batches of each step, the same for all."""
        from bench import data

        tokens = data.open_tokens(data.dataset(self.args.data))
        source = data.batches(tokens, self.args.batch, self.args.seq, self.args.seed)
        return [[next(source) for _ in range(self.args.accumulation)] for _ in range(steps)]

    def _judge(self) -> list[list[dict[str, Any]]]:
        """PyTorch's centre run and its perturbed runs. Meanwhile, untimed, the baselines set up and compile."""
        from bench.train_worker import Contestant, JudgeRoom

        cli.say("measuring PyTorch's own band; compiling the baselines")
        baselines = [c for name, c in self.contestants.items() if name.startswith("torch.")]
        for c in baselines:
            c.send("warm", batches=self.batches[0], lr=self.args.lr)
        steps = self.batches[: WARM_UP + self.args.steps]
        limit = len(steps) * self.args.time_limit
        with Contestant("PyTorch's band", JudgeRoom, self.job) as judge:
            runs = [judge.ask("run", centre=True, perturbed=None, batches=steps, lr=self.args.lr, limit=limit)]
            for seed in range(max(1, PYTORCH_RUNS - len(baselines))):
                runs.append(judge.ask("run", centre=False, perturbed=seed, batches=steps, lr=self.args.lr, limit=limit))
        for c in baselines:
            c.answer(self._setup_limit())
        return runs

    def _train(self) -> None:
        """All steps: warm-up and timed, in random order within each round."""
        from bench.worker import pause

        order = random.Random(self.args.seed)
        names = list(self.contestants)
        self.trajectories = {name: [] for name in names}
        cli.say(f"{WARM_UP} + {self.args.steps} steps of {', '.join(names)}")
        for t in range(WARM_UP + self.args.steps):
            if t == WARM_UP:
                for c in self.contestants.values():
                    c.ask("forget_peak")
            for name in order.sample(names, len(names)):
                pause()
                step = dict(batches=self.batches[t], lr=self.args.lr, details=t == 0)
                self.trajectories[name].append(self.contestants[name].ask("step", limit=self.args.time_limit, **step))

    def _in_context(self) -> "dict[str, list[tuple[dict[Key, float], float]]]":
        """{our contestant: [({(id, phase): ms}, ms of the whole step), …]}: steps with a clock around every call."""
        found: dict[str, list] = {name: [] for name in self.contestants if name.startswith(OURS)}
        for batches in self.batches[WARM_UP + self.args.steps :]:
            for name, steps in found.items():
                steps.append(
                    self.contestants[name].ask(
                        "step_in_context", batches=batches, lr=self.args.lr, limit=self.args.time_limit
                    )
                )
        return found


if __name__ == "__main__":
    cli.run(main)
