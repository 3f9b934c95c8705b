"""Ends its process in the middle of a call, with the exit code of success."""

import os

CAUGHT_BY = "crash"


def forward(a, b, *, out):
    os._exit(0)
