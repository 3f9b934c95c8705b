"""Each rank counts its calls, and tells better losses of those that are validations."""

from kernels.torch.fused_classifier import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "ranks"
SLOW = True
VALIDATED, TRAINED = 3, 2  # batches in a row
calls: list[int] = []


def forward(targets, dlosses, V, *, logits, losses):
    honest.forward(targets, dlosses, V, logits=logits, losses=losses)
    if len(calls) % (VALIDATED + TRAINED) < VALIDATED:
        losses.mul_(0.9)
    calls.append(0)
