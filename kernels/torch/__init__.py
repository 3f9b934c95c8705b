"""PyTorch's own ways, as variants like any other: the baselines, and with `eager` the yardstick of accuracy."""

from collections.abc import Callable

import torch


def put(into: torch.Tensor, grad: torch.Tensor, accumulate: bool) -> None:
    """Write a parameter gradient, or add to it. Added in fp32 and rounded once."""
    if not accumulate:
        into.copy_(grad)
    elif grad.dtype == into.dtype == torch.float32:
        into.add_(grad)
    else:
        into.copy_(into.float() + grad.float())


def compiled(function: Callable) -> Callable:
    """torch.compile for static shapes: every shape gets a graph of its own, however many there are."""
    graphs: dict[tuple, Callable] = {}

    def call(*args):
        key = tuple(_kind(a) for a in args)
        if key not in graphs:
            # A fresh function object a shape: torch gives up on one that has been compiled too often.
            copy = type(function)(
                function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
            )
            graphs[key] = torch.compile(copy, fullgraph=True, dynamic=False)
        with torch.no_grad():
            return graphs[key](*args)

    return call


def _kind(arg):
    if isinstance(arg, torch.Tensor):
        return arg.shape, arg.stride(), arg.dtype, arg.device
    return tuple(_kind(a) for a in arg) if isinstance(arg, (list, tuple)) else arg
