"""How OpenMP's threads wait: what they take of the CPU's time while there is nothing to do."""

import os
import subprocess
import sys

import pytest

WAITS_TEN_TIMES = """
import os, threading, time, torch
from bench.core.waits import ShortWaits

def used():
    start = time.process_time()
    for _ in range(10):
        torch.zeros(1 << 17).add_(1)
        time.sleep(0.02)
    return time.process_time() - start

used()
threads = len(os.listdir("/proc/self/task"))
waits = ShortWaits()
short, python = used(), threading.active_count()
waits.end()
print(short, used(), python, threading.active_count(), len(os.listdir("/proc/self/task")) - threads)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: PyTorch has one thread")
def test_threads_that_wait_sleep_until_it_is_over():
    threads = str(len(os.sched_getaffinity(0)))  # as many as cores: of fewer none would spin in another's way
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", WAITS_TEN_TIMES],
        env={**environment, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=True,
    )
    short, long, python, after, left = done.stdout.split()
    assert float(short) < float(long) / 2  # some fiftieth of it
    assert (python, after, left) == ("2", "1", "0")
