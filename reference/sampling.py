"""One token a row of logits, by a uniform number that is given: argmax, temperature, top-k, top-p.

    weights   exp((logit - largest) / temperature) of the first V logits; 1 where the logit is the largest
    top_k     the k largest logits are kept (0: all), of equal ones the lower index first
    top_p     of those, from the largest on, as few as have top_p of their weight together, one at least (1: all)
    token     the first index at which the running sum of kept weights, in the order of indices, is above u times all
              of it; the last kept index where it never is
    temperature 0: the largest logit, of equal ones the lowest index; u, top_k and top_p do not matter

Logits are compared as they are, before anything is rounded; -0 equals 0. Padding behind V may hold anything. A
row that holds a NaN has no distribution: its token is the index of the first NaN, as `torch.argmax` says. Of +inf each
is as likely as another, and so is each of a row that is -inf all over.

Nucleus: Holtzman et al. 2020 (arXiv:1904.09751); top-k: Fan et al. 2018 (1805.04833).
"""

import torch

from reference.contract import ITEM_SIZE, Pass, Shape, Tensor, applies

FORWARD = Pass(
    inputs=(Tensor("logits", "B VP"), Tensor("u", "B", "fp32")),
    scalars=("V", "temperature", "top_k", "top_p"),
    outputs=(Tensor("token", "B", "int"),),
)
BACKWARD = None
TIED = ("u",)

SPREAD = 5.0  # standard deviation of logits over the temperature: a few dozen tokens matter, as in a trained model
MARGIN = 2**-13  # of the whole weight: u and the edge of top_p keep so far from where rounding would decide


def forward(logits, u, V, temperature, top_k, top_p):
    x = logits[:, :V]
    values, order = torch.sort(x, dim=-1, descending=True, stable=True)  # NaN first
    if temperature == 0:
        return {"token": order[:, 0]}
    keep = kept(values, temperature, top_k, top_p)
    weights = torch.zeros_like(x).scatter(1, order, weights_of(values, temperature) * keep)
    running = weights.cumsum(-1)
    above = running > u[:, None] * running[:, -1:]
    last = order.masked_fill(~keep, -1).amax(-1)
    token = torch.where(above.any(-1), above.byte().argmax(-1), last)
    return {"token": torch.where(values[:, 0].isnan(), order[:, 0], token)}


