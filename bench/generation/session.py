"""One run of `bench.generate`: contestants generate the same text turn about, each in a process of its own; ours is
held to a plain network first."""

import random
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from bench import cli
from bench.checkpoints import gguf
from bench.cli import CannotGoOn
from bench.core import files, progress
from bench.core.evidence import plain
from bench.core.process import TIMEOUT, WRONG
from bench.core.progress import Progress
from bench.generation import outcome, pick
from bench.generation.contestants import Contestant, Lost
from bench.generation.llama_cpp import LlamaCppRoom
from bench.generation.outcome import Entry, Outcome
from bench.generation.plan import Q8, Job, Plan
from bench.generation.rooms import EXACT, JudgeRoom, OurRoom, PlainRoom, Room, TransformersRoom, need
from bench.generation.stream import Stream
from bench.machine import facts
from bench.machine.compared import rest_of
from bench.models import chosen
from bench.models.inference import META, inference
from bench.records.run import Run
from bench.show.report import write_beside

MOST_TEXTS = 3  # of those written on the clock that are judged
CHECKED_ROWS = 64  # of logits that are judged: steps of all sequences
NAMES = {"eager": "torch.eager", "compile": "torch.compile"}  # of the others as they are


class Session:
    """`run` tells the story; the methods below it are its steps."""

    def __init__(self, plan: Plan):
        self.plan = plan
        check_memory(plan)
        self.candidates = [pick.candidates(plan, job) for job in plan.jobs]  # says at once what cannot be
        for name in plan.baselines:
            need(name, plan.job.source.model)
        self.entries = [Entry(_ours(plan, job), job, True) for job in plan.jobs]
        self.others = {NAMES.get(mode, mode): mode for mode in plan.baselines}
        self.peaks: dict[str, float | None] = {}
        live = sys.stdout.isatty() and not plan.json and plan.rounds > 0
        self.streams = plan.stream or live
        self.streamed: list[list[int]] | None = None  # what was shown as it was written

    def run(self) -> int:
        files.need_cache()
        self.run_ = Run.create("generate", self.plan.out, self.plan.argv)
        try:
            with Progress(), ExitStack() as stack:
                self._rounds(self._set_up(stack))
            with Progress():
                self._judge_timed()
        except (KeyboardInterrupt, CannotGoOn) as error:  # what was measured is not to be lost
            self._keep()
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(self.run_.folder) from None
            raise
        found = self._keep()
        self._tell(found)
        if lost := [e for e in self.entries if e.ours and e.status]:
            codes = {TIMEOUT: cli.TIMED_OUT, WRONG: cli.WRONG}
            raise CannotGoOn(lost[0].evidence, codes.get(lost[0].status, cli.FAILED))
        return cli.OK if found.ok else cli.WRONG

    def _keep(self) -> Outcome:
        """The rows of what was found out so far."""
        found = Outcome(self.plan, self.entries, self.peaks)
        for record in found.records():
            self.run_.append(record)
        return found

    def _tell(self, found: Outcome) -> None:
        first = self.entries[0]
        if self.streamed is None and first.tokens:
            # A model may write anything, a terminal's escape sequences too.
            print(plain("\n---\n".join(found.texts(first))) + "\n", flush=True)
        found.print()
        self.run_.write_csv(outcome.COLUMNS)
        if first.choice:
            model, s = first.job.source.model.name, first.job.sizes
            folder, chip = self.run_.folder, self.chip
            chosen.write(folder, first.choice, chip=chip, run="generate", model=model, dtype=s.dtype, B=s.B, T=s.T)
        print(f"results: {self.run_.folder}")
        progress.tell("the page")
        print(write_beside(self.run_.folder))
        if self.plan.json:
            cli.print_json({"run": str(self.run_.folder), **found.document()})

    # --- setting up ---

    def _contestant(self, stack: ExitStack, name: str, room: type[Room], job: Job, *arguments: object) -> Contestant:
        return stack.enter_context(Contestant(name, room, job, *arguments, limit=self.plan.time_limit))

    def _set_up(self, stack: ExitStack) -> dict[str, Contestant]:
        found: dict[str, Contestant] = {}
        for entry, candidates in zip(self.entries, self.candidates, strict=True):
            with _blamed(entry):
                found[entry.name] = ours = self._built(stack, entry, candidates)
                if self.streams and self.streamed is None:
                    self._show(ours)
        self._judge(found)
        for name, mode in self.others.items():
            self._join(stack, found, name, mode)
        for name, contestant in found.items() if self.plan.rounds else ():
            entry = next(e for e in self.entries if e.name == name)
            if self.streamed is None or entry is not self.entries[0]:
                with _blamed(entry):
                    entry.tokens = contestant.set_up("run")["tokens"]  # whatever the first time does
            else:
                entry.tokens = self.streamed
            contestant.ask("forget_peak")
        return found

    def _built(self, stack: ExitStack, entry: Entry, candidates: chosen.Candidates) -> Contestant:
        """Ours, of the kernels that are given or that were the fastest."""
        ours = self._contestant(stack, entry.name, OurRoom, entry.job)
        self.chip = ours.set_up("chip")
        if told := candidates.told(self.chip):
            entry.chosen = told
            cli.say(f"{entry.name}: {told}")
        entry.choice = pick.pick(self.plan, entry.job, ours, candidates.pool)
        entry.built = ours.set_up("build", choice=dict(entry.choice), graph=self.plan.graph)
        if self.plan.graph and not entry.built.graph:
            cli.say(f"{entry.name} is no graph, its kernels are launched one by one: {entry.built.graph_evidence}")
            ours.restart()
            again = ours.set_up("build", choice=dict(entry.choice), graph=False)
            entry.built = replace(again, graph_evidence=entry.built.graph_evidence)
        return ours

    def _show(self, ours: Contestant) -> None:
        """The text of ours, while it is written: a generation that nobody times."""
        shown = Stream(self.plan.codec, self.entries[0].job.prompts, _write)
        ours.listener = shown
        try:
            ours.set_up("stream", end=self.plan.codec.end)
        finally:
            ours.listener = None
            shown.end()
        self.streamed = shown.tokens()

    def _join(self, stack: ExitStack, found: dict[str, Contestant], name: str, mode: str) -> None:
        group = gguf.BLOCK if mode == "llama.cpp" and self.plan.job.form == Q8 else 0
        job = replace(self.plan.job, sizes=replace(self.plan.job.sizes, group=group))
        entry = Entry(name, job, False)
        self.entries.append(entry)
        rooms: dict[str, type[Room]] = {"transformers": TransformersRoom, "llama.cpp": LlamaCppRoom}
        room, arguments = rooms.get(mode, PlainRoom), () if mode in rooms else (mode,)
        contestant = self._contestant(stack, name, room, job, *arguments)
        try:
            entry.recipe = contestant.set_up("ready")
        except Lost as error:
            self._out(entry, error)
            return
        found[name] = contestant

    def _judge(self, found: dict[str, Contestant]) -> None:
        """Ceilings, and what the plain network says of our logits; each judge ends before anything is timed."""
        for entry in self.entries:
            with ExitStack() as stack:
                judge = self._contestant(stack, "the plain network", JudgeRoom, entry.job)
                self.peaks = self.peaks or judge.set_up("peaks")
                if not self.plan.check:
                    return
                steps = max(1, min(entry.job.sizes.steps, CHECKED_ROWS // entry.job.sizes.B))
                with _blamed(entry):
                    drawn, logits = found[entry.name].set_up("logits", steps=steps)
                entry.tokens = drawn = [ids[:steps] for ids in drawn]
                entry.verdict = judge.set_up("judge", drawn=drawn, logits=logits)

    def _judge_timed(self) -> None:
        """What was written on the clock, once all others have given their memory back: a kernel that was right before
        may know the difference."""
        for entry in self.entries:
            if not (entry.ours and entry.verdict and entry.rounds and not entry.wrong and not entry.status):
                continue
            some = random.sample(list(zip(entry.turns, entry.rounds, strict=True)), min(MOST_TEXTS, len(entry.rounds)))
            progress.tell(f"the plain network reads what {entry.name} wrote")
            with ExitStack() as stack:
                judge = self._contestant(stack, "the plain network", JudgeRoom, entry.job)
                asked = [(turn, done["tokens"], [done["last"]]) for turn, done in [*some, *entry.cut]]
                if entry is self.entries[0] and self.streamed:
                    asked.append((0, self.streamed, []))
                for turn, drawn, lasts in asked:
                    text = dict(turn=turn, drawn=drawn, lasts=lasts, yard=entry.verdict.yard)
                    entry.timed.append(judge.set_up("judge_text", **text))

    # --- measuring ---

    def _rounds(self, contestants: dict[str, Contestant]) -> None:
        """Everybody's turns, in random order, each round with a text that is new to all. Who dies or hangs takes part
        no longer, and its row says so."""
        entries = {e.name: e for e in self.entries}
        cut = secrets.randbelow(max(1, self.plan.rounds))  # the round before which a text of ours ends early
        for round_ in progress.track(range(self.plan.rounds), "round", lambda turn: f"round {turn + 1}"):
            turn = 1 + secrets.randbits(40)
            for name in random.sample(list(contestants), len(contestants)):
                try:
                    self._turn(entries[name], contestants[name], turn, round_ == cut)
                except Lost as error:
                    self._out(entries[name], error)
                    del contestants[name]
        others = [e.rest for e in self.entries if e.rest and not e.ours]
        for entry in self.entries:
            if entry.ours and entry.rest:
                entry.awake = entry.rest.evidence(others)
        for name, contestant in contestants.items() if self.plan.rounds else ():
            entries[name].peak_bytes = contestant.ask("peak_bytes")
            if entries[name].ours:
                entries[name].inside = contestant.ask("inside")

    def _turn(self, entry: Entry, contestant: Contestant, turn: int, cut: bool) -> None:
        entry.rest = entry.rest or rest_of(contestant.process.pid)
        entry.rest.end()
        steps = entry.job.sizes.steps
        if cut and entry.ours and steps > 1:
            other = 1 + secrets.randbits(40)
            entry.cut.append((other, contestant.ask("cut", turn=other, steps=1 + secrets.randbelow(steps - 1))))
        entry.rounds.append(contestant.ask("run", turn=turn))
        entry.turns.append(turn)
        entry.rest.begin()

    def _out(self, entry: Entry, error: Lost) -> None:
        entry.status, entry.evidence = error.status, str(error)
        cli.say(f"{entry.name} takes no part any more: {error}")


@contextmanager
def _blamed(entry: Entry) -> Iterator[None]:
    """Who ends the run by what it did has a row that says so."""
    try:
        yield
    except Lost as error:
        entry.status, entry.evidence = error.status, str(error)
        raise


def _write(text: str) -> None:
    print(text, end="", flush=True)


def check_memory(plan: Plan) -> None:
    """Refuse what would not fit, before the system kills somebody for it."""
    have = facts.available_bytes()
    if plan.job.gpu or have is None:
        return
    ours = [inference(job.source.model, job.sizes, META).bytes for job in plan.jobs]
    weights = plan.job.source.model.parameters
    read = 4 * weights  # fp32, as they are taken; the judge's again, in fp64, and with the yard beside it
    judged = read + (8 if weights <= EXACT else 4) * weights + max(ours) if plan.check else 0
    need = sum(ours) + read + max(judged, len(plan.baselines) * read)
    if need > have:
        raise CannotGoOn(
            f"{plan.job.source.model.name} needs about {need / 1e9:.3g} GB of memory, {have / 1e9:.3g} GB are free: "
            "take fewer baselines, --no-check, no --ladder, a smaller --batch, or a smaller model"
        )


def _ours(plan: Plan, job: Job) -> str:
    return "ours" if len(plan.jobs) == 1 else f"ours {job.form}"
