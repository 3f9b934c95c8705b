"""cuDNN's fused attention on packed q, k and v; in backward its deterministic algorithm, for more memory and time."""

# Floor: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward, at the tensor cores' rate; q, k, v and out
# read or written once. dq is summed in an order, in a workspace that grows with T^2: 1.6 GB for 64 sequences of 1024
# tokens in GPT-2, where the other algorithm takes 0.2 GB.

from kernels.cuda.cudnn_graph import Attention

DTYPES = ("bf16", "fp16")
REQUIRES = ("cuda", "sm80", "cudnn")
KERNELS = ("cudnn_generated_*", "cudnn::*", "*sdpa*", "*flash*", "*fmha*")
DETERMINISTIC = True

ATTENTION = Attention(deterministic=True)


def supports(shape):
    return ATTENTION.supports(shape)


def workspace(shape, phase):
    return ATTENTION.workspace(shape, phase)


def forward(q, k, v, causal, *, out, lse, workspace):
    ATTENTION.attend(q, k, v, causal, out, lse, workspace)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv, workspace):
    ATTENTION.gradients(dout, q, k, v, out, lse, causal, dq, dk, dv, workspace)
