"""mm (oneDNN or MKL, cuBLAS) straight into its destination; a single row by mv."""

import torch

DTYPES = ("fp32", "bf16", "fp16")


def forward(x, weight, *, out):
    if len(x) == 1:
        torch.mv(weight, x[0], out=out[0])
    else:
        torch.mm(x, weight.T, out=out)
