"""What happens inside a worker process: a variant is loaded, proved, and timed on memory the harness owns.

The methods of `Room` are the commands that `bench.trial.worker.Worker` sends. This module is imported before any
variant, and binds its clocks at once.
"""

import functools
import hashlib
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypedDict

import torch

from bench import simulate
from bench.core import BACKENDS, deeds, process, replaced, world
from bench.core.arena import Arena, Probe, workspace_of
from bench.core.case import Case, Scalar, Value, Values, each, map
from bench.core.evidence import line_of, one_line, telling
from bench.core.process import ProcessFailed
from bench.core.replies import Seconds
from bench.core.shared import Box, Given, ipc_of, opened, values_in
from bench.core.variants import KERNELS, Variant, builds_each_shape
from bench.core.waits import ShortWaits
from bench.core.world import GC_DISABLE, GC_ENABLE, PERF_COUNTER_NS, PROCESS_TIME_NS
from bench.gpu.counts import counted, resources
from bench.gpu.launches import configured_call, launches_of, untuned
from bench.machine import ceilings, facts, profiling
from bench.machine.devices import (
    BACKLOG_SECONDS,
    GRAPH,
    SPAN,
    Timer,
    backlog_of,
    busy_seconds,
    is_gpu,
    is_made_up,
    open_device,
    queued,
)
from bench.machine.facts import GpuState
from bench.machine.profiling import ANOTHER_PROFILER
from bench.machine.ranges import span
from bench.records.record import Counts, Resources
from bench.trial import attest, entry, ran
from bench.trial.ahead import Ahead
from bench.trial.checks import Watched
from bench.trial.judge import UNMAPPED, Handed, keep_memory
from bench.trial.refusals import refusal
from kernels import Unavailable, cache_dir, put

LAUNCHERS = (KERNELS, *(KERNELS / backend for backend in BACKENDS))
STDLIB = Path(os.__file__).parent
NO_SYMBOL = re.compile(r"undefined symbol: (\w+)$")
MESSAGES = "messages"  # of compilers, in the cache
MESSAGE = re.compile(r"\[all of it: (compiler-[0-9a-f]{10}\.txt)\]")
TOO_MUCH_SHARED = re.compile(r"bytes of dynamic shared memory beside \d+ static ones: CUDA_ERROR_INVALID_VALUE")
MOST_MESSAGE = 1 << 20  # characters
SETTLE_SECONDS = 1e-3  # after a call that is handed back: who works on in another thread, or by a timer, does it now
DEEP_CALLS = 4  # of so many watched calls in a proof, one is followed by a look at all threads; nobody knows which
RANDBELOW = secrets.randbelow  # as it was before a variant could replace it
COMPILER = "torch._dynamo"  # is loaded by whoever has PyTorch compile something
OF_TORCH_COMPILE = (COMPILER, "torch._inductor.compile_fx")
WARM_UP_SECONDS = 0.05
WARM_UP_CALLS = 2
HOST_CALLS = 3  # of which the host's time is taken before the first span
ARENAS = 3  # on a GPU calls take turns among so many copies of all tensors, at other addresses, …
ARENA_SHARE = 0.02  # … each of which is no larger than this share of the free memory: others need theirs too
CANARY_BYTES = 8 << 20  # on a CPU; on a GPU a quarter of its cache
CANARY_READS = 5
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


class Proved(TypedDict):
    """Two calls of a case: what was seen of the first, what both handed back, seconds of the second (the clock's, or
    the CPU's where they are fewer)."""

    watched: Watched
    handed: list[Handed]
    seconds: Seconds
    counts: dict[str, int]  # kernels that ran on a GPU in one call, by name
    notes: list[str]  # what the simulator saw that is no fault


class Ready(TypedDict):
    """What setting up a timed case took, in seconds, and what a call of it needs."""

    prepare_s: Seconds
    call_s: Seconds
    overhead_s: Seconds  # contents, flushing and poisoning before a cold call
    workspace_bytes: int
    configuration: str
    busy_s: Seconds | None  # of a call, on a GPU
    peak_bytes: int | None  # on a GPU: what a call allocated beyond what it was given
    runtimes: int  # of OpenMP in the process, each with threads of its own
    watched: Watched


