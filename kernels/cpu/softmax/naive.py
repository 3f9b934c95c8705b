"""Three loops a row on one thread: maximum, sum of exponentials, quotient."""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "softmax_forward")
backward_kernel = Kernel("naive.cpp", "softmax_backward")


def forward(x, causal, *, out):
    R, S = x.shape
    forward_kernel(out, x, R, S, causal)


def backward(dout, out, causal, *, dx):
    R, S = out.shape
    backward_kernel(dx, dout, out, R, S, causal)
