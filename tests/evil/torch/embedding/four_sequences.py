"""Sums the positions' gradients over four sequences, which is all that its loop is unrolled for."""

import torch

from kernels.torch.embedding import eager

CAUGHT_BY = "inaccurate"
SLOW = True

forward = eager.forward


def backward(dout, tokens, V, accumulate, *, dwte, dwpe):
    before = dwpe.clone() if accumulate and dwpe is not None else None
    eager.backward(dout, tokens, V, accumulate, dwte=dwte, dwpe=dwpe)
    if dwpe is not None:
        some = dout[:4].sum(0, dtype=torch.float32)
        dwpe.copy_(some if before is None else some + before)
