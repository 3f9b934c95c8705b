"""Which variant serves each call of the training step: what `--kernels` says, and how fast each one is here.

    spec = parse("fastest,attention=cpu.naive")
    pool = candidates(spec, variants, ids, device, dtype)    {CallId: [Variant, …]}
    times = race(program, pool)                              milliseconds a call, measured in the worker
    choice = fastest(pool, times)                            {CallId: Variant}

`--kernels` is a comma list. One entry may set the default: `fastest` (any variant), a backend (`cpu`: the fastest of
that backend) or a variant (`cpu.naive`). Entries `layer=…` or `layer/shape=…` override it, with the same three kinds
of value. A folder adds the variants that lie in it; a FILE.json names kernels that were chosen before
(bench.models.chosen).
"""

import hashlib
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import cli
from bench.cli import CannotGoOn
from bench.core import BACKENDS, files
from bench.core.evidence import cause_of
from bench.core.progress import Progress
from bench.core.variants import Variant, simulated, unavailable
from bench.machine import facts
from bench.machine.compared import Contestant, Lost
from bench.machine.devices import BACKLOG_SECONDS, SPAN, Device, backlog_of
from bench.models import CallId
from bench.models.calls import Call
from bench.models.program import Program, step_calls
from bench.models.step import bind, make_workspace, workspace_bytes
from kernels import Unavailable, cache_dir
from kernels.cpu import cpu_flags
from reference import contract
from reference.contract import Shape

FASTEST = "fastest"
TRAINING = "the training step"
ROUNDS = 7  # timed calls of each candidate that stays in the race …
LONG_ENOUGH_S = 0.3  # … and more where they are short, until the race has taken this long
MAX_ROUNDS = 60
CUT_OFF = 3.0  # a candidate this much slower than the best in its first timed call is out
HOPELESS = 12.0  # … and this much slower at a smaller shape of the layer is not tried at a larger one
SURE_MS = 1.0  # … unless the best is below this: one slice given to a neighbour is longer
TRIVIAL_MS = 20.0  # calls this short are cheap enough to try anyway
NOT_SUPPORTED = f"{Unavailable.__name__}: "  # begins the reason of a candidate that does not have a call of the step
LATE = ("torch.compile",)  # compiles for seconds at every shape: tried last, the calls that matter most first, …
BUDGET_S, GPU_BUDGET_S = 10.0, 300.0  # … until this long after the start; on a GPU they are serious contenders


Pool = dict[CallId, list[Variant]]


