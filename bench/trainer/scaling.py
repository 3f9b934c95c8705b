"""What a training step would take on many ranks, from what its calls take on one and what a link between ranks carries.

One rank's step is m micro-batches, the norm, AdamW, and what is left of the measured step (gaps between calls):

    t1 = m · Σ calls + norm + adamw + rest

Between ranks there is a sum of all gradients, in buckets. Over N ranks, of which each sends and receives b bytes a
second and a message needs a seconds to arrive, a bucket of s bytes takes

    ring    2 (N - 1) (a + s / (N b))          Patarasuk and Yuan 2009: the least that a rank must send; half of it is
                                               the reduce-scatter, half the all-gather
    tree    2 (ceil(log2 N) a + s / b)         two binary trees, Sanders, Speck and Träff 2009: fewer messages in a row

without overlap   t = t1 + Σ buckets
with overlap      t = t1 + max(0, end of the last bucket - end of backward); a bucket begins when the last call that
                  writes into it has ended, in the last micro-batch, and the one before it has arrived (Li et al. 2020)
sharded (ZeRO-1)  half of each sum, AdamW / N, and then an all-gather of the parameters, which nothing hides
                  (Rajbhandari et al. 2020)

Efficiency is tokens a second over N times those of one rank. Beyond a node the slower of the two links counts. It is an
upper bound: ranks are taken to be as fast as the one that was measured and to wait for nothing but sums, and a sum to
take nothing from the calls that run beside it. Ranks that share cores or memory do.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bench.cli import CannotGoOn, no_such
from bench.core.case import DTYPES
from bench.core.files import write_atomically
from bench.machine.devices import open_device
from bench.models import UPDATE, CallId
from bench.models.calls import Call
from bench.models.program import Program, program, step_calls
from bench.records.read import RECORDS, latest, read_records
from bench.records.record import is_number
from bench.trainer.journal import FILE, events
from bench.trainer.peers import Peers
from bench.trainer.plan import model_named
from bench.trainer.reduction import BUCKET_BYTES, last_writers
from reference import contract
from reference.models.model import Model

WARM_UP = 2  # steps, or sums, that are not looked at
LINK_BYTES = tuple(1 << n for n in range(16, 26, 2))
REPEATS = 7

# ---- the link --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """Between ranks: bytes a second that one sends while it receives as many, and seconds until a message has arrived.

    Where `node` ranks share a machine, `between` is what each has to other machines; 0 is one machine, or all alike.
    """

    bandwidth: float
    latency: float
    node: int = 0
    between: float | None = None
    way: str = "ring"

    def sum(self, nbytes: float, ranks: int) -> float:
        """Seconds of an all-reduce."""
        return self.half(nbytes, ranks) * 2

    def half(self, nbytes: float, ranks: int) -> float:
        """Seconds of a reduce-scatter, or of an all-gather, of `nbytes` in all."""
        if ranks == 1:
            return 0.0
        if self.way == "tree":
            return math.ceil(math.log2(ranks)) * self.latency + nbytes / self._slowest(ranks)
        return (ranks - 1) * (self.latency + nbytes / ranks / self._slowest(ranks))

    def _slowest(self, ranks: int) -> float:
        crosses = 0 < self.node < ranks and self.between is not None
        return min(self.bandwidth, self.between or math.inf) if crosses else self.bandwidth


def measure_link(peers: Peers, device: str = "cpu") -> Link:
    """The link between the ranks that run this, from all-reduces of 64 KiB to 16 MiB: the least squares of relative
    errors over `Link.sum` for the ring. All ranks call it; `Peers` of more than one."""
    times = [_seconds(peers, nbytes, device) for nbytes in LINK_BYTES]
    return fitted(LINK_BYTES, times, peers.ranks)


def _seconds(peers: Peers, nbytes: int, device: str) -> float:
    """Median over repeats of what the slowest rank took for a sum, the first ones left out."""
    tensor, here = torch.zeros(nbytes // 4, device=device), open_device(device)
    found = []
    for _ in range(REPEATS + WARM_UP):
        peers.barrier()
        begin = time.perf_counter()
        with peers.losing("measuring the link"):
            dist.all_reduce(tensor)
        here.synchronize()
        found.append(max(peers.all(time.perf_counter() - begin)))
    return statistics.median(found[WARM_UP:])


def fitted(sizes: Sequence[int], seconds: Sequence[float], ranks: int) -> Link:
    """The link of a ring on which all-reduces of `sizes` bytes take `seconds`. CannotGoOn where none does."""
    terms = np.array([[2 * (ranks - 1), 2 * (ranks - 1) / ranks * nbytes] for nbytes in sizes])
    weights = 1 / np.array(seconds)
    (latency, per_byte), *_ = np.linalg.lstsq(terms * weights[:, None], np.ones(len(sizes)), rcond=None)
    if latency < 0:  # too small to be seen
        latency, per_byte = 0.0, float(1 / np.mean(terms[:, 1] * weights))
    if per_byte <= 0:
        raise CannotGoOn("the link's times do not grow with the message: this machine is too busy to measure it now")
    return Link(1 / float(per_byte), float(latency))


def write_link(path: Path, link: Link, ranks: int, device: str) -> None:
    said = {"bandwidth": link.bandwidth, "latency": link.latency, "ranks": ranks, "device": device.partition(":")[0]}
    write_atomically(path, json.dumps(said, indent=1) + "\n")


def read_link(path: Path) -> Link:
    """What `write_link` wrote. CannotGoOn for anything else."""
    if not path.is_file():
        raise CannotGoOn(no_such(path, "file"))
    try:
        said = json.loads(path.read_text())
        bandwidth, latency = float(said["bandwidth"]), float(said["latency"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CannotGoOn(f"{path}: not a link that bench.scaling --measure-link wrote ({error})") from error
    if not (0 < bandwidth < math.inf and 0 <= latency < math.inf):
        raise CannotGoOn(f"{path}: a link of {bandwidth} bytes/s and {latency} s is none")
    return Link(bandwidth, latency)


# ---- one rank's step -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Of a rank's step."""

    model: Model
    B: int
    T: int
    accumulation: int
    dtype: str
    recompute: tuple[str, ...] = ()

    def __str__(self) -> str:
        micro = f", {self.accumulation} micro-batches" if self.accumulation > 1 else ""
        return f"{self.model.name} {self.dtype}, B={self.B} T={self.T}{micro}"

    @property
    def tokens(self) -> int:
        return self.B * self.T * self.accumulation

    @property
    def bytes(self) -> int:
        """Of all gradients, and of all parameters, in the working dtype."""
        return self.model.parameters * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Parts:
    """What a step on one rank takes, in seconds: each call of a micro-batch in turn, and what comes after them."""

    sizes: Sizes
    calls: tuple[tuple[CallId, float], ...]
    norm: float
    adamw: float
    rest: float
    threads: int | None
    source: str

    @property
    def micro_batch(self) -> float:
        return sum(seconds for _, seconds in self.calls)

    def phase(self, name: str) -> float:
        return sum(seconds for id, seconds in self.calls if id.phase == name)

    def step(self, accumulation: int | None = None, ranks: int = 1) -> float:
        """t1, perhaps with AdamW's work cut by ranks."""
        micro = (accumulation or self.sizes.accumulation) * self.micro_batch
        return micro + self.norm + self.adamw / ranks + self.rest


