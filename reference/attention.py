"""Scaled dot-product attention (Vaswani et al. 2017): out = softmax(q k^T / sqrt(HS)) v, causal or not.

With the option `window` (causal only) query t sees the keys t - window + 1 to t: sliding window attention, as Mistral
(Jiang et al. 2023) has it. 0, or no such entry of the shape: all keys up to t.

q, k and v are slices of one packed (B, T, NH + 2 NKV, HS) tensor, as the qkv matmul writes it; their gradients are
written into the same slices. With NKV < NH each key/value head serves NH/NKV query heads in a row (grouped queries).
"""

import torch

from reference.contract import FLAG, PHASES, Pass, Shape, Tensor, alike, applies, few_roundings, scaled

Q, KV = "B T NH HS", "B T NKV HS"

FORWARD = Pass(
    inputs=(Tensor("q", Q, pack="qkv"), Tensor("k", KV, pack="qkv"), Tensor("v", KV, pack="qkv")),
    scalars=("causal",),
    optional=("window",),
    outputs=(Tensor("out", Q), Tensor("lse", "B NH T", "fp32")),
)
BACKWARD = Pass(
    inputs=(
        Tensor("dout", Q),
        Tensor("q", Q, pack="qkv"),
        Tensor("k", KV, pack="qkv"),
        Tensor("v", KV, pack="qkv"),
        Tensor("out", Q),
        Tensor("lse", "B NH T", "fp32"),
    ),
    scalars=("causal",),
    optional=("window",),
    outputs=(Tensor("dq", Q, pack="dqkv"), Tensor("dk", KV, pack="dqkv"), Tensor("dv", KV, pack="dqkv")),
)


def _scores(q, k, causal, window):
    """(B, NH, T, T), scaled and masked. Raises ValueError for a window that is negative, or not causal."""
    if window < 0 or (window and not causal):
        raise ValueError(f"a window of {window}" if window < 0 else "a window that is not causal")
    group = q.shape[2] // k.shape[2]
    k = k.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        T = q.shape[1]
        hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        if window:
            hidden |= torch.ones_like(hidden).tril(-window)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def forward(q, k, v, causal, window=0):
    scores = _scores(q, k, causal, window)
    lse = scores.logsumexp(-1)  # (B, NH, T), natural logarithm
    p = scores.softmax(-1)  # not exp(scores - lse): far from 0, lse has no bits left for the logarithm
    v = v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)
    return {"out": torch.einsum("bhqk,bkhd->bqhd", p, v), "lse": lse}


def backward(dout, q, k, v, out, lse, causal, window=0):
    group, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    p = (_scores(q, k, causal, window) - lse[..., None]).exp()
    dv = torch.einsum("bhqk,bqhd->bkhd", p, dout)
    dp = torch.einsum("bqhd,bkhd->bhqk", dout, v.repeat_interleave(group, dim=2))
    # ds = p * (dp - delta), delta = sum(dout * out) over HS
    ds = p * (dp - (dout * out).sum(-1).transpose(1, 2)[..., None]) * scale
    dq = torch.einsum("bhqk,bkhd->bqhd", ds, k.repeat_interleave(group, dim=2))
    dk = torch.einsum("bhqk,bqhd->bkhd", ds, q)
    return {"dq": dq, "dk": _sum_groups(dk, group), "dv": _sum_groups(dv, group)}


