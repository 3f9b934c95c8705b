"""Rounding at random: nothing is lost on average, and the same numbers are drawn again."""

import itertools

import pytest
import torch

from bench.models.rounding import mixed, round_at_random, scratch_groups

N = 1 << 17
STEP = torch.tensor(7.0)


def rounded(values: torch.Tensor, first: int = 0, seed: int = 0, step: torch.Tensor = STEP) -> torch.Tensor:
    out = torch.empty_like(values, dtype=torch.bfloat16)
    round_at_random(out, values, first, seed, step)
    return out


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_up_and_down_by_chance_of_the_distance(share, sign):
    """1 and 1 + 2^-7 are neighbours in bf16."""
    values = torch.full((N,), sign * (1 + share * 2**-7))
    found = rounded(values).float() * sign
    assert set(found.unique().tolist()) <= {1.0, 1 + 2**-7}
    assert (found > 1).float().mean().item() == pytest.approx(share, abs=5 * 0.5 / N**0.5)


def test_small_updates_add_up_where_rounding_to_nearest_loses_them_all():
    weight = torch.ones(4096, dtype=torch.bfloat16)
    nearest = weight.clone()
    for step in range(256):
        weight = rounded(weight.float() + 2**-12, step=torch.tensor(float(step)))
        nearest = (nearest.float() + 2**-12).bfloat16()
    assert torch.equal(nearest, torch.ones_like(nearest))
    assert weight.float().mean().item() == pytest.approx(1 + 256 * 2**-12, rel=2e-3)


def test_what_is_a_bf16_number_stays():
    values = torch.randn(N, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rounded(values.float()), values)


def test_what_is_not_finite_stays_what_it_is():
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    found = rounded(values)
    assert found[0] == torch.inf and found[1] == -torch.inf and found[2].isnan()
    assert found[3:].view(torch.int16).tolist() == [0, -(1 << 15)]


def test_a_function_of_seed_step_and_element_alone():
    values = torch.randn(600_000, generator=torch.Generator().manual_seed(1))  # more than a chunk
    whole = rounded(values)
    assert torch.equal(whole, rounded(values))
    for cut in (1, 1000, 300_001):
        parts = [rounded(values[:cut]), rounded(values[cut:], first=cut)]
        assert torch.equal(torch.cat(parts), whole)
    nearest = values.bfloat16()
    for other in (rounded(values, seed=1), rounded(values, step=torch.tensor(8.0)), rounded(values, first=1)):
        up, also = whole != nearest, other != nearest
        assert 0.2 < up.float().mean() < 0.3  # a quarter goes to the neighbour that is farther
        both = (up & also).float().mean().item()
        assert both == pytest.approx(
            1 / 12, abs=0.01
        )  # the mean of d^2, d uniform in 0 … 1/2: they know nothing of each other


def test_bits_of_the_hash_are_even_and_independent():
    found = mixed(torch.arange(N, dtype=torch.int32))
    bits = torch.stack([(found >> i) & 1 for i in range(16)]).double()
    assert (bits.mean(dim=1) - 0.5).abs().max() < 0.01
    together = torch.corrcoef(bits) - torch.eye(16)
    assert together.abs().max() < 0.02
    after = torch.corrcoef(torch.stack([bits[0, :-1], bits[0, 1:]]))[0, 1]
    assert abs(after) < 0.02


def test_scratch_is_as_large_as_the_largest_parameter():
    views = {
        "a": torch.zeros(5, 7),
        "b": torch.zeros(100),
        "c": torch.zeros(30),
        "d": torch.zeros(90),
        "e": torch.zeros(3),
    }
    buffer, groups = scratch_groups(views, 16)
    assert buffer.numel() == 112
    assert [list(group) for group in groups] == [["a"], ["b"], ["c"], ["d", "e"]]
    for group in groups:
        ends = [(t.storage_offset(), t.storage_offset() + t.numel()) for t in group.values()]
        assert all(start % 16 == 0 and end <= 112 for start, end in ends)
        assert all(after[0] >= before[1] for before, after in itertools.pairwise(ends))
        assert {name: t.shape for name, t in group.items()} == {name: views[name].shape for name in group}
