"""Losses and answers are those that plain PyTorch gives."""

import numpy as np
import pytest
import torch

from bench import cli
from bench.text import evaluation
from bench.text.epochs import find_shards, in_order
from bench.text.evaluation import Example
from bench.trainer import build, evaluate
from bench.trainer.plan import race_of
from bench.trainer.ranks import Ranks
from reference.models.plain import init_parameters, network
from tests.bench.trainer import runs


@pytest.fixture(scope="module")
def step():
    race = race_of(runs.SMALL, kernels="torch.eager", B=2, T=8, dtype="fp32", device="cpu", threads=1)
    choice, _ = build.choose_kernels(race)
    made = build.build(race, choice)
    made.load(init_parameters(runs.SMALL, 3))
    return made


@pytest.fixture(scope="module")
def plain():
    return network(runs.SMALL, 3)


@torch.no_grad()
def test_validation_loss(step, plain, data):
    shards = find_shards(data, "val")
    batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in in_order(shards, 2, 8)]
    assert len(batches) > 6
    for limit in (1, 5, 999):
        wanted = np.mean([plain(*batch).item() for batch in batches[:limit]])
        assert evaluate.validation(step, shards, limit, Ranks())[0] == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def test_questions(step, plain):
    draw = np.random.default_rng(0)
    examples = []
    for n in range(12):
        parts = [tuple(draw.integers(0, 300, size).tolist()) for size in (4, 3, 2, 4, 3)]
        examples.append(Example(parts[0], tuple(parts[1:]), n % 4))
    right = 0
    for example in examples:
        means = []
        for ending in example.endings:
            tokens = torch.tensor([*example.context, *ending])
            logits = plain(tokens[None, :-1])[0, :, : runs.SMALL.v]
            losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
            means.append(losses[-len(ending) :].mean().item())
        right += int(np.argmin(means)) == example.label
    assert 0 < right < 12
    assert evaluate.hellaswag(step, examples, Ranks())[:2] == (right, 12)


def test_a_run_says_how_many_it_gets_right(data, tmp_path):
    file, out = tmp_path / "questions.bin", tmp_path / "run"
    evaluation.write(file, [Example((1, 2), ((3,), (4, 5), (6,), (7,)), n % 4) for n in range(8)])
    done = runs.train(data, "--steps", 3, "--hellaswag", file, "--hellaswag-every", 2, "--out", out)
    assert done.returncode == cli.OK, done.stderr
    told = runs.told(out, "hellaswag")
    assert [(e["step"], e["of"], e["right"]) for e in told] == [(2, 8, 2), (3, 8, 2)]  # one answer, right for a quarter
    assert "hellaswag 2/8 = 0.2500" in done.stdout