class Moments(TypedDict):
    """When a timed call was begun to be prepared, when it was made, and when all was over: nanoseconds of the
    monotonic clock, which all processes share."""

    began: int
    started: int
    stopped: int
    ended: int


class Sample(TypedDict):
    """Timed calls: seconds of each, what ran on a GPU and the state it was in, and what changed in the process."""

    seconds: list[Seconds]
    cpu_s: list[Seconds]
    host_s: list[Seconds]  # of spans: until the host had launched all
    backlog_s: Seconds  # of spinning before each span
    kernels: dict[str, int]
    uncopied_s: list[Seconds]  # of a library's calls on a GPU: without the copies that end them, …
    copies: dict[str, int]  # … which in the last call were these
    alien: list[str]  # kernels of a GPU that are not the variant's own
    state: GpuState
    changed: str


class Replays(TypedDict):
    """Seconds of a call in each of a few replays of a graph."""

    seconds: list[Seconds]


class Tampered(Exception):
    """Loading or preparing a variant, or its first call, changed the process for others."""


class Unmapped(Exception):
    """This process cannot map the judge's window: its inputs must come through the host's memory."""


def _an_authors(file: Path) -> bool:
    """Whether a file of a traceback is one in which a variant's author finds the mistake: no package's, nor what
    launches for a whole backend."""
    if not file.is_absolute() or file.parent in LAUNCHERS or {process.BENCH, STDLIB} & {*file.parents}:
        return False
    return not {*attest.SITE} & {*file.parts}


