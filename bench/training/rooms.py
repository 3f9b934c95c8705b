"""What happens inside a contestant's process: a model is built, trained step by step, and timed.

The methods of the rooms are the commands that `bench.training.contestants.Contestant` sends.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import cli, simulate
from bench.core import deeds, replaced, world
from bench.core.case import DTYPES
from bench.core.process import is_out_of_memory, summary
from bench.core.shared import Box, Given, opened, stored, values_in
from bench.core.variants import Variant
from bench.machine import compared, profiling, roofline
from bench.machine.devices import is_gpu, open_device
from bench.machine.ranges import span
from bench.models import CallId, choose
from bench.models.calls import Batch
from bench.models.choose import Times
from bench.models.memory import Memory
from bench.models.program import program
from bench.models.step import CLIP_EPS, Step
from bench.training import spot
from bench.training.gate import Excess, State, Update, Updates
from reference.models.model import Model
from reference.models.plain import decay_groups, init_parameters, network

SDPA_CALLS = 5
PARAMETER, GRADIENT = "parameter ", "gradient "  # before a name, of what the judge of a single step is handed
SAMPLED = 64  # elements of each parameter whose updates are judged: the first, the last, and others at random

NumpyBatch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What all contestants train: the same model, sizes, dtype, threads and initial parameters. `device` is the name
    that bench.machine.devices.open_device knows it by."""

    model: Model
    B: int
    T: int
    dtype: str
    device: str = "cpu"
    threads: int = 1
    accumulation: int = 1
    seed: int = 0
    simulate: bool = False
    recompute: tuple[str, ...] = ()


class StepDone(TypedDict):
    """One training step: loss, norm of all gradients before clipping, each gradient's where asked, and seconds; of ours
    also a sample of its update."""

    loss: float
    norm: float
    norms: dict[str, float]
    wall_s: float
    cpu_s: float
    update: Update | None


class Room(compared.Room):
    """What every contestant can be asked. A subclass has `load` and `_step`."""

    def __init__(self, job: Job):
        super().__init__(open_device(job.device), is_gpu(job.device), job.threads)
        self.job = job

    def parameters(self, perturbed: int | None = None) -> dict[str, torch.Tensor]:
        """The initial parameters by name, the same in every process, rounded to the working dtype.

        Rounded, so that all contestants start from one point whatever they keep their weights in. perturbed: a seed
        that moves each by at most one unit in the last place of the working dtype.
        """
        dtype = DTYPES[self.job.dtype]
        found = {name: p.to(dtype) for name, p in init_parameters(self.job.model, self.job.seed).items()}
        if perturbed is not None:
            gen = torch.Generator().manual_seed(perturbed)
            for name, p in found.items():
                noise = torch.rand(p.shape, generator=gen).mul_(2).sub_(1).mul_(torch.finfo(dtype).eps)
                found[name] = torch.addcmul(p.double(), p.double(), noise.double()).to(dtype)
        return found

    def load(self, perturbed: int | None = None) -> None:
        """Take the initial parameters and forget all training."""
        raise NotImplementedError

    def _step(self, batches: list[Batch], lr: float, details: bool) -> tuple[float, float, dict[str, float]]:
        raise NotImplementedError

    def step(self, batches: list[NumpyBatch], lr: float, details: bool = False) -> StepDone:
        """One training step: loss, gradient norm, seconds of the clock and of the process's CPU time.

        The clock is the wall's on a CPU; on a GPU it is the device's own, from before the first launch to after the
        last kernel. details: also the norm of every parameter's gradient (before clipping); such a step is not for
        timing.
        """
        ready = self._batches(batches)
        with self.device.timer(self.clock) as timer:
            cpu = time.process_time_ns()
            timer.start()
            loss, norm, norms = self._step(ready, lr, details)
            timer.stop()
            cpu = time.process_time_ns() - cpu
        return StepDone(loss=loss, norm=norm, norms=norms, wall_s=timer.seconds[0], cpu_s=cpu / 1e9, update=None)

    def steps(self, steps: Iterable[list[NumpyBatch]], lr: float, details: bool = False) -> list[StepDone]:
        """Several steps, one after the other; `details` of the first."""
        return [self.step(batches, lr, details and i == 0) for i, batches in enumerate(steps)]

    def _batches(self, batches: list[NumpyBatch]) -> list[Batch]:
        place = self.device.place
        return [(torch.from_numpy(x).to(place), torch.from_numpy(y).to(place)) for x, y in batches]

    def profile(self, batches: list[NumpyBatch], lr: float, name: str, folder: Path) -> list[profiling.Row]:
        """A trace of one step (see bench.machine.profiling); its rows."""
        ready = self._batches(batches)
        return profiling.profile(lambda: self._step(ready, lr, False), self.device, name, folder, calls=1)

    def park(self) -> None:
        """Hand memory that is not in use back to the GPU, for the other contestants."""
        self.device.release_unused()


