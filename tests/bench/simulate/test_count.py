"""The counters: sectors and wavefronts of kernels whose traffic one can count by hand."""

import pytest

from bench.simulate import count
from tests.bench.simulate.kernels import run

THREADS, WARPS, SECTORS = 256, 8, 256 * 4 // 32


def counted(kernel: str, n: int = THREADS, block: int = THREADS, grid: int = 1, seed: int = 0):
    with count() as counts:
        run("counted.cu", kernel, n, block=block, grid=grid, seed=seed)
    (one,) = counts
    return one


@pytest.mark.parametrize(
    ("kernel", "n", "sectors", "ideal"),
    [
        ("coalesced", THREADS, SECTORS, SECTORS),
        ("strided", 8 * THREADS, 8 * SECTORS, SECTORS),
        ("shifted", THREADS + 1, SECTORS + WARPS, SECTORS),
        ("broadcast", THREADS, WARPS, WARPS),
        ("vectors", 4 * THREADS, 4 * SECTORS, 4 * SECTORS),
    ],
)
def test_sectors_of_loads(kernel, n, sectors, ideal):
    total = counted(kernel, n).total
    assert (total.load_requests, total.load_sectors, total.ideal_load_sectors) == (WARPS, sectors, ideal)


def test_sectors_of_stores_and_atomics():
    total = counted("coalesced").total
    assert (total.store_requests, total.store_sectors, total.ideal_store_sectors) == (WARPS, SECTORS, SECTORS)
    assert (total.atomic_requests, total.shared_requests) == (0, 0)
    total = counted("atomics").total
    assert (total.atomic_requests, total.atomic_sectors, total.store_requests) == (WARPS, SECTORS, 0)


def test_each_turn_of_a_loop_is_a_request():
    total = counted("loop", n=4 * THREADS).total
    assert (total.load_requests, total.load_sectors) == (4 * WARPS, 4 * SECTORS)


def test_blocks_add_up():
    assert counted("coalesced", grid=3).total.load_sectors == 3 * SECTORS


def test_bank_conflicts():
    rows = 32
    for kernel, factor in (("conflicted", 32), ("padded", 1)):
        one = counted(kernel, 1024, block=1024)
        store, load = (t for t in one.lines.values() if t.shared_requests)
        assert (store.shared_requests, store.shared_wavefronts, store.ideal_shared_wavefronts) == (rows, rows, rows)
        assert (load.shared_requests, load.shared_wavefronts, load.ideal_shared_wavefronts) == (
            rows,
            factor * rows,
            rows,
        )
        assert one.total.shared_wavefronts == rows + factor * rows


def test_wide_accesses_go_in_quarters_of_a_warp():
    total = counted("shared_vectors", 4 * THREADS).total
    assert total.shared_requests == 2 * WARPS
    assert total.shared_wavefronts == total.ideal_shared_wavefronts == 2 * WARPS * 4


def test_lines_name_the_source():
    one = counted("conflicted", 1024, block=1024)
    assert all(line.startswith("counted.cu:") for line in one.lines) and one.kernel == "conflicted"
    assert one.grid == (1, 1, 1) and one.block == (1024, 1, 1)


@pytest.mark.parametrize("seed", (1, 2))
def test_the_order_of_threads_does_not_matter(seed):
    assert counted("loop", 4 * THREADS, seed=seed).total == counted("loop", 4 * THREADS).total


def test_nothing_is_counted_outside():
    with count() as counts:
        pass
    run("counted.cu", "coalesced", THREADS)
    assert not counts
