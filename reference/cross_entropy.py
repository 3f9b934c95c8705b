"""Cross entropy over the first V of VP columns: losses = lse - logits[target]; what padding holds does not count."""

import torch

from reference.contract import Pass, Shape, Tensor, alike, applies, scaled

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
    # The loss is not lse - logit: where logits are huge, the logarithm would be lost beside them.
    largest, log_sum = parts(logits[..., :V])
    return {"losses": largest - logits.gather(-1, targets[..., None])[..., 0] + log_sum, "lse": largest + log_sum}


def parts(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(largest, log of the sum of exp(logit - largest)) over the last axis."""
    largest = logits.amax(-1)
    return largest, (logits - largest[..., None]).exp().sum(-1).log()


def backward(dlosses, logits, targets, lse, V):
    # dlogits = dloss * (softmax - onehot(target))
    dlogits = torch.zeros_like(logits)
    dlogits[..., :V] = (logits[..., :V] - lse[..., None]).exp()
    dlogits.scatter_add_(-1, targets[..., None], -torch.ones_like(dlogits[..., :1]))
    return {"dlogits": dlogits * dlosses[..., None]}


RAGGED = [
    dict(B=2, T=2, V=50257, VP=50304),
    dict(B=1, T=1, V=1, VP=1),
    dict(B=3, T=5, V=769, VP=769),
    dict(B=2, T=9, V=100, VP=128),
    dict(B=3, T=4, V=512, VP=512),
    dict(B=1, T=1, V=3 << 15, VP=3 << 15),
]
LONG = {"B": 2, "T": 2}  # a row is long enough by itself


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """A mean over B T losses hands each of them about 1/(B T), weighted as a mask or a reward has it, some below 0."""
    if "dlosses" in tensors:
        tensors["dlosses"].div_(2).add_(1).div_(shape["B"] * shape["T"])


def huge_logit(tensors, shape):
    tensors["logits"][..., 0] = 1e4


def last_target(tensors, shape):
    tensors["targets"].fill_(shape["V"] - 1)


def huge_last(tensors, shape):
    """The last logit that counts is the largest by far."""
    tensors["logits"][..., shape["V"] - 1] = 1e4


@applies(when=lambda shape: shape["V"] < shape["VP"])
def huge_padding(tensors, shape):
    """A padding column larger than every logit must change nothing."""
    tensors["logits"][..., shape["V"] :] = 1e4


@applies(when=lambda shape: shape["V"] < shape["VP"])
def padding_of_nan(tensors, shape):
    """NaN and infinities in padding columns, as in memory that nobody wrote: no factor of 0 makes them nothing."""
    padding = tensors["logits"][..., shape["V"] :]
    padding.fill_(torch.nan)
    padding[..., ::3] = torch.inf


@alike
def all_equal(tensors, shape):
    """Each is as likely as another, and the first one is meant: it is a token as any, and marks nothing."""
    tensors["logits"].fill_(2.0)
    tensors["targets"].zero_()


def growing(tensors, shape):
    """Each logit is larger than all before it: a running maximum is raised at every step."""
    tensors["logits"].copy_(torch.linspace(-50, 50, shape["VP"]).expand_as(tensors["logits"]))


def far_below(tensors, shape):
    """All logits below what a kernel may have chosen as the lowest there is; the target's is the largest by far."""
    logits, fp16, target = tensors["logits"], shape["dtype"] == "fp16", shape["V"] // 2
    logits.fill_(-6.5e4 if fp16 else -3e38)
    logits[..., target] = -6e4 if fp16 else -1e30
    tensors["targets"].fill_(target)


@applies(when=lambda shape: shape["V"] > 1)
def minus_infinity(tensors, shape):
    """Tokens that are ruled out: all but the last one in every second row, all but every second in the others."""
    logits, last = tensors["logits"], shape["V"] - 1
    tensors["targets"].fill_(last)
    keep = logits[..., last].clone()
    logits[:, ::2, :last] = -torch.inf
    logits[:, 1::2, 1::2] = -torch.inf
    logits[..., last] = keep


def not_finite(tensors, shape):
    """A NaN among a row's logits: its loss and its gradient are NaN, its padding and the other rows are not."""
    tensors["logits"][-1, -1, shape["V"] // 2] = torch.nan


CASES = {
    "huge_logit": huge_logit,
    "last_target": last_target,
    "huge_last": huge_last,
    "huge_padding": huge_padding,
    "padding_of_nan": padding_of_nan,
    "all_equal": all_equal,
    "growing": growing,
    "far_below": far_below,
    "minus_infinity": minus_infinity,
    "not_finite": not_finite,
    "huge_gradient": scaled("dlosses", 1e20),
    "tiny_gradient": scaled("dlosses", 1e-20),
}


def flops(shape: Shape, phase: str) -> int:
    """Per logit: max, subtract, exp, sum (4); backward subtract, exp, scale (3)."""
    return shape["B"] * shape["T"] * shape["V"] * {"forward": 4, "backward": 3}[phase]
