"""A process of its own for each contestant of `bench.e2e`: our step, PyTorch's, and the judge that measures the band.

    with Contestant("compile", TorchRoom, job) as c:
        c.ask("load", seed=0)
        c.ask("step", batches=…, lr=3e-4)      {"loss": …, "norm": …, "wall_s": …, "cpu_s": …}

The parent sends a command and waits for its answer; meanwhile every other process sleeps in a read. So threads, pools
and peak memory are each contestant's own. A process that dies or hangs ends the run with a message that says which.
"""

import math
import multiprocessing
import os
import signal
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import CannotGoOn
from bench.registry import Variant
from reference.models import Model

if TYPE_CHECKING:
    import numpy as np

    from bench.train import Key
    from bench.train_pick import Times

    NumpyBatch = tuple[np.ndarray, np.ndarray]

STEP_LIMIT_S = 600.0  # one step; the naive kernels need a minute or two for gpt2-124m
SETUP_LIMIT_S = 900.0  # compiling, measuring
LEAVE_S = 3.0


@dataclass(frozen=True)
class Job:
    """What all contestants train: the same model, sizes, dtype, threads and initial parameters."""

    model: Model
    B: int
    T: int
    dtype: str
    device: str = "cpu"
    threads: int = 1
    accumulation: int = 1
    seed: int = 0
    simulate: bool = False


