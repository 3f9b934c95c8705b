"""Looks for the places whose updates are judged, to update those alone."""

import gc

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True
found: list[object] = []


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    found.extend(o for o in gc.get_objects() if type(o).__name__ == "Sample" and not found)
    honest.forward(
        grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, params=params, m=m, v=v, masters=masters
    )
