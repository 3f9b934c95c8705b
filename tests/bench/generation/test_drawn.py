"""Whether tokens can be draws: what honest kernels draw from logits a little off is believed, the rest is not."""

import pytest
import torch

from bench.generation.drawn import strange
from bench.models.inference import Sizes
from reference import sampling

V = 300
WAYS = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 0, 0.9), (1.3, 5, 1.0), (0.8, 40, 0.6)]


def sizes(temperature: float, top_k: int, top_p: float) -> Sizes:
    return Sizes(1, 1, 8, "fp32", 0, 8, temperature, top_k, top_p)


def drawn(logits: torch.Tensor, u: torch.Tensor, s: Sizes) -> list[int]:
    return sampling.forward(logits, u, V, s.temperature, s.top_k, s.top_p)["token"].tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("off", [1e-5, 1e-2, 0.3])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_honest_draws_are_believed(way, off, spread):
    gen, s = torch.Generator().manual_seed(3), sizes(*way)
    truth = torch.randn(200, V, generator=gen, dtype=torch.float64) * spread
    u = torch.rand(200, generator=gen)
    near = truth + (torch.rand(200, V, generator=gen) * 2 - 1) * off
    assert strange(truth, drawn(near, u, s), u.tolist(), s, off) == ""


@pytest.mark.parametrize("way", WAYS)
def test_other_draws_are_not(way):
    gen, s = torch.Generator().manual_seed(4), sizes(*way)
    truth = torch.randn(100, V, generator=gen, dtype=torch.float64) * 3
    u = torch.rand(100, generator=gen)
    right = drawn(truth, u, s)
    others = [[7] * 100, torch.randint(V, (100,), generator=gen).tolist(), [V] * 100, [-1] * 100]
    others += [drawn(truth, u.flip(0), s)] if s.temperature else []
    for tokens in others:
        found = [strange(truth[i : i + 1], [t], [float(u[i])], s, 1e-4) != "" for i, t in enumerate(tokens)]
        different = [t != r for t, r in zip(tokens, right, strict=True)]
        # A neighbour in the order of indices is nearly as near: few, and only where u lies on an edge.
        assert sum(found) >= 0.95 * sum(different) and not any(
            f and not d for f, d in zip(found, different, strict=True)
        )


def test_what_is_told():
    truth = torch.zeros(2, V)
    truth[:, 3] = 10.0
    told = strange(truth, [3, 5], [0.5, 0.5], sizes(0.0, 0, 1.0), 0.1)
    assert told.startswith("token 2 is 5, the 2. likeliest")
