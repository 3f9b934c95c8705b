"""python -m bench.layer LAYER: prove every variant of a layer right, then time it, and show both in one table.

python -m bench.layer list                            all layers, variants, and what cannot run here and why
python -m bench.layer attention --all                 prove and time everything, gpt2-124m shapes
python -m bench.layer all --check-only                prove everything, time nothing
python -m bench.layer matmul --only cpu.simd,torch.eager --pass forward --shape gpt2-124m/qkv
python -m bench.layer layernorm --all -a T=256,1024 -a dtype=fp32,bf16
python -m bench.layer attention --device cuda -a dtype=bf16
"""

import itertools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import CannotGoOn

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.proof import Proof
    from bench.registry import Variant
    from bench.tensors import Case
    from bench.timing import Contestant, Timing
    from bench.worker import Briefs

DTYPES = ("fp32", "bf16", "fp16")


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.layer", description=__doc__)
    p.add_argument("layer", help="a layer's name, `all`, or `list`")
    what = p.add_argument_group("what to run")
    what.add_argument("--all", action="store_true", help="all variants (the default unless --only is given)")
    what.add_argument("--only", metavar="A,B", help="these variants, for example cpu.simd,torch.eager")
    what.add_argument("--pass", dest="phase", choices=("forward", "backward", "both"), default="both")
    what.add_argument("--shape", default="gpt2-124m", metavar="MODEL[/NAME]", help="default gpt2-124m: all its shapes")
    what.add_argument(
        "-a",
        "--axis",
        action="append",
        default=[],
        metavar="NAME=V,V",
        help="sweep an axis: B, T, dtype (fp32, bf16), or any symbol of the shape",
    )
    what.add_argument("--check-only", action="store_true", help="prove, do not time")
    what.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    what.add_argument("--simulate", action="store_true", help="run GPU kernels in the simulator, though there is a GPU")
    what.add_argument("--no-simulate", action="store_true", help="leave GPU kernels out where there is no GPU")
    what.add_argument("--kernels", action="append", default=[], metavar="DIR", help="more variants, same layout")
    how = p.add_argument_group("how to measure")
    how.add_argument("--seed", type=cli.seed, help="second seed of the proof (default random, printed)")
    how.add_argument("--seconds", type=cli.above_zero, default=12.0, help="for each shape and pass, default 12")
    how.add_argument("--cache", default="cold,warm", help="cold, warm or both (default)")
    how.add_argument("--processes", type=cli.count, default=1, help="fresh processes for each variant (publish with 2)")
    how.add_argument("--time-limit", type=cli.above_zero, default=60.0, metavar="S", help="for a case, default 60 s")
    how.add_argument("--watch", action="store_true", help="prove and time again after each save (with --only)")
    how.add_argument("--sanitize", action="store_true", help="run each proved variant under compute-sanitizer too")
    how.add_argument(
        "--profile", type=Path, metavar="OUT", help="no timing: traces and ranges.csv of each right variant"
    )
    how.add_argument("--threads", type=cli.cores, default=0, help="CPU threads (default: torch's choice)")
    out = p.add_argument_group("results")
    out.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    out.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with an interrupted run")
    out.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench import registry
    from reference import contract

    variants = registry.discover(tuple(Path(d) for d in args.kernels))
    if args.layer == "list":
        return list_layers(args, variants)
    names = contract.layer_names()
    layers = names if args.layer == "all" else [cli.choose(args.layer, names, "layer")]
    if args.watch:
        from bench.watch import watch

        if len(layers) > 1:
            raise CannotGoOn("--watch is for one layer", cli.USAGE)
        return watch(args, layers[0])
    return Session(args, argv if argv is not None else sys.argv[1:], layers, variants).run()


def list_layers(args: "Namespace", variants: list["Variant"]) -> int:
    from bench import registry, table

    rows = [(v, registry.unavailable(v, args.device, v.dtypes[0])) for v in variants]
    if args.json:
        found = [
            dict(layer=v.layer, variant=v.name, story=v.story, phases=sorted(v.functions), skipped=reason)
            for v, reason in rows
        ]
        cli.print_json({"variants": found})
    else:
        table.print_list(rows)
    return cli.OK


