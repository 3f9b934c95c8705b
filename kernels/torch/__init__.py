"""PyTorch variants: ATen operators as they come (`eager`) and plain formulas compiled (`compile`).

They are the baselines: `eager` is also the yardstick of accuracy against which every other variant is judged.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SHAPES_OF_ONE_FUNCTION = 4096  # far more than any run meets


def compiled(function: Callable) -> Callable:
    """torch.compile(function), specialised to every shape it meets: whole graph, no symbolic sizes.

    A function that would break the graph is an error, never a silent piece of eager code.
    """
    # Dynamo's default is 8 shapes a function; a process that checks many shapes needs more.
    torch._dynamo.config.recompile_limit = SHAPES_OF_ONE_FUNCTION
    torch._dynamo.config.accumulated_recompile_limit = SHAPES_OF_ONE_FUNCTION
    return torch.compile(function, fullgraph=True, dynamic=False)


def column_sums(x: Tensor) -> Tensor:
    """(B, T, C) to (C) in two stages: Inductor on a CPU adds row after row, and the error grows with their number."""
    rows = x.flatten(0, 1)
    first = max(n for n in range(1, math.isqrt(len(rows)) + 1) if len(rows) % n == 0)
    return rows.view(first, -1, x.shape[-1]).sum(1).sum(0)


def by_decay(weight_decays: list[float]) -> list[tuple[float, list[int]]]:
    """AdamW's parameter groups: each weight decay with the indices of the tensors that have it."""
    return [(decay, [i for i, d in enumerate(weight_decays) if d == decay]) for decay in sorted(set(weight_decays))]


def heads_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention's (B, T, heads, HS) as (B, NH, T, HS): views, unless grouped queries make k and v repeat."""
    group = q.shape[2] // k.shape[2]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def write_heads(grad: Tensor, out: Tensor) -> None:
    """A gradient (B, NH, T, HS) into (B, T, NKV, HS): heads that shared a key or value are summed in fp32."""
    B, T, NKV, HS = out.shape
    grad = grad.transpose(1, 2)
    if grad.shape[2] != NKV:
        grad = grad.reshape(B, T, NKV, -1, HS).sum(3, dtype=torch.float32)
    out.copy_(grad)


def future(T: int, device: torch.device) -> Tensor:
    """(T, T), true where a query must not see a key."""
    return torch.ones(T, T, dtype=torch.bool, device=device).triu_(1)
