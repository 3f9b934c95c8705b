"""Never says how large its workspace is to be."""

import time

CAUGHT_BY = "timeout"


def workspace(shape, phase):
    time.sleep(60)
    return 0


def forward(a, b, *, out, workspace):
    pass
