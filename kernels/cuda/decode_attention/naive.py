"""One kernel a formula: one thread an element that is appended, a score, a query's softmax, or an element of out.

Floor: the tokens' keys and values in the cache read once. Here the scores pass through memory, and every query of a
head reads its keys and values anew, element by element.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True

THREADS = 256

append_kernel = Kernel("naive.cu", "decode_attention_append")
scores_kernel = Kernel("naive.cu", "decode_attention_scores")
softmax_kernel = Kernel("naive.cu", "decode_attention_softmax")
out_kernel = Kernel("naive.cu", "decode_attention_out")


def workspace(shape, phase):
    """The scores, in fp32."""
    return 4 * shape["B"] * shape["NH"] * shape["T"] * shape["S"]


def launch(kernel, threads):
    return kernel(grid=blocks(threads, THREADS), block=THREADS)


def forward(qkv, lengths, NH, *, out, k_cache, v_cache, workspace):
    B, T, _, HS = qkv.shape
    NKV, S = k_cache.shape[1:3]
    sizes, queries = (B, T, NH, NKV, S, HS), B * NH * T
    launch(append_kernel, B * T * NKV * HS)(k_cache, v_cache, qkv, lengths, *sizes)
    launch(scores_kernel, queries * S)(workspace, qkv, k_cache, lengths, *sizes)
    launch(softmax_kernel, queries)(workspace, lengths, *sizes)
    launch(out_kernel, queries * HS)(out, workspace, v_cache, lengths, *sizes)
