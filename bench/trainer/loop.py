"""One training run: it is set up or taken up again, trains step by step, looks at itself now and then, and ends."""

import contextlib
import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench import cli
from bench.checkpoints import foreign
from bench.checkpoints import run as checkpoints
from bench.checkpoints.state import State
from bench.cli import CannotGoOn
from bench.core import files
from bench.core.case import DTYPES
from bench.core.process import is_out_of_memory, summary
from bench.machine import ceilings, facts
from bench.machine.devices import check_device, is_gpu
from bench.models.calls import Batch
from bench.models.step import Step
from bench.records.run import begun, new_folder, write_environment
from bench.text import evaluation
from bench.text.corpus import TOKENIZER, decoder_beside
from bench.text.decoding import write_tokenizer
from bench.text.epochs import Ahead, Epochs, find_shards, find_validation
from bench.text.tokenizer import DataError
from bench.trainer import FSDP, build, evaluate
from bench.trainer import plan as plans
from bench.trainer.beside import Beside
from bench.trainer.journal import Journal, events
from bench.trainer.outliers import Outliers
from bench.trainer.plan import Plan
from bench.trainer.progress import Screen, Seen, Speed
from bench.trainer.ranks import Ranks
from bench.trainer.sample import Draw, Texts
from bench.trainer.sample import sample as draw_tokens
from bench.trainer.spot import Spot
from bench.trainer.stopping import Asked, Stopping
from bench.training.field import Field
from reference.models.plain import init_parameters

CHECKPOINTS = "checkpoints"
REST = ("options", "data", "losses", "norms", "not_finite", "updates")  # of a checkpoint that a run goes on from
ALL_DONE = "all steps are done"  # why a run ended
BYTES_A_PARAMETER = 16  # weight, gradient and two moments; more with masters


def utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command(options: Mapping[str, Any], given: Mapping[str, Any], argv: list[str]) -> int:
    """`python -m bench.train`. options: all, by the parser's names; given: those that the command line names."""
    check_device(options["device"])
    ranks = Ranks.join()
    threads = options["threads"] or ranks.threads
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for our kernels' library, which is loaded later
    here = dict(threads=threads, device=ranks.on(options["device"]), resume=options["resume"] or ranks.restarted)
    with ranks.one_voice():
        made, state = begin({**options, **here}, given, ranks, argv)
        ranks.same(state.step if state else 0, "the newest checkpoint's step (all ranks must see one --out)")
        code = Training(made, ranks, state, argv).run()
        ranks.leave()
    return code


def begin(
    options: Mapping[str, Any], given: Mapping[str, Any], ranks: Ranks, argv: list[str]
) -> tuple[Plan, State | None]:
    """The plan, and with --resume the state to go on from, where there is one."""
    out = options["out"]
    if not options["resume"]:
        plans.need_what_uses(given, options)
        return plans.plan_of(options, ranks.ranks, argv), None
    if out is None:
        raise CannotGoOn("--resume: of which run? name its folder with --out", cli.USAGE)
    found = newest(out, ranks)
    if found is None:
        if not options["model"]:
            raise CannotGoOn(f"{out}: no checkpoint to go on from; name the model, and it starts", cli.USAGE)
        plans.need_what_uses(given, options)
        return plans.plan_of(options, ranks.ranks, argv), None
    recorded = found.rest["options"]
    merged = {**options, **plans.restored(recorded), **given, "threads": options["threads"]}
    if "kernels" not in given:
        merged["kernels"] = build.again(recorded["kernels"], out)
    merged["device"] = ranks.on(merged["device"])
    plans.need_what_uses(given, merged)
    made = plans.plan_of(merged, ranks.ranks, argv)
    plans.need_same(recorded, made.options)
    return made, found


def newest(out: Path, ranks: Ranks) -> State | None:
    """The newest whole checkpoint of a run; what is torn is named, and passed over."""
    for step, path in reversed(checkpoints.checkpoints(out / CHECKPOINTS)):
        if why := checkpoints.why_torn(path):
            if ranks.main:
                cli.say(f"passed over: the checkpoint of step {step} is torn: {why}")
            continue
        said = checkpoints.model_of(path)
        state = checkpoints.load(path, plans.model_named(said["name"]))
        if missing := sorted({*REST} - state.rest.keys()):
            raise CannotGoOn(f"{path} has weights and no run to go on with ({missing[0]} is missing): use --from")
        return state
    return None