class OurRoom(Room):
    """The step of registry variants. Without measurements `build` alone is enough."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.program = program(job.model, job.B, job.T, job.dtype, self.device, job.recompute)
        self.memory = self.program.memory
        self.sample = Sample(self.memory)
        self.kept: list[tuple[Box, Given]] = []  # of a step that is to be judged by itself

    def race(self, pool: dict[CallId, list[Variant]], **limits: float) -> Times:
        """Time candidates at the step's calls (see bench.models.choose.race). What was loaded is lost."""
        return choose.race(self.program, pool, tell=self.tell, **limits)

    def build(self, choice: dict[CallId, Variant], graph: bool = False) -> "Built":
        """Bind the step to the chosen variants, and with `graph` record it. `load` must follow."""
        if self.job.simulate:
            for backend in {v.backend for v in choice.values() if v.gpu_code}:
                simulate.install(backend)
        deeds.guard()  # before any kernel is loaded
        self.seal = replaced.sealed()
        self.world = world.of(world.LEFT_ALONE, world.take())
        modules = {key: variant.load() for key, variant in choice.items()}
        self.names = {key: variant.name for key, variant in choice.items()}
        self.training = Step(self.program, modules, self.job.accumulation)
        self.device.forget_peak()
        evidence = self.training.capture() if graph else None
        # A replay allocates nothing: what its kernels hold for a while was allocated when the graph was recorded.
        self.recorded_peak = self.device.memory()[1] if graph else 0
        return Built(self.training.bytes, self.memory.saved_bytes, graph and evidence is None, evidence or "")

    def peak_bytes(self) -> int:
        return max(super().peak_bytes(), self.recorded_peak)

    def load(self, perturbed: int | None = None) -> None:
        self.training.load(self.parameters(perturbed))

    def steps(
        self, steps: Iterable[list[NumpyBatch]], lr: float, details: bool = False, spot: int | None = None
    ) -> list[StepDone]:
        """As any contestant's; of the one of number `spot`, from 0, its parameters before and its gradients are kept,
        for `handed`."""
        done = []
        for i, batches in enumerate(steps):
            if i == spot:
                self.kept = [stored({PARAMETER + name: p for name, p in self.memory.params.items()})]
            done.append(self.step(batches, lr, details and i == 0))
            if i == spot:
                self.kept.append(stored({GRADIENT + name: g for name, g in self.memory.grads.items()}))
        return done

    def handed(self) -> list[Given]:
        """Parameters and gradients of the step that was kept, to be let go of by `forget`."""
        return [given for _, given in self.kept]

    def forget(self) -> None:
        for box, _ in self.kept:
            box.close()
        self.kept = []
        self.forget_peak()  # what was kept is none of the step's

    def step(self, batches: list[NumpyBatch], lr: float, details: bool = False) -> StepDone:
        before = self.sample.read()
        done = super().step(batches, lr, details)
        if changed := world.difference(self.world, world.take()):
            raise cli.CannotGoOn(f"global_state: {changed}, since before the kernels were loaded")
        done["norms"] = {name: _norm(g) for name, g in self.memory.grads.items()}  # off the clock, so at each step
        done["update"] = self.sample.update(before, self.sample.read(), lr)
        return done

    def _step(self, batches: list[Batch], lr: float, details: bool) -> tuple[float, float, dict[str, float]]:
        return *self.training.run(batches, lr), {}

    def step_in_context(self, batches: list[NumpyBatch], lr: float) -> "InContext":
        """Milliseconds of each call inside one step, all its repetitions; and of a whole step without a graph."""
        ready = self._batches(batches)
        if not self.on_gpu:
            start = time.perf_counter_ns()
            times = self.training.run_timed(ready, lr)
            return InContext(times, (time.perf_counter_ns() - start) / 1e6, self.clock)
        # Around a GPU's kernels a clock costs more than the gaps between them: the whole step is another one.
        times, clock = self._busy(ready, lr)
        with self.device.timer(self.clock) as timer:
            timer.start()
            self.training.run(ready, lr, plain=True)
            timer.stop()
        return InContext(times, timer.seconds[0] * 1e3, clock)

    def profile(self, batches: list[NumpyBatch], lr: float, name: str, folder: Path) -> list[profiling.Row]:
        """A trace of one step of plain launches, every call in a range layer/shape/phase/variant; its rows."""
        ready = self._batches(batches)

        def step() -> None:
            self.training.run_marked(ready, lr, lambda id: span(f"{id.place}/{id.phase}/{self.names[id]}"))

        return profiling.profile(step, self.device, name, folder, calls=1)

    def _busy(self, batches: list[Batch], lr: float) -> tuple[dict[CallId, float], str]:
        """Times of all calls by the device's first clock, or where that fails by the one steps are timed with."""
        clock = self.device.clocks[0]
        try:
            return self.training.run_timed(batches, lr, clock), clock
        except RuntimeError as error:  # the profiler's counters may be somebody else's
            cli.say(f"calls are timed by {self.clock}, not by {clock}: {summary(error)}")
            return self.training.run_timed(batches, lr, self.clock), self.clock