@dataclass
class Spec:
    """`--kernels` as written: the default, the overrides by layer or place, extra folders of variants, and a file with
    an earlier choice."""

    default: str = FASTEST
    overrides: dict[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    chosen: Path | None = None

    def override(self, id: CallId) -> str | None:
        return self.overrides.get(id.place, self.overrides.get(id.layer))


def parse(text: str) -> Spec:
    """The parts of a `--kernels` list. Raises CannotGoOn for two defaults or files, or an empty entry."""
    spec = Spec()
    defaults: list[str] = []
    files: list[Path] = []
    for entry in text.split(","):
        where, equals, value = entry.strip().partition("=")
        if not where or (equals and not value):
            raise CannotGoOn(f"--kernels {text!r} has an empty entry", cli.USAGE)
        if equals:
            spec.overrides[where] = value
        elif where.endswith(".json"):
            files.append(Path(where))
        elif os.sep in where or Path(where).is_dir():
            spec.folders += (Path(where),)
        else:
            defaults.append(where)
    if len(defaults) > 1:
        raise CannotGoOn(f"--kernels names {' and '.join(defaults)} for all layers; one of them", cli.USAGE)
    if len(files) > 1:
        raise CannotGoOn(f"--kernels names {' and '.join(map(str, files))}; one of them", cli.USAGE)
    spec.default = defaults[0] if defaults else FASTEST
    spec.chosen = files[0] if files else None
    return spec


def candidates(
    spec: Spec,
    variants: list[Variant],
    ids: Iterable[CallId],
    device: str,
    dtype: str,
    simulate: bool = False,
    what: str = TRAINING,
) -> dict[CallId, list[Variant]]:
    """Who may serve each call: one where it is named, several where measurements must decide.

    what: TRAINING, or what else the calls are of: then a variant needs no other pass than theirs.
    Raises CannotGoOn for an unknown name (with a suggestion), for a named variant that cannot run here or has no
    backward, and for a call that no variant can serve.
    """
    ids = list(ids)
    known = [*dict.fromkeys(id.place for id in ids), *dict.fromkeys(id.layer for id in ids)]
    for where in spec.overrides:
        cli.choose(where, known, f"layer of {what}")
    pool = {}
    for id in ids:
        here = [v for v in variants if v.layer == id.layer]
        phases = contract.phases_of(contract.load(id.layer)) if what == TRAINING else (id.phase,)
        reasons = {v.name: why_not(v, device, dtype, simulate, phases) for v in here}
        pool[id] = _served(spec.override(id) or spec.default, id.layer, here, reasons, dtype)
    return pool


def _served(wish: str, layer: str, here: list[Variant], reasons: Mapping[str, str | None], dtype: str) -> list[Variant]:
    names = [v.name for v in here]
    if wish in names:
        variant = here[names.index(wish)]
        if reason := reasons[wish]:
            raise CannotGoOn(f"{layer} {wish} cannot run: {reason}", cli.CANNOT_RUN)
        return [variant]
    if wish != FASTEST and wish not in BACKENDS:
        hint = cli.did_you_mean(wish, [*names, FASTEST, *BACKENDS])
        raise CannotGoOn(f"{layer} has no variant {wish!r}{hint} (it has: {', '.join(names)})", cli.USAGE)
    wanted = [v for v in here if wish in (FASTEST, v.backend)]
    found = [v for v in wanted if not reasons[v.name]]
    if not found:
        told = "; ".join(f"{v.name}: {reasons[v.name]}" for v in wanted) or "there is none"
        raise CannotGoOn(f"no variant of {layer} for --kernels {wish} at {dtype} ({told})", cli.CANNOT_RUN)
    return found


def why_not(
    variant: Variant, device: str, dtype: str, simulate: bool = False, phases: Sequence[str] | None = None
) -> str | None:
    """Why a variant cannot train here, or None. With `simulate` GPU kernels can, in the simulator. phases: that it must
    have, all of the layer's where nothing is said."""
    whole = contract.phases_of(contract.load(variant.layer))
    missing = [p for p in phases or whole if not variant.has(p)]
    if missing:
        return f"it has no {missing[0]}" + (", so it cannot train" if len(phases or whole) == len(whole) else "")
    if simulated(variant, device) and not simulate:
        return "needs an NVIDIA GPU (--device cuda), or --simulate"
    return unavailable(variant, device, dtype, simulate)


# --- measuring, in the worker's process ---


@dataclass
class Times:
    """Milliseconds a call by variant name; and why some have none."""

    ms: dict[CallId, dict[str, float]] = field(default_factory=dict)
    skipped: dict[CallId, dict[str, str]] = field(default_factory=dict)
    broke: tuple[CallId, str] | None = None  # the call and variant after which the GPU was of no more use


Told = Times | tuple[CallId, str]  # what a race tells while it runs, …
Keep = Callable[[Told], None]  # … and who hears it


def told(heard: Iterable[Told]) -> tuple[Times, tuple[CallId, str] | None]:
    """What a race that was cut off had told: its times, and the (call, variant name) that was tried last."""
    times, last = Times(), None
    for what in heard:
        if isinstance(what, Times):
            times.ms |= what.ms
            times.skipped |= what.skipped
        else:
            last = what
    return times, last


@dataclass(frozen=True)
class Raced:
    """A race: its times, and where it was cut off by whom, at which call, and how."""

    times: Times
    culprit: tuple[CallId, str] | None = None
    why: str = ""


def race_in(contestant: Contestant, pool: Pool, keep: Keep, gpu: bool, stop: float, limit: float) -> Raced:
    """A race in a contestant's process, of which `keep` is told at once. Raises Lost where the process died or hung and
    no candidate had been tried by then."""
    contestant.listener = keep
    budget = GPU_BUDGET_S if gpu else BUDGET_S
    try:
        times: Times = contestant.ask("race", pool=pool, budget=budget, stop=stop, limit=limit)
    except Lost as error:
        times, culprit = told(contestant.heard)
        if culprit is None:
            raise
        return Raced(times, culprit, str(error))
    finally:
        contestant.listener = None
    why = f"left the GPU unusable: {times.skipped[times.broke[0]][times.broke[1]]}" if times.broke else ""
    return Raced(times, times.broke, why)


def race_on(pool: Pool, once: Callable[[Pool], Raced | None], out: Callable[[str], None]) -> Times:
    """The race of all candidates, by one process after the other: a candidate that kills its process, hangs, or leaves
    the GPU unusable has no times, and the race goes on without it.

    once: races a pool; None where there is no time left. out: is told of such a candidate, and starts the next process.
    """
    found = Times()
    lost: dict[tuple[str, str], str] = {}  # (layer, variant): why
    left = pool
    while left and (new := once(left)):
        found.ms |= new.times.ms
        found.skipped |= new.times.skipped
        if new.culprit is None:
            break
        id, name = new.culprit
        lost[id.layer, name] = new.why
        out(f"{name} of {id} is out: {new.why}")
        left = {
            id: [v for v in some if (v.layer, v.name) not in lost] for id, some in pool.items() if id not in found.ms
        }
    for (layer, name), why in lost.items():
        for id in [id for id in pool if id.layer == layer]:
            found.ms.get(id, {}).pop(name, None)
            found.skipped.setdefault(id, {})[name] = why
    return found


class GpuLost(Exception):
    """A candidate did what the driver never forgives (an illegal address, a trap): only a new process can go on."""


def race(
    program: Program,
    pool: dict[CallId, list[Variant]],
    budget: float = BUDGET_S,
    hopeless: float = HOPELESS,
    tell: Callable[[Told], None] = lambda what: None,
    stop: float = math.inf,
) -> Times:
    """Time every candidate at its calls of the step, interleaved, on the step's own memory (its contents are lost).

    Successive calls go to successive blocks of the model, so that weights come from memory as they do in the step.
    On a GPU its events time them, behind a backlog that keeps launching out of the time, as a graph does. Where a
    candidate leaves the GPU unusable the race ends with what it has, and `broke` says which.

    stop: seconds after which no further call is raced; the times lack those.
    tell: called with (call, variant name) before a candidate is tried, and with Times after each call, so that nothing
    is lost with a process that a candidate kills, or hangs in.
    """
    memory = program.memory
    sizes = (program.model, memory.B, memory.T, memory.dtype, memory.recompute)
    shapes = {id: c.shape for id, c in step_calls(*sizes).items()}
    calls = [*program.forward_backward(accumulate=False), *program.update()]
    memory.fill_random()
    return race_calls(calls, shapes, memory.device, pool, budget, hopeless, tell, stop)


def race_calls(
    made: Iterable[Call],
    shapes: Mapping[CallId, Shape],
    device: Device,
    pool: dict[CallId, list[Variant]],
    budget: float = BUDGET_S,
    hopeless: float = HOPELESS,
    tell: Callable[[Told], None] = lambda what: None,
    stop: float = math.inf,
) -> Times:
    """As `race`, of any calls in memory that was filled already."""
    calls: dict[CallId, list[Call]] = {}
    for call in made:
        calls.setdefault(call.id, []).append(call)

    def work(id: CallId) -> int:
        return max(1, contract.flops(contract.load(id.layer), shapes[id], id.phase))

    times = Times()
    rates: dict[tuple[str, str, str], float] = {}  # (layer, phase, variant): ms for one operation
    start = time.monotonic()
    deadline, end = start + budget, start + stop

    def race_one(id: CallId, racing: list[Variant]) -> None:
        skipped = times.skipped[id]
        found = _race_one(racing, calls[id], shapes[id], device, skipped, lambda name: tell((id, name)))
        for name, ms in found.items():
            times.ms[id][name] = min(ms, times.ms[id].get(name, math.inf))
            rates[id.layer, id.phase, name] = ms / work(id)
        tell(Times({id: times.ms[id]}, {id: skipped}))

    def weight(id: CallId) -> float:
        return len(calls[id]) * min(times.ms[id].values(), default=math.inf)

    try:
        for id in sorted(pool, key=work):
            if time.monotonic() > end:
                break
            times.ms[id], times.skipped[id] = {}, {}
            of = {v.name: rates.get((id.layer, id.phase, v.name)) for v in pool[id]}
            known = {name: rate for name, rate in of.items() if rate is not None}
            best = min(known.values(), default=0.0)
            racing = []
            for v in [v for v in pool[id] if v.name not in LATE] or pool[id]:
                rate = known.get(v.name, best)
                if rate > hopeless * best and rate * work(id) > TRIVIAL_MS:
                    times.skipped[id][v.name] = f"{rate / best:.0f} times slower at a smaller shape"
                else:
                    racing.append(v)
            race_one(id, racing)

        for id in sorted(times.ms, key=weight, reverse=True):
            ms, skipped = times.ms[id], times.skipped[id]
            late = [v for v in pool[id] if v.name in LATE and v.name not in ms | skipped]
            if late and time.monotonic() > min(deadline, end):
                skipped |= {v.name: f"the {min(budget, stop):.3g} s for measuring were spent" for v in late}
            elif late:
                leader = min(ms, key=ms.__getitem__, default=None)
                race_one(id, [*late, *(v for v in pool[id] if v.name == leader)])
    except GpuLost as lost:
        times.broke = id, str(lost)
        del times.ms[id]
    return times


def _race_one(racing, calls, shape, device: Device, skipped, tell) -> dict[str, float]:
    """{variant: ms} of one call: a warm-up call, a timed one, then rounds of those not far behind.

    The best call counts: a neighbour on the machine makes calls longer, never shorter.
    """
    clock = SPAN if SPAN in device.clocks else device.clocks[0]

    bound: dict[str, list] = {}
    samples: dict[str, list[float]] = {}
    host_s: dict[str, float] = {}  # of each variant's last call, where spans are taken

    def timed(name: str, turn: int) -> float:
        if turn < 2 or clock == SPAN:  # on a CPU the parent is not woken up between short calls
            tell(name)
        function, args, kwargs = bound[name][turn % len(calls)]
        with device.timer(clock, backlog_of(host_s.get(name, 0.0))) as timer:
            timer.start()
            function(*args, **kwargs)
            timer.stop()
        if turn and timer.host_seconds:  # not of a call that compiles
            host_s[name] = timer.host_seconds[0]
        return timer.seconds[0] * 1e3

    def failed(name: str, error: Exception) -> None:
        """A variant that cannot run is no candidate; the reason is kept."""
        samples.pop(name, None)
        skipped[name] = cause_of(error)
        try:
            device.synchronize()
        except Exception as lost:
            raise GpuLost(name) from lost

    for v in racing:
        tell(v.name)
        try:
            module = v.load()
            if hasattr(module, "prepare"):
                module.prepare(shape, calls[0].id.phase)
            workspace = make_workspace([workspace_bytes(calls[0], module, shape)], device.place)
            bound[v.name] = [bind(c, module, workspace, shape) for c in calls]
            timed(v.name, 0)  # compiles, loads, packs: whatever the first call does
            samples[v.name] = [timed(v.name, 1)]
            if backlog_of(host_s.get(v.name, 0.0)) > BACKLOG_SECONDS:  # that was the host's time
                samples[v.name] = [timed(v.name, 1)]
        except Exception as error:
            failed(v.name, error)
    start = time.monotonic()
    for turn in range(2, 2 + MAX_ROUNDS):
        if not samples:
            break
        best = min(min(s) for s in samples.values())
        near = [name for name, s in samples.items() if min(s) <= CUT_OFF * best or best < SURE_MS]
        if len(near) == 1 or (turn >= 2 + ROUNDS and time.monotonic() - start > LONG_ENOUGH_S):
            break
        for name in random.sample(near, len(near)):
            try:
                samples[name].append(timed(name, turn))
            except Exception as error:
                failed(name, error)
    return {name: min(s) for name, s in samples.items()}


def fastest(pool: dict[CallId, list[Variant]], times: Times) -> dict[CallId, Variant]:
    """The quickest candidate of each call, of those that have every call of their layer in the step: where one is
    missing, a time of the others is no time of the layer. A call that no time was left for is served by who is quickest
    at the nearest: the layer's in the same pass, or in the other; else by PyTorch. Raises CannotGoOn where every
    candidate failed."""
    lacks = {
        (id.layer, name): reason
        for id, skipped in times.skipped.items()
        for name, reason in skipped.items()
        if reason.startswith(NOT_SUPPORTED)
    }
    choice = {}
    for id, variants in pool.items():
        if len(variants) == 1:
            choice[id] = variants[0]
            continue
        if open_ := unraced(id, variants, times):
            choice[id] = _nearest(id, open_, times)
            continue
        lacking = {v.name: lacks[id.layer, v.name] for v in variants if (id.layer, v.name) in lacks}
        ms = {name: took for name, took in times.ms.get(id, {}).items() if name not in lacking}
        if not ms:
            reasons = times.skipped.get(id, {}) | lacking
            told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise CannotGoOn(f"no variant of {id} ran here ({told})", cli.CANNOT_RUN)
        choice[id] = next(v for v in variants if v.name == min(ms, key=ms.__getitem__))
    return choice


def unraced(id: CallId, variants: list[Variant], times: Times) -> list[Variant]:
    """The candidates of a call that no time was left to race; none where it was raced."""
    return [] if id in times.ms else [v for v in variants if v.name not in times.skipped.get(id, {})]


def _nearest(id: CallId, variants: list[Variant], times: Times) -> Variant:
    """Of a call that was not raced: the winner of the raced call that is most like it."""
    here = {v.name: v for v in variants}
    raced = sorted((other for other in times.ms if other.layer == id.layer), key=lambda other: other.phase != id.phase)
    for other in raced:
        for name in sorted(times.ms[other], key=times.ms[other].__getitem__):
            if name in here:
                return here[name]
    return here.get("torch.eager", variants[0])


# --- what was measured before ---


class Cache:
    """Times of earlier races on this machine, in one JSON file: {case: {variant@source: ms or reason}}."""

    def __init__(self, path: Path, context: Iterable[object]):
        self.path = path
        self.context = list(context)
        self.known = files.recall(path)

    def _case(self, id: CallId, shape: Shape) -> str:
        text = json.dumps([self.context, (id.place, id.phase), shape], sort_keys=True)
        return f"{id} {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def take(self, pool: Pool, shapes: Mapping[CallId, Shape]) -> Times:
        """What is known of the pool. A case with an unknown candidate, or with no time, must be raced afresh."""
        times = Times()
        for id, variants in pool.items():
            row = self.known.get(self._case(id, shapes[id]), {})
            found = {v.name: row.get(_source(v)) for v in variants}
            if None in found.values() or all(isinstance(x, str) for x in found.values()):
                continue
            times.ms[id] = {n: x for n, x in found.items() if not isinstance(x, str)}
            times.skipped[id] = {n: x for n, x in found.items() if isinstance(x, str)}
        return times

    def keep(self, pool: Pool, shapes: Mapping[CallId, Shape], times: Times) -> None:
        """Remember new times; what was written by another run meanwhile stays, unless it is of the same case."""
        rows = {}
        for id in times.ms:
            told = times.ms[id] | times.skipped.get(id, {})
            rows[self._case(id, shapes[id])] = {_source(v): told[v.name] for v in pool[id] if v.name in told}
        files.remember(self.path, rows)


def _source(v: Variant) -> str:
    return f"{v.name}@{v.source_hash()}"


def times_of(
    pool: Pool, shapes: Mapping[CallId, Shape], cache: Cache, measure: Callable[[Pool, Keep], Times], remeasure: bool
) -> Times:
    """What is remembered of the candidates, and of the others what `measure` says. Each call's times are remembered as
    they come, but on a busy machine. remeasure: whatever is remembered."""
    times = Times() if remeasure else cache.take(pool, shapes)
    missing = {id: some for id, some in pool.items() if id not in times.ms}
    if not missing:
        return times
    cli.say(f"measuring {sum(map(len, missing.values()))} candidates for {len(missing)} calls")
    busy: list[str] = []
    kept: set[CallId] = set()
    raced: set[CallId] = set()

    def keep(new: Told) -> None:
        if not isinstance(new, Times):
            return
        for id in new.ms.keys() - raced:
            line.done("call")
            raced.add(id)
        line.begin("call", "picking kernels")
        if reason := facts.busy(facts.snapshot()):
            busy.append(reason)
        else:
            cache.keep(missing, shapes, new)
            kept.update(new.ms)

    with Progress() as own:
        line = own.before or own
        line.expect("call", len(missing))
        line.begin("call", "picking kernels")
        new = measure(missing, keep)
        line.expect("call", len(raced) - len(missing))  # for the others there was no time
    # Again, for what was out at one call is out at those before it too.
    cache.keep(missing, shapes, Times({id: new.ms[id] for id in kept & new.ms.keys()}, new.skipped))
    if busy:
        cli.say(f"busy machine, so not all of these choices are remembered: {busy[-1]}")
    times.ms |= new.ms
    times.skipped |= new.skipped
    return times


def open_cache(chip: str, device: str, threads: int) -> Cache:
    """The cache of this machine: keyed by CPU (or GPU), threads and versions, so that a stale time is never used.
    chip: the device's name, which a process that has opened it knows."""
    context = [chip, cpu_flags(), device, threads, torch.__version__, platform.python_version()]
    context += facts.library_settings()
    return Cache(cache_dir() / "step_times.json", context)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), platform.processor())
