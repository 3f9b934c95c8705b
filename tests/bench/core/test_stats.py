import time

import numpy as np
import pytest

from bench.core import stats


def draw(random, rounds, samples=5, scale=1.0, between=0.02, within=0.01):
    """Log-normal timings: a common factor a round, jitter inside it. Their median is `scale`."""
    common = np.exp(between * random.standard_normal((rounds, 1)))
    return scale * common * np.exp(within * random.standard_normal((rounds, samples)))


@pytest.mark.parametrize("rounds", [6, 10, 25])
def test_median_interval_covers_the_truth_about_as_often_as_it_says(rounds):
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        _, low, high = stats.median_ci(draw(random, rounds), resamples=300)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 300 <= 0.995


def test_samples_inside_a_round_do_not_narrow_the_interval():
    # 100 correlated samples a round carry the information of one round, not of 100.
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        _, low, high = stats.median_ci(draw(random, 10, samples=100), resamples=300)
        hits += low <= 1.0 <= high
    assert hits / 200 >= 0.88


def test_ratio_interval_covers_the_truth():
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        common = np.exp(0.1 * random.standard_normal((12, 1)))  # load that hits both
        a = 1.3 * common * np.exp(0.01 * random.standard_normal((12, 3)))
        b = common * np.exp(0.01 * random.standard_normal((12, 3)))
        _, low, high = stats.paired_ratio_ci(a, b, resamples=300)
        hits += low <= 1.3 <= high
    assert 0.88 <= hits / 300 <= 1.0


def test_pairing_cancels_what_hits_both():
    random = np.random.default_rng(4)
    common = np.exp(0.3 * random.standard_normal((20, 1)))
    a = 2.0 * common * np.exp(0.005 * random.standard_normal((20, 3)))
    b = common * np.exp(0.005 * random.standard_normal((20, 3)))
    paired = stats.paired_ratio_ci(a, b)
    shuffled = stats.paired_ratio_ci(a, random.permutation(b))
    assert paired[2] - paired[1] < 0.3 * (shuffled[2] - shuffled[1])


def test_known_ratios():
    a, b = [[2.0, 2.0]] * 8, [[1.0, 1.0]] * 8
    assert stats.paired_ratio_ci(a, b) == (2.0, 2.0, 2.0)
    assert stats.paired_ratio_ci(b, a) == (0.5, 0.5, 0.5)
    estimate, low, high = stats.paired_ratio_ci([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    assert estimate == low == high == 1.0


def test_processes_that_differ_widen_the_interval():
    # Within a process the rounds agree, between processes they do not: the truth is the spread between them.
    random = np.random.default_rng(5)
    rounds = np.vstack([draw(random, 10, scale=1.0, between=0.001), draw(random, 10, scale=1.1, between=0.001)])
    flat = stats.median_ci(rounds)
    nested = stats.median_ci(rounds, processes=[0] * 10 + [1] * 10)
    assert nested[0] == flat[0]
    assert nested[1] < 1.01 and nested[2] > 1.09
    ratio = stats.paired_ratio_ci(rounds, np.ones((20, 2)), processes=["a"] * 10 + ["b"] * 10)
    assert ratio[1] < 1.01 and ratio[2] > 1.09


def test_processes_may_have_different_numbers_of_rounds_in_any_order():
    rounds = [[1.0], [2.0], [1.0], [2.0], [1.0]]
    _, low, high = stats.median_ci(rounds, processes=["x", "y", "x", "y", "x"])
    assert (low, high) == (1.0, 2.0)


def test_one_process_label_changes_nothing():
    random = np.random.default_rng(6)
    rounds = draw(random, 9)
    assert stats.median_ci(rounds, processes=[7] * 9) == stats.median_ci(rounds)


def test_one_round_has_an_unbounded_interval():
    assert stats.median_ci([[1.0, 2.0, 3.0]]) == (2.0, 0.0, float("inf"))
    assert stats.paired_ratio_ci([[2.0]], [[1.0]]) == (2.0, 0.0, float("inf"))


def test_rounds_of_different_lengths():
    estimate, low, high = stats.median_ci([[1.0], [2.0, 2.0], [3.0, 3.0, 3.0], [2.0], [2.0]])
    assert estimate == 2.0 and low >= 1.0 and high <= 3.0


@pytest.mark.parametrize("bad", [[], [[1.0], []]])
def test_missing_samples_are_an_error(bad):
    with pytest.raises(ValueError):
        stats.median_ci(bad)


def test_unequal_rounds_are_an_error():
    with pytest.raises(ValueError, match="same rounds"):
        stats.paired_ratio_ci([[1.0]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="process labels"):
        stats.median_ci([[1.0], [1.0]], processes=[0])


def test_noise_is_relative_and_takes_both_forms():
    flat = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert stats.noise(flat) == pytest.approx(2 / 3)
    assert stats.noise([10 * s for s in flat]) == pytest.approx(2 / 3)
    assert stats.noise([flat[:2], flat[2:]]) == pytest.approx(2 / 3)
    assert stats.noise([3.0]) == 0


def test_the_same_samples_give_the_same_interval():
    rounds = draw(np.random.default_rng(7), 12)
    assert stats.median_ci(rounds) == stats.median_ci(rounds)


def test_fast_enough_to_run_after_every_round():
    rounds = draw(np.random.default_rng(8), 50).tolist()
    other = draw(np.random.default_rng(9), 50).tolist()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        stats.paired_ratio_ci(rounds, other)
        best = min(best, time.perf_counter() - start)
    assert best < 0.02  # 3 ms on an idle machine
