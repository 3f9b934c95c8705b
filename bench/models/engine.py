"""Text from registry variants: an `Inference` whose calls are bound once, so that a step is one loop, or one CUDA
graph.

    engine = Engine(inference(model, sizes, device), modules, device)    # modules: {CallId: an imported variant}
    engine.load(weights)
    engine.capture()                                                     # on a GPU: the step as one graph, …
    engine.record()                                                      # … on a CPU: its C++ calls without the Python
    tokens = engine.generate(prompts, steps, seed)

All that a step reads and writes lies in memory that is planned; the drawn token is the next step's input without the
host having seen it. What changes from step to step (lengths, the count of tokens, the numbers that draws are made with)
is in tensors, so that one graph serves every step.
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch

from bench.core.evidence import cause_of
from bench.machine.devices import Device
from bench.models import CallId
from bench.models.calls import Call
from bench.models.inference import Inference, Item, Named, Quantised
from bench.models.step import Bound, bind, make_workspace, workspace_bytes
from kernels.cpu import Kernel

RECORDED_STEPS = 2  # that must come out the same before recorded calls are trusted
MOVES = "moves"  # under which the operations between calls are timed


class Engine:
    """`made`, each call bound to the variant that `modules` names for it. All variants share one workspace."""

    def __init__(self, made: Inference, modules: Mapping[CallId, ModuleType], device: Device):
        self.made, self.modules, self.device = made, modules, device
        self.replay: Callable[[], None] | None = None  # of a decode step
        for id, call in made.shapes.items():
            if hasattr(modules[id], "prepare"):
                modules[id].prepare(call.shape, id.phase)
        calls = [item for item in [*made.prefill, *made.decode] if isinstance(item, Call)]
        needs = [workspace_bytes(c, modules[c.id], made.shapes[c.id].shape) for c in calls]
        self.workspace = make_workspace(needs, made.place)
        self.bytes = made.bytes + self.workspace.nbytes
        self.first = [self._bind(item) for item in made.prefill]
        self.plain = [self._bind(item) for item in made.decode]  # one for each call of a step
        self.next = self.plain  # what a step runs

    def _bind(self, item: Item) -> Bound:
        if isinstance(item, Call):
            return bind(item, self.modules[item.id], self.workspace, self.made.shapes[item.id].shape)
        return item.function, item.inputs, item.outputs

    def load(self, weights: Named, quantised: Mapping[str, Quantised] | None = None) -> None:
        self.made.load(weights, quantised)
        self.made.constants()

    # --- texts ---

    def begin(self, prompts: Sequence[Sequence[int]], seed: int) -> None:
        """Put the prompts, B of 1 to T tokens, where prefill reads them; every draw's number is made of the seed."""
        made, sizes = self.made, self.made.sizes
        lengths = [len(p) for p in prompts]
        if len(prompts) != sizes.B or not all(1 <= n <= sizes.T for n in lengths):
            raise ValueError(f"{len(prompts)} prompts of {lengths} tokens for B={sizes.B}, T={sizes.T}")
        padded = [[*p, *[0] * (sizes.T - len(p))] for p in prompts]
        made.tokens.copy_(torch.tensor(padded))
        made.last.copy_(torch.tensor([b * sizes.T + n - 1 for b, n in enumerate(lengths)]))
        made.lengths.copy_(torch.tensor(lengths))
        made.uniform.copy_(torch.rand(made.uniform.shape, generator=torch.Generator().manual_seed(seed)))
        made.count.zero_()

    def prefill(self) -> None:
        """Read the prompts: the cache holds them, and the first token of each sequence is drawn."""
        _run(self.first)

    def step(self, plain: bool = False) -> None:
        """One token more for each sequence. The graph is replayed where there is one. plain: launch by launch."""
        if self.replay and not plain:
            self.replay()
        else:
            _run(self.plain if plain else self.next)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        steps: int,
        seed: int = 0,
        each: Callable[[list[int]], bool] | None = None,
    ) -> list[list[int]]:
        """`steps` tokens (at least 1) after each prompt. The same arguments, the same tokens.

        each: is told the tokens of every step as they come, and says whether to go on; without it nothing is read
        before the end. ValueError where they do not fit into the cache: it takes all but the last token.
        """
        sizes = self.made.sizes
        if not 1 <= steps <= sizes.steps or max(map(len, prompts)) + steps - 1 > sizes.S:
            raise ValueError(f"{steps} tokens after {max(map(len, prompts))} do not fit into {sizes}")
        self.begin(prompts, seed)
        self.prefill()
        for _ in range(steps - 1):
            if each and not each(self.made.token.tolist()):
                break
            self.step()
        else:
            if each:
                each(self.made.token.tolist())
        return self.tokens()

    def tokens(self) -> list[list[int]]:
        """What was drawn so far, by sequence."""
        return self.made.drawn[: int(self.made.count)].T.tolist()

    # --- graphs, clocks ---

    def capture(self) -> str | None:
        """Record the decode step as one graph for `step` to replay; which call prevents that and why, else None.

        A step of plain launches warms up, in which kernels compile and libraries load. What was generated is lost.
        """
        if not self._goes_on:
            return None
        self._rewind()
        _run(self.plain)
        self.device.synchronize()
        self._rewind()
        broke: list[str] = []

        def run() -> None:
            for bound, item in zip(self.plain, self.made.decode, strict=True):
                try:
                    _run([bound])
                except Exception as error:  # kept, because leaving the capture then fails too, and says less
                    broke.append(f"{_named(item)}: {cause_of(error)}")
                    raise

        try:
            self.replay = self.device.capture(run)
        except Exception as error:
            return broke[0] if broke else cause_of(error)
        finally:
            self._rewind()
        return None

    def record(self) -> str | None:
        """On a CPU: have a step call C++ functions as they were called once, with the same pointers, without the Python
        around them, which is microseconds of each. Why that is not done, else None.

        A prefill and some steps from the same text decide: where they leave one bit otherwise than launched plainly,
        the variants run as ever. What was generated is lost.
        """
        if not self._goes_on:
            return None
        before = self._left()
        self._rewind()
        self.next = [bound for bounds in map(_recorded, self.plain) for bound in bounds]
        if all(torch.equal(a, b) for a, b in zip(before, self._left(), strict=True)):
            return None
        self.next = self.plain
        return "recorded calls leave other results than the variants do"

    @property
    def _goes_on(self) -> bool:
        """Whether there is room for a step at all."""
        return self.made.sizes.S > 1 and self.made.sizes.steps > 1

    def _left(self) -> list[torch.Tensor]:
        """What a prefill of made-up prompts and a few steps leave."""
        made, sizes = self.made, self.made.sizes
        draw = torch.Generator().manual_seed(0)
        prompts = torch.randint(made.model.v, (sizes.B, sizes.T), generator=draw).tolist()
        self.begin([p[: max(1, sizes.T - b)] for b, p in enumerate(prompts)], seed=0)  # of several lengths
        self.prefill()
        found = []
        for _ in range(min(sizes.steps - 1, sizes.S - sizes.T, RECORDED_STEPS)):
            self.step()
            found += [made.logits.clone(), made.token.clone()]
        return [*found, *(t.clone() for pair in made.caches for t in pair)]

    def _rewind(self) -> None:
        """As before the first token, with one position in the cache."""
        self.made.lengths.fill_(1)
        self.made.count.zero_()

    def timed(self, prefill: bool, clock: str | None = None) -> dict[CallId | str, float]:
        """Seconds of each call of a prefill, or of a step, launched one by one: all its repetitions, and MOVES."""
        items, bounds = (self.made.prefill, self.first) if prefill else (self.made.decode, self.plain)
        timer = self.device.timer(clock or self.device.clocks[0])
        with timer:
            for function, args, kwargs in bounds:
                timer.start()
                function(*args, **kwargs)
                timer.stop()
        found: dict[CallId | str, float] = {}
        for item, seconds in zip(items, timer.seconds, strict=True):
            key = item.id if isinstance(item, Call) else MOVES
            found[key] = found.get(key, 0.0) + seconds
        return found


def _recorded(bound: Bound) -> list[Bound]:
    """A call once, and the calls of C++ functions that it made; itself where it made none. Kernels in C++ compute in
    those alone: outside kernels/torch a variant may not compute with PyTorch (CONTRIBUTING.md)."""
    function, args, kwargs = bound
    found: list[tuple[Callable[..., object], list[object]]] = []
    Kernel.recorded = found
    try:
        function(*args, **kwargs)
    finally:
        Kernel.recorded = None
    return [(call, tuple(given), {}) for call, given in found] or [bound]


def _named(item: Item) -> str:
    return str(item.id) if isinstance(item, Call) else item.name


def _run(bounds: Sequence[Bound]) -> None:
    for function, args, kwargs in bounds:
        function(*args, **kwargs)
