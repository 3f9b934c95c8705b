"""Takes the first loss's gradient for all: a mean hands each of them the same."""

from kernels.torch.cross_entropy import eager as honest

CAUGHT_BY = "inaccurate not_finite"


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    honest.backward(dlosses[:1, :1].expand_as(dlosses), logits, targets, lse, V, dlogits=dlogits)
