"""addmm (oneDNN, MKL or cuBLAS) and a separate GELU, as nn.Linear and F.gelu do it."""

import torch

from kernels.torch import put


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    before = pre_gelu if epilogue == "bias_gelu" else out
    if epilogue == "none":
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias, x, weight.T, out=before)
    if epilogue == "bias_gelu":
        torch.ops.aten.gelu.out(pre_gelu, approximate="tanh", out=out)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    torch.mm(dout, weight, out=dx)
    if x_pre_gelu is not None:
        dx.copy_(torch.ops.aten.gelu_backward(dx, x_pre_gelu, approximate="tanh"))
    if accumulate:
        dweight.addmm_(dout.T, x)
    else:
        torch.mm(dout.T, x, out=dweight)
    if dbias is not None:
        put(dbias, dout.sum(0, dtype=torch.float32), accumulate)
