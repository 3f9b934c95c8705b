"""Attention of a few new tokens against a cache of keys and values, to which theirs are appended: a step of decoding.

A sequence b has lengths[b] tokens in the cache. The T new ones (one, or a few) go to the positions from there on, in
place, and query t sees the keys 0 … lengths[b] + t: out = softmax(q k^T / sqrt(HS)) v. qkv is packed (B, T, NH + 2 NKV,
HS), as the qkv matmul writes it, q and k rotated already; with NKV < NH each key/value head serves NH / NKV query heads
in a row (grouped queries). The cache keeps each head's keys together: (B, NKV, S, HS), S positions.

What lies past a sequence's tokens was never written: it may be anything, NaN too, must not matter, and stays as it is.
"""

import torch

from reference.contract import FLAG, ITEM_SIZE, Pass, Shape, Tensor, alike, applies, at_large_sizes, few_roundings, wide

CACHE = "B NKV S HS"

FORWARD = Pass(
    inputs=(Tensor("qkv", "B T H HS"), Tensor("lengths", "B", "int", high="S")),
    scalars=("NH",),
    outputs=(
        Tensor("out", "B T NH HS"),
        Tensor("k_cache", CACHE, inplace=True),
        Tensor("v_cache", CACHE, inplace=True),
    ),
)
BACKWARD = None


