"""Stops its own process, as Ctrl-Z does, and cannot be asked to end."""

import os
import signal

CAUGHT_BY = "timeout"


def forward(a, b, *, out):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGSTOP)
