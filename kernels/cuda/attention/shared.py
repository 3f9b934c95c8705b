"""Tiles of queries meet tiles of keys in shared memory under a running softmax: no T x T array, masked tiles skipped.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or written
once. Plain fp32 arithmetic, no tensor cores: 67 TFLOP/s are the ceiling on an H100 or H200, in bf16 too. Each thread
keeps 8 x 4 scores and 8 x HS/16 sums of out in registers. Backward has a kernel whose blocks own keys (dk, dv) and one
whose blocks own queries (dq): no atomics, but the scores and their gradients are worked out twice (14 HS). Scratch is
one float a query.
"""

from math import gcd

from kernels import Unavailable
from kernels.cuda import Kernel, Strided, blocks, most_shared
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

# As in shared.cu:
THREADS, LANES, QUERIES, BACKWARD_QUERIES, KEYS, QUAD = 256, 16, 128, 64, 64, 4
PAIR_STRIDE = KEYS + 16
WARPS = THREADS // 32

forward_kernel = Kernel("shared.cu", "attention_forward")
delta_kernel = Kernel("shared.cu", "attention_delta")
dkdv_kernel = Kernel("shared.cu", "attention_dkdv")
dq_kernel = Kernel("shared.cu", "attention_dq")


def workspace(shape, phase):
    """Backward: delta, in fp32."""
    return 4 * shape["B"] * shape["NH"] * shape["T"] if phase == "backward" else 0


def tile_bytes(q, rows, pair_rows):
    """Of `rows` rows of q, k, v or dout, and `pair_rows` rows of scores, in shared memory. Raises Unavailable for heads
    whose tiles do not fit: on Hopper up to 176 do."""
    HS = q.shape[3]
    needed = 4 * (rows * (blocks(HS, LANES) * LANES + QUAD) + pair_rows * PAIR_STRIDE)
    if needed > (most := most_shared(q)):
        widest = ((most // 4 - pair_rows * PAIR_STRIDE) // rows - QUAD) // LANES * LANES
        raise Unavailable(f"tiles of head size {HS} do not fit into shared memory; up to {widest} do")
    return needed


def strides(tensor):
    return list(tensor.stride()[:3])


def access_width(HS, *tensors):
    """QUAD where every row begins at a multiple of that many elements, else 1."""
    every = gcd(HS, *(stride for t in tensors for stride in strides(t)))
    return QUAD if pack_width(*tensors, multiple_of=every) >= QUAD else 1


def option(window):
    """Kernels with a window are others: those without shall have no instruction of it."""
    return {"WINDOW": True} if window else {}


def forward(q, k, v, causal, window=0, *, out, lse):
    B, T, NH, HS = q.shape
    window = window if window < T else 0
    sizes = T, NH, k.shape[2], HS**-0.5, causal, window
    constants = dict(HS=HS, N=access_width(HS, q, k, v, out), **option(window))
    shared = tile_bytes(q, QUERIES + 2 * KEYS, QUERIES)
    launch = forward_kernel(grid=(B * NH, blocks(T, QUERIES)), block=THREADS, shared=shared, **constants)
    launch(out, lse, Strided(q), Strided(k), Strided(v), strides(q), strides(k), strides(v), *sizes)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    window = window if window < T else 0
    sizes = T, NH, k.shape[2], HS**-0.5, causal, window
    constants = dict(HS=HS, N=access_width(HS, dout, q, k, v, out, dq, dk, dv))
    delta = workspace
    delta_kernel(grid=blocks(B * T * NH, WARPS), block=THREADS, **constants)(delta, dout, out, T, NH, B * T * NH)

    constants |= option(window)
    qkv, at = (Strided(q), Strided(k), Strided(v)), (strides(q), strides(k), strides(v))
    shared = tile_bytes(q, 2 * KEYS + 2 * BACKWARD_QUERIES, 2 * BACKWARD_QUERIES)
    launch = dkdv_kernel(grid=(B * k.shape[2], blocks(T, KEYS)), block=THREADS, shared=shared, **constants)
    launch(Strided(dk), Strided(dv), dout, *qkv, lse, delta, strides(dk), strides(dv), *at, *sizes)

    shared = tile_bytes(q, 2 * KEYS + 2 * BACKWARD_QUERIES, BACKWARD_QUERIES)
    launch = dq_kernel(grid=(B * NH, blocks(T, BACKWARD_QUERIES)), block=THREADS, shared=shared, **constants)
    launch(Strided(dq), dout, *qkv, lse, delta, strides(dq), *at, *sizes)
