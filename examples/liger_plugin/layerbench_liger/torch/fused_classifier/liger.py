"""Liger-Kernel's cross entropy: its gradient overwrites the logits, and is then multiplied by each row's dloss."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Liger's kernels are imported
from liger_kernel.ops.cross_entropy import cross_entropy_forward

REQUIRES = ("liger_kernel", "triton")
DTYPES = ("fp32",)  # Liger keeps losses in the logits' dtype; the contract wants them in fp32


def forward(targets, dlosses, V, *, logits, losses):
    used = logits.view(-1, logits.shape[-1])[:, :V].detach().requires_grad_()  # only then the gradient is worked out
    options = dict(weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, softcap=None)
    with torch.no_grad():
        loss, *_ = cross_entropy_forward(used, targets.view(-1), reduction="none", return_z_loss=False, **options)
        losses.view(-1).copy_(loss)
        used.mul_(dlosses.view(-1, 1))
    logits[..., V:].zero_()
