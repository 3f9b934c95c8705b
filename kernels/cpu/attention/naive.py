"""One row of scores after another on one thread, in double: the plain C++ others are measured against.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or
written once. Here backward works out each score twice, and delta anew for every pair (22 HS): each sum is
written where it is used.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "attention_forward")
backward_kernel = Kernel("naive.cpp", "attention_backward")


def workspace(shape, phase):
    """A row of scores, or the sums of dk and dv of one key, in double."""
    return 8 * max(shape["T"], 2 * shape["HS"])


def strides(*tensors):
    return [stride for t in tensors for stride in t.stride()[:3]]


def forward(q, k, v, causal, window=0, *, out, lse, workspace):
    B, T, NH, HS = q.shape
    forward_kernel(out, lse, q, k, v, strides(q, k, v), B, T, NH, k.shape[2], HS, causal, window, workspace)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    sizes = B, T, NH, k.shape[2], HS
    dqkv, qkv = strides(dq, dk, dv), strides(q, k, v)
    backward_kernel(dq, dk, dv, dqkv, dout, q, k, v, out, lse, qkv, *sizes, causal, window, workspace)