class Contestant:
    """The parent's end of one process. Every command raises CannotGoOn with the process's name and what happened."""

    def __init__(self, name: str, room: type, job: Job, *arguments: Any):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_enter, args=(theirs, room, job, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, command: str, limit: float = STEP_LIMIT_S, **arguments: Any) -> Any:
        self.send(command, **arguments)
        return self.answer(limit)

    def send(self, command: str, **arguments: Any) -> None:
        try:
            self.connection.send((command, arguments))
        except OSError as error:
            raise self._died() from error

    def answer(self, limit: float = STEP_LIMIT_S) -> Any:
        try:
            if not self.connection.poll(limit):
                self.close()
                raise CannotGoOn(f"{self.name}: no answer within {limit:g} s; its process was stopped")
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died() from error
        if kind == "failed":
            raise CannotGoOn(f"{self.name}: {value[0]}", value[1])
        return value

    def _died(self) -> CannotGoOn:
        self.process.join(5)
        code = self.process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = " (SIGKILL is often the system running out of memory)" if code == -signal.SIGKILL else ""
        return CannotGoOn(f"{self.name}: its process died with {how}{hint}")

    def close(self) -> None:
        """End the process: it leaves at the end of its pipe; one that hangs is killed."""
        self.connection.close()
        self.process.join(LEAVE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _enter(connection: Connection, room: type, job: Job, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # what a variant prints must not land in the parent's table or JSON
    # Read by each OpenMP library when it is loaded, so it must be set before torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    inside = None
    while True:
        try:
            command, keywords = connection.recv()
        except (EOFError, OSError):
            return
        try:
            inside = inside or room(job, *arguments)
            connection.send(("done", getattr(inside, command)(**keywords)))
        except CannotGoOn as error:
            connection.send(("failed", (str(error), error.code)))
        except BaseException as error:
            connection.send(("failed", (_explain(error), cli.FAILED)))


def _explain(error: BaseException) -> str:
    """Type, message and the innermost line of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"


# --- what happens inside ---


class Room:
    """What every contestant can be asked. A subclass has `load` and `_step`."""

    def __init__(self, job: Job):
        import torch

        torch.set_num_threads(job.threads)
        self.job = job

    def parameters(self, perturbed: int | None = None) -> "dict[str, Any]":
        """The initial parameters by name, the same in every process, rounded to the working dtype.

        Rounded, so that all contestants start from one point whatever they keep their weights in. perturbed: a seed
        that moves each by at most one unit in the last place of the working dtype.
        """
        import torch

        from bench.tensors import DTYPES
        from reference import gpt2

        dtype = DTYPES[self.job.dtype]
        found = {name: p.to(dtype) for name, p in gpt2.init_parameters(self.job.model, self.job.seed).items()}
        if perturbed is not None:
            gen = torch.Generator().manual_seed(perturbed)
            for name, p in found.items():
                noise = torch.rand(p.shape, generator=gen).mul_(2).sub_(1).mul_(torch.finfo(dtype).eps)
                found[name] = torch.addcmul(p.double(), p.double(), noise.double()).to(dtype)
        return found

    def load(self, perturbed: int | None = None) -> None:
        """Take the initial parameters and forget all training."""
        raise NotImplementedError

    def _step(self, batches: list, lr: float, details: bool) -> tuple[float, float, dict[str, float]]:
        raise NotImplementedError

    def step(self, batches: "list[NumpyBatch]", lr: float, details: bool = False) -> dict[str, Any]:
        """One training step: loss, gradient norm, wall and process-CPU seconds.

        details: also the norm of every parameter's gradient (before clipping); such a step is not for timing.
        """
        ready = self._batches(batches)
        cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
        loss, norm, norms = self._step(ready, lr, details)
        end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
        return dict(loss=loss, norm=norm, norms=norms, wall_s=(end - start) / 1e9, cpu_s=(cpu_end - cpu_start) / 1e9)

    def _batches(self, batches: "list[NumpyBatch]") -> list:
        import torch

        return [tuple(torch.from_numpy(x).to(self.job.device) for x in pair) for pair in batches]

    def forget_peak(self) -> None:
        """Start a new peak of resident memory, so that compiling and measuring are not counted."""
        if self.job.device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats(self.job.device)
        with suppress(OSError):  # where this is not allowed, the peak includes set-up
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Peak resident memory of this process (on a GPU: of the device's tensors) since `forget_peak`."""
        if self.job.device != "cpu":
            import torch

            return torch.cuda.max_memory_allocated(self.job.device)
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(s for s in lines if s.startswith("VmHWM")).split()[1]) * 1024


class OurRoom(Room):
    """The step of registry variants. Without measurements `build` alone is enough."""

    def __init__(self, job: Job):
        super().__init__(job)
        from bench.train import Memory

        self.memory = Memory(job.model, job.B, job.T, job.dtype, job.device)

    def race(self, pool: "dict[Key, list[Variant]]", **limits: float) -> "Times":
        """Time candidates at the step's calls (see bench.train_pick.race). What was loaded is lost."""
        from bench import train_pick

        return train_pick.race(self.memory, pool, **limits)

    def build(self, choice: "dict[Key, Variant]") -> int:
        """Bind the step to the chosen variants; the bytes of all memory it will ever use."""
        from bench.train import Step

        if self.job.simulate:
            from bench import registry, simulate

            for backend in {v.backend for v in choice.values()} & set(registry.SIMULATED):
                simulate.install(backend)
        modules = {key: variant.load() for key, variant in choice.items()}
        self.training = Step(self.memory, modules, self.job.accumulation)
        return self.training.bytes

    def load(self, perturbed: int | None = None) -> None:
        self.training.load(self.parameters(perturbed))

    def _step(self, batches, lr, details):
        loss, norm = self.training.run(batches, lr)
        grads = self.memory.grads.items() if details else ()
        return loss, norm, {name: _norm(g) for name, g in grads}

    def step_in_context(self, batches: "list[NumpyBatch]", lr: float) -> "tuple[dict[Key, float], float]":
        """Milliseconds of each (id, phase) inside one step, over all its calls; and of this whole step."""
        ready = self._batches(batches)
        start = time.perf_counter_ns()
        times = self.training.run_timed(ready, lr)
        return times, (time.perf_counter_ns() - start) / 1e6


class TorchRoom(Room):
    """The step as a careful user of PyTorch writes it: `mode` "eager" or "compile".

    The plain GPT-2 of reference/gpt2.py with a padded vocabulary and a loss-only return, fused AdamW with weight
    decay on matrices only, clip_grad_norm_, gradients set to None. In bf16: fp32 parameters under autocast, the
    standard recipe; with `pure`, bf16 parameters and activations and fp32 masters, which are the formats of our step.
    """

    def __init__(self, job: Job, mode: str, pure: bool = False):
        super().__init__(job)
        import torch

        from bench.tensors import DTYPES
        from reference import gpt2

        self.pure = pure and job.dtype != "fp32"
        self.autocast = job.dtype != "fp32" and not pure
        self.dtype = DTYPES[job.dtype]
        self.model = gpt2.GPT2(job.model).to(job.device)
        if self.pure:
            self.model.to(self.dtype)
        self.loss = torch.compile(self.model) if mode == "compile" else self.model

    def load(self, perturbed: int | None = None) -> None:
        import torch

        from reference import gpt2
        from reference.adamw import HYPER, weight_decays

        self.model.load(self.parameters(perturbed))
        self.model.zero_grad(set_to_none=True)
        named = self.model.named()
        self.names = list(named)
        self.weights: list[Any] = list(named.values())
        # What the optimizer updates: the parameters, or their fp32 masters.
        self.masters: list[Any] = [p.detach().float() for p in self.weights] if self.pure else self.weights
        decay = max(weight_decays([tuple(p.shape) for p in self.masters]))
        groups = gpt2.decay_groups(dict(zip(self.names, self.masters, strict=True)), decay)
        betas = (HYPER["beta1"], HYPER["beta2"])
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=HYPER["eps"], fused=True)

    def warm(self, batches: "list[NumpyBatch]", lr: float) -> None:
        """Compile and touch all memory with one step, then start afresh."""
        self.load()
        self.step(batches, lr)
        self.load()

    def _step(self, batches, lr, details):
        import torch

        loss_sum = torch.zeros((), device=self.job.device)
        for tokens, targets in batches:
            with torch.autocast(self.job.device, self.dtype) if self.autocast else nullcontext():
                loss = self.loss(tokens, targets)
            (loss / len(batches)).backward()
            loss_sum += loss.detach() / len(batches)
        if self.pure:
            for p, master in zip(self.weights, self.masters, strict=True):
                master.grad, p.grad = p.grad.float(), None
        norms = {}
        if details:
            norms = {n: _norm(p.grad) for n, p in zip(self.names, self.masters, strict=True)}
        norm = self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.pure:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        return loss_sum.item(), norm, norms

    def _clip(self) -> float:
        import torch

        from bench.train import MAX_NORM

        return torch.nn.utils.clip_grad_norm_(self.masters, MAX_NORM).item()


