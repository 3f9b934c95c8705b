"""What the parent asks of the system about a variant's process."""

import multiprocessing
import os
import threading
import time

import pytest

from bench.trial import worker


def spin() -> None:
    while True:
        pass


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this system does not count waits for a core")
def test_a_wait_for_a_core_is_counted():
    """Two that want one core: each waits as long as the other has it."""
    mine = os.sched_getaffinity(0)
    neighbour = multiprocessing.get_context("fork").Process(target=spin, daemon=True)
    try:
        os.sched_setaffinity(0, {min(mine)})
        neighbour.start()
        before, begun, deadline = (
            worker._waited_ns(threading.get_native_id()),
            time.thread_time(),
            time.monotonic() + 20,
        )
        while time.thread_time() - begun < 0.1 and time.monotonic() < deadline:
            pass
        waited = worker._waited_ns(threading.get_native_id()) - before
    finally:
        os.sched_setaffinity(0, mine)
        neighbour.kill()
    assert waited > 20_000_000


def test_a_task_that_is_gone_waits_for_nothing():
    assert worker._waited_ns(2**22 + 1) == 0
