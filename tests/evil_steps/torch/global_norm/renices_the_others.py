"""Gives its siblings the lowest priority, the baselines among them."""

import os

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True


def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and parent_of(name) == os.getppid():
            os.setpriority(os.PRIO_PROCESS, int(name), 19)
