"""Tensor cores under a running softmax: probabilities stay in the registers that the next product takes them from.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or written
once. Beside them stands one exp2 a pair, sixteen a cycle and multiprocessor. After FlashAttention-2 (Dao 2023).

Forward: a warp owns 32 rows of queries (16 in heads above 64), which it holds as operands, with all their scores of a
tile of 64 keys. The lanes that have a score after q k^T are those that must bring it to p v, so p goes through no
memory. k and v have two stages each, filled by cp.async while the other is used: one barrier a tile. Rows lie swizzled
in shared memory, so that neither copies nor ldmatrix meet in a bank. The scale is folded into the exponent's
multiply-add; masks are applied in tiles on the diagonal or over the end alone, tiles that a warp does not see it leaves
out, and sums are scaled anew only where a row's largest has grown by more than 2^8 (as FlashAttention-4 does). Blocks
with most tiles begin first, 64 heads together, so that keys and values come from the L2 cache.

Backward: scores again, twice: one kernel's warps own keys and walk over queries (dk, dv, of all heads that share the
keys; scores transposed, for the same reason as above), the other's own queries and walk over keys (dq). No atomics, the
same bits each time, for 14 HS FLOPs instead of 10. delta = sum(dout * out) and lse in base 2 are worked out before, two
floats a query.

What limits it, by counts: `mma` has some 62 to 68% of the rate of Hopper's wgmma, as others measured, and no kernel
here can pass that. At HS = 64 a tile of forward is 128 products a warp, beside 64 exp2 a lane, 32 ldmatrix and some 400
other instructions; two blocks to a multiprocessor, held there by registers, let one multiply while the other takes
exponents. ldmatrix has the banks busy about half as long as the tensor cores work in forward and dq, and about as long
in dk and dv, whose sums leave no registers for longer slices, and in heads above 64. Heads whose size is no multiple of
16 are filled up with zeros; where rows do not begin at multiples of 16 bytes, copies are narrower. A window has kernels
of its own, in which tiles wholly behind it are left out, and those on its edge are masked too.
"""

from math import gcd

from kernels.cuda import Kernel, Strided, blocks
from kernels.cuda.packing import pack_width

DTYPES = ("bf16", "fp16")
REQUIRES = ("sm80",)
DETERMINISTIC = True
TENSOR_CORES = True

# As in mma.cu:
WARPS, WARP, STRIP, TILE = 4, 32, 16, 64
THREADS = WARPS * WARP
WIDEST = 128  # the largest head whose sums, of dk and dv, fit into registers
BYTES = 2  # of an element

forward_kernel = Kernel("mma.cu", "attention_forward")
statistics_kernel = Kernel("mma.cu", "attention_statistics")
dkdv_kernel = Kernel("mma.cu", "attention_dkdv")
dq_kernel = Kernel("mma.cu", "attention_dq")


def supports(shape):
    return shape["HS"] <= WIDEST or f"head sizes above {WIDEST}"


def block_rows(HS):
    """Queries, or keys, that a block owns."""
    return WARPS * STRIP * (2 if HS <= 64 else 1)


def padded(T):
    """Places for the statistics of T queries: whole tiles, and whole blocks."""
    return blocks(T, 2 * TILE) * 2 * TILE


def workspace(shape, phase):
    """Backward: lse in base 2 and delta, in fp32."""
    return 8 * shape["B"] * shape["NH"] * padded(shape["T"]) if phase == "backward" else 0


def tile_bytes(HS, rows):
    """Of `rows` rows in shared memory."""
    return BYTES * rows * blocks(HS, STRIP) * STRIP


def strides(tensor):
    return list(tensor.stride()[:3])


def access_width(HS, *tensors):
    """The most elements, up to 16 bytes, at a multiple of which every row begins."""
    every = gcd(HS, *(stride for t in tensors for stride in strides(t)))
    return pack_width(*tensors, multiple_of=every)


def option(window):
    """Kernels with a window are others: those without shall have no instruction of it."""
    return {"WINDOW": True} if window else {}


def forward(q, k, v, causal, window=0, *, out, lse):
    B, T, NH, HS = q.shape
    window = window if window < T else 0
    sizes = B * NH, T, NH, k.shape[2], HS**-0.5, causal, window
    rows = block_rows(HS)
    constants = dict(HS=HS, N=access_width(HS, q, k, v, out), **option(window))
    launch = forward_kernel(B * NH * blocks(T, rows), THREADS, tile_bytes(HS, rows + 4 * TILE), **constants)
    launch(out, lse, Strided(q), Strided(k), Strided(v), strides(q), strides(k), strides(v), *sizes)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    NKV, rows, places = k.shape[2], block_rows(HS), padded(T)
    window = window if window < T else 0
    constants = dict(HS=HS, N=access_width(HS, dout, q, k, v, out, dq, dk, dv))
    launch = statistics_kernel(blocks(B * NH * places, WARPS * WARP), THREADS, **constants)
    launch(workspace, dout, out, lse, B * NH, T, places, NH)

    qkv, at = (Strided(q), Strided(k), Strided(v)), (strides(q), strides(k), strides(v))
    sizes = T, places, NH, NKV, HS**-0.5, causal, window
    shared = tile_bytes(HS, 2 * rows + 4 * TILE)
    constants |= option(window)
    launch = dkdv_kernel(B * NKV * blocks(T, rows), THREADS, shared + 16 * TILE, **constants)
    launch(Strided(dk), Strided(dv), dout, *qkv, workspace, strides(dk), strides(dv), *at, B * NKV, *sizes)
    launch = dq_kernel(B * NH * blocks(T, rows), THREADS, shared, **constants)
    launch(Strided(dq), dout, *qkv, workspace, strides(dq), *at, B * NH, *sizes)
