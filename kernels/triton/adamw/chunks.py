"""All tensors in one launch, a chunk of 2048 elements a program, each byte moved once.

Floor: 28 bytes a parameter, in fp32 (read grad, param, m, v; write param, m, v) and in bf16 with fp32 masters (read
grad, master, m, v; write param, master, m, v); about 15 FLOPs, so memory sets the pace. A program finds its tensor in a
table in memory.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from kernels.triton.launching import jit
from kernels.triton.lists import Lists, address_of, chunk_of, number_of, size_of

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

CHUNK = 2048  # elements of a program


@triton.jit
def bias_correction(one_minus_beta, step):
    """1 - beta^step: 1 - pow(beta, step) would cancel, and 1 - 0.95 has lost digits once 0.95 is rounded."""
    return -libdevice.expm1(step * libdevice.log1p(-one_minus_beta))


@jit
def adamw(
    weights, ms, vs, masters, grads, table,
    step, lr, grad_scale, one_minus_beta1, one_minus_beta2, eps,
    ALIGNED: tl.constexpr, LISTS: tl.constexpr, UNIT: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tensor, chunk = chunk_of(tl.program_id(0), table, LISTS, COUNT)
    start = chunk * CHUNK
    # Four neighbours a thread also in 16 bits: with eight, the fp32 companions would be fetched in halves of sectors.
    i = tl.max_contiguous(tl.arange(0, CHUNK), 4)
    inside = i < size_of(table, tensor, LISTS, UNIT, COUNT) - start
    param_at = address_of(weights, table, 0, tensor, ALIGNED, COUNT) + start + i
    m_at = address_of(ms, table, 1, tensor, ALIGNED, COUNT) + start + i
    v_at = address_of(vs, table, 2, tensor, ALIGNED, COUNT) + start + i
    p_at = param_at if masters is None else address_of(masters, table, 3, tensor, ALIGNED, COUNT) + start + i
    grad_at = address_of(grads, table, 4, tensor, ALIGNED, COUNT) + start + i
    decay = number_of(table, tensor, LISTS, COUNT)

    rate, time = tl.load(lr), tl.load(step)
    g = tl.load(grad_at, mask=inside, other=0.0).to(tl.float32) * tl.load(grad_scale)
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


lists = Lists(CHUNK)


def prepare(shape, phase):
    lists.reserve()


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    table = lists.table(params, m, v, masters, grads, numbers=weight_decays)
    adamw[(table.programs,)](
        *table.bases, table, step, lr, grad_scale, 1 - beta1, 1 - beta2, eps,
        CHUNK=CHUNK, num_warps=8, **table.constants,
    )  # fmt: skip
