"""Every rank keeps its part of the optimizer's state and no more; whole tensors go into checkpoints and come out."""

import weakref
from dataclasses import replace

import pytest
import torch

from bench.cli import CannotGoOn
from bench.trainer.peers import Peers, Place
from bench.trainer.reduction import Reduction, plan
from bench.trainer.sharded import Sharded, pieces
from reference.models.gpt2 import GPT2
from tests.bench.trainer.rank_cases import Job, build, train
from tests.bench.trainer.together import together


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [2, 5])
def test_pieces_are_all_of_every_parameter(dtype, ranks):
    step = build(Job(dtype))
    found = plan(step.memory, step.last_calls, ranks, 20_000)
    left = {name: torch.ones(p.numel()) for name, p in step.memory.params.items()}
    for rank in range(ranks):
        for piece in pieces(step.memory, found, rank):
            piece.of(left).sub_(1)
    assert not any(count.any() for count in left.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_rank_keeps_its_part_of_the_state(dtype):
    """Half of m, v and masters, and no scratch of the whole."""
    job = Job(dtype)
    whole, half = together(2, train, job), together(2, train, replace(job, optimizer="sharded"))
    state = 4 * job.model.parameters * (3 if dtype == "bf16" else 2)
    for a, b in zip(whole, half, strict=True):
        assert a["bytes"] - b["bytes"] == pytest.approx(state / 2, rel=0.05)


def test_rounding_at_random_needs_no_scratch_of_the_whole():
    job = Job("bf16", masters=False)
    whole, half = together(2, train, job), together(2, train, replace(job, optimizer="sharded"))
    assert whole[0]["bytes"] - half[0]["bytes"] >= 4 * job.model.parameters * 0.95


@pytest.mark.parametrize("job", [Job(), Job("bf16"), Job("bf16", masters=False)], ids=str)
def test_the_whole_state_is_let_go_of(job):
    """It is nobody's any more: neither the memory's nor a call's."""
    step = build(job, 2)
    mem = step.memory
    whole = [t for t in (mem.flat_m, mem.flat_v, mem.flat_masters) if t is not None]
    whole += [t for t in mem.tensors[-1:] if step.rounds]
    watched = [weakref.ref(t) for t in whole]
    del whole
    peers = Peers(Place(0, 2))
    Sharded(peers, step, Reduction(peers, step, True, 20_000))
    assert len(watched) == (2 if job.dtype == "fp32" else 3)
    assert [ref() for ref in watched] == [None] * len(watched)


def test_only_rank_0_gathers():
    found = together(2, train, Job(optimizer="sharded"))
    assert found[0]["state"].m and not found[1]["state"].m


def test_decay_is_each_tensors_own():
    """A piece of a bias has none, a piece of a matrix has the model's."""
    step = build(Job(), 2)
    peers = Peers(Place(1, 2))
    shards = Sharded(peers, step, Reduction(peers, step, True, 20_000))
    _, *adamw = step.update_calls
    decays = adamw[0].inputs[-1]
    assert len(adamw) == 1 and isinstance(decays, list)
    sizes = step.model.parameter_shapes()
    assert [d > 0 for d in decays] == [len(sizes[piece.name]) == 2 for piece in shards.own]
    assert {d > 0 for d in decays} == {True, False}


def test_too_few_parameters():
    few = GPT2("few", L=1, NH=1, C=8, max_t=16, v=8)
    step = build(Job(model=few), 512)
    peers = Peers(Place(0, 512))
    with pytest.raises(CannotGoOn, match="too few parameters to be sharded over 512 ranks"):
        Sharded(peers, step, Reduction(peers, step, True, 20_000))