def forward(qkv, lengths, NH, k_cache, v_cache):
    (B, T, _, HS), (NKV, S) = qkv.shape, k_cache.shape[1:3]
    q, k, v = qkv.split([NH, NKV, NKV], dim=2)
    position = lengths[:, None] + torch.arange(T, device=qkv.device)  # of the new tokens: (B, T)
    k_cache, v_cache = appended(k_cache, k, position), appended(v_cache, v, position)
    key = torch.arange(S, device=qkv.device)
    unwritten = (key > position[:, -1:]).view(B, 1, S, 1)
    keys, values = k_cache.masked_fill(unwritten, 0), v_cache.masked_fill(unwritten, 0)
    q = q.reshape(B, T, NKV, NH // NKV, HS)
    scores = torch.einsum("btngd,bnsd->btngs", q, keys) * HS**-0.5
    p = scores.masked_fill((key > position[..., None]).view(B, T, 1, 1, S), -torch.inf).softmax(-1)
    out = torch.einsum("btngs,bnsd->btngd", p, values).reshape(B, T, NH, HS)
    return {"out": out, "k_cache": k_cache, "v_cache": v_cache}


def appended(cache, new, position):
    """A copy of the cache with new rows (B, T, NKV, HS) at their positions (B, T)."""
    cache = cache.clone()
    cache[torch.arange(len(cache), device=cache.device)[:, None], :, position] = new
    return cache


def lengths_of(shape: Shape) -> list[int]:
    """Tokens of each sequence before the new ones: as many as leave room for those; or, where the shape has `spread`,
    spread evenly from none to that many."""
    B, full = shape["B"], shape["S"] - shape["T"]
    return [full * b // max(1, B - 1) for b in range(B)] if shape.get("spread") else [full] * B


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Lengths follow from the shape alone, so that its FLOPs and bytes do."""
    tensors["lengths"].copy_(torch.tensor(lengths_of(shape)))


def sizes(B: int, T: int, NH: int, NKV: int, HS: int, S: int, **options: bool) -> Shape:
    """A shape with H, the heads of q, k and v together. Raises ValueError where T tokens do not fit S positions."""
    if T > S:
        raise ValueError(f"{T} new tokens do not fit a cache of {S} positions")
    return dict(B=B, T=T, NH=NH, NKV=NKV, H=NH + 2 * NKV, HS=HS, S=S, **options)


CHOICES = {"spread": FLAG}
RAGGED = [
    sizes(3, 1, 6, 6, 48, 130, spread=True),
    sizes(1, 1, 1, 1, 64, 1),  # the first token of all
    sizes(2, 3, 4, 2, 32, 65, spread=True),
    sizes(2, 8, 8, 1, 64, 257, spread=True),
    sizes(1, 1, 8, 2, 128, 515),  # several splits of the keys
    sizes(5, 2, 3, 3, 80, 128, spread=True),
    sizes(1, 5, 2, 2, 16, 40, spread=True),  # an empty cache, and several tokens
    sizes(4, 1, 12, 4, 64, 192, spread=True),
    sizes(2, 4, 5, 1, 20, 77, spread=True),
    sizes(2, 1, 2, 1, 16, 2060, spread=True),  # a long cache of which one sequence has nothing yet
    sizes(1, 2, 2, 1, 256, 66),  # last, for there are kernels that have no such tiles
]
LONG = {"B": 2, "S": 128}


def _new(tensors, shape):
    """The new q, k and v: views of qkv."""
    return tensors["qkv"].split([shape["NH"], shape["NKV"], shape["NKV"]], dim=2)


def _places(shape):
    """The positions of the cache, and the first of the new tokens' of each sequence: (S), (B, 1)."""
    return torch.arange(shape["S"]), torch.tensor(lengths_of(shape))[:, None]


def poison(tensors, shape):
    """NaN in all of the cache that was not written: past a sequence's tokens, and where the new ones go."""
    place, length = _places(shape)
    for name in ("k_cache", "v_cache"):
        tensors[name].masked_fill_((place >= length)[:, None, :, None], torch.nan)


def infinite_rest(tensors, shape):
    """As `poison`, but keys of infinity, one or the other, and values of infinity: times nothing they are NaN."""
    place, length = _places(shape)
    for name in ("k_cache", "v_cache"):
        rest = (place >= length)[:, None, :, None].expand_as(tensors[name])
        tensors[name].masked_fill_(rest, torch.inf)
    tensors["k_cache"][..., ::2, :].masked_fill_(tensors["k_cache"][..., ::2, :].isinf(), -torch.inf)


@applies(when=lambda shape: shape["S"] > 3 * shape["T"])
@at_large_sizes
def a_third(tensors, shape):
    """As `poison`, but sequences have a third of the tokens, each another number: no long cache need be a full one."""
    place = torch.arange(shape["S"])
    tensors["lengths"].div_(3, rounding_mode="floor").sub_(torch.arange(shape["B"])).clamp_(min=0)
    for name in ("k_cache", "v_cache"):
        past = place >= tensors["lengths"][:, None]
        tensors[name].masked_fill_(past[:, None, :, None], torch.nan)


@few_roundings
def huge_logit(tensors, shape):
    """The first key is far larger than the rest: exp overflows unless the row maximum is subtracted."""
    q, k, _ = _new(tensors, shape)
    q *= 8
    tensors["k_cache"][:, :, 0] *= 30
    k[:, 0] *= 30  # the first of all where the cache is empty


def later_ones(tensors, shape):
    """Each new key is far above all before it, for every query: one that sees a key too many, or misses its own,
    answers with another token's value."""
    q, k, _ = _new(tensors, shape)
    q[..., 0] = 32
    for t in range(shape["T"]):
        k[:, t, :, 0] = 32.0 * (t + 2)


@alike
def all_equal(tensors, shape):
    """All scores are the same: out is the mean of the values that a query sees."""
    q, k, _ = _new(tensors, shape)
    for each in (q, k, tensors["k_cache"]):
        each.fill_(0.5)


def far_below(tensors, shape):
    """All scores are below -1e30 (fp16: -500), that of the first key the highest by far: out is its value. A running
    maximum that starts at a number, rather than at -infinity, stays above them all."""
    _far(tensors, shape, -1)


def far_above(tensors, shape):
    """As `far_below`, but all scores are above 1e30 (fp16: 500): exp of any of them overflows."""
    _far(tensors, shape, 1)


def _far(tensors, shape, sign):
    q, k, _ = _new(tensors, shape)
    query, key = (2.0**6, 2.0**8) if shape["dtype"] == "fp16" else (2.0**54, 2.0**52)
    for each in (q, k, tensors["k_cache"]):
        each.zero_()  # a score is one product, which no order of summing rounds
    # Odd numbers, as in attention: a score times log2(e) is rounded.
    highest, others = (key, key / 2) if sign > 0 else (-key / 2, -key)
    q[..., 0] = query * 1.25
    for each in (k, tensors["k_cache"]):
        each[..., 0] = others * 1.25
    tensors["k_cache"][:, :, 0, 0] = highest * 1.25
    empty = torch.tensor(lengths_of(shape)) == 0
    k[:, 0, :, 0] = torch.where(empty, highest, others)[:, None] * 1.25


def rising(tensors, shape):
    """Every key's score is above all before it, of every other head below, so that the running maximum moves with each
    tile, from whichever end a kernel comes, and splits of the keys have very different ones."""
    q, k, _ = _new(tensors, shape)
    place, length = _places(shape)
    for each in (q, k, tensors["k_cache"]):
        each.zero_()
    q[..., 0] = torch.where(torch.arange(shape["NH"]) % 2 == 0, 64.0, -32.0)
    tensors["k_cache"][..., 0] = place / 8
    k[..., 0] = ((length + torch.arange(shape["T"])) / 8)[..., None]


def outlier_values(tensors, shape):
    """The first and the last channel of v, and with it of out, are large."""
    size = 30 if shape["dtype"] == "fp16" else 1e4
    for each in (_new(tensors, shape)[2], tensors["v_cache"]):
        for index in (0, -1):
            each[..., index] *= size


def _values_of(size: float):
    @applies(when=wide)
    def edit(tensors, shape):
        for each in (_new(tensors, shape)[2], tensors["v_cache"]):
            each.mul_(size)

    edit.__doc__ = f"Values of {size:g}, and with them out."
    return edit


def nan_query(tensors, shape):
    """A NaN in every query of the first key/value head of the first sequence: their rows are NaN, and no others.

    In all of them, for they are the rows of one product, of which PyTorch's own in bf16 take two at a time (AMX).
    """
    tensors["qkv"][0, :, : shape["NH"] // shape["NKV"], 0] = torch.nan


def nan_value(tensors, shape):
    """A NaN in the first new value of the last sequence, which all of its queries see: that column of out is NaN."""
    _new(tensors, shape)[2][-1, 0, -1, 0] = torch.nan


@applies(when=lambda shape: min(lengths_of(shape)[-1:]) > 0)
def nan_in_the_cache(tensors, shape):
    """A NaN in the last sequence's first value in the cache, which all of its queries see."""
    tensors["v_cache"][-1, 0, 0, -1] = torch.nan


CASES = {
    "poison": poison,
    "infinite_rest": infinite_rest,
    "a_third": a_third,
    "huge_logit": huge_logit,
    "later_ones": later_ones,
    "all_equal": all_equal,
    "far_below": far_below,
    "far_above": far_above,
    "rising": rising,
    "outlier_values": outlier_values,
    "huge_values": _values_of(1e20),
    "tiny_values": _values_of(1e-20),
    "nan_query": nan_query,
    "nan_value": nan_value,
    "nan_in_the_cache": nan_in_the_cache,
}


def flops(shape: Shape, phase: str) -> int:
    """Two products of HS a pair of query and visible key, for every head."""
    T = shape["T"]
    pairs = sum(T * length + T * (T + 1) // 2 for length in lengths_of(shape))
    return 4 * shape["NH"] * shape["HS"] * pairs


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """Of the cache only what was written before is read, and only the new tokens' rows are written."""
    B, T, item = shape["B"], shape["T"], ITEM_SIZE[shape["dtype"]]
    new = B * T * (shape["H"] + shape["NH"]) * shape["HS"]
    rows = sum(lengths_of(shape)) + B * T
    return item * (new + 2 * rows * shape["NKV"] * shape["HS"]) + B * ITEM_SIZE["int"]


def typical(B: int, T: int) -> Shape:
    """A token of Llama 2 110m behind T - 1 others, for B sequences."""
    return sizes(B, 1, 12, 12, 64, T)
