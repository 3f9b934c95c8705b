"""Several ranks train as one: the same losses within the reduction's rounding, the same bits on all of them."""

import os
from dataclasses import replace

import pytest
import torch

from bench import cli
from bench.trainer import OPTIMIZERS
from bench.trainer.ranks import Ranks
from tests.bench.trainer.rank_cases import (
    SMALL,
    STEPS,
    UNCLIPPED,
    Job,
    breaks,
    build,
    first_bad,
    hangs,
    is_killed,
    is_lost,
    one_is_not_finite,
    train,
)
from tests.bench.trainer.together import DIED, SILENT, apart, together

# How far a loss may be from one process's: a few roundings of gradients by the working dtype, which AdamW's first
# steps, of the size of the learning rate whatever the gradient's, make large where a gradient is next to nothing.
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3}
JOBS = {
    "fp32": Job(),
    "bf16": Job("bf16"),
    "bf16 without masters": Job("bf16", masters=False),
}


@pytest.mark.parametrize("name", JOBS)
def test_two_ranks_train_as_one_process(name):
    """And a sharded optimizer as a replicated one: the same bits where nothing is clipped, for then nothing hangs on
    the last place of the norm."""
    job = replace(JOBS[name], model=UNCLIPPED)
    (one,) = together(1, train, job)
    found = {how: together(2, train, replace(job, optimizer=how)) for how in OPTIMIZERS}
    for ranks in found.values():
        same_on_all(ranks)
        assert ranks[0]["losses"] == pytest.approx(one["losses"], rel=TOLERANCE[job.dtype])
        assert ranks[0]["norms"] == pytest.approx(one["norms"], rel=20 * TOLERANCE[job.dtype])
    replicated, sharded = (found[how][0] for how in OPTIMIZERS)
    assert replicated["losses"] == sharded["losses"]
    assert all(map(torch.equal, replicated["parameters"], sharded["parameters"]))
    same_state(replicated["state"], sharded["state"])


def same_on_all(ranks):
    """Losses and norms, and the parameters bit for bit after each step."""
    first = ranks[0]
    assert len(first["parameters"]) == STEPS
    for other in ranks[1:]:
        assert (other["losses"], other["norms"]) == (first["losses"], first["norms"])
        assert all(map(torch.equal, other["parameters"], first["parameters"]))
    assert not torch.equal(first["parameters"][0], first["parameters"][1])


def same_state(a, b):
    for kind in ("weights", "m", "v", "masters"):
        x, y = getattr(a, kind), getattr(b, kind)
        assert (x is None) == (y is None), kind
        for name in x or ():
            assert torch.equal(x[name], y[name]), (kind, name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_clipping_is_by_the_norm_of_all(optimizer):
    job = Job(optimizer=optimizer)
    (one,), ranks = together(1, train, job), together(2, train, job)
    assert one["norms"][0] > SMALL.recipe.max_norm
    same_on_all(ranks)
    assert ranks[0]["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert ranks[0]["norms"] == pytest.approx(one["norms"], rel=1e-5)


def test_one_rank_costs_nothing():
    step, ranks = build(Job()), Ranks.join({})
    before = [*step.last, *step.reduced, step.update_norm, *step.update_adamw]
    ranks.reduce(step, "sharded")
    assert [*step.last, *step.reduced, step.update_norm, *step.update_adamw] == before
    assert step.shards is None and not torch.distributed.is_initialized()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_update_or_none(optimizer):
    """One rank's gradients are infinite: nobody's parameters move, and the next step is well again."""
    ranks = together(2, one_is_not_finite, Job(optimizer=optimizer))
    for rank in ranks:
        assert not torch.isfinite(torch.tensor(rank["norm"]))
        assert rank["kept"] and rank["updates"] == 2
        assert torch.isfinite(rank["parameters"]).all()
        assert torch.equal(rank["parameters"], ranks[0]["parameters"])


def test_one_rank_may_search_alone_for_what_is_not_finite():
    found = together(2, first_bad, Job())
    assert found[0] == "?" and "fused_classifier forward" in found[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_does_not_depend_on_the_ranks(optimizer):
    """Two ranks, one process, two ranks again: as one process all the way; and what is handed over changes no bit."""
    job = Job("bf16", optimizer=optimizer, model=UNCLIPPED)
    whole = together(2, train, job, range(4))
    first = together(2, train, job, range(2))
    assert first[0]["losses"] == whole[0]["losses"][:2]
    again = together(2, train, job, range(2, 4), first[0]["state"])
    assert again[0]["losses"] == whole[0]["losses"][2:]
    same_state(again[0]["state"], whole[0]["state"])
    (one,) = together(1, train, job, range(2, 3), first[0]["state"])
    back = together(2, train, job, range(3, 4), one["state"])
    (alone,) = together(1, train, job, range(4))
    assert [*first[0]["losses"], *one["losses"], *back[0]["losses"]] == pytest.approx(alone["losses"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
@pytest.mark.parametrize("name", JOBS)
def test_more_ranks_train_as_one_process(name, ranks):
    job = replace(JOBS[name], model=UNCLIPPED, micro_batches=12)
    (one,) = together(1, train, job)
    found = {how: together(ranks, train, replace(job, optimizer=how)) for how in OPTIMIZERS}
    for several in found.values():
        same_on_all(several)
        assert several[0]["losses"] == pytest.approx(one["losses"], rel=TOLERANCE[job.dtype])
    assert all(map(torch.equal, found["replicated"][0]["parameters"], found["sharded"][0]["parameters"]))


@pytest.mark.parametrize(("how", "patience"), [(is_killed, 60), pytest.param(hangs, 20, marks=pytest.mark.slow)])
def test_a_rank_that_is_lost_is_told_once(how, patience):
    """Where it is lost in the backward pass, with sums under way."""
    *others, lost = apart(3, is_lost, Job(micro_batches=3), how, patience, last=how is is_killed)
    assert lost is (DIED if how is is_killed else SILENT)
    for rank in others:
        assert "a rank was lost while rank" in rank["lost"] and "go on with --resume (" in rank["lost"]
        assert rank["code"] == cli.FAILED
    assert sorted(rank["spoke"] for rank in others) == [False, True]


def test_a_rank_that_breaks_has_its_say_alone():
    *others, broken = apart(3, is_lost, Job(micro_batches=3), breaks)
    assert isinstance(broken, ZeroDivisionError)
    assert [(rank["spoke"], rank["code"]) for rank in others] == [(False, cli.FAILED)] * 2


def test_without_the_environment_there_is_one_rank():
    assert "RANK" not in os.environ and Ranks.join().ranks == 1
