"""What happens inside a worker process: a variant is loaded, proved, and timed on memory the harness owns.

The methods of `Room` are the commands that `bench.worker.Worker.ask` sends. This module is imported before any
variant, and binds its clocks at once.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import check, judge, tensors
from bench.check import PERF_COUNTER_NS, PROCESS_TIME_NS, Verdict
from bench.judge import Brief
from bench.launches import configured_call
from bench.registry import Variant
from bench.tensors import Arena, Case
from reference import contract

PERTURBED = 8  # elements changed before each timed call, so that no two calls see the same contents
WARM_UP_SECONDS = 0.3
WARM_UP_CALLS = 2


class Room:
    """One variant in one process. `variant` None makes it the judge's room."""

    def __init__(self, variant: Variant | None, setting: Any):
        self.variant = variant
        self.device = setting.device
        if setting.threads:
            torch.set_num_threads(setting.threads)
        if setting.simulate:
            from bench import simulate

            assert variant
            simulate.install(variant.backend)
        self.module: Any = None
        self.arena: Arena | None = None
        self.function: Callable = lambda: None
        self.attested: set[str] = set()

    # --- the judge's commands ---

    def write_brief(
        self, case: Case, yardstick: Variant | None, perturbation: int | None, values_only: bool, path: Path
    ) -> None:
        values = tensors.draw(case)
        if perturbation is not None:
            perturb(values, case, perturbation)
        yards = [] if values_only else judge.yards_of(case, values, yardstick, self.device)
        # Perturbed values are never loaded: the variant's own process perturbs its own copy.
        kept = values if perturbation is None else {}
        torch.save((case, kept, yards), path)

    # --- the variants' commands ---

    def load(self) -> None:
        """Import the variant."""
        assert self.variant
        state = check.global_state()
        self.module = self.variant.load()
        changed = check.difference(state, check.global_state())
        if changed:
            raise RuntimeError(f"importing the variant changed a global setting: {changed}")

    def prove(self, path: Path) -> Verdict:
        """Prove one case. A phase's first case also attests what runs."""
        assert self.variant
        brief = read_brief(path)
        self._enter_case(brief.case)
        assert self.arena
        attest = self.variant.own_code or bool(self.variant.kernels)
        first = brief.case.phase not in self.attested
        if first:
            self.prepare()
        verdict = check.prove(self.variant, self.function, self.arena, brief, attest and first)
        self.attested.add(brief.case.phase)
        return verdict

    def ready(self, path: Path) -> dict[str, Any]:
        """Set up the timed case: one-time work, then warm up. Answers what that took, and the scratch memory."""
        brief = read_brief(path)
        self._enter_case(brief.case)
        assert self.arena
        self.arena.load(brief.values)
        start = PERF_COUNTER_NS()
        self.prepare()
        first, configuration = configured_call(self.module, self._one_call)
        prepared = (PERF_COUNTER_NS() - start) / 1e9
        # A first call may compile and tell nothing; C++ was compiled when the variant was proved.
        seconds = [first] if self.variant and self.variant.backend == "cpu" else []
        while not seconds or seconds[-1] < WARM_UP_SECONDS * 5:  # so slow a call has warmed everything
            if sum(seconds) > WARM_UP_SECONDS and len(seconds) >= WARM_UP_CALLS:
                break
            seconds.append(self._one_call())
        start = PERF_COUNTER_NS()
        self.arena.reset()
        flush_cpu_caches()
        return {
            "prepare_s": prepared,
            "call_s": sorted(seconds)[len(seconds) // 2],
            "overhead_s": (PERF_COUNTER_NS() - start) / 1e9,
            "workspace_bytes": self.arena.workspace_bytes or 0,
            "configuration": configuration,
        }

    def sample(self, seeds: list[int], cold: bool, verify: Path | None = None) -> dict[str, Any]:
        """Time one call for each seed, which perturbs the inputs; outputs are poisoned before each.

        Answers wall and process-CPU seconds of each call. With `verify`, the last call is judged as in the proof.
        """
        assert self.arena
        arena, function = self.arena, self.function
        args, kwargs = arena.args(), arena.kwargs()
        state = check.global_state()
        wall, cpu = [], []
        verdict = None
        for i, seed in enumerate(seeds):
            undo = perturb({**arena.inputs, **arena.initial}, arena.case, seed)
            arena.reset()
            if cold:
                flush_cpu_caches()
            else:
                self._touch()
            cpu_start, start = PROCESS_TIME_NS(), PERF_COUNTER_NS()
            function(*args, **kwargs)
            end, cpu_end = PERF_COUNTER_NS(), PROCESS_TIME_NS()
            wall.append((end - start) / 1e9)
            cpu.append((cpu_end - cpu_start) / 1e9)
            if verify and i == len(seeds) - 1:
                verdict = check.inspect(arena, read_brief(verify), None, None)
            undo()
        changed = check.difference(state, check.global_state())
        if changed and self.variant and self.variant.own_code:
            verdict = Verdict("global_state", f"during timed calls, {changed}")
        return {"wall_s": wall, "cpu_s": cpu, "verdict": verdict}

    def canary(self) -> dict[str, float]:
        """Bytes/s of reading 8 MB twice: just read before, and after the flush. Cold must be slower, or it is not."""
        data = torch.ones(2 << 20)
        rates = {}
        for name, before in (("warm", lambda: data.sum()), ("cold", flush_cpu_caches)):
            seconds = []
            for _ in range(7):
                before()
                start = PERF_COUNTER_NS()
                data.sum()
                seconds.append((PERF_COUNTER_NS() - start) / 1e9)
            rates[name] = data.numel() * 4 / sorted(seconds)[3]
        return rates

    def count(self, case: Case) -> dict[str, Any]:
        """What the simulator counts in one call, for a record."""
        from bench.counted import counted

        if self.module is None:
            self.load()
        return counted(self.module, case)

    # --- helpers ---

    def prepare(self) -> None:
        if hasattr(self.module, "prepare"):
            assert self.arena
            self.module.prepare(self.arena.case.shape, self.arena.case.phase)

    def _enter_case(self, case: Case) -> None:
        """An arena for the case; the last one is kept where only the contents differ, addresses and all."""
        if self.module is None:
            self.load()
        self.function = getattr(self.module, case.phase)
        old = self.arena.case if self.arena else None
        if old and (old.layer, old.phase, old.shape) == (case.layer, case.phase, case.shape):
            assert self.arena
            self.arena.case = case
            return
        self.arena = None  # free the old memory first
        self.arena = Arena(case, self.device, judge.workspace_of(self.module, case))

    def _one_call(self) -> float:
        assert self.arena
        self.arena.reset()
        start = PERF_COUNTER_NS()
        self.arena.call(self.function)
        return (PERF_COUNTER_NS() - start) / 1e9

    def _touch(self) -> None:
        """Bring the inputs into the caches, as far as they fit."""
        assert self.arena
        for value in self.arena.inputs.values():
            for tensor in tensors.each(value):
                if tensor.is_floating_point():
                    tensor.amax() if tensor.numel() else None


def read_brief(path: Path) -> Brief:
    # Mapped, so that all processes share one copy of what may be gigabytes; a change stays private to its process.
    return Brief(*torch.load(path, weights_only=False, mmap=True))


def perturb(values: dict[str, Any], case: Case, seed: int) -> Callable[[], None]:
    """Change a few elements of the largest floating-point input, in place; returns what undoes it.

    The same seed changes the same elements to the same values in every process, so one truth serves all variants.
    """
    target = _largest(values, case)
    gen = torch.Generator().manual_seed(seed)
    where = torch.randint(0, target.numel(), (PERTURBED,), generator=gen)
    where[0] = 0  # a memo that looks at the first element alone is caught as well
    where = where.unique()
    new = torch.randn(len(where), generator=gen).to(target.dtype).to(target.device)
    index = torch.unravel_index(where.to(target.device), target.shape)
    old = target[index].clone()
    target[index] = new

    def undo() -> None:
        target[index] = old

    return undo


def _largest(values: dict[str, Any], case: Case) -> torch.Tensor:
    spec = contract.pass_of(case.module, case.phase)
    names = [t.name for t in spec.inputs] + [t.name for t in spec.outputs if t.inplace]
    parts = [p for n in names for p in tensors.each(values.get(n))]
    return max((p for p in parts if p.is_floating_point()), key=lambda p: p.numel())


@functools.cache
def _flush_buffer() -> torch.Tensor:
    from bench.machine import last_level_cache_bytes

    return torch.ones(math.ceil(2 * last_level_cache_bytes() / 4))


def flush_cpu_caches() -> None:
    """Read twice the last-level cache: nothing else stays in it, and no dirty line is left to write back."""
    _flush_buffer().sum()
