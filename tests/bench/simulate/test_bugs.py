"""Planted bugs: each is found, by the report that is meant for it, with the lines of the source."""

import pickle
import re
import time

import pytest

from bench.simulate import Report, SimulationError, collecting, limit_time
from tests.bench.simulate.kernels import marked_lines, names, run

FOUND_AS = {
    "read_past_the_end": "out-of-bounds",
    "write_past_the_end": "out-of-bounds",
    "read_before_the_beginning": "out-of-bounds",
    "null_pointer": "out-of-bounds",
    "write_to_an_input": "read-only",
    "misaligned_vector": "misaligned",
    "misaligned_shared": "misaligned",
    "shared_past_the_end": "out-of-bounds",
    "shared_never_written": "uninitialised",
    "local_past_the_end": "out-of-bounds",
    "too_much_local": "crash",
    "division_by_zero": "division by zero",
    "missing_barrier": "race",
    "missing_barrier_before_reuse": "race",
    "two_writers": "race",
    "missing_syncwarp": "race",
    "warp_synchronous_sum": "race",
    "warp_synchronous_integers": "race",
    "volatile_between_warps": "race",
    "lanes_exchange_through_global": "race",
    "blocks_add_without_atomics": "race",
    "last_block_without_fence": "race",
    "loads_past_the_stores": "non-coherent",
    "atomic_and_plain": "race",
    "copy_over_what_is_read": "race",
    "arrives_too_early": "race",
    "different_barriers": "divergent barrier",
    "waits_for_too_many": "deadlock",
    "waits_for_ever": "deadlock",
    "barrier_with_no_warps": "barrier",
    "lane_not_in_its_mask": "warp operation",
    "shuffle_from_outside_the_mask": "warp operation",
    "shuffle_after_lanes_returned": "warp operation",
    "vote_after_lanes_returned": "warp operation",
    "shuffle_from_lanes_that_do_not_exist": "warp operation",
    "masks_differ": "warp operation",
    "operations_differ": "warp operation",
    "missing_wait": "unfinished copy",
    "misaligned_copy": "misaligned",
    "write_during_a_copy": "unfinished copy",
    "failed_assertion": "assertion",
    "reached_trap": "trap",
}
OPTIONS: dict[str, dict[str, int]] = {
    "read_past_the_end": {"grid": 2},
    "null_pointer": {"counters": False},
    "shared_past_the_end": {"shared": 64 * 4},
    "blocks_add_without_atomics": {"grid": 2, "n": 128},
    "last_block_without_fence": {"grid": 8},
    "copy_over_what_is_read": {"n": 256},
    "missing_wait": {"n": 256},
    "shuffle_from_lanes_that_do_not_exist": {"block": 48},
}


def reports(kernel: str, seed: int):
    options = {"n": 64, **OPTIONS.get(kernel, {})}
    with pytest.raises(SimulationError) as caught:
        run("bugs.cu", kernel, seed=seed, **options)
    return caught.value


def test_every_planted_bug_has_its_report():
    assert list(FOUND_AS) == names("bugs.cu")


@pytest.mark.parametrize("kernel", FOUND_AS)
def test_bug_is_found(kernel):
    error = reports(kernel, seed=0)
    wanted = [r for r in error.reports if r.kind == FOUND_AS[kernel]]
    assert wanted, f"found as {[r.kind for r in error.reports]}: {error}"
    lines = marked_lines("bugs.cu", kernel)
    assert lines or kernel == "too_much_local"
    assert any(all(re.search(rf"{re.escape(line)}\b", r.message) for line in lines) for r in wanted), (
        f"{lines}: {error}"
    )
    assert "/" not in re.sub(r"\(inlined at .*?\)", "", str(error)), "no paths"
    assert not re.search(r": [:,]|, [,:]|: $", error.evidence() + str(error))


@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("kernel", FOUND_AS)
def test_bug_is_found_in_any_order(kernel, seed):
    assert reports(kernel, seed).reports


def test_a_report_says_what_and_where():
    (report,) = reports("read_past_the_end", seed=0).reports
    line = marked_lines("bugs.cu", "read_past_the_end")[0]
    wanted = f"out-of-bounds read of 4 bytes, 0 bytes behind the end of `in`, {line}, block (1,0,0) thread (0,0,0)"
    assert report.message == wanted


def test_evidence_has_every_kind_and_says_how_much_it_leaves_out():
    races = [Report("race", f"write-read race {i}") for i in range(5)]
    error = SimulationError("add", [*races, Report("deadlock", "deadlock in block 0"), Report("trap", "trap, a.cu:3")])
    told = error.evidence()
    assert told == "add: trap: a.cu:3; deadlock: in block 0; race: write-read race 0; and 4 more"
    assert SimulationError("add", races[:1]).evidence() == "add: race: write-read race 0"
    assert "race 3" in error.evidence(most=6) and error.evidence(most=6).endswith("and 1 more")


def twice(first: str, second: str) -> SimulationError:
    """Two launches of one case, of which the second is what matters."""
    with pytest.raises(SimulationError) as caught, collecting():
        run("bugs.cu", first, n=64, seed=0)
        run("bugs.cu", second, n=64, seed=0, **OPTIONS.get(second, {}))
    return caught.value


def test_a_race_hides_nothing_that_comes_behind_it():
    error = twice("two_writers", "read_past_the_end")
    assert [r.kind for r in error.reports] == ["out-of-bounds", "race"]
    assert error.kernel == "read_past_the_end" and error.reports[1].message.endswith("in two_writers")
    assert error.evidence().startswith("read_past_the_end: out-of-bounds: read of 4 bytes")


def test_a_race_alone_is_raised_at_the_end_and_once():
    assert [r.kind for r in twice("two_writers", "two_writers").reports] == ["race"]


def test_a_race_is_raised_though_something_else_goes_wrong_behind_it():
    with pytest.raises(SimulationError, match="race"), collecting():
        run("bugs.cu", "two_writers", n=64, seed=0)
        raise ValueError("of what was computed")


def test_nothing_is_put_off_without_being_asked():
    with pytest.raises(SimulationError):
        run("bugs.cu", "two_writers", n=64, seed=0)
    with collecting():
        pass


@pytest.mark.parametrize("kernel", ("for_ever_with_a_barrier", "for_ever_without_one"))
def test_a_launch_has_an_end(kernel):
    limit_time(1.0)
    start = time.monotonic()
    try:
        with pytest.raises(SimulationError) as caught:
            run("endless.cu", kernel, n=64, grid=3, block=256)
    finally:
        limit_time(0)
    assert caught.value.reports[0].kind == "timeout" and "endless.cu:" in str(caught.value)
    assert time.monotonic() - start < 60


def test_the_error_survives_the_way_between_processes():
    error = reports("null_pointer", seed=0)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.reports == error.reports


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 1025}, "1 to 1024"),
        ({"shared": 228 * 1024}, "shared memory"),
        ({"grid": 0}, "at most 2147483647, 65535 and 65535"),
        ({"grid": -1}, "-1 is no size"),
        ({"grid": 2**32 + 1}, "is no size"),
    ],
)
def test_a_launch_that_no_gpu_would_accept(options, message):
    with pytest.raises(SimulationError, match=message) as caught:
        run("bugs.cu", "two_writers", n=64, **options)
    assert caught.value.reports[0].kind == "launch"
