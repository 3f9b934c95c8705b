"""C++ that returns at once and leaves the addition to a thread, which Python does not count."""

from kernels.cpu import Kernel

CAUGHT_BY = "late unwritten global_state source"
kernel = Kernel("native_thread_later.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())
