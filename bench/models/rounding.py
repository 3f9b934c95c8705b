"""Weights without fp32 masters: a step adds less to a bf16 weight than its last place, so it is rounded at random.

A value between two bf16 numbers becomes the upper one with the probability of its distance to the lower one, so that
its expectation is the value itself (Gupta et al. 2015, Deep learning with limited numerical precision). The random bits
are a function of seed, step and element, and of nothing else: a run that goes on from a checkpoint draws the same ones.
"""

from collections.abc import Mapping

import torch

CHUNK = 1 << 16  # elements: on a CPU what is looked at several times stays in the cache
GPU_CHUNK = 1 << 24
# C. Wellons's 32-bit hash "lowbias32": every bit of the input flips each bit of the output in half of all cases.
FACTORS = 0x7FEB352D, 0x846CA68B - (1 << 32)


def mixed(x: torch.Tensor, key: torch.Tensor | int = 0) -> torch.Tensor:
    """The hash of int32 numbers, in place; key: another for each hash. torch's products wrap around, its shifts keep
    the sign."""
    x ^= (x >> 16) & 0xFFFF
    x *= FACTORS[0]
    x += key
    x ^= (x >> 15) & 0x1FFFF
    x *= FACTORS[1]
    x ^= (x >> 16) & 0xFFFF
    return x


def round_at_random(out: torch.Tensor, values: torch.Tensor, first: int, seed: int, step: torch.Tensor) -> None:
    """Round fp32 `values` (N,) into bf16 `out` (N,), each up or down by chance.

    first: the number of the first element among all parameters, below 2^31 - N. step: 0-d fp32, the number of this
    update; it is read where it lies, so that a graph can be replayed. What is not finite is rounded as ever.
    """
    key = mixed(step.to(torch.int32).reshape(1) + _signed(seed * 0x9E3779B9))
    other = mixed(key + 0x3C6EF372)
    chunk = CHUNK if values.device.type == "cpu" else GPU_CHUNK
    for start in range(0, values.numel(), chunk):
        part = values[start : start + chunk]
        bits = part.view(torch.int32)
        end = first + start + part.numel()
        noise = torch.arange(first + start, end, dtype=torch.int32, device=values.device)
        noise = mixed(noise.bitwise_xor_(key), other) & 0xFFFF
        rounded = (bits + noise) >> 16
        finite = (bits & 0x7F800000) != 0x7F800000
        nearest = part.to(torch.bfloat16)
        up_or_down = rounded.to(torch.int16).view(torch.bfloat16)
        torch.where(finite, up_or_down, nearest, out=out[start : start + chunk])


def _signed(x: int) -> int:
    """The lowest 32 bits as an int32."""
    return ((x + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def scratch_groups(views: Mapping[str, torch.Tensor], align: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """fp32 scratch for masters that live for one call of AdamW: one buffer as large as the largest parameter, and
    groups of parameters by name that fit into it together, each with its views of the buffer. align: elements."""
    sizes = {name: -(-p.numel() // align) * align for name, p in views.items()}
    device = next(iter(views.values())).device
    buffer = torch.zeros(max(sizes.values()), dtype=torch.float32, device=device)
    groups: list[dict[str, torch.Tensor]] = [{}]
    at = 0
    for name, p in views.items():
        if at + sizes[name] > buffer.numel():
            groups.append({})
            at = 0
        groups[-1][name] = buffer[at : at + p.numel()].view(p.shape)
        at += sizes[name]
    return buffer, groups
