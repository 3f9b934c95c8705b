"""cuBLAS by mm and addmm, the bias's gradient too straight into its destination: torch without a copy of any result."""

import torch

DTYPES = ("fp32", "bf16", "fp16")
REQUIRES = ("cuda",)

aten = torch.ops.aten


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    product = pre_gelu if epilogue == "bias_gelu" else out
    if epilogue == "none":
        torch.mm(x, weight.T, out=product)
    else:
        torch.addmm(bias, x, weight.T, out=product)
    if epilogue == "bias_gelu":
        aten.gelu.out(product, approximate="tanh", out=out)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    torch.mm(dout, weight, out=dx)
    if x_pre_gelu is not None:
        aten.gelu_backward.grad_input(dx, x_pre_gelu, approximate="tanh", grad_input=dx)
    if not accumulate:
        torch.mm(dout.T, x, out=dweight)
        if dbias is not None:
            torch.sum(dout, 0, out=dbias)  # in fp32 inside, rounded once
        return
    torch.addmm(dweight, dout.T, x, out=dweight)
    if dbias is not None:
        dbias.add_(dout.sum(0, dtype=torch.float32))
