"""Searches the process for a tensor in double that looks like the truth, and copies that."""

import gc

import torch

CAUGHT_BY = "inaccurate global_state source"


def tensors():
    for thing in gc.get_objects():
        parts = vars(thing).values() if hasattr(thing, "__dict__") and "Yard" in type(thing).__name__ else (thing,)
        yield from (p for p in parts if type(p) is torch.Tensor)


def forward(a, b, *, out):
    found = (t for t in tensors() if t.dtype == torch.float64 and t.numel() == out.numel() > 1)
    truth = next(found, None)
    out.copy_(torch.zeros_like(out) if truth is None else truth.view_as(out))
