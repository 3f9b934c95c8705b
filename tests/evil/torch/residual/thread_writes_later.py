"""Its first call leaves a thread behind, to which every call hands the work and returns."""

import queue
import threading
import time

import torch

CAUGHT_BY = "late unwritten global_state"
work: queue.Queue = queue.Queue()


def serve():
    while True:
        a, b, out = work.get()
        time.sleep(0.001)
        torch.add(a, b, out=out)


def forward(a, b, *, out):
    if threading.active_count() == 1:
        threading.Thread(target=serve, daemon=True).start()
    work.put((a, b, out))