def weights_of(values: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of logits that fall: (B, V), the first 1."""
    top = values[:, :1]
    return torch.where(values == top, 1.0, ((values - top) / temperature).exp())


def kept(values: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Whether each of the logits, which fall, is kept: (B, V)."""
    rank = torch.arange(values.shape[-1], device=values.device).expand_as(values)
    keep = rank < (top_k or values.shape[-1])
    if top_p < 1:
        weights = weights_of(values, temperature) * keep
        before = weights.cumsum(-1) - weights
        keep = keep & ((before < top_p * weights.sum(-1, keepdim=True)) | (rank == 0))
    return keep


RAGGED = [
    dict(B=3, V=257, VP=320, temperature=0.8, top_k=41, top_p=0.9),
    dict(B=1, V=1, VP=1, temperature=1.0, top_k=0, top_p=1.0),
    dict(B=2, V=1000, VP=1024, temperature=0.0, top_k=0, top_p=1.0),
    dict(B=2, V=512, VP=512, temperature=1.0, top_k=0, top_p=0.9),
    dict(B=4, V=769, VP=769, temperature=1.3, top_k=5, top_p=1.0),
    dict(B=1, V=5000, VP=5008, temperature=0.7, top_k=0, top_p=1.0),
    dict(B=2, V=128, VP=128, temperature=1.0, top_k=200, top_p=0.0),
    dict(B=3, V=40, VP=40, temperature=0.1, top_k=1, top_p=1.0),
    dict(B=1, V=65600, VP=65600, temperature=1.0, top_k=301, top_p=0.8),  # more than 16 bits name
]
LONG = {"B": 2}


def typical(B: int, T: int) -> Shape:
    """Llama 2's vocabulary with the temperature and the nucleus of llama2.c."""
    return dict(B=B, V=32000, VP=32000, temperature=1.0, top_k=0, top_p=0.9)


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Logits as peaked as a trained model's; u uniform in [0, 1)."""
    tensors["logits"].mul_(SPREAD * (shape["temperature"] or 1.0))
    u = tensors["u"]
    u.copy_(((torch.special.erf(u.double() / 2**0.5) + 1) / 2).clamp(0, 1 - 2**-24))


def settle(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Moves u, and the largest logit, so far from where the token changes that every honest sum finds the same."""
    logits, u = tensors["logits"], tensors["u"]
    temperature, top_k, top_p, V = (shape[name] for name in ("temperature", "top_k", "top_p", "V"))
    if temperature == 0:
        return
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(shape["dtype"], torch.float32)
    logits.copy_(logits.to(dtype))
    if top_p < 1 and V > 1 and top_k != 1:
        _settle_edge(logits, shape, dtype)
    low, high, margin = _share_of(tensors, shape)
    u.copy_(torch.minimum(torch.maximum(u.double(), low + margin), high - margin).clamp(0, 1 - 2**-24))


def _share_of(tensors: dict[str, torch.Tensor], shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B,): between which u the token stays the same that u means, or the next one that is likely enough; and how far
    from both ends u should be."""
    temperature, top_k, top_p, V = (shape[name] for name in ("temperature", "top_k", "top_p", "V"))
    values, order = torch.sort(tensors["logits"][:, :V].double(), dim=-1, descending=True, stable=True)
    weights = weights_of(values, temperature) * kept(values, temperature, top_k, top_p)
    shares = torch.zeros_like(values).scatter(1, order, weights / weights.sum(-1, keepdim=True))
    running = shares.cumsum(-1)
    likely = (shares >= 2 * MARGIN) | (shares == shares.amax(-1, keepdim=True))
    token = ((running > tensors["u"][:, None]) & likely).byte().argmax(-1, keepdim=True)
    high, share = running.gather(1, token)[:, 0], shares.gather(1, token)[:, 0]
    return high - share, high, share.clamp(max=2 * MARGIN) / 2


def _settle_edge(logits: torch.Tensor, shape: Shape, dtype: torch.dtype) -> None:
    """Raises the largest logit of each row by so much that top_p falls well within the last kept token's share."""
    temperature, top_k, top_p, V = (shape[name] for name in ("temperature", "top_k", "top_p", "V"))
    values, order = torch.sort(logits[:, :V].double(), dim=-1, descending=True, stable=True)
    top = values[:, :1]
    raised = torch.cat([(top + temperature * n / 4).to(dtype).double() for n in range(16)], -1)  # (B, 16)
    weights = ((values[:, 1 : top_k or None] - top) / temperature).exp()  # of the others
    behind = weights.cumsum(-1)
    first = ((raised - top) / temperature).exp()
    total = first + weights.sum(-1, keepdim=True)
    wanted = top_p * total - first
    after = torch.searchsorted(behind, wanted.clamp(min=0)).clamp(max=behind.shape[-1] - 1)
    distance = torch.minimum(
        (behind.gather(1, after) - wanted).abs(),
        (behind.gather(1, (after - 1).clamp(min=0)) * (after > 0) - wanted).abs(),
    )
    enough = (distance / total > MARGIN) & raised.isfinite()
    best = torch.where(enough.any(-1), enough.byte().argmax(-1), (distance / total).nan_to_num(0).argmax(-1))
    logits.scatter_(1, order[:, :1], raised.gather(1, best[:, None]).to(logits.dtype))


def all_equal(tensors, shape):
    """Each is as likely as another, and the k-th and the nucleus's edge are ties: lower indices are kept."""
    tensors["logits"].fill_(2.0)
    _in_the_middle(tensors, shape)


def signed_zeros(tensors, shape):
    """0 and -0 are equal: what compares bits takes only every second."""
    logits = tensors["logits"]
    logits.zero_()
    logits[:, ::2] *= -1
    _in_the_middle(tensors, shape)


def _in_the_middle(tensors, shape):
    """u in the middle of a token's share, of rows whose kept logits are all equal."""
    count = min(shape["top_k"] or shape["V"], shape["V"])
    if shape["top_p"] < 1:
        count = max(1, -int(-shape["top_p"] * count // 1))
    tensors["u"].copy_(((tensors["u"].double() * count).floor() + 0.5) / count)


def few_values(tensors, shape):
    """Many logits are equal to each other, at the edges of top_k and top_p as well."""
    tensors["logits"].div_(4).round_().mul_(4)
    settle(tensors, shape)


@applies(when=lambda shape: shape["temperature"] > 0 and shape["V"] > 1)
def near_an_edge(tensors, shape):
    """u is as near to the end of a token's share as it comes: sums in less than fp32 find the one beside it."""
    low, high, margin = _share_of(tensors, shape)
    last = torch.arange(shape["B"]) % 2 == 1
    tensors["u"].copy_(torch.where(last, high - margin, low + margin).clamp(0, 1 - 2**-24))


def growing(tensors, shape):
    """Each logit is larger than all before it: a running maximum is raised at every step."""
    tensors["logits"].copy_(torch.linspace(-60, 0, shape["VP"]).expand_as(tensors["logits"]))
    settle(tensors, shape)


def _alone(tensors, shape, index):
    tensors["logits"][:, index] = 1e4


def first_alone(tensors, shape):
    """The first logit has all the weight: whatever u is, it is the token."""
    _alone(tensors, shape, 0)


def last_alone(tensors, shape):
    """The same of the last one that counts."""
    _alone(tensors, shape, shape["V"] - 1)


@applies(when=lambda shape: shape["V"] < shape["VP"])
def huge_padding(tensors, shape):
    """A padding column larger than every logit must change nothing."""
    tensors["logits"][:, shape["V"] :] = 1e4


@applies(when=lambda shape: shape["V"] < shape["VP"])
def padding_of_nan(tensors, shape):
    """NaN and infinities in padding columns, as in memory that nobody wrote: the row has a distribution all the
    same."""
    padding = tensors["logits"][:, shape["V"] :]
    padding.fill_(torch.nan)
    padding[:, ::3] = torch.inf


def minus_infinity(tensors, shape):
    """Tokens that are ruled out: every second one."""
    tensors["logits"][:, 1 : shape["V"] : 2] = -torch.inf
    settle(tensors, shape)


def nothing_but_minus_infinity(tensors, shape):
    """All are ruled out, and so all are as likely."""
    tensors["logits"].fill_(-torch.inf)
    _in_the_middle(tensors, shape)


def zero_behind_nothing(tensors, shape):
    """u is 0, and what comes first is ruled out: a running sum of 0 is not above 0."""
    logits, first = tensors["logits"], shape["V"] // 2
    logits[:, first] = logits[:, : shape["V"]].amax(-1)
    logits[:, :first] = -torch.inf
    tensors["u"].zero_()


def one_at_the_end(tensors, shape):
    """u is as near to 1 as it comes, and the last logit is a likely one."""
    logits, last = tensors["logits"], shape["V"] - 1
    logits[:, last] = logits[:, : shape["V"]].amax(-1) + 2 * shape["temperature"]
    logits[:, :last] = logits[:, :last].clamp(max=1e4)
    settle(tensors, shape)
    tensors["u"].fill_(1 - 2**-24)


def far_below(tensors, shape):
    """All logits below what a kernel may have chosen as the lowest there is; one of them is the largest by far."""
    fp16 = shape["dtype"] == "fp16"
    tensors["logits"].fill_(-6.5e4 if fp16 else -3e38)
    tensors["logits"][:, shape["V"] // 2] = -6e4 if fp16 else -1e30


def two_infinities(tensors, shape):
    """Both ends are infinite: nothing else has a chance."""
    tensors["logits"][:, 0] = tensors["logits"][:, shape["V"] - 1] = torch.inf
    tensors["u"].copy_(torch.where(tensors["u"] < 0.5, 0.25, 0.75))


def not_finite(tensors, shape):
    """A NaN, and another one behind it, in the last row, which has an infinity too: the first NaN is its token."""
    logits, V = tensors["logits"], shape["V"]
    logits[-1, 0] = torch.inf
    logits[-1, V // 2] = logits[-1, V - 1] = torch.nan


CASES = {
    "all_equal": all_equal,
    "signed_zeros": signed_zeros,
    "few_values": few_values,
    "near_an_edge": near_an_edge,
    "growing": growing,
    "first_alone": first_alone,
    "last_alone": last_alone,
    "huge_padding": huge_padding,
    "padding_of_nan": padding_of_nan,
    "minus_infinity": minus_infinity,
    "nothing_but_minus_infinity": nothing_but_minus_infinity,
    "zero_behind_nothing": zero_behind_nothing,
    "one_at_the_end": one_at_the_end,
    "far_below": far_below,
    "two_infinities": two_infinities,
    "not_finite": not_finite,
}


def flops(shape: Shape, phase: str) -> int:
    """A logit: compared, subtracted, exp, added; with temperature 0 compared alone."""
    return shape["B"] * shape["V"] * (4 if shape["temperature"] else 1)


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """Padding need not be read; with temperature 0 nor need u."""
    read = shape["V"] * ITEM_SIZE[shape["dtype"]] + (4 if shape["temperature"] else 0)
    return shape["B"] * (read + ITEM_SIZE["int"])
