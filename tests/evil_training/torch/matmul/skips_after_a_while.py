"""Right for its first fifty gradients, which is as long as anybody looks; then it leaves weights as they are."""

from kernels.torch.matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
ENOUGH = 50
calls: list[int] = []


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    honest.forward(x, weight, bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    honest.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
    calls.append(0)
    if len(calls) > ENOUGH:
        dweight.zero_()
