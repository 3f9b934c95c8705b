"""Gradients of all ranks, summed while the backward pass still runs.

The flat buffer of gradients is cut into buckets. As soon as the last call that writes into a bucket has returned, in
the last micro-batch of a step, its sum is begun, and goes on beside the calls that follow; all sums are waited for
before the norm. The loss's gradients are divided by the number of ranks beforehand, so a sum is all there is to do.

Each bucket is cut into one part for each rank, its owner, which adds up what the others send, in the order of ranks, in
fp32 whatever the dtype, and rounds once. So the sum depends on nothing but its terms, not on buckets, threads or the
time of arrival, and it is the same bits whether the owners then send it to all (a replicated optimizer), or keep it (a
sharded one). That is `Pairwise`, between CPUs. Between GPUs NCCL's own collectives do it (`Collective`), in an order
that is theirs: the same bits on all ranks, but which ones may depend on the way that NCCL takes.

Li et al. 2020, PyTorch Distributed (buckets that overlap backward); Rajbhandari et al. 2020, ZeRO (parts with owners).
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

from bench.models.calls import Call
from bench.models.memory import ALIGN, Memory
from bench.models.step import Bound, Step
from bench.trainer.peers import Peers

BUCKET_BYTES = 25 << 20  # as torch's DistributedDataParallel: large enough for bandwidth, small enough to begin early
SPLIT = 1.5  # a bucket this much larger than wanted, since one tensor is, is cut


class Bucket(NamedTuple):
    """Elements cuts[0] … cuts[-1] of the flat gradients; cuts[r] … cuts[r + 1] are rank r's part. ready: the call of
    the micro-batch, by number, after which they are final; -1 where no call writes them."""

    number: int
    ready: int
    cuts: tuple[int, ...]

    def part(self, rank: int) -> slice:
        return slice(self.cuts[rank], self.cuts[rank + 1])

    @property
    def whole(self) -> slice:
        return slice(self.cuts[0], self.cuts[-1])

    @property
    def even(self) -> bool:
        """Whether all parts are as large."""
        sizes = {b - a for a, b in zip(self.cuts, self.cuts[1:], strict=False)}
        return len(sizes) == 1


def plan(memory: Memory, calls: list[Call], ranks: int, bucket_bytes: int = BUCKET_BYTES) -> list[Bucket]:
    """Buckets over all gradients in the order in which they are ready, the latest parameters first where several are.

    Parts begin at multiples of ALIGN bytes; all buckets but the one at the end of the buffer have parts of one size.
    """
    flat = memory.flat_grads
    align = ALIGN // flat.element_size()
    grid = align * ranks
    wanted = max(grid, bucket_bytes // flat.element_size() // grid * grid)
    ready_at = last_writers(memory, calls)
    places = {name: _place(flat, grad) for name, grad in memory.grads.items()}
    found = []
    for start, stop in _ranges([start for start, _ in places.values()], flat.numel(), grid, wanted):
        inside = [name for name, place in places.items() if _overlap(place, (start, stop))]
        ready = max((ready_at[name] for name in inside), default=-1)
        size = -(-(stop - start) // grid) * align
        found.append((ready, tuple(min(start + r * size, stop) for r in range(ranks + 1))))
    found.sort(key=lambda bucket: (bucket[0], -bucket[1][0]))
    return [Bucket(number, *bucket) for number, bucket in enumerate(found)]


def _ranges(starts: list[int], end: int, grid: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Cuts 0 … end at multiples of `grid` into ranges of about `wanted` elements, at tensors' starts if those do."""
    stop = end
    for start in [*sorted(starts, reverse=True), 0]:
        low = -(-start // grid) * grid
        if stop - low < wanted and low:
            continue
        while stop - low > SPLIT * wanted:
            cut = -(-(stop - wanted) // grid) * grid
            yield cut, stop
            stop = cut
        if low < stop:
            yield low, stop
            stop = low


def _place(flat: torch.Tensor, view: torch.Tensor) -> tuple[int, int]:
    """First element and end of a contiguous view in a flat tensor."""
    first = (view.data_ptr() - flat.data_ptr()) // flat.element_size()
    return first, first + view.numel()


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def last_writers(memory: Memory, calls: list[Call]) -> dict[str, int]:
    """{parameter: number of the last of these calls that writes its gradient}; -1 where none does."""
    flat = memory.flat_grads
    written = []  # (place in `flat`, number of the call) of every output that lies there
    for i, call in enumerate(calls):
        for output in call.outputs.values():
            for t in output if isinstance(output, list) else [output]:
                if t is not None and t.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr():
                    written.append((_place(flat, t), i))
    places = {name: _place(flat, grad) for name, grad in memory.grads.items()}
    return {name: max((i for at, i in written if _overlap(p, at)), default=-1) for name, p in places.items()}


class Exchange(Protocol):
    """How sums are made. `start` begins one, in the same order on all ranks, `finish` waits for all."""

    def start(self, bucket: Bucket) -> None: ...
    def finish(self) -> None: ...
    def share(self, flat: torch.Tensor) -> None:
        """Every owner sends its parts of `flat` to all."""


class Pairwise:
    """Each rank sends every other its part, and adds up its own by rank. keep: owners keep the sums to themselves."""

    def __init__(self, peers: Peers, flat: torch.Tensor, buckets: list[Bucket], keep: bool):
        self.peers, self.flat, self.buckets, self.keep = peers, flat, buckets, keep
        most = max(b.cuts[1] - b.cuts[0] for b in buckets)  # the first part is the largest
        self.received = flat.new_empty(2, peers.ranks, most)  # of two buckets: one is added up while one arrives
        self.sum = torch.empty(most, dtype=torch.float32, device=flat.device)
        self.arriving: tuple[Bucket, list[dist.Work]] | None = None
        self.returning: list[dist.Work] = []

    def start(self, bucket: Bucket) -> None:
        size = bucket.cuts[self.peers.rank + 1] - bucket.cuts[self.peers.rank]
        into = self.received[bucket.number % 2, :, :size]
        works = self._swap(bucket, lambda to: self.flat[bucket.part(to)], lambda by: into[by])
        self._add_up()
        self.arriving = bucket, works

    def finish(self) -> None:
        self._add_up()
        _wait(self.returning)
        self.returning = []

    def share(self, flat: torch.Tensor) -> None:
        _wait([work for bucket in self.buckets for work in self._send_own(bucket, flat)])

    def _add_up(self) -> None:
        """The bucket that was begun last: wait for what the others send, and add."""
        if not self.arriving:
            return
        bucket, works = self.arriving
        self.arriving = None
        _wait(works)
        own = self.flat[bucket.part(self.peers.rank)]
        received = self.received[bucket.number % 2, :, : len(own)]
        terms = [own if by == self.peers.rank else received[by] for by in range(self.peers.ranks)]
        total = self.sum[: len(own)]
        total.copy_(terms[0])
        for term in terms[1:]:
            total.add_(term)
        own.copy_(total)
        if not self.keep:
            self.returning += self._send_own(bucket, self.flat)

    def _send_own(self, bucket: Bucket, flat: torch.Tensor) -> list[dist.Work]:
        own = flat[bucket.part(self.peers.rank)]
        return self._swap(bucket, lambda to: own, lambda by: flat[bucket.part(by)], second=True)

    def _swap(
        self,
        bucket: Bucket,
        what: Callable[[int], torch.Tensor],
        into: Callable[[int], torch.Tensor],
        second: bool = False,
    ) -> list[dist.Work]:
        """Begin to send what(rank) to every other and to receive into(rank); each pair in its own order, so that not
        all begin with rank 0."""
        me, ranks, tag = self.peers.rank, self.peers.ranks, 2 * bucket.number + second
        works = []
        for distance in range(1, ranks):
            to, by = (me + distance) % ranks, (me - distance) % ranks
            given, taken = what(to), into(by)
            if len(given):  # a part at the buffer's end may be empty
                works.append(dist.isend(given, to, tag=tag))
            if len(taken):
                works.append(dist.irecv(taken, by, tag=tag))
        return [work for work in works if work]


class Collective:
    """The engine's own collectives; the library decides on the order in which it adds."""

    def __init__(self, peers: Peers, flat: torch.Tensor, buckets: list[Bucket], keep: bool):
        self.peers, self.flat, self.buckets, self.keep = peers, flat, buckets, keep
        self.works: list[dist.Work | None] = []
        # torch 2.13 has new names for these and warns of the old ones
        self.scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        self.gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    def start(self, bucket: Bucket) -> None:
        whole = self.flat[bucket.whole]
        if self.keep and bucket.even:
            own = self.flat[bucket.part(self.peers.rank)]
            self.works.append(self.scatter(own, whole, async_op=True))
        else:
            self.works.append(dist.all_reduce(whole, async_op=True))

    def finish(self) -> None:
        _wait(self.works)
        self.works = []

    def share(self, flat: torch.Tensor) -> None:
        works = []
        for bucket in self.buckets:
            if bucket.even:
                own = flat[bucket.part(self.peers.rank)]
                works.append(self.gather(flat[bucket.whole], own, async_op=True))
            else:
                parts = [(rank, flat[bucket.part(rank)]) for rank in range(self.peers.ranks)]
                works += [dist.broadcast(part, src=rank, async_op=True) for rank, part in parts if len(part)]
        _wait(works)


def _wait(works: "list[dist.Work] | list[dist.Work | None]") -> None:
    for work in works:
        if work:
            work.wait()


class Reduction:
    """Puts the sums into a step: `step.last` begins them, `step.reduced` waits for them and averages the loss.

    keep: see Pairwise. ordered: Pairwise, whatever the device, or Collective; by the device where it is not said.
    """

    def __init__(self, peers: Peers, step: Step, keep: bool, bucket_bytes: int, ordered: bool | None = None):
        mem = step.memory
        self.peers, self.loss = peers, mem.loss
        self.buckets = plan(mem, step.last_calls, peers.ranks, bucket_bytes)
        kind = Pairwise if (ordered if ordered is not None else not mem.flat_grads.is_cuda) else Collective
        self.exchange: Exchange = kind(peers, mem.flat_grads, self.buckets, keep)
        self.numbers = mem.loss.new_zeros(peers.ranks, 1)
        starts: list[list[Bound]] = [[] for _ in range(len(step.last) + 1)]
        for bucket in self.buckets:
            starts[bucket.ready + 1].append((functools.partial(self._start, bucket), (), {}))
        calls: list[list[Bound]] = [[], *([bound] for bound in step.last)]
        step.last = [bound for pair in zip(calls, starts, strict=True) for some in pair for bound in some]
        step.reduced = [(self._finish, (), {})]

    def _start(self, bucket: Bucket) -> None:
        with self.peers.losing("reducing gradients"):
            self.exchange.start(bucket)

    def _finish(self) -> None:
        with self.peers.losing("reducing gradients"):
            self.exchange.finish()
        torch.mean(self.everyones(self.loss), dim=0, out=self.loss)

    def everyones(self, number: torch.Tensor) -> torch.Tensor:
        """A 0-d fp32 tensor of each rank, (ranks,), on the device. What it returned before is overwritten."""
        with self.peers.losing("reducing gradients"):
            dist.all_gather(list(self.numbers.unbind()), number.view(1))
        return self.numbers.view(-1)

    def share(self, flat: torch.Tensor) -> None:
        """Every rank's parts of a tensor that lies like the gradients, to all."""
        with self.peers.losing("gathering parameters"):
            self.exchange.share(flat)
