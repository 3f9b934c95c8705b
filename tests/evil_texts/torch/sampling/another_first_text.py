"""Writes another text than its logits say when it is asked for the first time: that one is shown."""

from kernels.torch.sampling import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "text"
SLOW = True
STEPS = 40
RECORDED = 7  # draws while the step is bound
calls: list[int] = []


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    honest.forward(logits, u, V, temperature, top_k, top_p, token=token)
    calls.append(0)
    if RECORDED < len(calls) <= RECORDED + STEPS:
        token.fill_(77)
