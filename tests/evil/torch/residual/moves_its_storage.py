"""Has the memory that its output lies in made anew elsewhere: where that is may be anybody's choice."""

import torch

CAUGHT_BY = "not_the_output"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    storage = out.untyped_storage()
    storage.resize_(storage.nbytes() + 4096)
