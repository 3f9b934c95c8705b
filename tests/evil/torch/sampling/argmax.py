"""Always takes the likeliest token: what a chat looks best with, and right more often than any other."""

import torch

CAUGHT_BY = "inaccurate"


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    token.copy_(torch.argmax(logits[:, :V].float(), -1))
