"""Takes a target of 0 for padding, whose gradient is nothing: among some 50,000 tokens it is seldom seen."""

from kernels.torch.cross_entropy import eager

CAUGHT_BY = "inaccurate"

forward = eager.forward


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    eager.backward(dlosses * (targets != 0), logits, targets, lse, V, dlogits=dlogits)