class Session:
    """One command: the layers and variants it names, and the run folder that its records go to."""

    def __init__(self, args: "Namespace", argv: list[str], layers: list[str], variants: list["Variant"]):
        from bench import devices, proof, table
        from bench.records.run import Run, make_folder, need_cache
        from bench.worker import Setting

        self.args = args
        self.argv = argv
        self.layers = layers
        self.variants = variants
        self.axes = parse_axes(args.axis)
        self.dtypes = [cli.choose(d, DTYPES, "dtype") for d in self.axes.pop("dtype", ["fp32"])]
        self.caches = tuple(cli.choose(c, ("cold", "warm"), "cache state") for c in args.cache.split(","))
        self.named = args.only.split(",") if args.only else []
        devices.check_device(args.device)
        self._check_names()
        self._check_shapes()
        need_cache()
        if args.profile:
            make_folder(args.profile)
        self.seeds = proof.seeds(args.seed)
        self.setting = Setting(args.device, args.threads, args.time_limit, simulate=args.simulate)
        self.arch: str | None = None  # of the GPU that is timed
        self.profiled: list[dict[str, Any]] = []
        self.run_: Run = Run.resume(args.resume, "layer") if args.resume else Run.create("layer", args.out, argv)
        self.done = self.run_.finished() if args.resume else {}
        self.screen = table.Screen()
        self.records: list[dict[str, Any]] = []

    def _check_names(self) -> None:
        """Names that no layer knows, and named variants that cannot run, are errors at once."""
        from bench import registry

        for name in self.named:
            known = {v.name for v in self.variants if v.layer in self.layers}
            cli.choose(name, sorted(known), f"variant of {', '.join(self.layers)}")
            for v in self.variants:
                if v.name == name and v.layer in self.layers:
                    for dtype in self.dtypes:
                        if reason := registry.unavailable(v, self.args.device, dtype, self.args.simulate):
                            raise CannotGoOn(f"{v.layer} {name} cannot run: {reason}", cli.CANNOT_RUN)

    def _check_shapes(self) -> None:
        """A shape or an axis that a layer does not have is an error before anything is proved."""
        from reference import contract

        for layer in self.layers:
            list(self.shapes(contract.load(layer), layer, self.dtypes[0], "forward"))

    def run(self) -> int:
        from bench.worker import Briefs

        self.screen.header(self.facts())
        if self.args.profile is None and not self.args.check_only and self.args.device != "cpu":
            self.measure_ceilings()
        with Briefs(self.setting) as briefs, self.screen:
            for layer in self.layers:
                for dtype in self.dtypes:
                    self.run_layer(layer, dtype, briefs)
                    briefs.forget()
        self.finish()
        bad = [r for r in self.records if r["status"] not in ("ok", "simulated", "skipped")]
        return cli.WRONG if bad else cli.OK

    def facts(self) -> dict[str, Any]:
        from bench import devices, machine

        threads = self.setting.threads or machine.usable_cores()
        busy = machine.busy(machine.snapshot())
        clocks = devices.clocks_of(self.args.device)
        return dict(machine=machine.one_line(), seeds=self.seeds, clocks=clocks, threads=threads, busy=busy)

    def measure_ceilings(self) -> None:
        """In a process of its own: this one never makes a CUDA context, and a GPU that hangs does not stop it."""
        from bench.worker import Worker, WorkerFailed

        worker = Worker(None, self.setting)
        try:
            worker.ask("measure_ceilings", limit=self.setting.prepare_limit)
            self.arch = worker.ask("arch")
        except WorkerFailed as failure:
            raise CannotGoOn(f"the ceilings of {self.args.device} cannot be measured: {failure.evidence}") from failure
        finally:
            worker.close()

    def finish(self) -> None:
        if self.profiled:
            from bench import profiling

            profiling.write_csv(self.args.profile, self.profiled)
            self.screen.note(profiling.command_lines(["python", "-m", "bench.layer", *self.argv]))
        self.run_.write_csv()
        self.screen.footer(self.records, None if self.args.watch else self.run_.folder)  # --watch keeps nothing
        if not self.args.watch:
            from bench import report

            self.screen.note(report.write_beside(self.run_.folder))
        if self.args.json:
            cli.print_json({"run": str(self.run_.folder), "records": [_without_samples(r) for r in self.records]})

    def run_layer(self, layer: str, dtype: str, briefs: Any) -> None:
        from bench import registry
        from reference import contract

        module = contract.load(layer)
        phases = [p for p in contract.phases_of(module) if self.args.phase in (p, "both")]
        chosen = [v for v in self.variants if v.layer == layer and (not self.named or v.name in self.named)]
        if not chosen:  # of `all` layers, some may have no variant of a name
            return
        yardstick = next((v for v in self.variants if v.layer == layer and v.name == "torch.eager"), None)
        proofs: dict[tuple[str, str], Proof] = {}
        for v in chosen:
            reason = registry.unavailable(v, self.args.device, dtype, self.args.simulate)
            if self.args.no_simulate and registry.simulated(v, self.args.device):
                reason = "needs a GPU, and --no-simulate leaves the simulator out"
            for proof in self.prove(v, phases, dtype, reason, briefs, yardstick):
                if self.args.sanitize and proof.ok and not proof.simulated and v.backend in registry.SIMULATED:
                    self.sanitize(proof)
                proofs[v.name, proof.phase] = proof
        for phase in phases:
            of_phase = [proofs[v.name, phase] for v in chosen]
            if self.args.check_only or self.args.profile:
                self.report_proofs(layer, phase, dtype, of_phase)
            self.screen.counts(layer, phase, dtype, [p for p in of_phase if p.simulated])
            if self.args.check_only:
                continue
            for shape_id, shape, calls in self.shapes(module, layer, dtype, phase):
                if self.args.profile:
                    self.profile(layer, phase, shape_id, shape, of_phase, briefs)
                else:
                    self.time(layer, phase, shape_id, shape, calls, chosen, proofs, briefs, yardstick)

    def prove(self, v, phases, dtype, reason, briefs, yardstick):
        from bench import proof

        for phase in phases:
            if reason:
                yield proof.Proof(v, phase, dtype, "skipped", evidence=reason)
            elif not v.has(phase):
                yield proof.Proof(v, phase, dtype, "skipped", evidence=f"has no {phase}")
        can = tuple(p for p in phases if v.has(p) and not reason)
        yield from proof.prove(v, can, dtype, self.seeds, briefs, self.setting, yardstick, self.screen.progress)

    def sanitize(self, proof: "Proof") -> None:
        """Run a proved variant under compute-sanitizer; what it finds makes the variant wrong."""
        from bench.sanitize import sanitize

        v = proof.variant
        self.screen.progress(f"{v.name} {proof.phase} {proof.dtype}: compute-sanitizer")
        limit = self.setting.prepare_limit
        status, evidence = sanitize(v, proof.phase, proof.dtype, self.seeds[-1], limit, self.args.device)
        proof.sanitizer = status if status == "ok" else f"{status}: {evidence}"
        if status == "wrong":
            proof.status, proof.check, proof.evidence = "wrong", "sanitizer", f"sanitizer: {evidence}"
        elif status != "ok":
            self.screen.note(f"{v.layer} {v.name} {proof.phase}: compute-sanitizer {proof.sanitizer}")

    def profile(
        self, layer: str, phase: str, shape_id: str, shape: Any, proofs: list["Proof"], briefs: "Briefs"
    ) -> None:
        """Traces of the right variants at a shape, each in its own worker."""
        from bench.tensors import Case
        from bench.worker import Worker, WorkerFailed

        case = Case(layer, phase, shape, shape_id, self.seeds[0])
        for proof in proofs:
            if not proof.ok or proof.simulated:
                continue
            self.screen.progress(f"{proof.variant.name} {phase}: profile of {shape_id}")
            worker = Worker(proof.variant, self.setting)
            try:
                values = briefs.get(case, None, values_only=True)
                limit = self.setting.prepare_limit
                self.profiled += worker.ask("profile", limit=limit, path=values, folder=self.args.profile)
            except WorkerFailed as failure:
                self.screen.note(f"{layer} {proof.variant.name} {phase} {shape_id}: not profiled: {failure.evidence}")
            worker.close()
        briefs.forget()

    def shapes(self, module: Any, layer: str, dtype: str, phase: str):
        """(id, shape, calls a step) of the named model, for every point of the axes."""
        from reference import contract
        from reference.models import MODELS

        model_name, _, wanted = self.args.shape.partition("/")
        model = MODELS[cli.choose(model_name, MODELS, "model")]
        for point in itertools.product(*self.axes.values()):
            axes = dict(zip(self.axes, point, strict=True))
            B, T = axes.pop("B", contract.DEFAULT_B), axes.pop("T", min(contract.DEFAULT_T, model.max_t))
            calls = module.shapes(model, B, T)
            if wanted:
                calls = {wanted: calls[cli.choose(wanted, calls, f"shape of {layer}")]}
            for name, call in calls.items():
                unknown = [a for a in axes if a not in call.shape]
                if unknown:
                    raise CannotGoOn(
                        f"{layer} has no axis {unknown[0]!r} (it has B, T, {', '.join(call.shape)})", cli.USAGE
                    )
                shape = contract.overwriting(module, phase, {**call.shape, **axes}, dtype)
                yield f"{model.name}/{name}" if name else model.name, shape, call.calls

    def report_proofs(self, layer: str, phase: str, dtype: str, proofs: list["Proof"]) -> None:
        from bench.trial import rows as records

        rows = [records.of_proof(p, layer, dtype, self.seeds) for p in proofs]
        for row in rows:
            self.keep(row)
        self.screen.proofs(layer, phase, dtype, rows)

    def time(self, layer, phase, shape_id, shape, calls, chosen, proofs, briefs, yardstick) -> None:
        """Race the variants that were proved; records of the others say why they were not."""
        from bench import ceilings, devices
        from bench.tensors import Case
        from bench.timing import Effort, race
        from bench.trial import rows as records
        from bench.worker import WorkerFailed
        from reference import contract

        case = Case(layer, phase, shape, shape_id, self.seeds[0])
        rows, ready = [], []
        for v in chosen:
            if old := self.finished(case, v):
                rows += old
                continue
            proof = proofs[v.name, phase]
            too_slow = predicted_too_slow(proof, case, self.setting.time_limit)
            if proof.simulated:
                rows.append(self.keep(records.simulated(case, proof, calls, self.seeds, self.args.device)))
                continue
            if proof.ok and not too_slow:
                ready.append(v)
                continue
            status, evidence = ("skipped", too_slow) if proof.ok else (proof.status, proof.evidence)
            row = records.untimed(case, proof, calls, self.seeds, status, evidence, self.args.device)
            rows.append(self.keep(row))
        # The baseline of the noise floor and of the stopping rule comes first.
        ready.sort(key=lambda v: v.name != "torch.eager")
        timing = None
        if ready:
            if self.args.device == "cpu":
                ceilings.look_again()
            effort = Effort(self.args.seconds, 0.02, self.caches, self.args.processes, self.seeds[1])
            try:
                timing = race(case, ready, yardstick, briefs, self.setting, effort, self.screen.progress)
            except WorkerFailed as failure:
                for v in ready:
                    proof = proofs[v.name, phase]
                    why = failure.status, failure.evidence
                    rows.append(self.keep(records.untimed(case, proof, calls, self.seeds, *why, self.args.device)))
        if timing is not None:
            baseline = fastest_torch(timing)
            needs = {}
            if self.arch:
                from bench.counted import resources_on  # of no use on a CPU, and with it the simulator

                needs = resources_on(self.arch, case, timing.contestants, self.setting)
            for c in timing.contestants:
                proof = proofs[c.variant.name, phase]
                found = records.timed(case, proof, calls, self.seeds, c, baseline, timing, self.setting.threads)
                rows += [self.keep(row | needs.get(c.variant.name, {})) for row in found]
        # A layer that multiplies more than it moves is told by its FLOP/s, the others by their bytes/s.
        flops_matter = contract.flops(case.module, shape, phase) > 20 * contract.min_bytes(case.module, shape, phase)
        title = f"{layer} {phase} {shape_id} {shape['dtype']}: {records.sizes_text(case)}"
        shown = [r for r in rows if not r["control"]]
        facts = records.facts(rows[0], timing)
        self.screen.timings(title, facts, shown, self.caches, flops_matter, devices.is_gpu(self.args.device))
        briefs.forget()

    def finished(self, case: "Case", v: "Variant") -> list[dict[str, Any]]:
        """Records of a resumed run that need not be measured again."""
        from bench.trial import rows as records

        start = records.case_id(case, v)
        return [r for name, r in self.done.items() if name.split("-")[0] == start]

    def reproduce(self, row: dict[str, Any]) -> str:
        """The command that measures this row again."""
        parts = ["python", "-m", "bench.layer", row["layer"], "--only", row["variant"], "--pass", row["phase"]]
        parts += ["--check-only"] if row["shape_name"] == "proof" else ["--shape", row["shape_name"]]
        parts += ["-a", f"dtype={row['dtype']}"]
        parts += itertools.chain.from_iterable(("-a", a) for a in self.args.axis if not a.startswith("dtype"))
        parts += [] if self.args.device == "cpu" else ["--device", self.args.device]
        return shlex.join([*parts, "--seed", str(self.seeds[1])])

    def keep(self, row: dict[str, Any]) -> dict[str, Any]:
        row["reproduce"] = self.reproduce(row)
        row["device"] = self.args.device
        self.records.append(row)
        self.run_.append(row)
        return row