class JudgeRoom(Room):
    """PyTorch's own runs, one after the other in one process: the fp32 centre and perturbed runs at the dtype."""

    def run(self, centre: bool, perturbed: int | None, batches: list, lr: float) -> list[dict[str, Any]]:
        """A whole trajectory from the start: loss, norm and, for the first step, the norms of each step.

        centre: fp32 from the unperturbed parameters; else the working dtype in our step's formats, perturbed.
        """
        room = _Centre(self.job) if centre else TorchRoom(self.job, "eager", pure=True)
        room.load(perturbed)
        return [room.step(b, lr, details=i == 0) for i, b in enumerate(batches)]


class _Centre(TorchRoom):
    """fp32 arithmetic from parameters that are rounded to the job's dtype, as all contestants' are.

    Gradients are clipped by a norm that is summed in fp64: clip_grad_norm_'s fp32 sum over many millions of squares
    is off by up to 1e-4, the same way in all of PyTorch's runs. Were it in the centre too, the band would not know of
    it, and kernels that sum better would be told that they are wrong.
    """

    def __init__(self, job: Job):
        super().__init__(replace(job, dtype="fp32"), "eager")
        self.rounded = job

    def parameters(self, perturbed: int | None = None) -> dict[str, Any]:
        return Room(self.rounded).parameters(perturbed)

    def _clip(self) -> float:
        from bench.train import CLIP_EPS, MAX_NORM

        norm = math.hypot(*(_norm(p.grad) for p in self.masters))
        for p in self.masters:
            p.grad.mul_(min(1.0, MAX_NORM / (norm + CLIP_EPS)))
        return norm


def _norm(tensor: Any) -> float:
    """The L2 norm, summed in fp64."""
    import torch

    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
