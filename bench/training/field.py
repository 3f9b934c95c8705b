"""All contestants of a run, each in a process of its own: started, built, and lending memory to each other."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from bench import cli
from bench.core.variants import Variant
from bench.models import CallId
from bench.training.contestants import Contestant
from bench.training.plan import Plan
from bench.training.rooms import Built, OurRoom, TorchRoom

PARK_LIMIT_S = 60.0


@dataclass(frozen=True)
class Entrant:
    """Who takes part: our step, as it was chosen or with one swap, or one of PyTorch's."""

    name: str
    swap: str = ""  # LAYER=VARIANT
    baseline: str = ""  # PyTorch's, by its mode

    @property
    def ours(self) -> bool:
        return not self.baseline


OURS = Entrant("ours")


class Field:
    """Use as a context manager: it ends the processes."""

    def __init__(self, plan: Plan, notes: list[str]):
        self.plan = plan
        self.notes = notes  # what the page must say of the run
        self.contestants: dict[Entrant, Contestant] = {}
        self.built: dict[str, Built] = {}  # by the name of ours
        self.recipes: dict[str, str] = {}  # by the name of PyTorch's
        self._stack = ExitStack()

    def __enter__(self) -> "Field":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def entrants(self) -> list[Entrant]:
        """Ours first."""
        return sorted(self.contestants, key=lambda e: not e.ours)

    @property
    def baselines(self) -> dict[Entrant, Contestant]:
        return {e: c for e, c in self.contestants.items() if not e.ours}

    def note(self, text: str) -> None:
        cli.say(text)
        self.notes.append(text)

    def start(self, e: Entrant) -> None:
        """Ours allocates all its memory, before others are tried beside it."""
        self.contestants[e] = self._stack.enter_context(Contestant(e.name, OurRoom, self.plan.job))
        self.park(e, self.plan.setup_limit)

    def restart(self, e: Entrant) -> None:
        self.contestants[e].close()
        self.start(e)

    def park(self, e: Entrant, limit: float = PARK_LIMIT_S) -> None:
        """Have a contestant on a GPU lend the memory that it does not use to the others."""
        if self.plan.gpu:
            self.contestants[e].ask("park", limit=limit)

    def build(self, e: Entrant, choice: dict[CallId, Variant]) -> None:
        """Our step, built and loaded: on a GPU as a graph, or where that fails by plain launches in a new process."""
        graph, limit = self.plan.graph, self.plan.setup_limit
        built = self.contestants[e].ask("build", choice=choice, graph=graph, limit=limit)
        if graph and not built.graph:
            self.note(f"{e.name} is no graph, its kernels are launched one by one: {built.graph_evidence}")
            self.restart(e)
            plain = self.contestants[e].ask("build", choice=choice, graph=False, limit=limit)
            built = replace(plain, graph_evidence=built.graph_evidence)
        elif self.plan.gpu and not graph:
            built = replace(built, graph_evidence="--no-graph")
        self.built[e.name] = built
        self.contestants[e].ask("load")
        self.park(e)

    def start_baselines(self) -> None:
        for mode in self.plan.baselines:
            e = Entrant(f"torch.{mode}", baseline=mode)
            self.contestants[e] = self._stack.enter_context(Contestant(e.name, TorchRoom, self.plan.job, mode))
