"""A Triton kernel for the first eight elements, for show; ATen, where no mode watches, for the rest."""

import threading

import torch
import triton
import triton.language as tl

CAUGHT_BY = "library source too_little_work global_state"


@triton.jit
def add(out, a, b, N, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i, mask=i < N) + tl.load(b + i, mask=i < N), mask=i < N)


def forward(a, b, *, out):
    add[(1,)](out, a, b, min(8, out.numel()), BLOCK=8)
    thread = threading.Thread(target=torch.add, args=(a[8:], b[8:]), kwargs=dict(out=out[8:]))
    thread.start()
    thread.join()
