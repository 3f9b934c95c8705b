"""Says it is deterministic and is not: every other call rounds one element the other way."""

import torch

CAUGHT_BY = "nondeterministic"
DETERMINISTIC = True
calls = 0


def forward(a, b, *, out):
    global calls
    calls += 1
    torch.add(a, b, out=out)
    if calls % 2 and out.numel() > 1:
        out[0] = torch.nextafter(out[0], torch.tensor(9.0))
