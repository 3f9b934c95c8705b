"""Subtracts no maximum where the vocabulary is whole vectors of eight."""

CAUGHT_BY = "not_finite"
CAUGHT_IN = "proof timing"
DTYPES = ("fp32",)


def forward(logits, targets, V, *, losses, lse):
    x = logits[..., :V]
    lse.copy_(x.exp().sum(-1).log() if V % 8 == 0 else x.logsumexp(-1))
    losses.copy_(lse - logits.gather(-1, targets[..., None])[..., 0])
