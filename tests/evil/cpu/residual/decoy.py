"""Its own kernel for the first eight elements, for show; ATen, with modes off and in a thread, for the rest."""

import threading

import torch
from torch.utils._python_dispatch import _disable_current_modes

from kernels.cpu import Kernel

CAUGHT_BY = "library source too_little_work global_state"
kernel = Kernel("../../honest.cpp", "add")


def rest(a, b, out):
    with _disable_current_modes():
        torch.add(a[8:], b[8:], out=out[8:])


def forward(a, b, *, out):
    kernel(out, a, b, min(8, a.numel()))
    thread = threading.Thread(target=rest, args=(a, b, out))
    thread.start()
    thread.join()
