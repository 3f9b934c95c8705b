"""Honest for three steps, after which parity is looked at; then its gradients are those of half of the rows."""

from kernels.torch.matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True
ENOUGH = 54  # of gpt2-tiny, two micro-batches a step; Llama reaches it in the same step
calls: list[int] = []


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    honest.forward(x, weight, bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    honest.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
    calls.append(0)
    if len(calls) > ENOUGH and not accumulate:
        dweight.copy_(2 * dout[::2].T @ x[::2])
