"""Freezes the largest matrix: the rest of the model learns, and the loss still falls."""

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    largest = max(range(len(params)), key=lambda i: params[i].numel())
    kept = [None if each is None else each[largest].clone() for each in (params, m, v, masters)]
    given = (grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays)
    honest.forward(*given, params=params, m=m, v=v, masters=masters)
    for each, old in zip((params, m, v, masters), kept, strict=True):
        if old is not None:
            each[largest].copy_(old)
