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

import torch

from bench.core.evidence import telling
from bench.core.variants import need_support, takes_workspace
from bench.models import CallId
from bench.models.calls import Batch, Call, Tensors
from bench.models.memory import ALIGN
from bench.models.program import Program, step_calls
from reference import contract

CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s guard against a division by zero

Bound = tuple[Callable[..., object], tuple[object, ...], Mapping[str, Tensors]]
Runner = Callable[[list[Bound]], None]


class Step:
    """The training step of `program`, each call bound to the variant that `modules` names for it.

    A module has the contract's function of the call's phase, and perhaps `workspace` and `prepare`. accumulation:
    micro-batches a step. All variants share one workspace, as large as the largest wish.

    Everything between the copy of the batches and the reading of loss and norm, and everything after it, is launched
    from memory that is there, with what changes from step to step (batches, lr, the step's number) in tensors: so each
    can be recorded as a graph.
    """

    def __init__(self, program: Program, modules: Mapping[CallId, ModuleType], accumulation: int = 1):
        self.memory, self.modules, self.accumulation = program.memory, modules, accumulation
        mem = program.memory
        self.device = mem.device
        self.inbox = mem.inbox(accumulation)
        self.replay: tuple[Callable[[], None], Callable[[], None]] | None = None  # of gradients and norm, of the update
        self.cleared, self.max_norm = program.cleared, program.model.recipe.max_norm
        sizes_and_dtype = (program.model, mem.B, mem.T, mem.dtype, mem.recompute)
        self.shapes = {id: c.shape for id, c in step_calls(*sizes_and_dtype).items()}
        self.first_calls = program.forward_backward(accumulate=False)
        self.later_calls = program.forward_backward(accumulate=True) if accumulation > 1 else []
        self.update_calls = program.update()
        calls = [*self.first_calls, *self.later_calls, *self.update_calls]
        self._prepare(calls)
        sizes = [workspace_bytes(c, modules[c.id], self.shapes[c.id]) for c in calls]
        self.workspace = make_workspace(sizes, mem.device.place)
        self.bytes = sum(t.nbytes for t in mem.tensors) + self.workspace.nbytes
        self.first = [self._bind(c) for c in self.first_calls]
        self.later = [self._bind(c) for c in self.later_calls]
        self.update_norm, self.update_adamw = map(self._bind, self.update_calls)

    def _prepare(self, calls: list[Call]) -> None:
        for id in {c.id for c in calls}:
            module = self.modules[id]
            if hasattr(module, "prepare"):
                module.prepare(self.shapes[id], id.phase)

    def _bind(self, call: Call) -> Bound:
        return bind(call, self.modules[call.id], self.workspace, self.shapes[call.id])

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
        mem.step.zero_()
        mem.dlosses.fill_(1 / (mem.B * mem.T * self.accumulation))

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
            run(self.later if i else self.first)
            torch.mean(mem.losses, dim=(0, 1), out=mem.micro_loss)
            mem.loss.add_(mem.micro_loss, alpha=1 / self.accumulation)

    def run(self, batches: Sequence[Batch], lr: float, plain: bool = False) -> tuple[float, float]:
        """One step of training: (loss, gradient norm before clipping). One batch a micro-batch.

        Where the norm is not finite there is no update: parameters, moments and the step's number stay. The graphs are
        replayed where there are any; plain: launch every kernel by itself nevertheless.
        """
        mem = self.memory
        self._take(batches)
        mem.lr.fill_(lr)
        graphs = None if plain else self.replay
        graphs[0]() if graphs else self._gradients_and_norm(_run)
        loss, norm = mem.loss.item(), mem.norm.item()
        if math.isfinite(norm):
            graphs[1]() if graphs else self._update(_run)
        return loss, norm

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
        run([self.update_adamw])

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
        bounds = [*self.first, *self.later, self.update_norm, self.update_adamw]
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
            return broke[0] if broke else self._search(bounds, calls) or _one_line(error)
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
        return f"{call.id} ({name}): {_one_line(error)}"

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
        for id, seconds in zip(ids if updated else ids[:-1], timer.seconds, strict=True):
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


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {telling(error)}"


def _run(bound: list[Bound]) -> None:
    for function, args, kwargs in bound:
        function(*args, **kwargs)


def bind(call: Call, module: ModuleType, workspace: torch.Tensor, shape: contract.Shape) -> Bound:
    """(function, positional, keyword) of one call, ready to run; its scratch is the front of `workspace`."""
    outputs = call.outputs
    if takes_workspace(module, call.id.phase):
        size = workspace_bytes(call, module, shape)
        outputs = {**outputs, "workspace": workspace[:size] if size else None}
    return getattr(module, call.id.phase), call.inputs, outputs


def workspace_bytes(call: Call, module: ModuleType, shape: contract.Shape) -> int:
    """Scratch that the variant asks for at this call. Raises Unavailable where it says that it does not take it."""
    need_support(module, shape)
    if not takes_workspace(module, call.id.phase):
        return 0
    return module.workspace({**shape, "accumulate": call.accumulate}, call.id.phase)


def make_workspace(sizes: list[int], device: str) -> torch.Tensor:
    """One uint8 buffer for the largest of `sizes`, aligned to ALIGN."""
    raw = torch.zeros(max(sizes, default=0) + ALIGN, dtype=torch.uint8, device=device)
    return raw[-raw.data_ptr() % ALIGN :][: max(sizes, default=0)]
