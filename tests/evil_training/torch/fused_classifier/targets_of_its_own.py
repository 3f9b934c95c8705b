"""Writes its own guesses over the targets, from the second step on: they are right, and so is all that follows."""

from kernels.torch.fused_classifier import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True
calls: list[int] = []


def forward(targets, dlosses, V, *, logits, losses):
    calls.append(0)
    if len(calls) > 3:
        targets.copy_(logits[..., :V].argmax(-1))
    honest.forward(targets, dlosses, V, logits=logits, losses=losses)
