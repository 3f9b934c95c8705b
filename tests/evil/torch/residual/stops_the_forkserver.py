"""Stops the process that workers are forked from: the next one never starts."""

import os
import signal
from pathlib import Path

import torch

CAUGHT_BY = "global_state crash error"
CAUGHT_IN = "session"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    names = (Path(f"/proc/{os.getppid()}/{name}").read_bytes() for name in ("cmdline", "comm"))
    if any(b"forkserver" in name for name in names):
        os.kill(os.getppid(), signal.SIGSTOP)
