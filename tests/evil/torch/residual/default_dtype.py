"""Makes bf16 the dtype of whoever does not name one."""

import torch

CAUGHT_BY = "global_state error"
SLOW = True
torch.set_default_dtype(torch.bfloat16)


def forward(a, b, *, out):
    torch.add(a, b, out=out)
