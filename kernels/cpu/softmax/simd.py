"""Maximum and sum in one pass, quotient in a second from cache; masked scores are neither read nor computed.

Floor: forward one read of every visible score and one write of every score, backward two reads and one write.
Measured on one Zen 5 core at T=1024, causal: 0.65 of a streamed copy's bandwidth forward and 0.75 backward in fp32; two
exp a score make it 0.3 forward in bf16, 0.65 backward.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "softmax_forward")
backward_kernel = Kernel("simd.cpp", "softmax_backward")


def forward(x, causal, *, out):
    R, S = x.shape
    forward_kernel(out, x, R, S, causal)


def backward(dout, out, causal, *, dx):
    R, S = out.shape
    backward_kernel(dx, dout, out, R, S, causal)