class Sample:
    """A few elements of every parameter, at places that nobody knows beforehand; read outside of the clock."""

    def __init__(self, memory: Memory):
        draw = random.SystemRandom()
        self.memory = memory
        offsets = {n: sorted(_places(p.numel(), draw)) for n, p in memory.params.items()}
        self.counts = [len(places) for places in offsets.values()]

        def index(views: dict[str, torch.Tensor]) -> torch.Tensor:
            # Each flat buffer aligns its parameters by itself.
            found = [views[n].storage_offset() + place for n, places in offsets.items() for place in places]
            return torch.tensor(found, device=memory.device.place)

        self.of_work, self.of_fp32 = index(memory.params), index(memory.m)

    def read(self) -> "Reading":
        """The optimizer's state as it is now, on the device."""
        mem = self.memory
        masters = None if mem.flat_masters is None else mem.flat_masters[self.of_fp32]
        return mem.flat_params[self.of_work], mem.flat_m[self.of_fp32], mem.flat_v[self.of_fp32], masters

    def update(self, before: "Reading", after: "Reading", lr: float) -> Update:
        """What the last update was given, and what it made of it. The gradients are still in memory."""
        grads, grad_scale = _numbers(self.memory.flat_grads[self.of_work]), self.memory.grad_scale.item()
        return Update(self.counts, grads, grad_scale, lr, _state(before), _state(after))


Reading = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]  # params, m, v, masters


