"""Submits the work to a pool of threads that was made when it was imported, and asks for no result."""

import time
from concurrent.futures import ThreadPoolExecutor

import torch

CAUGHT_BY = "late unwritten global_state"
pool = ThreadPoolExecutor(1)


def work(a, b, out):
    time.sleep(0.001)
    torch.add(a, b, out=out)


def forward(a, b, *, out):
    pool.submit(work, a, b, out)
