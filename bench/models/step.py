"""A model's training step, assembled from variants of the registry, in memory that is planned once.

    step = Step(program(model, B, T, "bf16"), modules)       # modules: {CallId: an imported variant}
    step.load(parameters)
    loss, norm = step.run(batches, lr)

A `Program` writes the step down as a list of calls of the contract, in order, with their arguments; it is the whole
model, and its `Memory` every tensor. `Step` binds each call to a variant once, so that running is one loop: nothing is
allocated and nothing is looked up. On a GPU that loop is recorded once as two graphs (`Step.capture`), which are
replayed: between them the norm of the gradients is read, and where it is not finite the update is left out.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

import torch

from bench.checkpoints.state import State, describe
from bench.core.evidence import cause_of
from bench.core.variants import need_options, need_support, takes_workspace
from bench.models import CallId
from bench.models.calls import Batch, Call, Tensors
from bench.models.memory import ALIGN
from bench.models.program import Program, step_calls
from bench.models.rounding import round_at_random, scratch_groups
from reference import contract

CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s guard against a division by zero


class Shards(Protocol):
    """The optimizer's state, spread over ranks: whole tensors come in and go out."""

    def start(self, parameters: Mapping[str, torch.Tensor]) -> None: ...
    def load(self, state: State) -> None: ...
    def whole_gradients(self) -> None:
        """Every rank's part of the sums into all ranks' memory. All ranks call it together."""

    def gather(self) -> dict[str, Any]:
        """m, v and masters by name, on the CPU; masters None where there are none. All ranks call it together."""


Bound = tuple[Callable[..., object], tuple[object, ...], Mapping[str, Tensors]]
Runner = Callable[[list[Bound]], None]


