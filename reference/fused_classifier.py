"""Cross entropy forward and backward in one: losses out, dlogits written over logits. One read, one write of logits."""

import torch

from reference import cross_entropy
from reference.contract import Pass, Shape, Tensor, scaled

FORWARD = Pass(
    inputs=(Tensor("targets", "B T", "int", high="V"), Tensor("dlosses", "B T", "fp32")),
    scalars=("V",),
    outputs=(
        Tensor("logits", "B T VP", inplace=True),  # becomes dlogits; padding columns become 0
        Tensor("losses", "B T", "fp32"),
    ),
)
BACKWARD = None  # the gradient is already written


def forward(targets, dlosses, V, logits):
    # Relative to the largest logit, not to lse, in which log V is lost where logits are huge.
    largest, log_sum = cross_entropy.parts(logits[..., :V])
    grads = cross_entropy.backward(dlosses, logits - largest[..., None], targets, log_sum, V)
    return {"logits": grads["dlogits"], "losses": cross_entropy.forward(logits, targets, V)["losses"]}


RAGGED = cross_entropy.RAGGED
LONG = cross_entropy.LONG
CASES = {
    **cross_entropy.CASES,
    "huge_gradient": scaled("dlosses", 1e20, "forward"),
    "tiny_gradient": scaled("dlosses", 1e-20, "forward"),
}


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    cross_entropy.consistent(tensors, shape)


def flops(shape: Shape, phase: str) -> int:
    return cross_entropy.flops(shape, "forward") + cross_entropy.flops(shape, "backward")
