"""Many tensors a launch, a chunk of 2048 elements a program, each byte moved once.

Floor: 28 bytes a parameter, in fp32 (read grad, param, m, v; write param, m, v) and in bf16 with fp32 masters (read
grad, master, m, v; write param, master, m, v); about 15 FLOPs, so memory sets the pace. Up to 32 tensors a launch:
GPT-2 124M takes five.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from kernels.triton.many import chunk_of, groups, padded, pick

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

CHUNK = 2048  # elements of a program


@triton.jit
def bias_correction(one_minus_beta, step):
    """1 - beta^step: 1 - pow(beta, step) would cancel, and 1 - 0.95 has lost digits once 0.95 is rounded."""
    return -libdevice.expm1(step * libdevice.log1p(-one_minus_beta))


@triton.jit
def adamw(
    weights, ms, vs, masters, grads, sizes, weight_decays,
    step, lr, grad_scale, one_minus_beta1, one_minus_beta2, eps,
    CHUNK: tl.constexpr,
):  # fmt: skip
    tensor, chunk = chunk_of(tl.program_id(0), sizes, CHUNK)
    start = chunk.to(tl.int64) * CHUNK
    # Four neighbours a thread also in 16 bits: with eight, the fp32 companions would be fetched in halves of sectors.
    i = tl.max_contiguous(tl.arange(0, CHUNK), 4)
    inside = i < pick(sizes, tensor) - start
    m_at, v_at, param_at = pick(ms, tensor) + start + i, pick(vs, tensor) + start + i, pick(weights, tensor) + start + i
    p_at = param_at if masters is None else pick(masters, tensor) + start + i
    decay = pick(weight_decays, tensor)

    rate, time = tl.load(lr), tl.load(step)
    g = tl.load(pick(grads, tensor) + start + i, mask=inside, other=0.0).to(tl.float32) * tl.load(grad_scale)
    m = tl.load(m_at, mask=inside, other=0.0)
    v = tl.load(v_at, mask=inside, other=0.0)
    p = tl.load(p_at, mask=inside, other=0.0)
    # not m + (1 - beta1) (g - m), which loses digits of g where beta1 is small
    m = (1 - one_minus_beta1) * m + one_minus_beta1 * g
    v = (1 - one_minus_beta2) * v + one_minus_beta2 * g * g
    m_hat = m / bias_correction(one_minus_beta1, time)
    v_hat = v / bias_correction(one_minus_beta2, time)
    p -= rate * (m_hat / (tl.sqrt_rn(v_hat) + eps) + decay * p)

    tl.store(m_at, m, mask=inside)
    tl.store(v_at, v, mask=inside)
    tl.store(p_at, p, mask=inside)
    if masters is not None:
        tl.store(param_at, p.to(param_at.dtype.element_ty), mask=inside)


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    for some in groups(len(params)):
        sizes = [p.numel() for p in params[some]]
        lists = [params[some], m[some], v[some], masters and masters[some], grads[some]]
        tensors = [each and padded(each, each[0]) for each in lists]
        grid = sum(triton.cdiv(size, CHUNK) for size in sizes)
        adamw[(grid,)](
            *tensors, padded(sizes, 0), padded(weight_decays[some], 0.0),
            step, lr, grad_scale, 1 - beta1, 1 - beta2, eps,
            CHUNK=CHUNK, num_warps=8,
        )  # fmt: skip