def same(one: Reading, other: Reading) -> bool:
    """Whether two readings are equal bit for bit; NaN is itself."""
    pairs = ((a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def _state(reading: Reading) -> State:
    params, m, v, masters = reading
    return State(_numbers(params), _numbers(m), _numbers(v), None if masters is None else _numbers(masters))


def _places(count: int, draw: random.Random) -> set[int]:
    return {0, count - 1, *(draw.randrange(count) for _ in range(SAMPLED - 2))}


def _numbers(values: torch.Tensor) -> list[float]:
    return values.float().cpu().tolist()


@dataclass(frozen=True)
class Built:
    """Our step as it was bound: bytes of all memory it will ever use, and whether it is a graph, or why not."""

    bytes: int
    saved_bytes: int  # by recomputing; not among `bytes`
    graph: bool
    graph_evidence: str


@dataclass(frozen=True)
class InContext:
    """One step with a clock around every call."""

    ms: dict[CallId, float]
    whole_ms: float  # of the same step; on a GPU of a step of plain launches without those clocks
    clock: str


CAREFUL = ("compile", "compile-bf16")  # what a careful user of PyTorch writes, as far as the device offers it


class TorchRoom(Room):
    """The step as users of PyTorch write it: `mode` is a baseline of bench.e2e.

    The plain model of reference/models with a padded vocabulary and a loss-only return, fused AdamW with weight
    decay on matrices only, clip_grad_norm_, gradients set to None. In bf16: fp32 parameters under autocast, the
    standard recipe; with `pure`, bf16 parameters and activations and fp32 masters, which are the formats of our step.

    On a GPU the careful modes also choose kernels by measuring (max-autotune), pin the fastest SDPA backend, and let
    fp32 matmuls that autocast leaves use TF32. They take no CUDA graphs of PyTorch's: those keep memory that the other
    contestants need, and a step of this size does not wait for its launches.
    """

    def __init__(self, job: Job, mode: str, pure: bool = False):
        super().__init__(job)
        self.pure = (pure or mode == "compile-bf16") and job.dtype != "fp32"
        self.autocast = job.dtype != "fp32" and not self.pure
        self.dtype = DTYPES[job.dtype]
        self.careful = mode in CAREFUL and is_gpu(job.device)
        self.model = network(job.model).to(self.device.place)
        if self.pure:
            self.model.to(self.dtype)
        self.backend: SDPBackend | None = None  # of SDPA; None leaves the choice to PyTorch
        self.recipe = []
        self.loss: Callable[..., torch.Tensor] = self.model
        if self.autocast or self.pure:
            self.recipe.append("bf16 autocast of fp32 parameters" if self.autocast else "bf16 parameters, fp32 masters")
        self.recipe += ["fused AdamW", "padded vocabulary", "loss-only return"]
        if self.careful:
            import torch._inductor.select_algorithm as algorithms

            algorithms.PRINT_AUTOTUNE = False  # a table for every matmul
            self.loss = torch.compile(self.model, mode="max-autotune-no-cudagraphs")
            self.recipe.insert(0, "torch.compile max-autotune-no-cudagraphs")
            if job.dtype != "fp32":
                torch.set_float32_matmul_precision("high")
                self.recipe.append("TF32 for the fp32 matmuls left")
        elif mode.startswith("compile"):
            self.loss = torch.compile(self.model)
            self.recipe.insert(0, "torch.compile, defaults")

    def load(self, perturbed: int | None = None) -> None:
        self.model.load(self.parameters(perturbed))
        self.model.zero_grad(set_to_none=True)
        named = self.model.named()
        self.names = list(named)
        self.weights: list[torch.Tensor] = list(named.values())
        # What the optimizer updates: the parameters, or their fp32 masters.
        self.masters = [p.detach().float() for p in self.weights] if self.pure else self.weights
        recipe = self.job.model.recipe
        groups = decay_groups(dict(zip(self.names, self.masters, strict=True)), recipe.decay)
        betas = (recipe.beta1, recipe.beta2)
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=recipe.eps, fused=True)

    def warm(self, batches: list[NumpyBatch], lr: float) -> str:
        """Compile and touch all memory with one step, then start afresh. What this baseline is, in words."""
        if self.careful:
            self._pin_sdpa()
        self.load()
        self.step(batches, lr)
        self.load()
        return ", ".join(self.recipe)

    def _pin_sdpa(self) -> None:
        """The SDPA backend that takes the least time, forward and backward, at this step's shape."""
        (call,) = self.job.model.shapes("attention", self.job.B, self.job.T).values()
        B, T, NH, NKV, HS = (call.shape[size] for size in ("B", "T", "NH", "NKV", "HS"))
        packed = torch.randn(B, T, NH + 2 * NKV, HS, device=self.device.place).to(self.dtype)
        milliseconds = {}
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            with suppress(RuntimeError):  # a backend that has no kernel for this card, dtype or head size
                milliseconds[backend] = self._sdpa_ms(backend, packed, NH, NKV)
        if milliseconds:
            self.backend = min(milliseconds, key=milliseconds.__getitem__)
            told = ", ".join(f"{b.name.partition('_')[0].lower()} {ms:.3g} ms" for b, ms in milliseconds.items())
            self.recipe.append(f"SDPA pinned to the fastest of {told}")

    def _sdpa_ms(self, backend: SDPBackend, packed: torch.Tensor, NH: int, NKV: int) -> float:
        """The best of a few forward and backward calls on q, k and v, packed, (B, T, NH + 2 NKV, HS);
        RuntimeError where the backend cannot do it."""
        slices = packed.split((NH, NKV, NKV), dim=2)
        q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in slices)
        with sdpa_kernel(backend), self.device.timer(self.clock) as timer:
            for _ in range(1 + SDPA_CALLS):
                timer.start()
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=NH != NKV)
                out.backward(q.detach())
                timer.stop()
        return min(timer.seconds[1:]) * 1e3

    def _loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with ExitStack() as stack:
            if self.autocast:
                stack.enter_context(torch.autocast(self.device.place.partition(":")[0], self.dtype))
            if self.backend is not None:
                stack.enter_context(sdpa_kernel(self.backend))
            return self.loss(tokens, targets)

    def _step(self, batches: list[Batch], lr: float, details: bool) -> tuple[float, float, dict[str, float]]:
        loss_sum = torch.zeros((), device=self.device.place)
        for tokens, targets in batches:
            loss = self._loss(tokens, targets)
            (loss / len(batches)).backward()
            loss_sum += loss.detach() / len(batches)
        if self.pure:
            for p, master in zip(self.weights, self.masters, strict=True):
                master.grad, p.grad = _grad(p).float(), None
        norms = {}
        if details:
            norms = {n: _norm(_grad(p)) for n, p in zip(self.names, self.masters, strict=True)}
        norm = self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.pure:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        return loss_sum.item(), float(norm), norms  # read last: nothing waits for the GPU before

    def _clip(self) -> torch.Tensor | float:
        """Clip the gradients; their norm before, as a number or a tensor that need not be ready."""
        return torch.nn.utils.clip_grad_norm_(self.masters, self.job.model.recipe.max_norm)


