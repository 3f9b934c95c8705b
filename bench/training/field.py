"""All contestants of a run, each in a process of its own: started, built, and lending memory to each other."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from bench import cli
from bench.core.process import RoomOrName
from bench.core.variants import Variant
from bench.models import CallId, choose
from bench.training.contestants import Contestant
from bench.training.deadline import Deadline
from bench.training.plan import Plan
from bench.training.rooms import Built, JudgeRoom, OurRoom, TorchRoom

PARK_LIMIT_S = 60.0


@dataclass(frozen=True)
class Entrant:
    """Who takes part: our step, as it was chosen or with one swap, or one of PyTorch's."""

    name: str
    swap: str = ""  # LAYER=VARIANT
    baseline: str = ""  # PyTorch's, by its mode
    room: RoomOrName = TorchRoom  # of a baseline
    arguments: tuple[object, ...] = ()  # of its room; none: the mode

    @property
    def ours(self) -> bool:
        return not self.baseline


OURS = Entrant("ours")


def baseline(mode: str) -> Entrant:
    return Entrant(f"torch.{mode}", baseline=mode)


class Field:
    """Use as a context manager: it ends the processes."""

    def __init__(self, plan: Plan, notes: list[str], deadline: Deadline | None = None):
        self.plan = plan
        self.notes = notes  # what the page must say of the run
        self.deadline = deadline or Deadline(None, 0.0)
        self.contestants: dict[Entrant, Contestant] = {}
        self.built: dict[str, Built] = {}  # by the name of ours
        self.recipes: dict[str, str] = {}  # by the name of PyTorch's
        self._judge: Contestant | None = None
        self._spawned: dict[Entrant, Contestant] = {}  # that nobody has asked for anything yet
        self._all: list[Contestant] = []
        self._stack = ExitStack()

    def __enter__(self) -> "Field":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An idle process leaves by itself, one after the other and each in seconds; nothing of theirs is left to keep.
        for contestant in self._all:
            contestant.idle = False
        self._stack.__exit__(kind, error, trace)

    @property
    def entrants(self) -> list[Entrant]:
        """Ours first."""
        return sorted(self.contestants, key=lambda e: not e.ours)

    @property
    def baselines(self) -> dict[Entrant, Contestant]:
        return {e: c for e, c in self.contestants.items() if not e.ours}

    @property
    def judge(self) -> Contestant:
        """PyTorch's own runs, which the gate judges by."""
        if self._judge is None:
            self._judge = self._kept(Contestant("PyTorch's band", JudgeRoom, self.plan.job))
        return self._judge

    def new_judge(self) -> None:
        """The judge's process is of no more use."""
        if self._judge is not None:
            self._judge.idle = False
            self._judge.close()
        self._judge = None

    def note(self, text: str) -> None:
        cli.say(text)
        self.notes.append(text)

    def chip(self) -> str:
        """The device's name. On a GPU our contestant says it: this process never makes a CUDA context."""
        if not self.plan.gpu:
            return choose.cpu_name()
        return self.contestants[OURS].ask("chip", limit=self.deadline.limit(PARK_LIMIT_S))

    def spawn(self, *entrants: Entrant) -> None:
        """Start these processes and the judge's: they import PyTorch side by side, before the first is asked."""
        for e in entrants:
            if e not in self._spawned and e not in self.contestants:
                self._spawned[e] = self._process(e)
        _ = self.judge

    def _process(self, e: Entrant) -> Contestant:
        if e.ours:
            made = Contestant(e.name, OurRoom, self.plan.job)
        else:
            made = Contestant(e.name, e.room, self.plan.job, *(e.arguments or (e.baseline,)))
        return self._kept(made)

    def _kept(self, contestant: Contestant) -> Contestant:
        """It ends with the field."""
        contestant.deadline = self.deadline
        self._all.append(contestant)
        return self._stack.enter_context(contestant)

    def enter(self, e: Entrant) -> Contestant:
        """Have an entrant take part."""
        self.contestants[e] = self._spawned.pop(e) if e in self._spawned else self._process(e)
        return self.contestants[e]

    def start(self, e: Entrant) -> None:
        """Ours allocates all its memory, before others are tried beside it."""
        self.enter(e)
        self.park(e, self.plan.setup_limit)

    def restart(self, e: Entrant) -> None:
        self.contestants[e].close()
        self.start(e)

    def leave(self, e: Entrant) -> None:
        """An entrant takes part no longer; its process ends."""
        contestant = self.contestants.pop(e)
        contestant.idle = False  # nobody waits for what it is doing
        contestant.close()

    def park(self, e: Entrant, limit: float = PARK_LIMIT_S) -> None:
        """Have a contestant on a GPU lend the memory that it does not use to the others."""
        if self.plan.gpu:
            self.contestants[e].ask("park", limit=self.deadline.limit(limit))

    def build(self, e: Entrant, choice: dict[CallId, Variant]) -> None:
        """Our step, built and loaded: on a GPU as a graph, or where that fails by plain launches in a new process."""
        graph, limit = self.plan.graph, self.deadline.limit(self.plan.setup_limit)
        built = self.contestants[e].ask("build", choice=choice, graph=graph, limit=limit)
        if graph and not built.graph:
            self.note(f"{e.name} is no graph, its kernels are launched one by one: {built.graph_evidence}")
            self.restart(e)
            limit = self.deadline.limit(self.plan.setup_limit)
            plain = self.contestants[e].ask("build", choice=choice, graph=False, limit=limit)
            built = replace(plain, graph_evidence=built.graph_evidence)
        elif self.plan.gpu and not graph:
            built = replace(built, graph_evidence="--no-graph")
        self.built[e.name] = built
        self.contestants[e].ask("load")
        self.park(e)
