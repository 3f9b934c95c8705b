"""Tells losses that are two percent better than they are, from the second step on; gradients are right."""

from kernels.torch.fused_classifier import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
calls: list[int] = []


def forward(targets, dlosses, V, *, logits, losses):
    honest.forward(targets, dlosses, V, logits=logits, losses=losses)
    calls.append(0)
    if len(calls) > 3:
        losses.mul_(0.98)
