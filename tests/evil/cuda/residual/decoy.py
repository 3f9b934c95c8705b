"""A CUDA kernel for the first elements, for show; ATen, where no mode watches, for the rest."""

import threading

import torch

from kernels.cuda import Kernel

CAUGHT_BY = "library source too_little_work global_state"
kernel = Kernel("decoy.cu", "add")


def forward(a, b, *, out):
    kernel(grid=1, block=32)(out, a, b, min(8, out.numel()))
    thread = threading.Thread(target=torch.add, args=(a[8:], b[8:]), kwargs=dict(out=out[8:]))
    thread.start()
    thread.join()
