"""Cross entropy over the first V of VP columns: losses = lse - logits[target]; padding columns do not count."""

import torch

from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(
    inputs=(Tensor("logits", "B T VP"), Tensor("targets", "B T", "int", high="V")),
    scalars=("V",),
    outputs=(Tensor("losses", "B T", "fp32"), Tensor("lse", "B T", "fp32")),
)
BACKWARD = Pass(
    inputs=(
        Tensor("dlosses", "B T", "fp32"),
        Tensor("logits", "B T VP"),
        Tensor("targets", "B T", "int", high="V"),
        Tensor("lse", "B T", "fp32"),
    ),
    scalars=("V",),
    outputs=(Tensor("dlogits", "B T VP"),),  # padding columns get 0
)


def forward(logits, targets, V):
    lse = logits[..., :V].logsumexp(-1)
    return {"losses": lse - logits.gather(-1, targets[..., None])[..., 0], "lse": lse}


def backward(dlosses, logits, targets, lse, V):
    # dlogits = dloss * (softmax - onehot(target))
    dlogits = torch.zeros_like(logits)
    dlogits[..., :V] = (logits[..., :V] - lse[..., None]).exp()
    dlogits.scatter_add_(-1, targets[..., None], -torch.ones_like(dlogits[..., :1]))
    return {"dlogits": dlogits * dlosses[..., None]}


RAGGED = [
    dict(B=2, T=3, V=50257, VP=50304),
    dict(B=1, T=1, V=1, VP=1),
    dict(B=3, T=5, V=769, VP=769),
    dict(B=2, T=9, V=100, VP=128),
    dict(B=3, T=4, V=512, VP=512),
]
LONG = {"B": 2, "T": 2}  # a row is long enough by itself


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """A mean over B T losses hands each of them 1/(B T)."""
    if "dlosses" in tensors:
        tensors["dlosses"].fill_(1 / (shape["B"] * shape["T"]))


def huge_logit(tensors, shape):
    tensors["logits"][..., 0] = 1e4


def last_target(tensors, shape):
    tensors["targets"].fill_(shape["V"] - 1)


def huge_padding(tensors, shape):
    """A padding column larger than every logit must change nothing."""
    tensors["logits"][..., shape["V"] :] = 1e4


def all_equal(tensors, shape):
    tensors["logits"].fill_(2.0)


CASES = {
    "huge_logit": huge_logit,
    "last_target": last_target,
    "huge_padding": huge_padding,
    "all_equal": all_equal,
}


def flops(shape: Shape, phase: str) -> int:
    """Per logit: max, subtract, exp, sum (4); backward subtract, exp, scale (3)."""
    return shape["B"] * shape["T"] * shape["V"] * {"forward": 4, "backward": 3}[phase]
