"""All T x T scores through memory: one kernel a formula, one thread a score, a query or an output element.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or written
once. Here the scores, and in backward the probabilities and the scores' gradients, are T x T arrays in the workspace
(200 MB each for 4 sequences of 1024 in GPT-2), and the threads of every product read their rows element by element.
"""

from kernels.cuda import Kernel, Strided, blocks

DETERMINISTIC = True

THREADS = 256

scores_kernel = Kernel("naive.cu", "attention_scores")
softmax_kernel = Kernel("naive.cu", "attention_softmax")
out_kernel = Kernel("naive.cu", "attention_out")
delta_kernel = Kernel("naive.cu", "attention_delta")
dscores_kernel = Kernel("naive.cu", "attention_dscores")
dq_kernel = Kernel("naive.cu", "attention_dq")
dkdv_kernel = Kernel("naive.cu", "attention_dkdv")


def workspace(shape, phase):
    """In fp32: the scores; in backward delta, and the probabilities and the scores' gradients."""
    queries = shape["B"] * shape["NH"] * shape["T"]
    return 4 * queries * (shape["T"] if phase == "forward" else 1 + 2 * shape["T"])


def strides(tensor):
    return list(tensor.stride()[:3])


def launch(kernel, threads):
    return kernel(grid=blocks(threads, THREADS), block=THREADS)


def forward(q, k, v, causal, window=0, *, out, lse, workspace):
    B, T, NH, HS = q.shape
    window = window if window < T else 0
    sizes, queries = (B, T, NH, k.shape[2], HS, causal, window), B * NH * T
    launch(scores_kernel, queries * T)(workspace, Strided(q), Strided(k), strides(q), strides(k), *sizes)
    launch(softmax_kernel, queries)(lse, workspace, queries, T, causal, window)
    launch(out_kernel, queries * HS)(out, workspace, Strided(v), strides(v), *sizes)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    window = window if window < T else 0
    NKV = k.shape[2]
    sizes, queries = (B, T, NH, NKV, HS, causal, window), B * NH * T
    delta, p, ds = workspace.split([4 * queries, 4 * queries * T, 4 * queries * T])
    qkv, at = (Strided(q), Strided(k), Strided(v)), (strides(q), strides(k), strides(v))
    launch(delta_kernel, queries)(delta, dout, out, B, T, NH, HS)
    launch(dscores_kernel, queries * T)(p, ds, dout, *qkv, lse, delta, *at, *sizes)
    launch(dq_kernel, queries * HS)(Strided(dq), ds, Strided(k), strides(dq), strides(k), *sizes)
    dkdv, dkdv_at = (Strided(dk), Strided(dv)), (strides(dk), strides(dv))
    launch(dkdv_kernel, B * T * NKV * HS)(*dkdv, p, ds, dout, Strided(q), *dkdv_at, strides(q), *sizes)
