"""What happens inside a worker process: a variant is loaded, proved, and timed on memory the harness owns.

The methods of `Room` are the commands that `bench.trial.worker.Worker` sends. This module is imported before any
variant, and binds its clocks at once.
"""

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypedDict

import torch

from bench import simulate
from bench.core import process
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, Values, draw, each
from bench.core.process import ProcessFailed
from bench.core.variants import Variant
from bench.gpu.counts import counted, resources
from bench.gpu.launches import configured_call
from bench.machine import ceilings, profiling
from bench.machine.devices import GRAPH, busy_seconds, is_gpu, open_device
from bench.machine.facts import GpuState
from bench.machine.ranges import span
from bench.records.record import Counts, Resources
from bench.trial import checks, ran, truth
from bench.trial.checks import PERF_COUNTER_NS, Verdict
from bench.trial.truth import Brief
from kernels import Unavailable
from reference import contract

PERTURBED = 8  # elements changed before each timed call, so that no two calls see the same contents
WARM_UP_SECONDS = 0.3
WARM_UP_CALLS = 2
ARENAS = 3  # on a GPU calls take turns among so many copies of all tensors, at other addresses, …
ARENA_SHARE = 0.1  # … each of which is no larger than this share of the free memory
CANARY_BYTES = 8 << 20  # on a CPU; on a GPU a quarter of its cache
CANARY_READS = 7
GRAPH_SECONDS = 1e-3  # a graph holds so many calls that a replay takes this long, …
FEWEST_IN_GRAPH, MOST_IN_GRAPH = 4, 500  # … within reason
REPLAYS = 3  # in one turn
ENERGY_SECONDS = 0.4  # of device time between two ticks of the energy counter, which come every 20 to 100 ms
ENERGY_BATCH_SECONDS = 5e-3  # between looks at it
ENERGY_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Setting:
    """How a worker runs its calls."""

    device: str = "cpu"
    threads: int = 0  # 0: torch's own choice
    time_limit: float = 60.0  # seconds for one command
    prepare_limit: float = 300.0  # seconds for compiling and other one-time work
    simulate: bool = False  # run GPU kernels in the simulator, on CPU tensors


class Ready(TypedDict):
    """What setting up a timed case took, in seconds, and what a call of it needs."""

    prepare_s: float
    call_s: float
    overhead_s: float  # flushing and poisoning before a cold call
    workspace_bytes: int
    configuration: str
    busy_s: float | None  # of a call, on a GPU
    peak_bytes: int | None  # on a GPU: what a call allocated beyond what it was given


class Sample(TypedDict):
    """Timed calls: seconds of each, what ran on a GPU and the state it was in, and what was judged."""

    seconds: list[float]
    cpu_s: list[float]
    kernels: dict[str, int]
    state: GpuState
    verdict: Verdict | None


class Replays(TypedDict):
    """Seconds of a call in each of a few replays of a graph, and what was judged."""

    seconds: list[float]
    verdict: Verdict | None


