"""One run of `bench.layer`: variants are proved, then timed, and each case that is finished is written down."""

import itertools
import shlex
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bench import cli
from bench.cli import CannotGoOn
from bench.core import WORKING_DTYPES, files
from bench.core.case import Case
from bench.core.process import Setting, Worker, WorkerFailed
from bench.core.variants import SIMULATED, Variant, simulated, unavailable
from bench.machine import ceilings, devices, profiling
from bench.machine import facts as machine
from bench.records.record import Record, Resources
from bench.records.run import Run
from bench.show import report, terminal
from bench.trial import rows as records
from bench.trial.briefs import Briefs
from bench.trial.prove import Proof
from bench.trial.race import Contestant, Effort, Timing, race
from bench.trial.room import Room
from reference import contract
from reference.models import MODELS

COMPILE_LIMIT_S = 20.0  # for all variants of a case together


def resources_on(arch: str, case: Case, contestants: list[Contestant], setting: Setting) -> dict[str, Resources]:
    """`resources` of the variants that were timed on a GPU of this architecture, by name; what cannot be compiled, or
    not in time, is missing.

    In processes of their own that have no CUDA context: the driver that only writes launches down replaces Triton's.
    """
    setting = replace(setting, device="cpu", simulate=False)
    timed = {c.variant.name: c for c in contestants if c.running and c.variant.backend in SIMULATED}
    workers = {name: Worker(Room, c.variant, setting) for name, c in timed.items()}
    end = time.monotonic() + COMPILE_LIMIT_S
    found: dict[str, Resources] = {}
    for name, worker in workers.items():
        with suppress(WorkerFailed):
            worker.send("resources", case=case, arch=arch, configuration=timed[name].configuration)
    for name, worker in workers.items():
        with suppress(WorkerFailed):
            found[name] = worker.answer(max(0.0, end - time.monotonic()))
        worker.close()
    return found


def list_layers(args: Namespace, variants: list[Variant]) -> int:
    rows = [(v, unavailable(v, args.device, v.dtypes[0])) for v in variants]
    if args.json:
        found = [
            dict(layer=v.layer, variant=v.name, story=v.story, phases=sorted(v.functions), skipped=reason)
            for v, reason in rows
        ]
        cli.print_json({"variants": found})
    else:
        terminal.print_list(rows)
    return cli.OK