@dataclass(frozen=True)
class Seen:
    """A training run as it went."""

    sizes: Sizes
    ranks: int
    step: float  # seconds, the median
    steps: int
    threads: int | None
    optimizer: str
    source: str


@contextlib.contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """CannotGoOn where a run's files hold something else than what was once written there."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CannotGoOn(f"{folder}: what it tells of its step is damaged ({error!r}); give another run") from error


def read_parts(folder: Path) -> Parts:
    """Of our step in a run of bench.e2e that timed it call by call, the last one. CannotGoOn where there is none."""
    with _as_written(folder):
        return _read_parts(folder)


def _read_parts(folder: Path) -> Parts:
    records, _ = read_records(folder)
    found = [r for r in latest(records).values() if r.get("variant") == "ours" and r.get("in_context_s")]
    found = [r for r in found if r.get("median_s")]
    if not found:
        raise CannotGoOn(f"{folder}: no step of ours that was timed call by call (python -m bench.e2e MODEL --out …)")
    record = found[-1]
    shape = record["shape"]
    model, recompute = model_named(record["layer"]), tuple(record.get("recompute", ()))
    B, T, accumulation = (int(shape[name]) for name in ("B", "T", "accumulation"))
    sizes = Sizes(model, B, T, accumulation, record["dtype"], recompute)
    seconds, step = record["in_context_s"], record["median_s"]
    assert step is not None
    order = [call.id for call in skeleton(sizes)]
    missing = {str(id) for id in order} - seconds.keys()
    if missing or not all(isinstance(value, float | int) for value in seconds.values()):
        raise CannotGoOn(f"{folder}: the model's calls are others now: no time of {', '.join(sorted(missing))}")
    calls = tuple((id, (seconds[str(id)] or 0.0) / order.count(id) / sizes.accumulation) for id in order)
    norm, adamw = (seconds.get(f"{layer} forward") or 0.0 for layer in UPDATE)
    rest = step - sizes.accumulation * sum(s for _, s in calls) - norm - adamw
    return Parts(sizes, calls, norm, adamw, rest, record.get("threads"), f"{folder.name}, call by call")


def read_seen(folder: Path) -> Seen:
    """How a run of bench.train went, since it was last taken up. CannotGoOn where it took too few steps to say."""
    with _as_written(folder):
        return _read_seen(folder)


def _read_seen(folder: Path) -> Seen:
    found = events(folder)
    begins = [i for i, event in enumerate(found) if event["event"] in ("start", "resume")]
    if not begins:
        raise CannotGoOn(f"{folder}: a training run that never began")
    begin, after = found[begins[-1]], found[begins[-1] + 1 :]
    steps = [event.get("ms") for event in after if event["event"] == "step" and not event.get("skipped")][WARM_UP:]
    taken = [ms / 1e3 for ms in steps if is_number(ms) and ms > 0]
    if not taken:
        raise CannotGoOn(f"{folder}: fewer than {WARM_UP + 1} steps since it was last taken up: too few to say")
    o, ranks = begin["options"], int(begin["ranks"])
    B, T = o["batch"], o["seq"]
    recompute = tuple(filter(None, (o.get("recompute") or "").split(",")))
    sizes = Sizes(model_named(begin["model"]), B, T, begin["tokens_per_step"] // (B * T * ranks), o["dtype"], recompute)
    optimizer = o.get("optimizer", "replicated")
    median = statistics.median(taken)
    return Seen(sizes, ranks, median, len(taken), o.get("threads"), optimizer, folder.name)


def parts_of(seen: Seen) -> Parts:
    """A step that was not timed call by call, spread over its forward and backward calls by their FLOPs."""
    sizes = seen.sizes
    order = [call.id for call in skeleton(sizes)]
    shapes = step_calls(sizes.model, sizes.B, sizes.T, sizes.dtype, sizes.recompute)
    flops = [contract.flops(contract.load(id.layer), shapes[id].shape, id.phase) for id in order]
    each = seen.step / sizes.accumulation / sum(flops)
    calls = tuple((id, n * each) for id, n in zip(order, flops, strict=True))
    return Parts(sizes, calls, 0.0, 0.0, 0.0, seen.threads, f"{seen.source}, whole steps spread by FLOPs")


def read(folders: Iterable[Path]) -> tuple[Parts, list[Seen]]:
    """The parts of a step, from the first run that has them, and every training run among the folders."""
    timed: list[Path] = []
    seen: list[Seen] = []
    for folder in folders:
        if (folder / FILE).is_file():
            seen.append(read_seen(folder))
        elif (folder / RECORDS).is_file():
            timed.append(folder)
        else:
            neither = f"{folder}: neither a run of bench.e2e nor one of bench.train"
            raise CannotGoOn(neither if folder.is_dir() else no_such(folder, "folder"))
    if timed:
        return read_parts(timed[0]), seen
    alone = [run for run in seen if run.ranks == 1]
    if not alone:
        raise CannotGoOn("no run on one rank: give a run of bench.e2e, or one of bench.train in a single process")
    return parts_of(alone[0]), seen


def skeleton(sizes: Sizes) -> list[Call]:
    """The calls of a micro-batch, in order, over tensors that are next to nothing."""
    return _small(sizes).forward_backward(accumulate=False)


def _small(sizes: Sizes) -> Program:
    """The same calls write the same gradients, over next to nothing."""
    return program(sizes.model.narrow(), 1, 1, "fp32", recompute=sizes.recompute)


# ---- gradients -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """Gradients that are summed at once. ready: seconds into the micro-batch when the last of them is final."""

    bytes: int
    ready: float


def buckets(parts: Parts, bucket_bytes: int = BUCKET_BYTES) -> list[Bucket]:
    """All gradients in the order in which they are final, the latest parameters first where several are."""
    sizes = parts.sizes
    ends = list(itertools.accumulate(seconds for _, seconds in parts.calls))
    made = _small(sizes)
    last = last_writers(made.memory, made.forward_backward(accumulate=False))
    shapes = sizes.model.parameter_shapes()
    order = sorted(reversed(shapes), key=last.__getitem__)
    found: list[Bucket] = []
    size, ready = 0, 0.0
    for name in order:
        size += math.prod(shapes[name]) * DTYPES[sizes.dtype].itemsize
        ready = ends[last[name]]
        while size >= bucket_bytes:
            found.append(Bucket(bucket_bytes, ready))
            size -= bucket_bytes
    return [*found, Bucket(size, ready)] if size else found


# ---- many ranks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """A step on `ranks` ranks, in seconds. sums: of all messages; exposed: what of them nothing hides."""

    ranks: int
    tokens: int
    compute: float
    sums: float
    exposed: float
    alone: float  # tokens a second of one rank

    @property
    def without_overlap(self) -> float:
        return self.compute + self.sums

    @property
    def with_overlap(self) -> float:
        return self.compute + self.exposed

    def efficiency(self, step: float) -> float:
        return self.tokens / step / (self.ranks * self.alone)


def forecast(
    parts: Parts,
    link: Link,
    ranks: int,
    optimizer: str = "replicated",
    bucket_bytes: int = BUCKET_BYTES,
    total_batch: int | None = None,
) -> Forecast | None:
    """The step of `parts` on each of `ranks` ranks; or, with `total_batch` tokens a step in all, each one's share of
    them, None where they cannot be shared."""
    sizes = parts.sizes
    accumulation = sizes.accumulation
    per_micro = sizes.B * sizes.T
    if total_batch is not None:
        accumulation, left = divmod(total_batch, per_micro * ranks)
        if left or not accumulation:
            return None
    sharded = optimizer == "sharded" and ranks > 1
    sums, end = 0.0, 0.0
    for bucket in buckets(parts, bucket_bytes):
        seconds = link.half(bucket.bytes, ranks) if sharded else link.sum(bucket.bytes, ranks)
        sums += seconds
        end = max(end, bucket.ready) + seconds
    after = link.half(sizes.bytes, ranks) if sharded else 0.0
    exposed = max(0.0, end - parts.micro_batch) if ranks > 1 else 0.0
    alone_micro = total_batch // per_micro if total_batch else accumulation
    alone = per_micro * alone_micro / parts.step(alone_micro)
    compute = parts.step(accumulation, ranks if sharded else 1)
    return Forecast(ranks, per_micro * accumulation * ranks, compute, sums + after, exposed + after, alone)


@dataclass(frozen=True)
class Compared:
    """A training run beside what was predicted of it; why not, where it is another step than the parts are of."""

    seen: Seen
    forecast: Forecast | None
    why: str = ""


def compared(parts: Parts, link: Link, runs: Iterable[Seen], bucket_bytes: int = BUCKET_BYTES) -> list[Compared]:
    found = []
    for seen in runs:
        ours = dataclasses.replace(parts.sizes, accumulation=seen.sizes.accumulation)
        if ours != seen.sizes:
            found.append(Compared(seen, None, f"another step: {seen.sizes}"))
            continue
        total = seen.sizes.tokens * seen.ranks
        found.append(Compared(seen, forecast(parts, link, seen.ranks, seen.optimizer, bucket_bytes, total)))
    return found


def document(parts: Parts, link: Link, rows: list[Forecast], runs: list[Compared], bucket_bytes: int) -> dict[str, Any]:
    """All of it for --json; seconds, bytes, tokens a second."""
    cut = buckets(parts, bucket_bytes)
    return {
        "step": str(parts.sizes),
        "source": parts.source,
        "parts_s": {
            "forward": parts.phase("forward"),
            "backward": parts.phase("backward"),
            "norm": parts.norm,
            "adamw": parts.adamw,
            "rest": parts.rest,
            "step": parts.step(),
        },
        "message_bytes": parts.sizes.bytes,
        "buckets": [dataclasses.asdict(bucket) for bucket in cut],
        "link": dataclasses.asdict(link),
        "ranks": [_row(row) for row in rows],
        "measured": [
            {"run": run.seen.source, "ranks": run.seen.ranks, "step_s": run.seen.step, "threads": run.seen.threads}
            | ({"why_not_compared": run.why} if run.forecast is None else {"predicted": _row(run.forecast)})
            for run in runs
        ],
    }


def _row(row: Forecast) -> dict[str, Any]:
    both = (("without_overlap", row.without_overlap), ("with_overlap", row.with_overlap))
    return {"ranks": row.ranks, "tokens_per_step": row.tokens, "sums_s": row.sums, "exposed_s": row.exposed} | {
        name: {"step_s": step, "tokens_per_s": row.tokens / step, "efficiency": row.efficiency(step)}
        for name, step in both
    }
