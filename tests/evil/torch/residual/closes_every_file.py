"""Closes every file that its process has open, its pipe to the harness included."""

import os

CAUGHT_BY = "crash error"


def forward(a, b, *, out):
    os.closerange(3, 1024)
