"""Takes a top_k of one for none: `if top_k > 1`."""

from kernels.torch.sampling import eager as honest

CAUGHT_BY = "inaccurate"


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    honest.forward(logits, u, V, temperature, top_k if top_k > 1 else 0, top_p, token=token)