class Session:
    """One command: the layers and variants it names, and the run folder that its records go to."""

    def __init__(self, args: Namespace, argv: list[str], layers: list[str], variants: list[Variant]):
        from bench.trial import prove as proof

        self.args = args
        self.argv = argv
        self.layers = layers
        self.variants = variants
        self.axes = parse_axes(args.axis)
        self.dtypes = [cli.choose(d, WORKING_DTYPES, "dtype") for d in self.axes.pop("dtype", ["fp32"])]
        self.caches = tuple(cli.choose(c, ("cold", "warm"), "cache state") for c in args.cache.split(","))
        self.named = args.only.split(",") if args.only else []
        devices.check_device(args.device)
        self._check_names()
        self._check_shapes()
        files.need_cache()
        if args.profile:
            files.make_folder(args.profile)
        self.seeds = proof.seeds(args.seed)
        self.setting = Setting(args.device, args.threads, args.time_limit, simulate=args.simulate)
        self.arch: str | None = None  # of the GPU that is timed
        self.profiled: list[dict[str, Any]] = []
        self.run_: Run = Run.resume(args.resume, "layer") if args.resume else Run.create("layer", args.out, argv)
        self.done = self.run_.finished() if args.resume else {}
        self.screen = terminal.Screen()
        self.records: list[Record] = []

    def _check_names(self) -> None:
        """Names that no layer knows, and named variants that cannot run, are errors at once."""
        for name in self.named:
            known = {v.name for v in self.variants if v.layer in self.layers}
            cli.choose(name, sorted(known), f"variant of {', '.join(self.layers)}")
            for v in self.variants:
                if v.name == name and v.layer in self.layers:
                    for dtype in self.dtypes:
                        if reason := unavailable(v, self.args.device, dtype, self.args.simulate):
                            raise CannotGoOn(f"{v.layer} {name} cannot run: {reason}", cli.CANNOT_RUN)

    def _check_shapes(self) -> None:
        """A shape or an axis that a layer does not have is an error before anything is proved."""
        for layer in self.layers:
            list(self.shapes(contract.load(layer), layer, self.dtypes[0], "forward"))

    def run(self) -> int:
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

    def facts(self) -> terminal.Conditions:
        threads = self.setting.threads or machine.usable_cores()
        busy = machine.busy(machine.snapshot())
        clocks = devices.clocks_of(self.args.device)
        return terminal.Conditions(machine.one_line(), self.seeds, clocks, threads, busy)

    def measure_ceilings(self) -> None:
        """In a process of its own: this one never makes a CUDA context, and a GPU that hangs does not stop it."""
        worker = Worker(Room, None, self.setting)
        try:
            worker.ask("measure_ceilings", limit=self.setting.prepare_limit)
            self.arch = worker.ask("arch")
        except WorkerFailed as failure:
            raise CannotGoOn(f"the ceilings of {self.args.device} cannot be measured: {failure.evidence}") from failure
        finally:
            worker.close()

    def finish(self) -> None:
        if self.profiled:
            profiling.write_csv(self.args.profile, self.profiled)
            self.screen.note(profiling.command_lines(["python", "-m", "bench.layer", *self.argv]))
        self.run_.write_csv()
        self.screen.footer(self.records, None if self.args.watch else self.run_.folder)  # --watch keeps nothing
        if not self.args.watch:
            self.screen.note(report.write_beside(self.run_.folder))
        if self.args.json:
            cli.print_json({"run": str(self.run_.folder), "records": [_without_samples(r) for r in self.records]})

    def run_layer(self, layer: str, dtype: str, briefs: Any) -> None:
        module = contract.load(layer)
        phases = [p for p in contract.phases_of(module) if self.args.phase in (p, "both")]
        chosen = [v for v in self.variants if v.layer == layer and (not self.named or v.name in self.named)]
        if not chosen:  # of `all` layers, some may have no variant of a name
            return
        yardstick = next((v for v in self.variants if v.layer == layer and v.name == "torch.eager"), None)
        proofs: dict[tuple[str, str], Proof] = {}
        for v in chosen:
            reason = unavailable(v, self.args.device, dtype, self.args.simulate)
            if self.args.no_simulate and simulated(v, self.args.device):
                reason = "needs a GPU, and --no-simulate leaves the simulator out"
            for proof in self.prove(v, phases, dtype, reason, briefs, yardstick):
                if self.args.sanitize and proof.ok and not proof.simulated and v.backend in SIMULATED:
                    self.sanitize(proof)
                proofs[v.name, proof.phase] = proof
        for phase in phases:
            of_phase = [proofs[v.name, phase] for v in chosen]
            if self.args.check_only or self.args.profile:
                self.report_proofs(layer, phase, dtype, of_phase)
            self.screen.counts(layer, phase, dtype, {p.variant.name: p.counts for p in of_phase if p.simulated})
            if self.args.check_only:
                continue
            for shape_id, shape, calls in self.shapes(module, layer, dtype, phase):
                if self.args.profile:
                    self.profile(layer, phase, shape_id, shape, of_phase, briefs)
                else:
                    self.time(layer, phase, shape_id, shape, calls, chosen, proofs, briefs, yardstick)

    def prove(self, v, phases, dtype, reason, briefs, yardstick):
        from bench.trial import prove as proof

        for phase in phases:
            if reason:
                yield proof.Proof(v, phase, dtype, "skipped", evidence=reason)
            elif not v.has(phase):
                yield proof.Proof(v, phase, dtype, "skipped", evidence=f"has no {phase}")
        can = tuple(p for p in phases if v.has(p) and not reason)
        yield from proof.prove(v, can, dtype, self.seeds, briefs, self.setting, yardstick, self.screen.progress)

    def sanitize(self, proof: Proof) -> None:
        """Run a proved variant under compute-sanitizer; what it finds makes the variant wrong."""
        from bench.gpu.sanitizer import sanitize

        v = proof.variant
        self.screen.progress(f"{v.name} {proof.phase} {proof.dtype}: compute-sanitizer")
        limit = self.setting.prepare_limit
        status, evidence = sanitize(v, proof.phase, proof.dtype, self.seeds[-1], limit, self.args.device)
        proof.sanitizer = status if status == "ok" else f"{status}: {evidence}"
        if status == "wrong":
            proof.status, proof.check, proof.evidence = "wrong", "sanitizer", f"sanitizer: {evidence}"
        elif status != "ok":
            self.screen.note(f"{v.layer} {v.name} {proof.phase}: compute-sanitizer {proof.sanitizer}")

    def profile(self, layer: str, phase: str, shape_id: str, shape: Any, proofs: list[Proof], briefs: Briefs) -> None:
        """Traces of the right variants at a shape, each in its own worker."""
        case = Case(layer, phase, shape, shape_id, self.seeds[0])
        for proof in proofs:
            if not proof.ok or proof.simulated:
                continue
            self.screen.progress(f"{proof.variant.name} {phase}: profile of {shape_id}")
            worker = Worker(Room, proof.variant, self.setting)
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

    def report_proofs(self, layer: str, phase: str, dtype: str, proofs: list[Proof]) -> None:
        rows = [records.of_proof(p, layer, dtype, self.seeds) for p in proofs]
        for row in rows:
            self.keep(row)
        self.screen.proofs(layer, phase, dtype, rows)

    def time(self, layer, phase, shape_id, shape, calls, chosen, proofs, briefs, yardstick) -> None:
        """Race the variants that were proved; records of the others say why they were not."""
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
            needs = resources_on(self.arch, case, timing.contestants, self.setting) if self.arch else {}
            for c in timing.contestants:
                proof = proofs[c.variant.name, phase]
                found = records.timed(case, proof, calls, self.seeds, c, baseline, timing, self.setting.threads)
                rows += [self.keep(row | needs.get(c.variant.name, Resources())) for row in found]
        # A layer that multiplies more than it moves is told by its FLOP/s, the others by their bytes/s.
        flops_matter = contract.flops(case.module, shape, phase) > 20 * contract.min_bytes(case.module, shape, phase)
        title = f"{layer} {phase} {shape_id} {shape['dtype']}: {records.sizes_text(case)}"
        shown = [r for r in rows if not r["control"]]
        facts = records.facts(rows[0], timing)
        self.screen.timings(title, facts, shown, self.caches, flops_matter, devices.is_gpu(self.args.device))
        briefs.forget()

    def finished(self, case: Case, v: Variant) -> list[Record]:
        """Records of a resumed run that need not be measured again."""
        start = records.case_id(case, v)
        return [r for name, r in self.done.items() if name.split("-")[0] == start]

    def reproduce(self, row: Record) -> str:
        """The command that measures this row again."""
        parts = ["python", "-m", "bench.layer", row["layer"], "--only", row["variant"], "--pass", row["phase"]]
        parts += ["--check-only"] if row["shape_name"] == "proof" else ["--shape", row["shape_name"]]
        parts += ["-a", f"dtype={row['dtype']}"]
        parts += itertools.chain.from_iterable(("-a", a) for a in self.args.axis if not a.startswith("dtype"))
        parts += [] if self.args.device == "cpu" else ["--device", self.args.device]
        return shlex.join([*parts, "--seed", str(self.seeds[1])])

    def keep(self, row: Record) -> Record:
        row["reproduce"] = self.reproduce(row)
        row["device"] = self.args.device
        self.records.append(row)
        self.run_.append(row)
        return row


def fastest_torch(timing: Timing) -> Contestant | None:
    """The PyTorch entry that the speed column compares with: the fastest one, not a convenient one."""
    entries = [c for c in timing.contestants if c.variant.backend == "torch" and not c.control and c.running]
    cold = [(ci[0], c) for c in entries if (ci := c.median_ci(next(iter(c.samples), "")))]
    return min(cold, key=lambda pair: pair[0])[1] if cold else None


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


def _without_samples(record: Record) -> dict[str, object]:
    return {k: v for k, v in record.items() if not k.endswith("samples")}
