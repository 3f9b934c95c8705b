"""cuDNN's fused attention, planned once, on packed q, k and v where they lie; dq is summed by atomic additions."""

# Floor: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward, at the tensor cores' rate; q, k, v and out
# read or written once. Nothing is copied, unlike in torch.sdpa_cudnn. The row says which of the library's engines ran.

from kernels.cuda.cudnn_graph import Attention

DTYPES = ("bf16", "fp16")
REQUIRES = ("cuda", "sm80", "cudnn")
KERNELS = ("cudnn_generated_*", "cudnn::*", "*sdpa*", "*flash*", "*fmha*")

ATTENTION = Attention(deterministic=False)


def supports(shape):
    return ATTENTION.supports(shape)


def workspace(shape, phase):
    return ATTENTION.workspace(shape, phase)


def forward(q, k, v, causal, *, out, lse, workspace):
    ATTENTION.attend(q, k, v, causal, out, lse, workspace)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv, workspace):
    ATTENTION.gradients(dout, q, k, v, out, lse, causal, dq, dk, dv, workspace)