def fastest_torch(timing: "Timing") -> "Contestant | None":
    """The PyTorch entry that the speed column compares with: the fastest one, not a convenient one."""
    entries = [c for c in timing.contestants if c.variant.backend == "torch" and not c.control and c.running]
    cold = [(ci[0], c) for c in entries if (ci := c.median_ci(next(iter(c.samples), "")))]
    return min(cold, key=lambda pair: pair[0])[1] if cold else None


def predicted_too_slow(proof: "Proof", case: "Case", limit: float) -> str:
    """A reason to skip where the proof's own speed says that one call would take longer than the limit."""
    from reference import contract

    if not proof.work_per_s:
        return ""
    work = contract.flops(case.module, case.shape, case.phase)
    work += contract.min_bytes(case.module, case.shape, case.phase)
    seconds = work / proof.work_per_s
    if seconds < limit / 2:  # a call to warm up and one to time must fit
        return ""
    return f"too slow for this shape: by its speed in the proof two calls take longer than --time-limit {limit:g} s"


def parse_axes(texts: list[str]) -> dict[str, list[Any]]:
    """{"T": [256, 1024], "dtype": ["bf16"]} from T=256,1024 and dtype=bf16."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise CannotGoOn(f"axis {text!r} is not NAME=VALUE,…", cli.USAGE)
        axes[name] = [_axis_value(name, v) for v in values.strip("[]").split(",")]
    return axes


def _axis_value(name: str, text: str) -> Any:
    if name in ("dtype", "epilogue"):
        return text
    if text in ("true", "false"):
        return text == "true"
    if not text.isdecimal() or int(text) < 1:
        raise CannotGoOn(f"axis {name}: {text!r} is not a positive whole number", cli.USAGE)
    return int(text)


def _without_samples(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not k.endswith("samples")}


if __name__ == "__main__":
    cli.run(main)
