"""Correct kernels: right results and no report, in eight orders of threads and blocks."""

import pytest
import torch

from bench.simulate import take_notes
from tests.bench.simulate.kernels import names, run

GRID, THREADS = 4, 64
N = GRID * THREADS
SEEDS = range(8)


def by_block(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, THREADS)


def lanes(x: torch.Tensor, order) -> torch.Tensor:
    index = torch.tensor([order(i) for i in range(THREADS)])
    return by_block(x)[:, index].reshape(-1)


# kernel -> (what `out` must begin with, launch options)
WANTED = {
    "block_sums": (lambda x: by_block(x).sum(1), {}),
    "last_block_adds": (lambda x: x.sum()[None], {}),
    "atomic_sums": (lambda x: x.sum()[None], {}),
    "reverse": (lambda x: by_block(x).flip(1).reshape(-1), {"shared": THREADS * 4}),
    "exchange_in_warps": (lambda x: lanes(x, lambda i: i ^ 16 ^ 1), {}),
    "producer_and_consumer": (lambda x: x.view(-1, 32).flip(1).reshape(-1), {"grid": 1}),
    "copies_ahead": (lambda x: by_block(x).flip(1).reshape(-1), {"grid": 1}),
    "flag_with_fences": (lambda x: lanes(x, lambda i: i ^ 33), {}),
    "volatile_sum": (lambda x: by_block(x).sum(1), {}),
    "flag_in_a_warp": (lambda x: x[:1].repeat(2), {}),
    "returned_early": (lambda x: x[:40].flip(0), {}),
    "groups": (lambda x: x.view(-1, 16).sum(1).repeat_interleave(16), {}),
    "read_only_until_it_is_stored": (lambda x: x, {}),
    "histogram": (None, {}),
    "bytes": (None, {}),
}


def test_every_correct_kernel_is_run():
    assert list(WANTED) == names("correct.cu")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", WANTED)
def test_correct_kernel_is_silent(kernel, seed):
    wanted, options = WANTED[kernel]
    out, given, counters = run("correct.cu", kernel, N, seed=seed, **{"grid": GRID, **options})
    if wanted:
        expected = wanted(given)
        assert torch.equal(out[: expected.numel()], expected)
    elif kernel == "histogram":
        assert counters[:2].tolist() == [int((given <= 0).sum()), int((given > 0).sum())]
    else:
        assert torch.equal(counters.view(torch.uint8)[:N].bool(), given > 0)
        assert torch.equal(out.view(torch.int16)[:N].bool(), given > 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_who_has_returned_before_a_barrier_is_told_in_the_guides_words(seed):
    take_notes()
    run("correct.cu", "returned_early", N, grid=GRID, seed=seed)
    notes = take_notes()
    assert {note.kind for note in notes} == {"returned early"}
    assert all("non-exited threads in the block" in n.message and "correct.cu:" in n.message for n in notes)
    run("correct.cu", "block_sums", N, grid=GRID, seed=seed)
    assert take_notes() == ()


def test_without_the_race_checker(monkeypatch):
    monkeypatch.setenv("LAYERBENCH_SIMULATE_RACES", "0")
    run("bugs.cu", "two_writers", n=64)  # a race, and nothing else
