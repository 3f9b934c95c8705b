"""A second model, written in two files, trains through bench.models as its plain torch module does."""

import sys

import pytest
import torch

from bench.core.variants import discover
from bench.models.choose import candidates, parse
from bench.models.program import program, step_calls
from bench.models.step import Step
from reference.models.plain import decay_groups, network
from tests.bench.models.made_up import calls, reference

MODEL = reference.MadeUp("made-up", L=3, C=24, max_t=20, v=90)
B, T = 2, 12


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The two files, as if they lay with the families."""
    monkeypatch.setitem(sys.modules, "bench.models.made_up", calls)
    monkeypatch.setitem(sys.modules, "reference.models.made_up", reference)


def build(accumulation: int = 1) -> Step:
    """The step as `--kernels torch.eager` makes it."""
    pool = candidates(parse("torch.eager"), discover(), step_calls(MODEL, B, T, "fp32"), "cpu", "fp32")
    return Step(program(MODEL, B, T, "fp32"), {id: found[0].load() for id, found in pool.items()}, accumulation)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, MODEL.v, (B, T + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def test_its_calls_are_those_it_lists():
    step, count = build(), dict.fromkeys(step_calls(MODEL, B, T, "fp32"), 0)
    for call in [*step.first_calls, *step.update_calls]:
        count[call.id] += 1
    assert count == {id: call.calls for id, call in step_calls(MODEL, B, T, "fp32").items()}
    assert {id.layer for id in count} >= {"gelu", "residual", "cross_entropy"}, "which GPT-2's step fuses"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_trains_as_torch_does(accumulation):
    """Six steps: loss, gradient norm and every gradient and parameter, clipped and decayed by its own recipe."""
    recipe, plain, step = MODEL.recipe, network(MODEL), build(accumulation)
    step.load({name: p.detach().clone() for name, p in plain.named().items()})
    groups = decay_groups(plain.named(), recipe.decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps)
    for i in range(6):
        batches = [batch(10 * i + j) for j in range(accumulation)]
        optimizer.zero_grad()
        wanted = torch.stack([plain(*b) for b in batches]).mean()
        wanted.backward()
        grads = {name: p.grad.clone() for name, p in plain.named().items() if p.grad is not None}
        wanted_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), recipe.max_norm)
        optimizer.step()
        loss, norm = step.run(batches, lr=1e-3)
        assert loss == pytest.approx(wanted.item(), rel=1e-5)
        assert norm == pytest.approx(wanted_norm.item(), rel=1e-4)
        for name, grad in grads.items():
            assert (step.memory.grads[name] - grad).norm() <= 1e-4 * grad.norm(), (i, name)
    assert norm > recipe.max_norm  # so the clip was at work
    for name, p in plain.named().items():
        torch.testing.assert_close(step.memory.params[name], p.detach(), rtol=0, atol=5e-5)
