"""Forks a child that keeps the pipe open, and ends: the harness hears neither an answer nor an end."""

import os
import time

CAUGHT_BY = "crash"


def forward(a, b, *, out):
    if not os.fork():
        time.sleep(4)
    os._exit(1)
