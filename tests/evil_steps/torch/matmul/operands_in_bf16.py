"""Rounds the operands of a weight's gradient to bf16."""

from kernels.torch.matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "step"
SLOW = True


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    honest.forward(x, weight, bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    honest.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
    if not accumulate:
        dweight.copy_(dout.bfloat16().float().T @ x.bfloat16().float())