class Room(process.Room):
    """One variant in one process. `variant` None makes it the judge's room."""

    def __init__(self, variant: Variant | None, setting: Setting):
        self.variant = variant
        self.device_name = setting.device
        self.on_gpu = is_gpu(setting.device)
        self.device = open_device(setting.device)
        if setting.threads:
            torch.set_num_threads(setting.threads)
        if setting.simulate and variant and variant.gpu_code:
            simulate.install(variant.backend)
        self.arenas: list[Arena] = []  # one and, while a GPU is timed, copies of it
        self.replay: Callable[[], None] | None = None  # of a graph of `graph_calls` calls
        self.graph_calls = 0
        self.function: Callable[..., object] = lambda: None
        self.attested: set[str] = set()

    def broken(self) -> bool:
        """Whether this process can use its device no more: an illegal address, say, ends a CUDA context."""
        try:
            self.device.synchronize()
        except Exception:
            return True
        return False

    @staticmethod
    def explain(error: BaseException) -> ProcessFailed:
        """By an error's type and message, and the last line of the variant's own code."""
        if isinstance(error, Unavailable):
            return ProcessFailed("skipped", str(error))
        if reports := getattr(error, "reports", ()):  # the simulator's: the kernel is wrong, whatever it computed
            told = [f"{r.kind}: {r.message.removeprefix(r.kind).strip()}" for r in reports[:3]]
            return ProcessFailed("wrong", "; ".join(told))
        if isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error):
            return ProcessFailed(process.ERROR, f"out of memory: {error}")
        first = " ".join(str(error).strip().splitlines()[:3])
        if type(error).__name__ == "CompileError":  # tells its own place
            return ProcessFailed(process.ERROR, first)
        where = process.line_of(error, outside=process.BENCH)
        return ProcessFailed(process.ERROR, f"{type(error).__name__}: {first}{where}")

    # --- the judge's commands ---

    def write_brief(
        self, case: Case, yardstick: Variant | None, perturbation: int | None, values_only: bool, path: Path
    ) -> None:
        values = draw(case)
        if perturbation is not None:
            perturb(values, case, perturbation)
        yards = [] if values_only else truth.yards_of(case, values, yardstick, self.device.place)
        # Perturbed values are never loaded: the variant's own process perturbs its own copy.
        kept = values if perturbation is None else {}
        torch.save((case, kept, yards), path)

    def measure_ceilings(self) -> None:
        """Have the ceilings of a GPU measured where its context is, and kept; the parent reads the file."""
        ceilings.ceilings(device=self.device_name)

    # --- the variants' commands ---

    def prove(self, path: Path) -> Verdict:
        """Prove one case. A phase's first case also attests what runs."""
        assert self.variant
        brief = read_brief(path)
        self._enter_case(brief.case)
        first = brief.case.phase not in self.attested
        if first:
            self.prepare()
        verdict = checks.prove(self.variant, self.function, self.arena, brief, self.device, attests=first)
        self.attested.add(brief.case.phase)
        return verdict

    def ready(self, path: Path) -> Ready:
        """Set up the timed case: one-time work, then warm up."""
        brief = read_brief(path)
        self._enter_case(brief.case)
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
        busy_s = peak_bytes = None
        if self.on_gpu:
            self._copy_arena(brief.values)
            self.arena.reset()
            kernels, peak_bytes = ran.watch(self.device, self._call)
            busy_s = busy_seconds(kernels)
        start = PERF_COUNTER_NS()
        self.arena.reset()
        self.device.flush()
        self.device.synchronize()
        return Ready(
            prepare_s=prepared,
            call_s=sorted(seconds)[len(seconds) // 2],
            overhead_s=(PERF_COUNTER_NS() - start) / 1e9,
            workspace_bytes=self.arena.workspace_bytes or 0,
            configuration=configuration,
            busy_s=busy_s,
            peak_bytes=peak_bytes,
        )

    def sample(self, seeds: list[int], cold: bool, clock: str, verify: Path | None = None) -> Sample:
        """Time one call for each seed, which perturbs the inputs; outputs are poisoned before each.

        Answers the clock's seconds of each call, on a CPU the process-CPU seconds too, on a GPU the kernels that the
        last call ran and the state the card is in. With `verify`, the last call is judged as in the proof.
        """
        function, device = self.function, self.device
        places = [(arena, arena.args(), arena.kwargs()) for arena in self.arenas]
        name = self._range_name()
        state = checks.global_state()
        verdict = None
        with device.timer(clock) as timer:
            for i, seed in enumerate(seeds):
                arena, args, kwargs = places[i % len(places)]
                undo = perturb({**arena.inputs, **arena.initial}, arena.case, seed)
                arena.reset()
                device.flush() if cold else touch(arena)
                with span(name):
                    timer.start()
                    function(*args, **kwargs)
                    timer.stop()
                if verify and i == len(seeds) - 1:
                    verdict = checks.inspect(arena, read_brief(verify), None, None)
                undo()
            card = device.state()  # while it is still as the calls left it
        changed = checks.difference(state, checks.global_state())
        if self.variant and self.variant.own_code:
            if changed:
                verdict = Verdict("global_state", f"during timed calls, {changed}")
            elif alien := ran.foreign(self.variant, [k.name for call in timer.kernels for k in call]):
                verdict = Verdict("library", f"says it is its own code, yet ran {', '.join(alien)}")
        return Sample(
            seconds=timer.seconds,
            cpu_s=timer.cpu_seconds,
            kernels=ran.counts(timer.kernels[-1]) if timer.kernels else {},
            state=card,
            verdict=verdict,
        )

    def capture(self, busy_s: float) -> int:
        """Capture a graph of many warm calls, and replay it once; answers how many. Raises what broke the capture."""
        function, args, kwargs = self.function, self.arena.args(), self.arena.kwargs()
        calls = min(MOST_IN_GRAPH, max(FEWEST_IN_GRAPH, math.ceil(GRAPH_SECONDS / max(busy_s, 1e-9))))

        broke: list[Exception] = []

        def unrolled() -> None:
            try:
                for _ in range(calls):
                    function(*args, **kwargs)
            except Exception as error:
                broke.append(error)
                raise

        try:
            replay = self.device.capture(unrolled)
        except Exception as error:
            # Torch ends a broken capture with an error of its own; the call's says why.
            raise (broke or [error])[0] from None
        replay()
        self.device.synchronize()
        self.replay, self.graph_calls = replay, calls
        return calls

    def time_graph(self, seed: int, verify: Path | None = None) -> Replays:
        """Seconds of a call in each of a few replays. With `verify`, what the last one left is judged."""
        assert self.replay
        undo = perturb({**self.arena.inputs, **self.arena.initial}, self.arena.case, seed)
        with self.device.timer(GRAPH) as timer:
            for _ in range(REPLAYS):
                self.arena.reset()
                touch(self.arena)
                timer.start()
                self.replay()
                timer.stop()
        # What is updated in place, or added to, has been so by every call of the graph: no truth is known of that.
        known = verify and not self.arena.initial
        verdict = checks.inspect(self.arena, read_brief(verify), None, None) if known and verify else None
        undo()
        return Replays(seconds=[s / self.graph_calls for s in timer.seconds], verdict=verdict)

    def energy(self, busy_s: float) -> float | None:
        """Joules of a warm call, from one tick of the card's counter to another; None where that cannot be read.

        Calls come in a graph where there is one, so that the card does not wait for the host. `busy_s` is a call's.
        """
        last = self.device.energy_joules()
        if last is None:
            return None
        run, calls = (self.replay, self.graph_calls) if self.replay else (self._call, 1)
        batch = min(1000, math.ceil(ENERGY_BATCH_SECONDS / (calls * max(busy_s, 1e-9))))
        begun: float | None = None
        done, start = 0, PERF_COUNTER_NS()
        while PERF_COUNTER_NS() - start < ENERGY_PATIENCE_S * 1e9:
            for _ in range(batch):
                run()
            self.device.synchronize()
            done += batch * calls
            now = self.device.energy_joules()
            if now is None or now == last:
                continue
            if begun is None:
                begun, done = now, 0
            elif done * busy_s >= ENERGY_SECONDS:
                return (now - begun) / done
            last = now
        return None

    def profile(self, path: Path, folder: Path) -> list[profiling.Row]:
        """Traces of a few calls of the case, by bench.machine.profiling; answers its rows."""
        brief = read_brief(path)
        self._enter_case(brief.case)
        self.arena.load(brief.values)
        self.prepare()
        self._one_call()
        name = f"{self._range_name()}/{brief.case.name}/{brief.case.shape['dtype']}"
        return profiling.profile(self._call, self.device, name, folder)

    def canary(self) -> dict[str, float]:
        """Bytes/s of reading memory that was just read, and after the flush. Cold must be slower, or it is not cold."""
        size = self.device.cache_bytes() // 4 if self.on_gpu else CANARY_BYTES
        data = torch.ones(size // 4, device=self.device.place)
        rates = {"bytes": float(data.numel() * 4)}
        for name, before in (("warm", lambda: data.sum()), ("cold", self.device.flush)):
            with self.device.timer(self.device.clocks[0]) as timer:
                for _ in range(CANARY_READS):
                    before()
                    timer.start()
                    data.sum()
                    timer.stop()
            rates[name] = rates["bytes"] / statistics.median(timer.seconds)
        return rates

    def count(self, case: Case) -> Counts:
        """What the simulator counts in one call, for a record."""
        return counted(self.module, case)

    def arch(self) -> str | None:
        """What to compile for to run on the device: "sm_90a"."""
        return self.device.arch()

    def resources(self, case: Case, arch: str, configuration: str) -> Resources:
        """What a call's kernels need on an architecture, for a record. Asked of a room that has no GPU."""
        return resources(self.module, case, arch, configuration)

    # --- helpers ---

    @functools.cached_property
    def module(self) -> ModuleType:
        """The variant, imported when it is first needed."""
        assert self.variant
        state = checks.global_state()
        module = self.variant.load()
        if changed := checks.difference(state, checks.global_state()):
            raise RuntimeError(f"importing the variant changed a global setting: {changed}")
        return module

    @property
    def arena(self) -> Arena:
        return self.arenas[0]

    def prepare(self) -> None:
        if hasattr(self.module, "prepare"):
            self.module.prepare(self.arena.case.shape, self.arena.case.phase)

    def _enter_case(self, case: Case) -> None:
        """An arena for the case; the last one is kept where only the contents differ, addresses and all."""
        self.function = getattr(self.module, case.phase)
        self.replay = None  # it calls on the arenas' addresses
        old = self.arena.case if self.arenas else None
        if old and (old.layer, old.phase, old.shape) == (case.layer, case.phase, case.shape):
            self.arena.case = case
            del self.arenas[1:]
            return
        self.arenas = []  # free the old memory first
        self.arenas = [Arena(case, self.device.place, workspace_of(self.module, case))]

    def _copy_arena(self, values: Values) -> None:
        """More arenas at other addresses, as far as memory is plentiful: no address is known to be lucky."""
        size = sum(fence.raw.numel() for fence in self.arena.fences.values())
        while len(self.arenas) < ARENAS and size <= ARENA_SHARE * self.device.free_bytes():
            copy = Arena(self.arena.case, self.device.place, self.arena.workspace_bytes)
            copy.load(values)
            self.arenas.append(copy)

    def _range_name(self) -> str:
        case = self.arena.case
        return f"{case.layer}/{case.phase}/{self.variant.name if self.variant else 'judge'}"

    def _call(self) -> None:
        self.arena.call(self.function)

    def _one_call(self) -> float:
        """Seconds of a call as the host sees it, until the device is done."""
        self.arena.reset()
        self.device.synchronize()
        start = PERF_COUNTER_NS()
        self.arena.call(self.function)
        self.device.synchronize()
        return (PERF_COUNTER_NS() - start) / 1e9


def touch(arena: Arena) -> None:
    """Bring the inputs into the caches, as far as they fit."""
    for value in arena.inputs.values():
        for tensor in each(value):
            if tensor.is_floating_point():
                tensor.amax() if tensor.numel() else None


def read_brief(path: Path) -> Brief:
    # Mapped, so that all processes share one copy of what may be gigabytes; a change stays private to its process.
    return Brief(*torch.load(path, weights_only=False, mmap=True))


def perturb(values: Values, case: Case, seed: int) -> Callable[[], None]:
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


def _largest(values: Values, case: Case) -> torch.Tensor:
    spec = contract.pass_of(case.module, case.phase)
    names = [t.name for t in spec.inputs] + [t.name for t in spec.outputs if t.inplace]
    parts = [p for n in names for p in each(values.get(n))]
    return max((p for p in parts if p.is_floating_point()), key=lambda p: p.numel())