class Step:
    """The training step of `program`, each call bound to the variant that `modules` names for it.

    A module has the contract's function of the call's phase, and perhaps `workspace` and `prepare`. accumulation:
    micro-batches a step. All variants share one workspace, as large as the largest wish. seed: of the rounding of
    weights that have no masters. ranks: processes whose gradients are summed (bench.trainer.ranks).

    Everything between the copy of the batches and the reading of loss and norm, and everything after it, is launched
    from memory that is there, with what changes from step to step (batches, lr, the step's number) in tensors: so each
    can be recorded as a graph.
    """

    def __init__(
        self,
        program: Program,
        modules: Mapping[CallId, ModuleType],
        accumulation: int = 1,
        seed: int = 0,
        ranks: int = 1,
    ):
        self.memory, self.modules, self.accumulation, self.ranks = program.memory, modules, accumulation, ranks
        self.model = program.model
        self.shards: Shards | None = None  # of the optimizer's state, where ranks share it
        mem = program.memory
        self.device = mem.device
        self.inbox = mem.inbox(accumulation)
        self.replay: tuple[Callable[[], None], Callable[[], None]] | None = None  # of gradients and norm, of the update
        self.cleared, self.max_norm = program.cleared, program.model.recipe.max_norm
        sizes_and_dtype = (program.model, mem.B, mem.T, mem.dtype, mem.recompute)
        self.shapes = {id: c.shape for id, c in step_calls(*sizes_and_dtype).items()}
        self.first_calls = program.forward_backward(accumulate=False)
        self.later_calls = program.forward_backward(accumulate=True) if accumulation > 1 else []
        self.update_calls = self._updates(program, seed)
        calls = [*self.first_calls, *self.later_calls, *self.update_calls]
        self._prepare(calls)
        sizes = [workspace_bytes(c, modules[c.id], self._shape(c)) for c in calls]
        self.workspace = make_workspace(sizes, mem.device.place)
        self.bytes = sum(t.nbytes for t in mem.tensors) + self.workspace.nbytes
        self.first = [self._bind(c) for c in self.first_calls]
        self.later = [self._bind(c) for c in self.later_calls]
        # A step's last micro-batch, and what follows it before the norm: where ranks reduce gradients.
        self.last_calls = self.later_calls or self.first_calls
        self.last, self.reduced = list(self.later or self.first), list[Bound]()
        norm, *adamw = map(self._bind, self.update_calls)
        self.update_norm, self.update_adamw = norm, [self._with_rounding(bound) for bound in adamw]

    def _updates(self, program: Program, seed: int) -> list[Call]:
        """The norm and AdamW; without masters AdamW of some parameters after the other, in scratch that they share."""
        mem = self.memory
        self.rounds = mem.masters is None and mem.dtype in ("bf16", "fp16")
        if not self.rounds:
            return program.update()
        if mem.dtype != "bf16":
            raise ValueError(f"{mem.dtype} needs masters: only bf16 is rounded at random")
        self.seed = seed
        scratch, groups = scratch_groups(mem.params, ALIGN // 4)
        mem.tensors.append(scratch)
        return [program.norm_call(), *(program.adamw_call(group) for group in groups)]

    def _with_rounding(self, bound: Bound) -> Bound:
        """AdamW, where there are no masters: in fp32 copies of the weights, which are then rounded at random."""
        if not self.rounds:
            return bound
        function, args, outputs = bound
        weights, copies = outputs["params"], outputs["masters"]
        assert isinstance(weights, list) and isinstance(copies, list)

        def rounded() -> None:
            for copy, weight in zip(copies, weights, strict=True):
                copy.copy_(weight)
            function(*args, **outputs)
            for copy, weight in zip(copies, weights, strict=True):
                first = int(weight.storage_offset())
                round_at_random(weight.view(-1), copy.view(-1), first, self.seed, self.memory.step)

        return rounded, (), {}

    def _shape(self, call: Call) -> contract.Shape:
        """AdamW may be called for some of the parameters."""
        shape = self.shapes[call.id]
        if call.id.layer != "adamw":
            return shape
        params = call.outputs["params"]
        assert isinstance(params, list)
        return {**shape, "tensors": [tuple(p.shape) for p in params], "weight_decays": call.inputs[-1]}

    def _prepare(self, calls: list[Call]) -> None:
        shapes = {(c.id, repr(self._shape(c))): self._shape(c) for c in calls}
        for (id, _), shape in shapes.items():
            module = self.modules[id]
            if hasattr(module, "prepare"):
                module.prepare(shape, id.phase)

    def _bind(self, call: Call) -> Bound:
        return bind(call, self.modules[call.id], self.workspace, self._shape(call))

    def load(self, parameters: dict[str, torch.Tensor]) -> None:
        """Take parameters (by name, any float dtype) and start training afresh: no moments, step 0."""
        mem = self.memory
        if parameters.keys() != mem.params.keys():
            raise ValueError(f"parameters differ by {sorted(parameters.keys() ^ mem.params.keys())}")
        for name, value in parameters.items():
            mem.params[name].copy_(value)
            if mem.masters is not None:
                mem.masters[name].copy_(value)
        for flat in (mem.flat_m, mem.flat_v, mem.flat_grads):
            flat.zero_()
        if self.shards:
            self.shards.start(parameters)
        mem.step.zero_()
        mem.dlosses.fill_(1 / (mem.B * mem.T * self.accumulation * self.ranks))

    def state(self, step: int, rest: Mapping[str, object]) -> State:
        """All that training goes on from after `step` steps: views of this memory, to be copied before the next one.

        rest: what else the run remembers; the count of updates is added to it. Where ranks share the optimizer's state
        all of them must call this.
        """
        mem = self.memory
        said = {**rest, "updates": int(mem.step.item())}
        moments: dict[str, Any] = dict(m=mem.m, v=mem.v, masters=mem.masters)
        if self.shards:
            moments = self.shards.gather()
        return State(step, describe(self.model), mem.dtype, mem.params, rest=said, **moments)

    def load_state(self, state: State) -> None:
        """Go on from a state of this model (see bench.checkpoints.run.load). Without moments it starts afresh."""
        mem = self.memory
        self.load(dict(state.weights))
        if not state.m:
            return
        mem.step.fill_(float(state.rest["updates"]))
        if self.shards:
            self.shards.load(state)
            return
        kinds = [(mem.m, state.m), (mem.v, state.v)]
        if mem.masters is not None and state.masters is not None:
            kinds.append((mem.masters, state.masters))
        for views, values in kinds:
            for name, value in values.items():
                views[name].copy_(value)

    def gradients(self, batches: Sequence[Batch]) -> None:
        """All micro-batches, forward and backward: gradients into `memory.grads`, mean loss into `.loss`."""
        self._take(batches)
        self._gradients(_run)

    def _take(self, batches: Sequence[Batch]) -> None:
        if len(batches) != self.accumulation:
            raise ValueError(f"{len(batches)} micro-batches for a step of {self.accumulation}")
        for into, batch in zip(self.inbox, batches, strict=True):
            for static, given in zip(into, batch, strict=True):
                static.copy_(given)

    def _gradients(self, run: Runner) -> None:
        mem = self.memory
        mem.loss.zero_()
        for grad in self.cleared:
            grad.zero_()
        for i, (tokens, targets) in enumerate(self.inbox):
            mem.tokens.copy_(tokens)
            mem.targets.copy_(targets)
            last = i + 1 == self.accumulation
            run(self.last if last else self.later if i else self.first)
            torch.mean(mem.losses, dim=(0, 1), out=mem.micro_loss)
            mem.loss.add_(mem.micro_loss, alpha=1 / self.accumulation)
        run(self.reduced)

    def run(self, batches: Sequence[Batch], lr: float, plain: bool = False) -> tuple[float, float]:
        """One step of training: (loss, gradient norm before clipping). One batch a micro-batch.

        Where the norm is not finite there is no update: parameters, moments and the step's number stay. The graphs are
        replayed where there are any; plain: launch every kernel by itself nevertheless.
        """
        loss, norm = self.measure(batches, plain)
        if math.isfinite(norm):
            self.update(lr, plain)
        return loss, norm

    def measure(self, batches: Sequence[Batch], plain: bool = False) -> tuple[float, float]:
        """The first half of a step: gradients of all micro-batches; (loss, gradient norm before clipping)."""
        mem = self.memory
        self._take(batches)
        graphs = None if plain else self.replay
        graphs[0]() if graphs else self._gradients_and_norm(_run)
        return mem.loss.item(), mem.norm.item()

    def update(self, lr: float, plain: bool = False) -> None:
        """The second half: clipping and AdamW with the gradients that `measure` left. Nothing is waited for."""
        self.memory.lr.fill_(lr)
        graphs = None if plain else self.replay
        graphs[1]() if graphs else self._update(_run)

    # --- without training ---

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Forward alone: the loss of every target, (B, T) fp32, to be read before anything else is run. Gradients,
        parameters and moments stay."""
        mem = self.memory
        tokens, targets = batch
        mem.tokens.copy_(tokens)
        mem.targets.copy_(targets)
        _run(self.first[: self._classifier + 1])
        return mem.losses

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Forward up to the loss: logits (B, T, VP) of tokens (B, T), to be read before anything else is run."""
        self.memory.tokens.copy_(tokens)
        _run(self.first[: self._classifier])
        call = self.first_calls[self._classifier]
        names = contract.pass_of(contract.load(call.id.layer), call.id.phase).positional()
        given = {**dict(zip(names, call.inputs, strict=True)), **call.outputs}
        logits = given["logits"]
        assert isinstance(logits, torch.Tensor)
        return logits

    @property
    def _classifier(self) -> int:
        """Where the loss is computed: forward's last call."""
        return next(i for i, c in enumerate(self.first_calls) if c.outputs.get("losses") is self.memory.losses)

    def first_not_finite(self, batches: Sequence[Batch]) -> str:
        """Which tensor of a step's gradients is the first to hold a NaN or an infinity, and which call wrote it; a
        parameter that held one before; or "". Every call runs by itself and its outputs are looked at."""
        for name, p in self.memory.params.items():
            if not _finite(p):
                return f"parameter {name}, before the step"
        self._take(batches)
        mem = self.memory
        for grad in self.cleared:
            grad.zero_()
        for i, (tokens, targets) in enumerate(self.inbox):
            mem.tokens.copy_(tokens)
            mem.targets.copy_(targets)
            bounds, calls = (self.later, self.later_calls) if i else (self.first, self.first_calls)
            for at, (bound, call) in enumerate(zip(bounds, calls, strict=True)):
                _run([bound])
                if bad := _not_finite(call):
                    nth, of = (sum(c.id == call.id for c in some) for some in (calls[: at + 1], calls))
                    return f"{bad} of {call.id}, call {nth} of {of} in micro-batch {i + 1}"
        return ""

    def finite(self) -> bool:
        """Whether every parameter is."""
        return all(map(_finite, self.memory.params.values()))

    def _launch(self, run: Runner) -> bool:
        """The whole step by plain launches; whether the norm was finite, and so the parameters were updated."""
        self._gradients_and_norm(run)
        finite = math.isfinite(self.memory.norm.item())
        if finite:
            self._update(run)
        return finite

    def _gradients_and_norm(self, run: Runner) -> None:
        self._gradients(run)
        run([self.update_norm])

    def _update(self, run: Runner) -> None:
        """Clipping and AdamW. Nothing is read back."""
        mem = self.memory
        mem.step.add_(1)
        # grad_scale = min(1, max_norm / (norm + eps)), on the device and in place
        torch.add(mem.norm, CLIP_EPS, out=mem.grad_scale)
        mem.grad_scale.reciprocal_().mul_(self.max_norm).clamp_(max=1)
        run(self.update_adamw)

    def capture(self) -> str | None:
        """Record the step as two graphs for `run` to replay; which call prevents that and why, else None.

        Warms up with one step of plain launches, in which kernels compile and libraries load. What was trained is
        lost: `load` follows. After a failure a CUDA process is best started afresh: some versions of torch leave their
        allocator in the middle of the capture.
        """
        self._gradients_and_norm(_run)
        self._update(_run)
        self.device.synchronize()
        calls = [*self.first_calls, *self.later_calls, *self.update_calls]
        bounds = [*self.first, *self.later, self.update_norm, *self.update_adamw]
        call_of = {id(bound): call for bound, call in zip(bounds, calls, strict=True)}
        broke: list[str] = []

        def run(bounds: list[Bound]) -> None:
            for bound in bounds:
                try:
                    _run([bound])
                except Exception as error:  # kept, because leaving the capture then fails too, and says less
                    broke.append(self._blame(call_of[id(bound)], error))
                    raise

        try:
            gradients = self.device.capture(lambda: self._gradients_and_norm(run))
            self.replay = gradients, self.device.capture(lambda: self._update(run))
        except Exception as error:
            return broke[0] if broke else self._search(bounds, calls) or cause_of(error)
        return None

    def _search(self, bounds: list[Bound], calls: list[Call]) -> str | None:
        """The first call that cannot be captured alone; None where none is to blame, or nothing can be captured now."""
        try:
            self.device.capture(functools.partial(_run, [(self.memory.loss.zero_, (), {})]))
        except Exception:
            return None
        for bound, call in zip(bounds, calls, strict=True):
            try:
                self.device.capture(functools.partial(_run, [bound]))
            except Exception as error:
                return self._blame(call, error)
        return None

    def _blame(self, call: Call, error: Exception) -> str:
        module = self.modules[call.id]
        name = getattr(module, "__name__", str(module)).removeprefix("kernels.")
        return f"{call.id} ({name}): {cause_of(error)}"

    def run_timed(self, batches: Sequence[Batch], lr: float, clock: str | None = None) -> dict[CallId, float]:
        """One step of plain launches with a clock around every call: milliseconds of each call, all its repetitions;
        0 of an update that is left out.

        clock: of the device, else its first one.
        """
        self._take(batches)
        self.memory.lr.fill_(lr)
        timer = self.device.timer(clock or self.device.clocks[0])

        def run(bounds: list[Bound]) -> None:
            for function, args, kwargs in bounds:
                timer.start()
                function(*args, **kwargs)
                timer.stop()

        with timer:
            updated = self._launch(run)
        ids = self._ids_in_order()
        times = dict.fromkeys(ids, 0.0)
        for id, seconds in zip(ids if updated else ids[: -len(self.update_adamw)], timer.seconds, strict=True):
            times[id] += seconds * 1e3
        return times

    def run_marked(self, batches: Sequence[Batch], lr: float, mark: Callable[[CallId], AbstractContextManager]) -> None:
        """One step of plain launches, each call inside `mark(its id)`."""
        self._take(batches)
        self.memory.lr.fill_(lr)
        ids = iter(self._ids_in_order())

        def run(bounds: list[Bound]) -> None:
            for bound in bounds:
                with mark(next(ids)):
                    _run([bound])

        self._launch(run)

    def _ids_in_order(self) -> list[CallId]:
        """Of every call of a step."""
        later = [c for _ in range(self.accumulation - 1) for c in self.later_calls]
        return [c.id for c in [*self.first_calls, *later, *self.update_calls]]


def _not_finite(call: Call) -> str:
    """The name of the first output of a call that is not finite, or ""."""
    for name, value in call.outputs.items():
        for tensor in value if isinstance(value, list) else [] if value is None else [value]:
            if not _finite(tensor):
                return name
    return ""


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _run(bound: list[Bound]) -> None:
    for function, args, kwargs in bound:
        function(*args, **kwargs)


def bind(call: Call, module: ModuleType, workspace: torch.Tensor, shape: contract.Shape) -> Bound:
    """(function, positional, keyword) of one call, ready to run; its scratch is the front of `workspace`. ValueError as
    `contract.need_known`."""
    layer = contract.load(call.id.layer)
    taken = contract.pass_of(layer, call.id.phase)
    given = dict(zip(taken.positional(), call.inputs, strict=False))  # what is optional comes behind
    contract.need_known(layer, {name: given[name] for name in taken.scalars})
    outputs = call.outputs
    if takes_workspace(module, call.id.phase):
        size = workspace_bytes(call, module, shape)
        outputs = {**outputs, "workspace": workspace[:size] if size else None}
    return getattr(module, call.id.phase), call.inputs, outputs


def workspace_bytes(call: Call, module: ModuleType, shape: contract.Shape) -> int:
    """Scratch that the variant asks for at this call. Raises Unavailable where it says that it does not take it."""
    need_options(module, call.id.layer, call.id.phase, shape)
    need_support(module, shape)
    if not takes_workspace(module, call.id.phase):
        return 0
    return module.workspace({**shape, "accumulate": call.accumulate}, call.id.phase)


def make_workspace(sizes: list[int], device: str) -> torch.Tensor:
    """One uint8 buffer for the largest of `sizes`, aligned to ALIGN."""
    raw = torch.zeros(max(sizes, default=0) + ALIGN, dtype=torch.uint8, device=device)
    return raw[-raw.data_ptr() % ALIGN :][: max(sizes, default=0)]