class JudgeRoom(Room):
    """PyTorch's own runs, side by side in one process: the fp32 centre and perturbed runs at the dtype."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.runs: list[_JudgesRun] = []

    def peaks(self) -> dict[str, float | None]:
        return roofline.matmul_peaks(self.job.device, self.job.dtype)

    def begin(self, perturbed: list[int]) -> None:
        """Start the centre's run, and one from parameters perturbed by each of these seeds."""
        self.runs = [_JudgesRun(self.job, None), *(_JudgesRun(self.job, seed) for seed in perturbed)]

    def go_on(self, steps: list[list[NumpyBatch]], lr: float) -> list[list[StepDone]]:
        """The next steps of each run, the centre's first: loss, norm and, of a run's first step, every gradient's."""
        return [run.steps(steps, lr) for run in self.runs]

    def again(self, given: list[Given], batches: list[NumpyBatch], loss: float, norm: float, step: int) -> list[Excess]:
        """What is wrong of our `step`th step, as far as its gradients; the worst first. given: each parameter
        under PARAMETER and its name, each gradient under GRADIENT and its name."""
        values = {n: t for g in given for n, t in values_in(opened(g.path, g.size), g.table).items()}
        parts = [{n.removeprefix(of): t for n, t in values.items() if n.startswith(of)} for of in (PARAMETER, GRADIENT)]
        params, grads = cast(list[dict[str, torch.Tensor]], parts)
        rough = self._taken(params, batches, DTYPES[self.job.dtype])
        truth = self._taken(params, batches, spot.ABOVE[self.job.dtype])
        return spot.excesses(loss, norm, grads, truth, rough, step)

    def _taken(self, params: dict[str, torch.Tensor], batches: list[NumpyBatch], dtype: torch.dtype) -> spot.Taken:
        """A step as far as its gradients in plain PyTorch, computed at `dtype`."""
        model = network(self.job.model).to(self.device.place, dtype)
        model.load(params)
        losses = []
        if self.on_gpu:  # the others have most of its memory
            batches = _sliced(batches, self.job.B)
        for each in self._losses(model, batches, dtype):
            (each.mean() / len(batches)).backward()
            losses.append(each.detach().double().cpu())
        return spot.Taken(torch.cat(losses), {name: _grad(p).cpu() for name, p in model.named().items()})

    def _losses(self, model: Any, batches: list[NumpyBatch], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Of each target, by batch."""
        for tokens, targets in self._batches(batches):
            logits = model(tokens)[..., : self.job.model.v].flatten(0, 1)
            wide = logits.to(torch.promote_types(dtype, torch.float32))
            yield torch.nn.functional.cross_entropy(wide, targets.flatten(), reduction="none")

    @torch.no_grad()
    def evaluated(
        self, given: Given, batch: NumpyBatch, groups: np.ndarray, means: list[float], step: int
    ) -> list[Excess]:
        """What is wrong of the mean losses that ours tells of an evaluation's batch after `step` steps. given:
        parameters by their names; groups: of each target, whose mean it is in, or -1."""
        params = cast(dict[str, torch.Tensor], values_in(opened(given.path, given.size), given.table))
        found = []
        for dtype in (DTYPES[self.job.dtype], spot.ABOVE[self.job.dtype]):
            model = network(self.job.model).to(self.device.place, dtype)
            model.load(params)
            found.append(next(self._losses(model, [batch], dtype)).double().cpu())
        rough, truth = found
        return spot.excesses_of_means(means, torch.from_numpy(groups).flatten(), truth, rough, step)

    def updated(self, update: Update, norm: float, step: int, updates: int) -> list[Excess]:
        """What is wrong of an update of ours, the `updates`th, in step `step`; `norm` is that of its gradients."""
        judged = Updates(self.job.model, self.job.dtype, step - 1, updates - math.isfinite(norm))
        judged.judge(update, norm)
        return sorted(judged.excesses, key=lambda e: -e.times)

    def now(self) -> float:
        """Seconds of the clock that all processes of a machine share."""
        return time.perf_counter()


class _JudgesRun:
    """One of PyTorch's own runs. perturbed: None is the fp32 centre, from the unperturbed parameters; a seed is the
    working dtype in our step's formats, perturbed.

    Where a micro-batch does not fit into a GPU's memory, it is taken in slices whose gradients add up.
    """

    def __init__(self, job: Job, perturbed: int | None):
        self.job, self.perturbed = job, perturbed
        self.room = _Centre(job) if perturbed is None else TorchRoom(job, "eager", pure=True)
        self.room.load(perturbed)
        self.taken, self.slices = 0, 1

    def steps(self, steps: list[list[NumpyBatch]], lr: float) -> list[StepDone]:
        return [self._step(batches, lr) for batches in steps]

    def _step(self, batches: list[NumpyBatch], lr: float) -> StepDone:
        while True:
            try:
                done = self.room.step(_sliced(batches, self.slices), lr, details=True)
            except RuntimeError as error:
                smaller = self.job.B % (2 * self.slices) == 0
                if not self.room.on_gpu or not is_out_of_memory(error) or not smaller:
                    raise
                self.slices *= 2
                self._again()
                continue
            self.taken += 1
            return done

    def _again(self) -> None:
        """Back to before the step. Of a later one only gradients are there by half: the update allocates nothing."""
        self.room.park()
        if self.taken == 0:
            self.room.load(self.perturbed)
        else:
            self.room.optimizer.zero_grad(set_to_none=True)
            self.room.model.zero_grad(set_to_none=True)


def _sliced(batches: list[NumpyBatch], slices: int) -> list[NumpyBatch]:
    """Each micro-batch as `slices` smaller ones of equal size: their mean loss is its own."""
    parts = []
    for tokens, targets in batches:
        size = len(tokens) // slices
        parts += [(tokens[i : i + size], targets[i : i + size]) for i in range(0, len(tokens), size)]
    return parts


class _Centre(TorchRoom):
    """fp32 arithmetic from parameters that are rounded to the job's dtype, as all contestants' are.

    Gradients are clipped by a norm that is summed in fp64: clip_grad_norm_'s fp32 sum over many millions of squares
    is off by up to 1e-4, the same way in all of PyTorch's runs. Were it in the centre too, the band would not know of
    it, and kernels that sum better would be told that they are wrong.
    """

    def __init__(self, job: Job):
        super().__init__(replace(job, dtype="fp32"), "eager")
        self.rounded = job

    def parameters(self, perturbed: int | None = None) -> dict[str, torch.Tensor]:
        return Room(self.rounded).parameters(perturbed)

    def _clip(self) -> float:
        norm = math.hypot(*(_norm(_grad(p)) for p in self.masters))
        for p in self.masters:
            _grad(p).mul_(min(1.0, self.job.model.recipe.max_norm / (norm + CLIP_EPS)))
        return norm


def _grad(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None  # every parameter is used, and this is after backward
    return parameter.grad


def _norm(tensor: torch.Tensor) -> float:
    """The L2 norm, summed in fp64."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
