"""Seeds torch's generator, so that what is drawn after it is known."""

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    torch.manual_seed(0)
