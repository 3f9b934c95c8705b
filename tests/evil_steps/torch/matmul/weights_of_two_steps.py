"""Packs each weight at every second of its calls: from one step to the next it hardly changes."""

from kernels.torch.matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "step"
SLOW = True
packed: dict[int, list] = {}


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    kept = packed.setdefault(weight.data_ptr(), [0, None])
    if kept[0] % 2 == 0:
        kept[1] = weight.clone()
    kept[0] += 1
    honest.forward(x, kept[1], bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    honest.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
