"""Blocks that wait for each other: they take turns, what they hand over is ordered, and waiting in vain has an end."""

import re

import pytest
import torch

from bench.simulate import SimulationError
from tests.bench.simulate.kernels import marked_lines, names, run

THREADS = 64
SEEDS = range(6)
MANY = 80  # blocks


def halved_and_added(blocks: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(THREADS)
    for block in blocks:
        out = out * 0.5 + block
    return out


WANTED = {
    "sums_under_a_lock": lambda x: x.sum(0),
    "sums_under_an_ordered_lock": lambda x: x.sum(0),
    "in_turn": halved_and_added,
    "in_turn_backwards": lambda x: halved_and_added(x.flip(0)),
    "grid_barrier": lambda x: (x + 2 * x.roll(-1, 0)).view(-1),
    "waits_for_the_last": lambda x: x.view(-1),
}
FOUND_AS = {
    "lock_without_fence": "race",
    "fence_for_the_block_alone": "race",
    "order_for_the_block_alone": "race",
    "unlocked_too_early": "race",
    "stores_after_unlocking": "race",
    "two_locks_crosswise": "deadlock",
    "lock_taken_twice": "deadlock",
    "counts_while_it_waits": "deadlock",
    "waits_by_plain_loads": "deadlock",
    "loops_for_ever": "deadlock",
}

SLOW = ("counts_while_it_waits", "loops_for_ever")  # seconds, until it is sure


def test_every_kernel_is_run():
    assert [*WANTED, *FOUND_AS] == names("blocks.cu")


def check(kernel: str, blocks: int, seed: int) -> None:
    out, given, _ = run("blocks.cu", kernel, blocks * THREADS, grid=blocks, block=THREADS, seed=seed)
    wanted = WANTED[kernel](given.view(blocks, THREADS))
    assert torch.equal(out[: wanted.numel()], wanted)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", WANTED)
def test_right_in_any_order(kernel, seed):
    check(kernel, 8, seed)


@pytest.mark.parametrize("kernel", WANTED)
def test_right_with_many_blocks(kernel):
    check(kernel, MANY, seed=3)


@pytest.mark.parametrize(("kernel", "seed"), [(k, s) for k in FOUND_AS for s in ((0,) if k in SLOW else (0, 1, 2))])
def test_found(kernel, seed):
    with pytest.raises(SimulationError) as caught:
        run("blocks.cu", kernel, 4 * THREADS, grid=4, block=THREADS, seed=seed)
    assert caught.value.reports[0].kind == FOUND_AS[kernel]
    assert any(re.search(rf"{re.escape(line)}\b", str(caught.value)) for line in marked_lines("blocks.cu", kernel))


def test_a_deadlock_names_who_waits_for_what():
    with pytest.raises(SimulationError) as caught:
        run("blocks.cu", "two_locks_crosswise", 2 * THREADS, grid=2, block=THREADS, seed=0)
    (line,) = marked_lines("blocks.cu", "two_locks_crosswise")
    message = caught.value.reports[0].message
    for block in (0, 1):
        assert f"block ({block},0,0): thread (0,0,0) polls `counters` byte {4 - 4 * block}, {line}" in message
    assert "thread (1,0,0) waits at a barrier" in message and "62 more threads" in message


def test_a_race_between_blocks_names_both():
    with pytest.raises(SimulationError) as caught:
        run("blocks.cu", "lock_without_fence", 2 * THREADS, grid=2, block=THREADS, seed=0)
    assert re.search(r"\(block \(0,0,0\) thread \(\d+,0,0\)\) and .*\(block \(1,0,0\) thread", str(caught.value))


def test_more_blocks_than_can_be_in_flight_say_so():
    """All wait for the last, as a grid's barrier would that is larger than the card."""
    with pytest.raises(SimulationError) as caught:
        run("blocks.cu", "waits_for_the_last", 40 * THREADS, grid=40, block=1024, seed=0)
    assert "33 of 40 blocks are in flight here, 7 have not begun" in caught.value.reports[0].message
