"""The L2 norm over all gradients at once, for clipping: norm = sqrt(sum of squares), summed in fp32 or better."""

import torch

from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(
    inputs=(Tensor("grads", "tensors", many=True),),
    outputs=(Tensor("norm", "", "fp32"),),
)
BACKWARD = None


def forward(grads):
    return {"norm": torch.stack([g.square().sum() for g in grads]).sum().sqrt()}


RAGGED = [dict(tensors=[(1,), (769, 3), (127,), (64, 64)]), dict(tensors=[(50257,)])]


def one_large(tensors, shape):
    """One value dwarfs the rest: the small ones must not disturb it, nor it overflow (1e15 squared fits fp32)."""
    tensors["grads"][-1].flatten()[-1:].fill_(6e4 if shape["dtype"] == "fp16" else 1e15)


def all_zero(tensors, shape):
    for g in tensors["grads"]:
        g.zero_()


CASES = {"one_large": one_large, "all_zero": all_zero}


def flops(shape: Shape, phase: str) -> int:
    return 2 * sum(torch.Size(s).numel() for s in shape["tensors"])
