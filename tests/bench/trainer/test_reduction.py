"""Buckets have each gradient once and are reduced when they are final; sums are of all ranks, whatever the buckets."""

import itertools
from dataclasses import replace

import pytest
import torch

from bench.models.program import program
from bench.models.step import _run
from bench.trainer.reduction import plan
from reference.models.gpt2 import init_parameters
from tests.bench.trainer.rank_cases import SMALL, UNCLIPPED, B, Job, T, arrives_meanwhile, batches, build, sums, train
from tests.bench.trainer.together import together


def buckets(job=Job(), ranks=2):  # noqa: B008
    step = build(job)
    return step, plan(step.memory, step.last_calls, ranks, job.bucket_bytes)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("size", [1, 20_000, 1 << 30])
def test_every_element_has_one_owner(dtype, ranks, size):
    """Parts begin at 64 bytes; all buckets but the buffer's last are even."""
    step, found = buckets(Job(dtype, bucket_bytes=size), ranks)
    flat = step.memory.flat_grads
    parts = sorted(b.part(r).indices(len(flat)) for b in found for r in range(ranks))
    assert parts[0][0] == 0 and max(p[1] for p in parts) == len(flat)
    assert sum(stop - start for start, stop, _ in parts) == len(flat)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(parts))
    assert all(start * flat.element_size() % 64 == 0 for start, stop, _ in parts if start < stop)
    assert all(b.even for b in found if b.cuts[-1] != len(flat))
    assert [b.number for b in found] == list(range(len(found)))
    assert [b.ready for b in found] == sorted(b.ready for b in found)


def test_buckets_are_about_as_large_as_wanted():
    sizes = [4 * (b.cuts[-1] - b.cuts[0]) for b in buckets()[1]]
    assert len(sizes) > 5 and max(sizes) <= 1.6 * 20_000
    assert len(buckets(Job(bucket_bytes=1 << 30))[1]) == 1


def test_a_bucket_is_final_when_it_is_ready():
    """Its gradients have the bits after the call that it waits for that they have at the end; and no call earlier."""
    job = Job(micro_batches=1)
    step, found = buckets(job)
    step.load(init_parameters(job.model, 0))
    step.gradients(batches(job, 0))
    flat, history = step.memory.flat_grads, []
    flat.fill_(torch.nan)  # what no call writes stays so
    for grad in step.cleared:
        grad.zero_()
    for bound in step.first:
        _run([bound])
        history.append(flat.clone().view(torch.int32))
    for bucket in found:
        at_the_end = history[-1][bucket.whole]
        assert torch.equal(history[bucket.ready][bucket.whole], at_the_end)
        assert not torch.equal(history[bucket.ready - 1][bucket.whole], at_the_end)


def test_most_gradients_are_reduced_beside_the_backward_pass():
    """All but the embeddings' and the first block's, which are last, have calls after them to hide behind."""
    model = replace(SMALL, L=3)
    made = program(model, 1, 8, "fp32")
    calls = made.forward_backward(accumulate=False)
    found = plan(made.memory, calls, 2, 20_000)
    blocks = sum(p.numel() for n, p in made.memory.params.items() if n.startswith(("h1.", "h2.", "lnf")))
    early = sum(b.cuts[-1] - b.cuts[0] for b in found if b.ready < len(calls) - 8)
    assert early > 0.8 * blocks
    assert found[0].ready < len(calls) * 0.6


def test_terms_arrive_while_calls_run():
    assert together(2, arrives_meanwhile, Job()) == [True, True]


@pytest.mark.parametrize("optimizer", ["replicated", "sharded"])
@pytest.mark.parametrize(("dtype", "ordered"), [("fp32", True), ("bf16", True), ("fp32", False)])
def test_the_sum_is_of_all_ranks(dtype, ordered, optimizer):
    """In the order of ranks, in fp32, rounded once: to the bit. The engine's own order (NCCL's way, here by gloo):
    nearly."""
    job = Job(dtype, optimizer, ordered=ordered, micro_batches=3)
    ranks = together(3, sums, job)
    total = torch.zeros_like(ranks[0]["own"], dtype=torch.float32)
    for rank in ranks:
        total += rank["own"]
    total = total.to(ranks[0]["own"].dtype)
    _, found = buckets(job, 3)
    for number, rank in enumerate(ranks):
        own = slice(0, len(total)) if optimizer == "replicated" else None
        for part in [own] if own else [b.part(number) for b in found]:
            if ordered:
                assert torch.equal(rank["reduced"][part], total[part])
            else:
                torch.testing.assert_close(rank["reduced"][part], total[part], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_size_of_buckets_changes_no_bit(dtype):
    small, large = (together(2, train, Job(dtype, bucket_bytes=size)) for size in (5_000, 1 << 30))
    assert small[0]["losses"] == large[0]["losses"]
    assert torch.equal(small[1]["parameters"][-1], large[0]["parameters"][-1])


@pytest.mark.parametrize("optimizer", ["replicated", "sharded"])
def test_the_engines_collectives_train_the_same(optimizer):
    """What runs between GPUs, by gloo: the same bits on all ranks, and nearly those of the fixed order."""
    job = Job(optimizer=optimizer, model=UNCLIPPED, micro_batches=3)
    fixed, free = together(3, train, job), together(3, train, replace(job, ordered=False))
    assert all(torch.equal(rank["parameters"][-1], free[0]["parameters"][-1]) for rank in free)
    assert free[0]["losses"] == pytest.approx(fixed[0]["losses"], rel=1e-6)


def test_the_shapes_of_the_tests_are_awkward():
    """Buckets end inside tensors, and some part is smaller than the others."""
    step, found = buckets(Job(bucket_bytes=20_000), 7)
    assert any(not b.even for b in found)
    starts = {(t.data_ptr() - step.memory.flat_grads.data_ptr()) // 4 for t in step.memory.grads.values()}
    assert any(b.cuts[0] not in starts for b in found)
    assert SMALL.max_t > T and B > 1