class Training:
    """One run. `run` tells the story; the methods below it are its steps."""

    def __init__(self, plan: Plan, ranks: Ranks, state: State | None, argv: list[str]):
        self.plan, self.ranks, self.argv = plan, ranks, argv
        self.resumed = state
        # Read before kernels are raced, which may take minutes: another model's are refused at once.
        self.weights = foreign.weights_from(plan.source, plan.model) if plan.source and state is None else None
        self.data = Epochs(
            find_shards(plan.data, kind=plan.model.tokenizer),
            plan.B,
            plan.T,
            plan.micro_batches,
            plan.race.job.seed,
            ranks.rank,
            ranks.ranks,
            plan.shuffle,
            plan.model.v,
        )
        kind = plan.model.tokenizer
        self.val = find_validation(plan.val, plan.data, kind) if plan.val_every.steps else []
        self.questions = evaluation.read(plan.hellaswag, plan.model.v) if plan.hellaswag else []
        self.texts = Texts(decoder_beside(self.data.shards[0].path, kind), kind)
        if plan.hellaswag and self.texts.decoder:
            evaluation.need_tokenizer(plan.hellaswag, self.texts.decoder.fingerprint())
        if plan.prompt and self.texts.decoder is None:
            raise CannotGoOn("--prompt: the data do not say which tokenizer they were made with (bench.data --vocab)")
        self.identity = self.data.identity()  # once: what it looks at may be gone at the last checkpoint
        self.steps = plan.total_steps(self.data.steps_per_epoch)
        self.lr = plan.schedule_of(self.steps)
        self.speed = Speed()
        self.losses, self.norms = Outliers(), Outliers()
        self.done = 0  # steps
        self.bad = 0  # losses or norms in a row that were not finite
        self.why = ""  # it ends before its last step
        self.beside: Beside | None = None
        self.spot: Spot | None = None
        self.astray = ""  # what the first spot check or gate that was not passed says
        self.code = cli.OK
        if state:
            self._take_up(state)

    def _take_up(self, state: State) -> None:
        rest = state.rest
        if rest["data"] != self.identity:
            raise CannotGoOn(
                f"the data are not those that the run was begun with (shards, or their tokens): put them back, or "
                f"start a new run with --from {self.plan.out}"
            )
        self.done, self.bad = state.step, rest["not_finite"]
        self.losses, self.norms = Outliers(rest["losses"]), Outliers(rest["norms"])

    def run(self) -> int:
        ranks = self.ranks
        clock, judged = time.perf_counter, self._judged  # before any kernel is loaded, and where none can put another
        files.need_cache()
        self.folder: Path = ranks.first(self._folder() if ranks.main else Path())
        if ranks.first(ranks.main and self._is_over()):
            cli.say(f"nothing is left to do: all {self.steps} steps are taken", not ranks.main)
            return self._say_where()
        self.journal = Journal(self.folder) if ranks.main else None
        try:
            seal = self._set_up()
            with (
                Stopping(not ranks.main) as self.stopping,
                Screen(self.steps, self.done, not ranks.main) as self.screen,
                contextlib.ExitStack() as self.stack,
            ):
                self._writing(clock)
                # Whoever replaces functions replaces those, too, that would tell: these are held here alone.
                replaced = seal()
                if replaced:
                    judged(self.done, f"global_state: functions were replaced: {', '.join(replaced[:4])}")
            code = self._ended()
            return cli.WRONG if replaced else code
        except Exception as error:
            if self.journal:
                with contextlib.suppress(CannotGoOn):
                    self.journal.write(
                        "end", step=self.done, why=str(error) if isinstance(error, CannotGoOn) else summary(error)
                    )
            raise
        finally:
            if self.journal:
                self.journal.close()

    # --- setting up ---

    def _folder(self) -> Path:
        """Made, or there already where the run goes on. A foreign one is left alone."""
        folder = self.plan.out or new_folder("train")
        files.make_folder(folder)
        if not self.resumed and not self.plan.resume and events(folder):
            raise CannotGoOn(f"{folder} already holds a run: choose another --out, or go on with it: --resume")
        return folder

    def _is_over(self) -> bool:
        """Whether the run that is gone on with has ended, and what follows the last step was done too."""
        last = events(self.folder)[-1:] if self.resumed and self.done == self.steps else []
        return any(event["event"] == "end" and event.get("why") == ALL_DONE for event in last)

    def _set_up(self) -> Callable[[], Sequence[str]]:
        """What says which functions somebody replaced since before the kernels were loaded."""
        plan, ranks = self.plan, self.ranks
        told: tuple[Any, str] = ("", "")
        if ranks.main:
            choice, note = build.choose_kernels(plan.race)
            told = build.names(choice), note
        names, note = ranks.first(told)
        if not ranks.main:
            choice = build.named(plan.race, names)
        self.kernels = {id: name for id, (name, _) in names.items()}
        self._need_memory()
        if plan.spot_checks:
            self.spot = Spot(plan, lambda text: cli.say(text, not ranks.main), ranks)
        seal = self.spot.seal if self.spot else tuple
        try:
            self.step: Step = build.build(plan.race, choice, plan.masters, ranks.ranks)
            ranks.reduce(self.step, plan.optimizer)
            build.record(self.step, plan.race)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise CannotGoOn(
                f"the step does not fit ({summary(error)}): take a smaller --batch, or --recompute"
            ) from error
        if self.resumed:
            self.step.load_state(self.resumed)
        else:
            self.step.load(self._parameters())
        if self.journal:
            if not self.resumed:
                write_environment(self.folder, begun("train", self.argv))
                build.write_choice(self.folder, plan.race, choice)
            self._begin_the_journal(note)
            self._say_who(note)
        self.resumed = None  # as large as the model
        return seal

    def _need_memory(self) -> None:
        """Refuse what cannot fit, before the system kills somebody for it."""
        have, need = facts.available_bytes(), self.plan.model.parameters * BYTES_A_PARAMETER
        if have and not is_gpu(self.plan.race.job.device) and need > have:
            raise CannotGoOn(
                f"{self.plan.model.name} takes {need / 1e9:.0f} GB without activations, {have / 1e9:.0f} GB are free"
            )

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Of --from; else the family's, rounded to the working dtype, as `bench.e2e` starts."""
        plan = self.plan
        if self.weights:
            found, self.weights = self.weights, None  # as large as the model
            return found
        dtype = DTYPES[plan.race.job.dtype]
        found = init_parameters(plan.model, plan.race.job.seed)
        return {name: p.to(dtype) for name, p in found.items()}

    def _say_who(self, note: str) -> None:
        """What trains, in two lines for people: the model and its data, the kernels."""
        plan, job = self.plan, self.plan.race.job
        ranks = f" x {self.ranks.ranks} ranks" if self.ranks.ranks > 1 else ""
        left = f"steps {self.done + 1} to {self.steps}" if self.done < self.steps else f"all {self.steps} steps taken,"
        cli.say(
            f"{plan.model.name}, {plan.model.parameters:,} parameters in {job.dtype} on {job.device}; {left} "
            f"of {plan.total_batch:,} tokens = {plan.micro_batches} of {plan.B} x {plan.T}{ranks}; "
            f"an epoch is {cli.several(self.data.steps_per_epoch, 'step')}, {self.data.tokens:,} tokens"
        )
        by_layer: dict[str, dict[str, None]] = {}
        for call, name in self.kernels.items():
            by_layer.setdefault(call.split()[0].partition("/")[0], {})[name] = None
        cli.say("kernels: " + ", ".join(f"{layer} {'/'.join(names)}" for layer, names in by_layer.items()))
        if note:
            cli.say(f"kernels were {note}")

    def _begin_the_journal(self, note: str) -> None:
        assert self.journal
        plan = self.plan
        self.journal.write(
            "resume" if self.done else "start",
            step=self.done,
            utc=utc(),
            model=plan.model.name,
            parameters=plan.model.parameters,
            ranks=self.ranks.ranks,
            tokens_per_step=plan.total_batch,
            steps=self.steps,
            options=plans.for_json(plan.options),
            kernels=self.kernels,
            chosen=note,
        )

    # --- training ---

    def _writing(self, clock: Callable[[], float]) -> None:
        """Train with a writer of checkpoints beside it. Ctrl-C for a second time does not wait for it."""
        plan, folder = self.plan, self.folder / CHECKPOINTS
        self.writer = checkpoints.Writer(folder, plan.keep_last, plan.keep_every) if self.ranks.main else None
        if self.writer and self.ranks.ranks == 1:  # with more, all would have to say their state together
            self.writer.reserve(self.step.state(self.done, self._rest()))
        if self.writer and self.texts.decoder and not (folder / TOKENIZER).exists():
            write_tokenizer(folder / TOKENIZER, self.texts.decoder)
        try:
            self._train(clock)
        except Exception:
            if self.writer:
                with contextlib.suppress(CannotGoOn):  # the first thing that went wrong is told
                    self.writer.close()
            raise
        if self.writer:
            self.writer.close()

    def _train(self, clock: Callable[[], float]) -> None:
        """clock: in seconds; handed down, so that it is no name that a kernel could replace while a step is timed."""
        plan = self.plan
        self.peak = self._peak_flops()
        if plan.baseline:
            self._begin_beside(plan.baseline)
        if self.spot:
            field = self.beside.field if self.beside else self.stack.enter_context(Field(plan.race, []))
            self.spot.begin(self.step, field, self.done + 1, self.steps, self.data.whole)
        if self.done == 0:
            self._look(plan.val_every.steps > 0, False, False)
            self._hear()
        with Ahead(self.data, self.done, plan.data_threads) as batches:
            while self.done < self.steps and not self.why:
                self._one(batches, clock)
                last = self.done == self.steps
                self._hear()
                due = [every.steps > 0 and (last or every(self.done)) for every in plan.looks]
                if not self.why and any(due):
                    self._look(*due)
                    self._hear()
                if self.code == cli.OK and (last or self.why or plan.checkpoint_every(self.done)):
                    self._checkpoint()
        self.astray = next(filter(None, self.ranks.everyones(self.astray)), "")

    def _begin_beside(self, mode: str) -> None:
        if self.done:
            raise CannotGoOn(
                "--baseline: PyTorch's training has no checkpoints to go on from: start a new run", cli.USAGE
            )
        quiet = not self.ranks.main
        cli.say(f"PyTorch's own runs begin, and torch.{mode} {'meets' if mode == FSDP else 'compiles'}", quiet)
        with self.screen.waiting(f"setting up torch.{mode}"):
            self.beside = self.stack.enter_context(Beside(self.plan, mode, self.data.step(0), self.lr(0), self.ranks))
        cli.say(f"torch.{mode}: {self.beside.recipe}", quiet)

    def _step_beside(self, batches: list[Any], loss: float, norm: float, lr: float) -> None:
        """PyTorch's step after ours, and every now and then the gate."""
        assert self.beside
        done = self.beside.step(batches, lr, loss, norm, self.step.memory)
        theirs = dict(loss=done["loss"], norm=done["norm"], ms=done["wall_s"] * 1e3)
        if self.journal:
            self.journal.write("baseline", step=self.done, **theirs, name=self.beside.entrant.name)
        self.screen.say(f"step {self.done}/{self.steps}  torch.{self.plan.baseline} {theirs['ms']:.1f} ms")
        if self.plan.parity_every(self.done) or self.done == self.steps:
            if self.ranks.main:
                found = self.beside.parity()
                worst = dict(worst_loss=found.loss, worst_norm=found.norm)
                self._told(str(found), "parity", parity=not found.excesses, **worst)
                self.astray = self.astray or (str(found) if found.excesses else "")
            self.astray = self.ranks.first(self.astray)

    def _hear(self) -> None:
        """Whether an end was asked for, of any rank."""
        if self.ranks.any(bool(self.stopping.asked)) and not self.why:
            self.why = self.stopping.asked or "another rank was asked to"

    def _next(self, batches: Ahead) -> list[Any]:
        """A step's batches. Where the data are gone, what was trained so far is kept."""
        try:
            return next(batches)
        except DataError:
            if self.ranks.ranks == 1:  # more of them would have to do it together
                self._checkpoint()
            raise

    def _look(self, val: bool, hellaswag: bool, sample: bool) -> None:
        """At the model as it is now: validation loss, questions, a text. Who asks for an end does not wait for it; of
        several ranks each would stop somewhere else, so these finish it."""
        with contextlib.suppress(Asked):
            self._look_at(val, hellaswag, sample, self.stopping.check if self.ranks.ranks == 1 else lambda: None)

    def _look_at(self, val: bool, hellaswag: bool, sample: bool, check: Callable[[], None]) -> None:
        plan, step = self.plan, self.done
        if val:
            loss, told = evaluate.validation(self.step, self.val, plan.val_batches, self.ranks, check)
            if self.spot:
                self._judged(step, self.spot.evaluated("validation", step, told))
            self._told(f"val loss {loss:.6f}", "val", loss=loss, batches=plan.val_batches)
        if hellaswag:
            right, of, answers = evaluate.hellaswag(self.step, self.questions, self.ranks, check)
            if self.spot:
                self._judged(step, self.spot.evaluated("questions", step, answers))
            said = f"hellaswag {right}/{of} = {right / of:.4f}"
            self._told(said, "hellaswag", right=right, of=of, accuracy=right / of)
        if sample and self.ranks.main:
            prompt, draw = self.texts.prompt(plan.prompt, plan.model.v), Draw(plan.temperature, plan.top_k)
            ids = draw_tokens(self.step, prompt, plan.sample_tokens, draw, plan.race.job.seed + step, check)
            text = self.texts.text([*prompt, *ids] if plan.prompt else ids)
            self._told(f"sample: {text}", "sample", text=text, tokenizer=self.texts.name)

    def _told(self, said: str, event: str, **fields: Any) -> None:
        self.screen.say(f"step {self.done}/{self.steps}  {said}")
        if self.journal:
            self.journal.write(event, step=self.done, **fields)

    def _one(self, ahead: Ahead, clock: Callable[[], float]) -> None:
        """One step: its tokens, gradients, whether they are worth an update, the update. What looks at it is off the
        clock; waiting for tokens is not."""
        begin = clock()
        number, lr = self.done, self.lr(self.done)
        batches = self._next(ahead)
        ready = self._placed(batches)
        loss, norm = self.step.measure(ready)
        seconds = clock() - begin
        if self.spot:
            self._judged(number + 1, self.spot.gradients(number + 1, seconds, batches, loss, norm))
        begin = clock()
        loss_z, norm_z = self.losses.add(loss), self.norms.add(norm)
        skipped = self._why_not(loss, loss_z, norm, norm_z)
        if not skipped:
            self.step.update(lr)
            self.step.device.synchronize()
        self.done += 1
        seconds += clock() - begin
        if self.spot:
            updates = int(self.step.memory.step.item())
            self._judged(self.done, self.spot.updated(self.done, seconds, lr, math.nan if skipped else norm, updates))
        self._tell(seconds, skipped, loss=loss, loss_z=loss_z, norm=norm, norm_z=norm_z, lr=lr)
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.bad = 0 if finite else self.bad + 1
        if not finite:
            self._not_finite(number, ready)
        elif self.beside:
            self._step_beside(batches, loss, norm, lr)

    def _judged(self, number: int, wrong: str) -> None:
        """What a spot check says of a step, if anything: the run goes on, and its exit code says so."""
        if not wrong:
            return
        self.screen.say(f"step {number}/{self.steps}  spot check: {wrong}")
        if self.journal:
            self.journal.write("spot", step=number, wrong=wrong)
        self.astray = self.astray or f"step {number}: {wrong}"

    def _placed(self, batches: list[Any]) -> list[Batch]:
        place = self.step.device.place
        return [(torch.from_numpy(x).to(place), torch.from_numpy(y).to(place)) for x, y in batches]

    def _why_not(self, loss: float, loss_z: float | None, norm: float, norm_z: float | None) -> str:
        """Why this step's update is left out, or ""."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            return "not finite"
        for name, z, most in (("loss", loss_z, self.plan.skip_loss_z), ("norm", norm_z, self.plan.skip_norm_z)):
            if z is not None and most is not None and z > most:
                return f"{name} z {z:.2f} > {most:g}"
        return ""

    def _not_finite(self, number: int, batches: list[Batch]) -> None:
        """Say where it began; after too many in a row it is the end."""
        found = self.ranks.everyones(self.step.first_not_finite(batches))
        nowhere = (0, "nowhere when the step was taken again")
        rank, where = next(((rank, where) for rank, where in enumerate(found) if where), nowhere)
        if self.journal:
            cli.say(f"step {number + 1}, rank {rank}: not finite, first in {where}")
            self.journal.write("not-finite", step=number + 1, where=where, in_a_row=self.bad)
        if self.bad >= self.plan.not_finite_in_a_row:
            self.why, self.code = f"{self.bad} steps in a row were not finite", cli.WRONG

    def _tell(self, seconds: float, skipped: str, **measured: Any) -> None:
        plan = self.plan
        rate = self.speed.add(plan.total_batch, seconds)
        flops = plan.model.flops_per_token(plan.T)
        mfu = {name: n * rate / self.peak for name, n in flops.items()} if self.peak else None
        memory = self._memory_bytes()
        seen = Seen(
            step=self.done,
            steps=self.steps,
            ms=seconds * 1e3,
            tokens_per_s=rate,
            mfu=mfu.get("palm") if mfu else None,
            memory_bytes=memory,
            left_s=(self.steps - self.done) * plan.total_batch / rate,
            skipped=skipped,
            **measured,
        )
        self.screen.step(seen)
        if self.journal:
            self.journal.write(
                "step",
                step=self.done,
                **measured,
                ms=seconds * 1e3,
                tokens_per_s=rate,
                tokens=self.done * plan.total_batch,
                mfu=mfu,
                memory_bytes=memory,
                skipped=skipped or None,
            )

    def _peak_flops(self) -> float | None:
        """Of all devices together (a machine's cores are one, however many ranks share them), as bench.machine.ceilings
        measured one before; nothing is measured for it here."""
        job = self.plan.race.job
        known = ceilings.remembered(job.device)
        one = known.flops_per_s.get(job.dtype) if known else None
        return one and one * (self.ranks.ranks if is_gpu(job.device) else self.ranks.machines)

    def _memory_bytes(self) -> int:
        if is_gpu(self.plan.race.job.device):
            return self.step.device.memory()[1]
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    # --- what is kept ---

    def _rest(self) -> dict[str, Any]:
        """What the next steps depend on, besides tensors."""
        return dict(
            options=plans.for_json(self.plan.options),
            data=self.identity,
            losses=self.losses.state(),
            norms=self.norms.state(),
            not_finite=self.bad,
            vocabulary=self.texts.decoder.fingerprint() if self.texts.decoder else None,
        )

    def _checkpoint(self) -> None:
        if not self.step.finite():  # what is kept is to be gone on with
            if self.ranks.main:
                cli.say(f"no checkpoint after step {self.done}: a weight is not finite")
            return
        self.ranks.agree(self.step.memory.flat_params, "parameters")
        state = self.step.state(self.done, self._rest())
        if self.writer:
            assert self.journal
            self.journal.force()
            self.writer.submit(state)
            path = f"{CHECKPOINTS}/{checkpoints.folder_of(self.done)}"
            self.journal.write("checkpoint", step=self.done, path=path)

    def _ended(self) -> int:
        if not self.ranks.main:
            return cli.INTERRUPTED if self.why and self.code == cli.OK else self.code
        assert self.journal
        if self.code == cli.WRONG:
            kept, _ = checkpoints.newest(self.folder / CHECKPOINTS, self.plan.model)
            good = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint"
            raise CannotGoOn(f"{self.why}: {good}", cli.WRONG)
        self.journal.write("end", step=self.done, why=self.why or ALL_DONE)
        if self.astray:
            raise CannotGoOn(self.astray, cli.WRONG)
        if self.why:
            cli.say(f"ended by {self.why} after step {self.done}: go on with --out {self.folder} --resume")
            return cli.INTERRUPTED
        return self._say_where()

    def _say_where(self) -> int:
        if self.ranks.main:
            print(f"results: {self.folder} (python -m bench.report {self.folder}: its page)")
        return self.code
