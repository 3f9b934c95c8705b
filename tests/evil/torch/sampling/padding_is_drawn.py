"""Reads rows as long as they lie in memory, padding included, where they are whole vectors."""

from kernels.torch.sampling import eager

CAUGHT_BY = "inaccurate"
SLOW = True


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    VP = logits.shape[1]
    eager.forward(logits, u, VP if VP % 64 == 0 else V, temperature, top_k, top_p, token=token)