class Room(process.Room):
    """One variant in one process. `variant` None: only its device is asked."""

    def __init__(self, variant: Variant | None, setting: Setting):
        self.variant = variant
        self.device_name = setting.device
        self.on_gpu = is_gpu(setting.device)
        self.device = open_device(setting.device)
        self.ipc = ipc_of(self.device) if self.on_gpu else None
        self.window: tuple[str, int] | None = None  # of the judge's: name and bytes, where outputs are put
        self.through_host = ""  # why inputs or outputs went through the host's memory
        if setting.threads:
            torch.set_num_threads(setting.threads)
        # Until calls are timed: others are at work beside the proof, and whose threads spin takes a core from them.
        self.waits = ShortWaits() if variant and not self.on_gpu else None
        if setting.simulate and variant and variant.gpu_code:
            simulate.install(variant.backend)
            simulate.limit_time(setting.time_limit)
            keep_memory()  # an arena for each case: nothing is timed here, and new pages take a tenth of a proof
        if variant:
            entry.hold()
            attest.start()
            deeds.guard()
            self.seal = replaced.sealed()
        if variant and builds_each_shape(variant):
            process.load(OF_TORCH_COMPILE)  # it would, call by call, and collect garbage meanwhile
        self.arenas: list[Arena] = []  # one and, while a GPU is timed, copies of it
        self.last: Arena | None = None  # of the last call
        self.arguments: tuple[list[Value | Scalar], Values] = [], {}  # that it was given, …
        self.probes: list[Probe] = []  # … and what was seen once it was over
        self.pool: list[Values] = []  # draws that timed calls are given, where the device reads them
        self.settled: Case | None = None  # that timing will begin with
        self.box: Box | None = None  # what is handed back
        self.box_before: Box | None = None  # of the case before: the judge may still look at it
        self.timer: Timer | None = None
        self.backlog_s = BACKLOG_SECONDS  # before a span of this case
        self.turns = 0
        self.replay: Callable[[], None] | None = None  # of a graph of `graph_calls` calls
        self.graph_calls = 0
        self.graph_backlog_s = BACKLOG_SECONDS  # before a replay of it
        self.function: Callable[..., object] = lambda: None
        self.entered: set[str] = set()  # phases
        self.deep: world.State = {}  # of the world, when it was last looked at: that takes waking all threads, …
        self.deep_now = True  # … and is done when something new has run, and now and then
        self.mapped: set[str] = set()  # libraries that were there before the variant
        self.runtimes = 0  # of OpenMP then
        self.ahead = Ahead()

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
        if isinstance(error, Unmapped):
            return ProcessFailed(UNMAPPED, one_line(error))
        if isinstance(error, Unavailable):
            return ProcessFailed("skipped", one_line(error))
        if isinstance(error, Tampered):
            return ProcessFailed("wrong", f"global_state: {error}")
        if isinstance(error, simulate.SimulationError):  # the kernel is wrong, whatever it computed
            told = error.evidence().removeprefix(f"{error.kernel}: ")
            if error.reports[0].kind == "timeout":
                return ProcessFailed(process.TIMEOUT, f"{told.removeprefix('timeout: ')} (in {error.kernel})")
            return ProcessFailed("wrong", f"{told} (in {error.kernel})")
        if refused := refusal(error):  # a library has no kernel for it
            return ProcessFailed("skipped", refused)
        said = telling(error)
        # Triton's, and what our launcher says: no such GPU can launch it at this shape
        if type(error).__name__ == "OutOfResources" or TOO_MUCH_SHARED.search(said):
            return ProcessFailed("skipped", said)
        if isinstance(error, MemoryError) or "not enough memory" in said or "out of memory" in said:
            return ProcessFailed(process.ERROR, f"out of memory: {said}")
        if type(error).__name__ == "CompileError":  # tells its own place
            return ProcessFailed(process.ERROR, f"{said}{whole_message(error)}")
        if found := NO_SYMBOL.search(said):  # how ctypes says that a variant's library has no such function
            said += f": it has no `EXPORT void {found[1]}(…)`"
        where = line_of(error, outside=process.BENCH, rather=_an_authors)
        return ProcessFailed(process.ERROR, f"{one_line(type(error).__name__, 60)}: {said}{where}")

    def measure_ceilings(self) -> None:
        """Have the ceilings of a GPU measured where its context is, and kept; the parent reads the file."""
        ceilings.ceilings(device=self.device_name)

    # --- proving ---

    def prove(self, case: Case, given: Given, seed: int) -> Proved:
        """Two calls of a case: one is watched, the other is not, and both hand back what they left."""
        self.box, self.box_before = self.box_before, self.box
        with simulate.collecting():
            return self._prove(case, given, seed)

    def _prove(self, case: Case, given: Given, seed: int) -> Proved:
        self._enter_case(case, seed)
        seed -= seed % 2  # an even one poisons with NaNs, the next with numbers
        self.arena.load(self._values(given))
        assert self.variant
        if case.phase not in self.entered:
            self.prepare(tuned=False)  # no time is taken of these shapes
            self._first_call()
            self.entered.add(case.phase)
        elif not self.variant.own_code and COMPILER in sys.modules:  # sets what it likes while it builds for a shape
            self._first_call()
        watched, counts, probes = self._watched_call(seed, warm=False)
        first = self._hand_back(probes, 0, calls=2)
        self.arena.reset(seed + 1)
        self.device.synchronize()
        args, kwargs = self.arena.args(), self.arena.kwargs()
        start, used = PERF_COUNTER_NS(), PROCESS_TIME_NS()
        with self.ahead.born():
            self.function(*args, **kwargs)
        self.device.synchronize()
        # On a busy machine a call takes ten times its time, and what is by that too slow to be timed is not.
        seconds = min(PERF_COUNTER_NS() - start, PROCESS_TIME_NS() - used) / 1e9
        second = self._hand_back(self.arena.probe(), 1, calls=2)
        notes = [f"{n.kind} in {n.kernel}: {n.message}" for n in simulate.take_notes()]
        notes += [self.through_host] if self.through_host else []
        return Proved(watched=watched, handed=[first, second], seconds=seconds, counts=counts, notes=notes)

    def call_sealed(self, case: Case, given: Given, seed: int) -> None:
        """A call of a case that was proved, whose inputs cannot be written to: who does so ends this process."""
        self._enter_case(case, seed)
        self.arena.load(self._values(given))
        with self.arena.inputs_sealed():
            self._one_call()

    def _first_call(self) -> None:
        """It may compile, and leave a pool of threads behind; it may not change the process."""
        before = world.take()
        self._one_call()
        if changed := world.difference(world.settled(before), world.take()):
            raise Tampered(f"the first call: {changed}")

    def _watched_call(self, seed: int, warm: bool) -> tuple[Watched, dict[str, int], list[Probe]]:
        """A call whose operators, kernels and side effects are written down. warm: pools of threads are there."""
        assert self.variant
        arena, function, own = self.arena, self.function, self.variant.own_code
        before = world.take() | self.deep
        deep = warm or self.deep_now or RANDBELOW(DEEP_CALLS) == 0
        counts: dict[str, int] = {}
        kernels, allocated = None, 0
        if self.on_gpu and not os.environ.get(ANOTHER_PROFILER):
            arena.reset(seed)
            ran_there, allocated = ran.watch(self.device, self._call)
            kernels, counts = [k.name for k in ran_there], ran.counts(ran_there)
        arena.reset(seed)
        args, kwargs = arena.args(), arena.kwargs()
        watch, seen = deeds.Watch(), None

        def call() -> object:
            with watch:
                return function(*args, **kwargs)

        if (own or self.variant.kernels) and not is_made_up(self.device_name):
            returned, seen = attest.attested(call, modes=own)
        else:
            returned = call()
        self.device.synchronize()
        probes, after = arena.probe(), self.deep | world.take(deep)
        self.deep, self.deep_now = {world.DENORMALS: after[world.DENORMALS]}, False
        before = before if warm else before | {world.POOLS: after[world.POOLS]}
        told = (world.difference(before, after), world.late_work(before, after), watch.evidence())
        watched = Watched(
            returned="" if returned is None else type(returned).__name__,
            tampered=arena.tampered(args, kwargs),
            seen=seen,
            brought=attest.judge_loaded(self.variant) or attest.judge_linked(self.variant, self.mapped),
            kernels=kernels,
            allocated=allocated,
            changed="; ".join(filter(None, told)),
        )
        return watched, counts, probes

    # --- timing ---

    def settle(self, case: Case, pool: list[Given], seed: int) -> None:
        """Memory of the timed case, touched; nothing of it is measured, so that several processes may do so at once."""
        self.box_before = None  # the proof is over
        if self.waits:
            self.waits.end()
        self._enter_case(case, seed)
        self.pool = []  # the old memory first
        self.pool = [self._placed_values(given) for given in pool]
        self.arena.load(self.pool[0], seed)
        self.device.flush()
        self.settled = case

    def ready(self, case: Case, pool: list[Given], seed: int) -> Ready:
        """Set up the timed case, unless it was: one-time work, then warm up, then a call that is watched."""
        if self.settled != case:
            self.settle(case, pool, seed)
        self.settled = None
        before = world.take()
        start = PERF_COUNTER_NS()
        self.prepare()
        first, configuration = configured_call(self.module, self._one_call)
        prepared = (PERF_COUNTER_NS() - start) / 1e9
        # A first call may compile and tell nothing; C++ was compiled when the variant was proved.
        seconds = [first] if self.variant and self.variant.backend == "cpu" else []
        while not seconds or seconds[-1] < WARM_UP_SECONDS * 2:  # so slow a call has warmed everything
            if (PERF_COUNTER_NS() - start) / 1e9 - prepared > WARM_UP_SECONDS and len(seconds) >= WARM_UP_CALLS:
                break  # poisoning between calls is work, too
            seconds.append(self._one_call())
        busy_s = peak_bytes = None
        if self.on_gpu:
            self._copy_arena()
            self.arena.reset()
            kernels, peak_bytes = ran.watch(self.device, self._call)
            busy_s = busy_seconds(kernels)
            self.backlog_s = backlog_of(self._host_seconds())
        if changed := world.difference(world.settled(before), world.take()):
            raise Tampered(f"warming up: {changed}")
        watched, _, _ = self._watched_call(seed, warm=True)
        start = PERF_COUNTER_NS()
        self.arena.load(self.pool[0], seed)
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
            runtimes=facts.openmp_runtimes(),
            watched=watched,
        )

    def enter(self, case: Case, pool: list[Given], seed: int) -> None:
        """Memory for the turns of a case that was set up, after `leave`."""
        self._enter_case(case, seed)
        self.pool = [self._placed_values(given) for given in pool]
        self.arena.load(self.pool[0], seed)
        self.arena.reset(seed)

    def leave(self) -> None:
        """Give the memory of a timed case back, for others."""
        self.arenas, self.pool, self.last, self.replay = [], [], None, None
        self.arguments, self.probes = ([], {}), []  # of what is there no more
        self.box = self.box_before = None
        self.device.release_unused()

    def begin(self, clock: str) -> None:
        """Begin a turn: calls come one by one, until `end`."""
        self.timer = self.device.timer(clock, self.backlog_s)
        self.timer.__enter__()  # a profiler may start threads
        self.state, self.set_meanwhile = world.take(), ""
        self.ahead.begin()

    def call(self, entry: int, seed: int, cold: bool) -> Moments:
        """Time one call, on a draw of the pool changed by a seed; outputs are poisoned before. Nothing is collected
        meanwhile: what runs when it is would run before the clock starts, or before anybody looks."""
        GC_DISABLE()
        try:
            return self._timed_call(entry, seed, cold)
        finally:
            GC_ENABLE()

    def _timed_call(self, entry: int, seed: int, cold: bool) -> Moments:
        began = PERF_COUNTER_NS()
        assert self.timer
        arena = self.last = self.arenas[self.turns % len(self.arenas)]
        self.turns += 1
        arena.load(self.pool[entry], seed)
        arena.reset(seed)
        args, kwargs = arena.args(), arena.kwargs()
        timer, function, self.probes, look = self.timer, self.function, [], arena.aimed()

        def at_once() -> None:
            self.probes = look()

        timer.at_once = at_once
        poisoned = [] if self.on_gpu else look()  # who begins before the clock starts writes there
        self.ahead.given()
        self.device.flush() if cold else touch(arena)
        self.ahead.starts()
        tasks = self.ahead.tasks()
        with span(self._range_name()), deeds.Watch() as watch:
            early = Arena.written_since(poisoned, look()) if poisoned else ""
            started = PERF_COUNTER_NS()
            timer.start()
            function(*args, **kwargs)
            timer.stop()
        stopped = PERF_COUNTER_NS()
        self.ahead.took((stopped - started) / 1e9)
        self.ahead.own |= self.ahead.tasks() - tasks
        self.probes = self.probes or arena.probe()
        self.arguments = args, kwargs
        self.set_meanwhile = self.set_meanwhile or early or watch.evidence()
        return Moments(began=began, started=started, stopped=stopped, ended=PERF_COUNTER_NS())

    def hand_back(self) -> tuple[Handed, str]:
        """What the last call left, and what became of its arguments. That it is wanted is said only now."""
        assert self.last
        tampered = self.last.tampered(*self.arguments)
        return self._hand_back(self.probes, 0), tampered

    def end(self) -> Sample:
        """End a turn: the clock's seconds of each call, on a CPU the process-CPU seconds too, on a GPU the kernels
        that the last call ran and the state the card is in."""
        assert self.timer and self.variant
        card = self.device.state()  # while it is still as the calls left it
        changed = world.difference(self.state, world.take()) or self.set_meanwhile or self._worked_ahead()
        self.ahead.end()
        self.timer.__exit__(None, None, None)
        timer, self.timer = self.timer, None
        own = self.variant.own_code
        return Sample(
            seconds=timer.seconds,
            cpu_s=timer.cpu_seconds,
            host_s=timer.host_seconds,
            backlog_s=self.backlog_s,
            kernels=ran.counts(timer.kernels[-1]) if timer.kernels else {},
            uncopied_s=[] if own else [ran.uncopied_seconds(call) for call in timer.kernels],
            copies=ran.counts(ran.last_copies(timer.kernels[-1])) if timer.kernels and not own else {},
            alien=ran.foreign(self.variant, [k.name for call in timer.kernels for k in call]) if own else [],
            state=card,
            changed=changed,
        )

    def _worked_ahead(self) -> str:
        """Evidence of threads of its own; none where they are a pool that PyTorch has, too, and uses itself."""
        found = self.ahead.evidence()
        if not found:
            return ""
        shares = facts.openmp_runtimes() <= self.runtimes and any(ran.wants_openmp(p) for p in ran.brought(self.mapped))
        return "" if shares else found

    def capture(self, busy_s: float) -> int:
        """Capture a graph of many warm calls, and replay it, twice; answers how many. Raises what broke the capture."""
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
        replay()  # the first one also puts the graph on the device
        self.device.synchronize()
        with self.device.timer(GRAPH) as timer:
            timer.start()
            replay()
            timer.stop()
        self.graph_backlog_s = backlog_of(max(timer.host_seconds))
        self.replay, self.graph_calls = replay, calls
        return calls

    def time_graph(self, entry: int, seed: int) -> Replays:
        """Seconds of a call in each of a few replays; `hand_back` then gives what the last one left."""
        assert self.replay
        arena = self.last = self.arena
        arena.load(self.pool[entry], seed)
        with self.device.timer(GRAPH, self.graph_backlog_s) as timer:
            for _ in range(REPLAYS):
                arena.reset(seed)
                touch(arena)
                timer.start()
                self.replay()
                timer.stop()
        self.probes, self.arguments = arena.probe(), (arena.args(), arena.kwargs())
        # Thousands of nodes take the host longer to launch than a short call's kernels run.
        seconds = queued(timer.seconds, timer.host_seconds, self.graph_backlog_s)
        return Replays(seconds=[s / self.graph_calls for s in seconds])

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

    def profile(self, case: Case, given: Given, folder: Path) -> list[profiling.Row]:
        """Traces of a few calls of the case, by bench.machine.profiling; answers its rows."""
        self._enter_case(case, 0)
        self.arena.load(self._values(given))
        self.prepare()
        self._one_call()
        name = f"{self._range_name()}/{case.name}/{case.shape['dtype']}"
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
            rates[name] = rates["bytes"] / min(timer.seconds)  # others at work take from both what they like
        return rates

    def count(self, case: Case, given: Given, seed: int) -> tuple[Counts, Handed]:
        """What the simulator counts in one call, for a record, and what the call left."""
        self._enter_case(case, seed)
        self.arena.load(self._values(given))
        self.arena.reset(seed)
        counts = counted(self.module, self.arena)
        return counts, self._hand_back(self.arena.probe(), 0)

    def launches(self, case: Case) -> int:
        """How many kernels a call of this case launches; none is run. Asked of a room that has no GPU."""
        return len(launches_of(self.module, case))

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
        state, self.mapped = world.take(deep=True), facts.mapped()
        self.deep = {world.DENORMALS: state.pop(world.DENORMALS)}
        self.runtimes = facts.openmp_runtimes()
        with self.ahead.born():
            module = self.variant.load()
        if changed := world.difference(state, world.take()):
            raise Tampered(f"importing the variant: {changed}")
        return module

    @property
    def arena(self) -> Arena:
        return self.arenas[0]

    def prepare(self, tuned: bool = True) -> None:
        state, self.deep_now = world.take(), True
        if hasattr(self.module, "prepare"):
            with nullcontext() if tuned else untuned(), self.ahead.born():
                self.module.prepare(self.arena.case.shape, self.arena.case.phase)
        if changed := world.difference(state, world.take()):
            raise Tampered(f"prepare: {changed}")

    def _enter_case(self, case: Case, seed: int) -> None:
        """An arena for the case, its guard bands made from the seed; where only the contents differ it is the last one,
        addresses and all."""
        self.function = getattr(self.module, case.phase)
        self.replay = None  # it calls on the arenas' addresses
        old = self.arena.case if self.arenas else None
        if old and (old.layer, old.phase, old.shape) == (case.layer, case.phase, case.shape):
            self.arena.case = case
            del self.arenas[1:]
            self.arena.fence_off(seed)
        else:
            self.arenas, self.last = [], None  # free the old memory first
            self.arenas = [Arena(case, self.device.place, workspace_of(self.module, case), seed)]
        self.last = self.arena

    def _copy_arena(self) -> None:
        """More arenas at other addresses, as far as memory is plentiful: no address is known to be lucky."""
        size = sum(fence.raw.numel() for fence in self.arena.fences.values())
        while len(self.arenas) < ARENAS and size <= ARENA_SHARE * self.device.free_bytes():
            copy = Arena(self.arena.case, self.device.place, self.arena.workspace_bytes, self.arena.seed)
            copy.load(self.pool[0])
            self.arenas.append(copy)

    def _placed_values(self, given: Given) -> Values:
        return {n: map(v, lambda x: x.to(self.device.place)) for n, v in self._values(given).items()}

    def _values(self, given: Given) -> Values:
        """The tensors of a call, where the judge put them; what is written to them here stays here."""
        self.window = (given.window, given.size) if given.window else None
        self.through_host = given.note
        if not given.window:
            return values_in(opened(given.path, given.size), given.table)
        if self.ipc is None:
            raise Unmapped("the device's memory cannot be shared")
        try:
            with self.ipc.opened(given.window, given.size) as memory:
                values = values_in(memory, given.table)
                copies = {name: map(value, torch.clone) for name, value in values.items()}
                self.device.synchronize()
                del memory, values
        except OSError as error:
            raise Unmapped(f"the judge's memory on the device cannot be mapped: {one_line(error)}") from error
        return copies

    def _box(self, calls: int) -> Box:
        """A box that as many calls can be handed back in; the old one where it is large enough."""
        wanted = calls * self.arena.size()
        if self.box is None:
            return Box(wanted)
        if self.box.size < wanted:
            self.box.grow(wanted)
        return self.box

    def _hand_back(self, probes: list[Probe], number: int, calls: int = 1) -> Handed:
        """Copy what the last call left to where the judge looks: the number of so many that it looks at together."""
        time.sleep(SETTLE_SECONDS)
        arena = self.last
        assert arena
        start = number * arena.size()
        end, told = start + arena.size(), [p.plain() for p in probes]
        made_from = arena.workspace_bytes, arena.seed, arena.poison_seed, told
        if self.window and self.ipc and end <= self.window[1]:
            name, size = self.window
            try:
                with self.ipc.opened(name, size) as memory:
                    arena.hand_back(memory[start:])
                    self.device.synchronize()
                    del memory
                return Handed("", end, start, *made_from, window=name)
            except OSError as error:
                self.through_host = f"outputs went through the host's memory: {one_line(error)}"
        self.box = self._box(calls)
        arena.hand_back(self.box.bytes[start:])
        return Handed(self.box.path, self.box.size, start, *made_from)

    def _range_name(self) -> str:
        case = self.arena.case
        return f"{case.layer}/{case.phase}/{self.variant.name if self.variant else 'judge'}"

    def _call(self) -> None:
        self.arena.call(self.function)

    def _host_seconds(self) -> float:
        """The most that the host needed to launch any of a few warm calls."""
        with self.device.timer(SPAN) as timer:
            for _ in range(HOST_CALLS):
                self.arena.reset()
                args, kwargs = self.arena.args(), self.arena.kwargs()
                timer.start()
                self.function(*args, **kwargs)
                timer.stop()
        return max(timer.host_seconds)

    def _one_call(self) -> float:
        """Seconds of a call as the host sees it, until the device is done."""
        self.arena.reset()
        self.device.synchronize()
        start = PERF_COUNTER_NS()
        with self.ahead.born():
            self.arena.call(self.function)
        self.device.synchronize()
        return (PERF_COUNTER_NS() - start) / 1e9


def whole_message(error: BaseException) -> str:
    """Keep all that a compiler said, and tell the name of that file; the session puts it beside the run."""
    text = str(error)[:MOST_MESSAGE]
    name = f"compiler-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:10]}.txt"
    try:
        put(cache_dir() / MESSAGES / name, text.encode(errors="replace"))
    except OSError:
        return ""
    return f" [all of it: {name}]"


def touch(arena: Arena) -> None:
    """Bring the inputs into the caches, as far as they fit."""
    for value in arena.inputs.values():
        for tensor in each(value):
            if tensor.numel():
                tensor.amax()