def _sum_groups(grad, group):
    B, T, NH, HS = grad.shape
    return grad.view(B, T, NH // group, group, HS).sum(3)


CHOICES = {"causal": FLAG}
RAGGED = [
    dict(B=2, T=127, NH=3, NKV=3, HS=64, causal=True),
    dict(B=3, T=1, NH=4, NKV=4, HS=64, causal=True),
    dict(B=1, T=130, NH=4, NKV=2, HS=32, causal=True),
    dict(B=2, T=65, NH=2, NKV=1, HS=48, causal=False),  # several sequences, of fewer keys than queries
    dict(B=1, T=257, NH=1, NKV=1, HS=80, causal=True),
    dict(B=1, T=256, NH=4, NKV=1, HS=32, causal=True),  # whole tiles, and one key for four queries
    dict(B=1, T=128, NH=1, NKV=1, HS=96, causal=False),
    dict(B=1, T=64, NH=8, NKV=1, HS=128, causal=True),
    dict(B=1, T=261, NH=1, NKV=1, HS=64, causal=True),  # several tiles of 128, at the head size most are tuned for
    dict(B=1, T=64, NH=1, NKV=1, HS=256, causal=True),  # late, for there are kernels that have no such tiles
    dict(B=2, T=131, NH=6, NKV=2, HS=48, causal=True, window=33),  # last, for there are some that have no windows
    dict(B=1, T=256, NH=2, NKV=1, HS=64, causal=True, window=40),  # whole tiles of 64 and 128 lie behind it
]


@few_roundings
def huge_logit(tensors, shape):
    """One key far larger than the rest: exp overflows unless the row maximum is subtracted."""
    tensors["k"][:, 0] *= 30
    tensors["q"][:, -1] *= 30


@alike
def all_equal(tensors, shape):
    tensors["q"].fill_(0.5)
    tensors["k"].fill_(0.5)


def far_below(tensors, shape):
    """All scores are below -1e30 (fp16: -500), the first key's by far the highest: out is its value. A running maximum
    that starts at a number, rather than at -infinity, stays above them all."""
    _far(tensors, shape, below=True)


def far_above(tensors, shape):
    """As `far_below`, but all scores are above 1e30 (fp16: 500): exp of any of them overflows."""
    _far(tensors, shape, below=False)


def _far(tensors, shape, below):
    q, k = tensors["q"], tensors["k"]
    if "dout" in tensors:  # lse comes rounded to fp32, and is all that backward knows of the maximum
        q[..., 0], k[..., 0] = 32.0, -32.0 if below else 32.0
        return
    for each in (q, k):
        each.zero_()  # a score is one product, which no order of summing rounds
    query, key = (2.0**6, 2.0**8) if shape["dtype"] == "fp16" else (2.0**54, 2.0**52)
    # Odd numbers, so that a score times log2(e) is rounded: where only one side of a difference is (by a multiply-add),
    # exp2 of it overflows.
    query, key = query * 1.25, key * 1.25
    q[..., 0], k[..., 0] = query, -key if below else key / 2
    k[:, 0, :, 0] = -key / 2 if below else key


def rising(tensors, shape):
    """Every key's score is above all before it, in every other eight rows below, so that the running maximum moves with
    each tile, from whichever end a kernel comes, by hundreds in all: a sum that is not scaled down again counts keys
    that no longer matter."""
    for name in ("q", "k"):
        tensors[name].zero_()
    place = torch.arange(shape["T"]).view(-1, 1)
    tensors["q"][..., 0] = torch.where(place // 8 % 2 == 0, 64.0, -32.0)
    tensors["k"][..., 0] = place / 8


def outlier_values(tensors, shape):
    """The first and the last channel of v, and with it of out, are large."""
    for index in (0, -1):
        tensors["v"][..., index] *= 30 if shape["dtype"] == "fp16" else 1e4


def _all_visible(shape: Shape) -> bool:
    """Whether a key that some query does not see lies ahead of it: what is behind a window a formula may multiply by 0
    or leave out, and 0 times NaN is NaN."""
    return not shape.get("window")


@applies(when=_all_visible)
def nan_query(tensors, shape):
    """A NaN in the last query of the first head: its row is NaN, and so is what is summed over it; no other row is.

    Not at an odd T: there PyTorch's own bf16 products, which take two at a time, spoil the row before on a CPU with
    AMX, and its flash attention makes a row of one NaN 0.
    """
    if shape["T"] % 2 == 0:
        tensors["q"][0, -1, 0, 0] = torch.nan


@applies(when=_all_visible)
def nan_value(tensors, shape):
    """A NaN in the first key's value, which all queries see: that column of out is NaN, no other."""
    tensors["v"][0, 0, 0, 0] = torch.nan


CASES = {
    "huge_logit": huge_logit,
    "all_equal": all_equal,
    "far_below": far_below,
    "far_above": far_above,
    "rising": rising,
    "outlier_values": outlier_values,
    "huge_values": scaled("v", 1e20, *PHASES),
    "tiny_values": scaled("v", 1e-20, *PHASES),
    "huge_gradient": scaled("dout", 1e20),
    "tiny_gradient": scaled("dout", 1e-20),
    "nan_query": nan_query,
    "nan_value": nan_value,
}


def flops(shape: Shape, phase: str) -> int:
    """Two T x T x HS products a head in forward, five in backward; only visible pairs count: causal T(T+1)/2 of them,
    less the (T-W)(T-W+1)/2 that lie behind a window of W."""
    T = shape["T"]
    pairs = T * (T + 1) // 2 if shape["causal"] else T * T
    if window := shape.get("window", 0):
        pairs -= max(0, T - window) * (T - window + 1) // 2
    products = {"forward": 2, "backward": 5}[phase]
    return 2 * products * shape["B"] * shape["NH"] * shape["HS"] * pairs
