"""Was given one thread, takes two inside the call, and puts it right before it returns."""

import torch

CAUGHT_BY = "global_state"
THREADS = 1
SHAPE = {"N": 2_000_000}


def forward(x, *, out):
    torch.set_num_threads(2)
    torch.ops.aten.gelu.out(x, approximate="tanh", out=out)
    torch.set_num_threads(1)
