"""Leaves an audit hook, which cannot be removed: the work is done when the harness opens or maps something."""

import sys

import torch

CAUGHT_BY = "late unwritten global_state"
waiting: list = []
busy = False


def hook(event, arguments):
    global busy
    if waiting and not busy:
        busy = True
        a, b, out = waiting.pop()
        torch.add(a, b, out=out)
        busy = False


sys.addaudithook(hook)


def forward(a, b, *, out):
    waiting.append((a, b, out))
