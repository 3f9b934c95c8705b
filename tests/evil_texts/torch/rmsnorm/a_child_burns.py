"""Starts a child at its first call, which takes a core from whoever has the turn."""

import subprocess
import sys

from kernels.torch.rmsnorm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "text"
SLOW = True
BURNS = "import time; end = time.time() + 30\nwhile time.time() < end: pass"
children: list[object] = []


def forward(x, weight, eps, *, out, rstd):
    honest.forward(x, weight, eps, out=out, rstd=rstd)
    if not children:
        children.append(subprocess.Popen([sys.executable, "-c", BURNS]))
