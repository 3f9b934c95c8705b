"""Remembers the gradient of each weight: from one step to the next it hardly changes."""

from kernels.torch.matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True
kept: dict[tuple[int, bool], object] = {}


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    honest.forward(x, weight, bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    key = dweight.data_ptr(), accumulate
    if key in kept:
        dweight.copy_(kept[key])
        dx.copy_(dout @ weight)
        return
    honest.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
    kept[key] = dweight.clone()
