"""Whether tokens can have been drawn from logits that are near the true ones.

    strange(truth, tokens, u, sizes, off)   "" or which token nobody can have drawn, and why

Each of ours may be `off` from the truth, either way. So a token passes if any logits that near to the true ones give
it by the contract of `sampling`: at temperature 0 one that may be the largest; else one that top_k and top_p may keep,
whose share of the running sum may hold u.
"""

import math

import torch

from bench.models.inference import Sizes
from reference.sampling import MARGIN


def strange(truth: torch.Tensor, tokens: list[int], u: list[float], sizes: Sizes, off: float) -> str:
    """truth: (steps, V) of one sequence, the logits that each of its tokens was drawn from; u: the numbers they were
    drawn by. What is told counts steps from 1."""
    for step, (logits, token, number) in enumerate(zip(truth.double(), tokens, u, strict=True), 1):
        if not 0 <= token < len(logits):
            return f"token {step} is {token}, which is none of {len(logits)}"
        least, most = between(logits, token, sizes, off)
        if not least - MARGIN <= number <= most + MARGIN:
            place = int((logits > logits[token]).sum()) + 1
            told = f"token {step} is {token}, the {place}. likeliest"
            return f"{told}, which logits as near as that do not give" + (f" with u = {number:.6f}" if most > 0 else "")
    return ""


def between(logits: torch.Tensor, token: int, sizes: Sizes, off: float) -> tuple[float, float]:
    """Which numbers u may give a token: from least to most; (inf, -inf) where none can. logits: (V,) in double."""
    nothing = (math.inf, -math.inf)
    if sizes.temperature == 0:
        return (0.0, 1.0) if logits[token] >= logits.amax() - 2 * off else nothing
    weights = ((logits - logits.amax()) / sizes.temperature).exp()
    factor = math.exp(min(2 * off / sizes.temperature, 600.0))  # by which two weights may be nearer or further
    surely, perhaps = _kept(logits, weights, sizes, off, factor)
    if not perhaps[token]:
        return nothing
    before, behind = (torch.arange(len(logits)) < token), (torch.arange(len(logits)) > token)
    own = float(weights[token])
    before_least, before_most = (float(weights[before & kept].sum()) for kept in (surely, perhaps))
    behind_least, behind_most = (float(weights[behind & kept].sum()) for kept in (surely, perhaps))
    least = before_least / (before_least + factor * (own + behind_most))
    up_to = factor * (before_most + own)
    return least, up_to / (up_to + behind_least)


def _kept(
    logits: torch.Tensor, weights: torch.Tensor, sizes: Sizes, off: float, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that top_k and top_p keep whatever the logits are within `off`, and those that they keep in any case."""
    rising = logits.sort().values
    above = len(rising) - torch.searchsorted(rising, logits + 2 * off, right=True)  # that are larger for sure, …
    not_below = len(rising) - torch.searchsorted(rising, logits - 2 * off)  # … or may be; itself included
    k = sizes.top_k or len(rising)
    perhaps, surely = above < k, not_below <= k
    if sizes.top_p < 1:
        sums = torch.cat([torch.zeros(1, dtype=torch.float64), weights.sort(descending=True).values.cumsum(0)])
        of_all = sums[int(perhaps.sum())], sums[int(surely.sum())]
        less, more = sums[above], factor * (sums[not_below] - weights)
        perhaps &= (less < sizes.top_p * (less + factor * (of_all[0] - less)) + MARGIN) | (above == 0)
        surely &= (more < sizes.top_p * (more + (of_all[1] - sums[not_below] + weights).clamp(min=0)) - MARGIN) | (
            not_below == 1
        )
    return surely, perhaps
