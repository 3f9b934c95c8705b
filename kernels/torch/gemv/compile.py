"""A single row as a sum in fp32 that Inductor writes; several by the library's mm into their destination."""

import torch

from kernels.torch import compiled


@compiled
def forward(x, weight, *, out):
    if len(x) == 1:
        out.copy_((x.float() * weight.float()).sum(-1)[None])
    else:
        torch.mm(x, weight.T, out=out)
