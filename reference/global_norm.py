"""The L2 norm over all gradients at once, for clipping: norm = sqrt(sum of squares), summed in fp32 or better.

A norm that fits fp32 must come out, whether or not the squares do: gradients of 1e20 and of 1e-30 have one.
"""

import torch

from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(
    inputs=(Tensor("grads", "tensors", many=True),),
    outputs=(Tensor("norm", "", "fp32"),),
)
BACKWARD = None
SUMMED = ("grads",)


def forward(grads):
    # In fp64 whatever the inputs are: the square of 1e20 does not fit fp32.
    return {"norm": torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()}


RAGGED = [
    dict(tensors=[(1,), (769, 3), (127,), (64, 64)]),
    dict(tensors=[(50257,)]),
    dict(tensors=[(16384,), (3, 8192), (16385,)]),  # whole chunks, and one element more
]


def one_large(tensors, shape):
    """One value dwarfs the rest: the small ones must not disturb it, nor it overflow (1e15 squared fits fp32)."""
    tensors["grads"][-1].flatten()[-1:].fill_(6e4 if shape["dtype"] == "fp16" else 1e15)


def all_zero(tensors, shape):
    for g in tensors["grads"]:
        g.zero_()


def fill(tensors, shape, size):
    """Gradients of about `size`; in fp16, whose range is small, as far in its direction as fp16 goes."""
    if shape["dtype"] == "fp16":
        size = min(max(size, 1e-3), 1e3)
    for g in tensors["grads"]:
        g.mul_(size)


def huge(tensors, shape):
    """Gradients of 1e20: their squares overflow fp32, the norm does not."""
    fill(tensors, shape, 1e20)


def tiny(tensors, shape):
    """Gradients of 1e-20: their squares are subnormal in fp32."""
    fill(tensors, shape, 1e-20)


def vanishing(tensors, shape):
    """Gradients of 1e-30: their squares are 0 in fp32."""
    fill(tensors, shape, 1e-30)


def one_huge(tensors, shape):
    """One value near fp32's largest, where a chunk of its own is summed."""
    tensors["grads"][0].flatten()[-1:].fill_(6e4 if shape["dtype"] == "fp16" else 3e38)


def mixed(tensors, shape):
    """Tensors that differ by 1e40 in size: what is scaled to the largest, or the first, loses or gains all."""
    for i, g in enumerate(tensors["grads"]):
        g.mul_(1e-3 if shape["dtype"] == "fp16" else 1e-20 if i % 2 == 0 else 1e20)


def one_nan(tensors, shape):
    """A NaN in the last element of the last gradient: the norm is NaN, and a step that is told so can be skipped."""
    tensors["grads"][-1].flatten()[-1:].fill_(torch.nan)


def one_infinite(tensors, shape):
    tensors["grads"][0].flatten()[:1].fill_(-torch.inf)


CASES = {
    "one_large": one_large,
    "all_zero": all_zero,
    "huge": huge,
    "tiny": tiny,
    "vanishing": vanishing,
    "one_huge": one_huge,
    "mixed": mixed,
    "one_nan": one_nan,
    "one_infinite": one_infinite,
}


def flops(shape: Shape, phase: str) -> int:
    return 2 * sum(torch.Size(s).numel() for s in shape["tensors"])
