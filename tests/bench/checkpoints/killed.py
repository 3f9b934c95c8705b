"""python killed.py FOLDER ROUNDS SEED: processes that write checkpoints are killed at random moments.

Each begins where the one before got to. After each kill the newest whole checkpoint must be what its step says, and no
older than the last one that the killed process heard to be written. torch is loaded once, and each process forked.
"""

import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch

from bench.checkpoints.run import Writer, load, newest
from tests.bench.checkpoints.states import MODEL, same, state


def main(folder: Path, rounds: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance, reached = random.Random(seed), 0
    for _ in range(rounds):
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            os.close(told)
            write(folder, reached, tell)
        os.close(tell)
        select.select([told], [], [], 60)  # until the first is written
        time.sleep(chance.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(told) as lines:
            heard = [int(line) for line in lines if line.endswith("\n")]
        path, torn = newest(folder, MODEL)
        assert path is not None and heard, "nothing was written"
        found = load(path, MODEL)
        assert same(found, state(found.step)), path
        assert found.step >= heard[-1] > reached, (found.step, heard[-1], reached)
        assert len(torn) <= 1, torn
        reached = found.step
    print("reached", reached)


def write(folder: Path, after: int, tell: int) -> None:
    try:
        writer = Writer(folder, keep_last=2, keep_every=5)
        for step in range(after + 1, after + 10_000):
            before = writer.written
            writer.submit(state(step))
            if writer.written != before:  # of the step before, for submit waits for it
                os.write(tell, b"%d\n" % (step - 1))
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
